/* Direct convolution, forward and data gradient: cuts the work and drives the
 * inner tiles of an instruction set.
 *
 * Both passes are described by one plan: a grid of coarse output pixels, each
 * with one or more phases. Forward has one phase and reads x at its stride. The
 * data gradient of stride s has s * s phases: dx[s i + p] gathers those taps of
 * w that meet dy there, at unit stride, from weights turned in a first stage. */
#include "conv_direct.h"

#include <math.h>
#include <string.h>

enum {
    STAGE_BYTES = 384 * 1024,  /* scratch of a task, aimed at                    */
    WEIGHT_BYTES = 320 * 1024, /* weights that stay in the second-level cache    */
    BANDS = 64,                /* of all images, where rows suffice             */
    TASKS = 32                 /* at least, where the layer is large             */
};

typedef struct {
    int rows, columns;             /* taps                                         */
    int row, column;               /* input position of the first tap at pixel 0   */
    int out_row, out_column;       /* first output pixel                           */
    int count_rows, count_columns; /* coarse pixels                             */
    size_t weights;                /* offset of its weights, floats                */
    int kh, kw;                    /* data gradient: the kernel's own last tap     */
} phase;

typedef struct {
    int n, cin, cout, h, w;  /* of the input: x or dy                         */
    int oh, ow;              /* of the output: y or dx                        */
    int blocks, out_blocks;  /* of 16 channels                                */
    int sh, sw;              /* input rows, columns from pixel to pixel       */
    int oh_step, ow_step;    /* output rows, columns from pixel to pixel      */
    int tap_row, tap_column; /* input rows, columns from tap to tap           */
    int grid_h, grid_w;      /* coarse pixels (largest phase)                 */
    int row_min, column_min; /* smallest input position at pixel 0            */
    int row_span;            /* input rows that one coarse row needs          */
    int stage_columns;       /* of one column phase                           */
    int staged;
    int pixel;                 /* words of a pixel's block                      */
    int group, band, chunk;    /* images, coarse rows, output blocks of a task */
    int groups, bands, chunks; /* how many of each                            */
    size_t x_sample, y_sample; /* floats between images    */
    size_t row_floats, block_floats, image_floats; /* of the staged input, in words */
    size_t thread_bytes;
    size_t weight_floats; /* turned or packed weights in the workspace; 0: none */
    int gaps;             /* some phases have no taps */
    int phases;
    phase phase[MDMT_CONV_PHASES];
} plan;

typedef struct {
    const mdmt_site *site;
    const mdmt_conv_micro *micro;
    const plan *plan;
    mdmt_value x;
    const float *weights;
    const float *init; /* bias or addend */
    mdmt_conv_init start;
    int past; /* y is stored past the caches */
    float *y, *stats;
    char *scratch;
} job;

static int greatest_divisor(int a, int b)
{
    while (b) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static void forward_phase(plan *p, const mdmt_geometry *g)
{
    p->phases = 1;
    p->phase[0] = (phase){.rows = g->kh,
                          .columns = g->kw,
                          .row = -g->pt,
                          .column = -g->pl,
                          .count_rows = p->oh,
                          .count_columns = p->ow};
    if (p->pixel < MDMT_BLOCK) {
        p->weight_floats =
            (size_t)g->kh * g->kw * p->blocks * p->out_blocks * MDMT_BLOCK * p->pixel;
    }
}

/* Taps of a strided data gradient that reach rows (columns) p, p + s, ...:
 * those k with (p + pad - k d) divisible by s. Returns their number, the last
 * of them and the row of dy it reads at pixel 0. */
static int phase_taps(int p, int pad, int kernel, int s, int d, int *last, int *position)
{
    int count = 0;
    *last = 0;
    *position = 0;
    for (int k = 0; k < kernel; k++) {
        int offset = p + pad - k * d;
        if (offset % s == 0) {
            count++;
            *last = k;
            *position = offset / s;
        }
    }
    return count;
}

static void data_phases(plan *p, const mdmt_geometry *g)
{
    size_t weights = 0;
    p->phases = 0;
    for (int a = 0; a < g->sh; a++) {
        for (int b = 0; b < g->sw; b++) {
            phase *f = &p->phase[p->phases++];
            f->rows = phase_taps(a, g->pt, g->kh, g->sh, g->dh, &f->kh, &f->row);
            f->columns = phase_taps(b, g->pl, g->kw, g->sw, g->dw, &f->kw, &f->column);
            f->out_row = a;
            f->out_column = b;
            f->count_rows = mdmt_max(0, mdmt_ceil_div(p->oh - a, g->sh));
            f->count_columns = mdmt_max(0, mdmt_ceil_div(p->ow - b, g->sw));
            if (!f->rows || !f->columns) {
                f->rows = f->columns = 0;
                p->gaps = 1;
            }
            f->weights = weights;
            weights +=
                (size_t)f->rows * f->columns * p->blocks * p->out_blocks * MDMT_BLOCK * p->pixel;
        }
    }
    p->weight_floats = weights;
}

/* The window of the input that the phases read, relative to a coarse pixel. */
static void plan_window(plan *p)
{
    int row_max = 0, column_max = 0, any = 0;
    p->row_min = p->column_min = 0;
    for (int i = 0; i < p->phases; i++) {
        const phase *f = &p->phase[i];
        if (!f->rows || !f->count_rows || !f->count_columns) {
            continue;
        }
        int row_end = f->row + (f->rows - 1) * p->tap_row;
        int column_end =
            f->column + (f->columns - 1) * p->tap_column + (f->count_columns - 1) * p->sw;
        p->row_min = any ? mdmt_min(p->row_min, f->row) : f->row;
        p->column_min = any ? mdmt_min(p->column_min, f->column) : f->column;
        row_max = any ? mdmt_max(row_max, row_end) : row_end;
        column_max = any ? mdmt_max(column_max, column_end) : column_end;
        any = 1;
    }
    p->row_span = row_max - p->row_min + 1;
    p->stage_columns = (column_max - p->column_min) / p->sw + 1;
    p->staged = p->sw > 1 || p->column_min < 0 || column_max >= p->w;
}

/* How much of the output a task takes: images by the width of the tile, then
 * rows so that the staged input stays small, then output channels. By shape
 * only. */
static void plan_tasks(plan *p, int lazy)
{
    int taps = 0;
    for (int i = 0; i < p->phases; i++) {
        taps += p->phase[i].rows * p->phase[i].columns;
    }
    p->staged |= lazy;
    p->group = mdmt_min(p->n, p->grid_w <= 3 ? 4 : p->grid_w <= 7 ? 2 : 1);
    p->groups = mdmt_ceil_div(p->n, p->group);
    size_t row_bytes = (size_t)p->group * p->blocks * p->pixel * sizeof(float) *
                       (p->staged ? p->stage_columns * p->sw : p->w) * p->sh;
    int fit = (int)((size_t)STAGE_BYTES / row_bytes) - (p->row_span - 1) / p->sh;
    p->bands = mdmt_ceil_div(p->grid_h, mdmt_max(1, fit));
    /* Rows that two bands share are staged twice, and a pixel once for each cut
     * of the output channels: few of either, and bands before cuts. */
    int least = p->staged && p->row_span > p->sh ? mdmt_ceil_div(7, p->sh) : 4;
    int few = mdmt_min(mdmt_ceil_div(BANDS, p->groups), mdmt_max(1, p->grid_h / least));
    p->bands = mdmt_max(p->bands, few);
    p->band = mdmt_ceil_div(p->grid_h, p->bands);
    p->bands = mdmt_ceil_div(p->grid_h, p->band);
    int pairs = mdmt_ceil_div(p->out_blocks, 2);
    int most = p->staged ? mdmt_max(1, pairs * taps / 8) : pairs;
    int cuts = mdmt_min(mdmt_ceil_div(TASKS, p->groups * p->bands), mdmt_min(most, pairs));
    p->chunk = 2 * mdmt_ceil_div(pairs, cuts);
    p->chunks = mdmt_ceil_div(p->out_blocks, p->chunk);
    if (p->staged) {
        int rows = (p->band - 1) * p->sh + p->row_span;
        p->row_floats = (size_t)p->stage_columns * p->sw * p->pixel;
        /* An odd number of lines apart: blocks do not fall on the same sets. */
        p->block_floats = mdmt_round_up(p->row_floats * rows, 2 * MDMT_BLOCK) + MDMT_BLOCK;
        p->image_floats = p->block_floats * p->blocks;
        p->thread_bytes = mdmt_round_up(p->image_floats * p->group * sizeof(float), 4096);
    } else {
        p->row_floats = (size_t)p->w * p->pixel;
        p->block_floats = p->row_floats * p->h;
        p->image_floats = p->x_sample;
        p->thread_bytes = 0;
    }
}

/* Whether rows of pixels may be joined: 1x1, unit stride, no padding. */
static int joins_rows(const mdmt_geometry *g, int columns)
{
    if (g->kh * g->kw != 1 || g->sh * g->sw != 1 || g->pt || g->pl || g->pb || g->pr) {
        return 0;
    }
    int tiles = mdmt_ceil_div(g->w, columns);
    return g->h > 1 && g->h * g->w <= 1024 && 10 * g->w < 8 * tiles * columns;
}

static void plan_forward(const mdmt_site *site, const mdmt_conv_micro *micro, plan *p)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    if (joins_rows(&g, micro->columns)) {
        g.w *= g.h;
        g.h = 1;
        g.ow = g.w;
        g.oh = 1;
    }
    *p = (plan){.n = g.n,
                .pixel = micro->pixel,
                .cin = g.c,
                .cout = g.k,
                .h = g.h,
                .w = g.w,
                .oh = g.oh,
                .ow = g.ow,
                .blocks = mdmt_blocks(g.c),
                .out_blocks = mdmt_blocks(g.k),
                .sh = g.sh,
                .sw = g.sw,
                .oh_step = 1,
                .ow_step = 1,
                .tap_row = g.dh,
                .tap_column = g.dw,
                .grid_h = g.oh,
                .grid_w = g.ow,
                .x_sample = mdmt_conv_words(site->in[0], micro),
                .y_sample = mdmt_conv_words(site->out[0], micro)};
    forward_phase(p, &g);
    plan_window(p);
    plan_tasks(p, site->in[0]->lazy_source >= 0);
}

static void plan_data(const mdmt_site *site, const mdmt_conv_micro *micro, plan *p)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    if (joins_rows(&g, micro->columns)) {
        g.w *= g.h;
        g.h = 1;
        g.ow = g.w;
        g.oh = 1;
    }
    *p = (plan){.n = g.n,
                .pixel = micro->pixel,
                .cin = g.k,
                .cout = g.c,
                .h = g.oh,
                .w = g.ow,
                .oh = g.h,
                .ow = g.w,
                .blocks = mdmt_blocks(g.k),
                .out_blocks = mdmt_blocks(g.c),
                .sh = 1,
                .sw = 1,
                .oh_step = g.sh,
                .ow_step = g.sw,
                .tap_row = g.dh / greatest_divisor(g.dh, g.sh),
                .tap_column = g.dw / greatest_divisor(g.dw, g.sw),
                .grid_h = mdmt_ceil_div(g.h, g.sh),
                .grid_w = mdmt_ceil_div(g.w, g.sw),
                .x_sample = mdmt_conv_words(site->in[0], micro),
                .y_sample = mdmt_conv_words(site->out[0], micro)};
    data_phases(p, &g);
    plan_window(p);
    plan_tasks(p, 0);
}

/* ---- staging ---- */

static int row_is_read(const plan *p, int row)
{
    for (int i = 0; i < p->phases; i++) {
        const phase *f = &p->phase[i];
        if (mdmt_conv_phase_is_read(row, f->row, f->rows, p->tap_row, p->sh)) {
            return 1;
        }
    }
    return 0;
}

static mdmt_conv_row staged_row(const plan *p)
{
    mdmt_conv_row row = {.columns = p->stage_columns,
                         .column_min = p->column_min,
                         .step = p->sw,
                         .width = p->w,
                         .next = (ptrdiff_t)p->sh * p->w * p->pixel};
    for (int f = 0; f < mdmt_min(32, p->sw); f++) {
        for (int i = 0; i < p->phases; i++) {
            const phase *a = &p->phase[i];
            int first = a->column - p->column_min;
            if (mdmt_conv_phase_is_read(f, first, a->columns, p->tap_column, p->sw)) {
                row.read |= (uint32_t)1 << f;
            }
        }
    }
    return row;
}

/* The input of a task, from `row0` on; returns where it begins (the position of
 * input row `row0`, column column_min; that row itself may lie outside). */
static const float *stage_input(const job *j, int image, int images, int row0, int rows, int thread)
{
    const plan *p = j->plan;
    const float *x = (const float *)j->x.data;
    const size_t plane = (size_t)p->h * p->w * p->pixel;
    if (!p->staged) {
        return x + (size_t)image * p->x_sample +
               ((ptrdiff_t)row0 * p->w + p->column_min) * p->pixel;
    }
    float *stage = (float *)(j->scratch + (size_t)thread * p->thread_bytes);
    int first = mdmt_max(0, row0), end = mdmt_min(p->h, row0 + rows);
    const mdmt_conv_row row = staged_row(p);
    for (int i = 0; i < images; i++) {
        for (int b = 0; b < p->blocks; b++) {
            const float *src = x + (size_t)(image + i) * p->x_sample + b * plane;
            float *dst = stage + i * p->image_floats + b * p->block_floats;
            float gate[MDMT_BLOCK];
            const mdmt_conv_load load = mdmt_conv_load_of(&j->x, image + i, b, p->cin, gate);
            for (int r = first; r < end; r++) {
                if (p->sh == 1 || row_is_read(p, r)) {
                    mdmt_conv_stage_row(j->micro, &row, dst + (size_t)(r - row0) * p->row_floats,
                                        src + (size_t)r * p->w * p->pixel, &load);
                }
            }
        }
    }
    return stage;
}

/* ---- compute ---- */

typedef struct {
    const job *job;
    const phase *phase;
    const float *x;     /* staged input of the task                   */
    int image, images;  /* of the task                                */
    int row0, row;      /* first coarse row of the task; current row  */
    int block, blocks;  /* output blocks of the current tiles         */
    int block0;         /* first output block of the task             */
    int shares;         /* passes over the output blocks of the task */
    const float *ahead; /* staged 1x1: input of the task that comes next, or NULL */
    int part;           /* of the statistics                          */
    int first, count;   /* input blocks of the current chunk          */
    int tap[MDMT_CONV_TAPS];
} pass;

/* Tiles of one coarse row, for `rows` images at once (1, 2 or 4). */
static void row_tiles(const pass *s, int image, int rows, mdmt_conv_tile *t, int a0)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const phase *f = s->phase;
    const mdmt_conv_micro *micro = j->micro;
    const mdmt_conv_tile_fn *fn = rows == 4   ? micro->quad[s->blocks - 1]
                                  : rows == 2 ? micro->pair[s->blocks - 1]
                                              : micro->tile[s->blocks - 1];
    int width = rows == 4 ? micro->quad_columns : rows == 2 ? micro->pair_columns : micro->columns;
    int tiles = mdmt_ceil_div(f->count_columns, width);
    const float *x =
        s->x + image * p->image_floats + s->first * p->block_floats +
        (ptrdiff_t)((s->row - s->row0) * p->sh + f->row - p->row_min) * (ptrdiff_t)p->row_floats;
    const size_t plane = (size_t)p->oh * p->ow * p->pixel;
    size_t offset = (size_t)(s->image + image) * p->y_sample + s->block * plane +
                    ((size_t)(s->row * p->oh_step + f->out_row) * p->ow + f->out_column) * p->pixel;
    t->x_row = (ptrdiff_t)p->image_floats;
    t->y_row = (ptrdiff_t)p->y_sample;
    t->tap = s->tap + a0 * f->columns;
    if (p->staged) { /* each pair of output blocks fetches its share */
        t->ahead_first = (s->block - s->block0) / micro->tile_blocks;
        t->ahead_step = s->shares;
    } else {
        t->ahead_first = 0;
        t->ahead_step = 1;
    }
    t->ahead_row = (ptrdiff_t)p->x_sample;
    t->ahead_block = (ptrdiff_t)p->h * p->w * p->pixel;
    const size_t ahead = image * p->x_sample + s->first * t->ahead_block +
                         (size_t)(s->row - s->row0) * p->w * p->pixel;
    for (int i = 0, column = 0; i < tiles; i++) {
        int columns = (f->count_columns - column + tiles - i - 1) / (tiles - i);
        t->x = x + column * p->pixel;
        if (!p->staged) {
            t->ahead = s->block == s->block0 ? t->x + columns * p->pixel : NULL;
        } else if (s->ahead) {
            t->ahead = s->ahead + ahead + column * p->pixel;
        }
        size_t at = offset + (size_t)column * p->ow_step * p->pixel;
        t->y = j->y + at;
        if (t->start == MDMT_INIT_LOAD) {
            t->init = (s->first ? j->y : j->init) + at;
        }
        fn[columns](t);
        t->stats_start = 0;
        column += columns;
    }
}

/* One coarse row of all images of the task. */
static void one_row(pass *s)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const phase *f = s->phase;
    int top = s->row * p->sh + f->row; /* input row of the first tap */
    int a0 = top < 0 ? mdmt_ceil_div(-top, p->tap_row) : 0;
    int a1 = top >= p->h ? 0 : mdmt_min(f->rows, (p->h - 1 - top) / p->tap_row + 1);
    if (a1 <= a0) {
        a0 = a1 = 0;
    }
    const int taps = f->rows * f->columns;
    const ptrdiff_t tap_floats = (ptrdiff_t)MDMT_BLOCK * p->pixel;
    mdmt_conv_tile t = {
        .taps = (a1 - a0) * f->columns,
        .w_block = taps * tap_floats,
        .w_out = taps * tap_floats * p->blocks,
        .blocks = s->count,
        .last = s->first + s->count < p->blocks
                    ? p->pixel
                    : mdmt_ceil_div((p->cin - (p->blocks - 1) * MDMT_BLOCK) * p->pixel, MDMT_BLOCK),
        .start = s->first ? MDMT_INIT_LOAD : j->start,
        .past = j->past && s->count == p->blocks,
        .y_pixel = (ptrdiff_t)p->ow_step * p->pixel,
        .y_out = (ptrdiff_t)p->oh * p->ow * p->pixel,
        .x_block = (ptrdiff_t)p->block_floats};
    t.w = j->weights + f->weights + s->block * t.w_out + s->first * t.w_block +
          a0 * f->columns * tap_floats;
    if (t.start == MDMT_INIT_BIAS) {
        t.init = j->init + s->block * MDMT_BLOCK;
    }
    if (j->stats && s->first + s->count == p->blocks) {
        t.stats_row = (ptrdiff_t)p->out_blocks * MDMT_BLOCK;
        t.stats =
            j->stats + (ptrdiff_t)s->part * MDMT_STATS_ROWS * t.stats_row + s->block * MDMT_BLOCK;
        t.stats_start = s->row == s->row0;
    }
    for (int image = 0; image < s->images;) {
        int left = s->images - image, rows = 1;
        if (left >= 4 && f->count_columns <= j->micro->quad_widest) {
            rows = 4;
        } else if (left >= 2 && f->count_columns <= j->micro->pair_widest) {
            rows = 2;
        }
        row_tiles(s, image, rows, &t, a0);
        image += rows;
    }
}

static void part_count(const pass *s, int part, int first, int end, int rows)
{
    const plan *p = s->job->plan;
    const size_t lanes = (size_t)p->out_blocks * MDMT_BLOCK;
    float *count = s->job->stats + (size_t)part * MDMT_STATS_ROWS * lanes;
    for (int i = first * MDMT_BLOCK; i < end * MDMT_BLOCK; i++) {
        count[i] = (float)s->images * (float)rows * (float)p->ow;
    }
}

static void phase_taps_table(pass *s)
{
    const plan *p = s->job->plan;
    const phase *f = s->phase;
    for (int a = 0; a < f->rows; a++) {
        for (int b = 0; b < f->columns; b++) {
            int column = f->column - p->column_min + b * p->tap_column;
            s->tap[a * f->columns + b] =
                (int)(a * p->tap_row * (ptrdiff_t)p->row_floats) +
                (column % p->sw * p->stage_columns + column / p->sw) * p->pixel;
        }
    }
}

/* Output rows of the current blocks where no tap reaches some pixels: zeros, or
 * the addend. Pixels that taps reach are computed afterwards. */
static void fill_rows(const pass *s, int row0, int row1)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const size_t plane = (size_t)p->oh * p->ow * p->pixel;
    const size_t bytes = (size_t)(row1 - row0) * p->ow * p->pixel * sizeof(float);
    for (int i = 0; i < s->images; i++) {
        for (int k = s->block; k < s->block + s->blocks; k++) {
            size_t at =
                (size_t)(s->image + i) * p->y_sample + k * plane + (size_t)row0 * p->ow * p->pixel;
            if (j->start == MDMT_INIT_ZERO) {
                memset(j->y + at, 0, bytes);
            } else if (j->init != j->y) {
                memcpy(j->y + at, j->init + at, bytes);
            }
        }
    }
}

/* Coarse rows of one phase and the current output blocks. Where their weights
 * are large, the input blocks are taken in several turns. */
static void phase_rows(pass *s, int row0, int row1)
{
    const job *j = s->job;
    const plan *p = j->plan;
    int taps = mdmt_max(1, s->phase->rows * s->phase->columns);
    int most = mdmt_max(1, WEIGHT_BYTES / (taps * 2 * MDMT_BLOCK * p->pixel * 4));
    if (p->pixel < MDMT_BLOCK) {
        most = p->blocks; /* what is stored between the turns would be rounded */
    }
    int step = mdmt_ceil_div(p->blocks, mdmt_ceil_div(p->blocks, most));
    phase_taps_table(s);
    for (s->first = 0; s->first < p->blocks; s->first += step) {
        s->count = mdmt_min(step, p->blocks - s->first);
        for (s->row = row0; s->row < row1; s->row++) {
            one_row(s);
        }
    }
}

/* The input of the task that this thread is likely to run next. Fetched while this one computes, so
 * that staging does not wait for memory; for one tap and unit strides, where a tile stands for as
 * many pixels of the input. */
static const float *next_input(const job *j, int task)
{
    const plan *p = j->plan;
    const phase *f = &p->phase[0];
    int parts = p->groups * p->bands, next = task + mdmt_max(1, j->site->threads);
    if (!p->staged || p->phases * f->rows * f->columns * p->sh * p->sw != 1 ||
        next >= parts * p->chunks) {
        return NULL;
    }
    next %= parts;
    return (const float *)j->x.data + (size_t)(next / p->bands * p->group) * p->x_sample +
           (size_t)(next % p->bands * p->band) * p->w * p->pixel;
}

static void run_task(void *context, int task, int thread)
{
    const job *j = context;
    const plan *p = j->plan;
    int chunk = task / (p->groups * p->bands), part = task % (p->groups * p->bands);
    int band = part % p->bands;
    int row0 = band * p->band, row1 = mdmt_min(p->grid_h, row0 + p->band);
    int block0 = chunk * p->chunk, block1 = mdmt_min(p->out_blocks, block0 + p->chunk);
    pass s = {.job = j,
              .ahead = next_input(j, task),
              .part = part,
              .image = part / p->bands * p->group,
              .row0 = row0,
              .block0 = block0};
    s.images = mdmt_min(p->group, p->n - s.image);
    s.shares = mdmt_ceil_div(block1 - block0, j->micro->tile_blocks);
    s.x = stage_input(j, s.image, s.images, row0 * p->sh + p->row_min,
                      (row1 - row0 - 1) * p->sh + p->row_span, thread);
    for (s.block = block0; s.block < block1; s.block += s.blocks) {
        s.blocks = mdmt_min(j->micro->tile_blocks, block1 - s.block);
        if (p->gaps) {
            fill_rows(&s, row0 * p->oh_step, mdmt_min(p->oh, row1 * p->oh_step));
        }
        for (int i = 0; i < p->phases; i++) {
            s.phase = &p->phase[i];
            if (s.phase->rows || !p->gaps) {
                phase_rows(&s, row0, mdmt_min(row1, s.phase->count_rows));
            }
        }
    }
    if (j->stats) {
        part_count(&s, part, block0, block1, row1 - row0);
    }
    if (j->past) {
        j->micro->fence();
    }
}

static int tasks_of(const plan *p)
{
    return p->groups * p->bands * p->chunks;
}

/* Cycles of a core: multiply-adds at the efficiency of the shape, and the load
 * stage at about four cycles a vector. */
static double plan_cost(const plan *p, const mdmt_conv_micro *micro)
{
    double cycles = 0;
    for (int i = 0; i < p->phases; i++) {
        const phase *f = &p->phase[i];
        int taps = f->rows * f->columns;
        double macs = (double)p->n * f->count_rows * f->count_columns * taps * p->cin *
                      p->out_blocks * MDMT_BLOCK;
        cycles += macs / micro->floats_per_cycle / 0.88;
        /* A tile's start and end. */
        cycles += (double)p->n * f->count_rows * f->count_columns * p->out_blocks * 3.0;
    }
    if (p->staged) {
        cycles += (double)p->n * p->h * p->w * p->blocks * p->chunks * 4.0;
    }
    return cycles + 0.2 * (double)p->weight_floats;
}

static size_t turned_bytes(const plan *p)
{
    return mdmt_round_up(p->weight_floats * sizeof(float), 4096);
}

/* ---- forward ---- */

int mdmt_conv_forward_supports(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    return g.groups == 1 && !g.plain && site->in[1]->kind == MDMT_W_DENSE &&
           g.kh * g.kw <= MDMT_CONV_TAPS;
}

void mdmt_conv_forward_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs)
{
    plan p;
    plan_forward(site, micro, &p);
    needs->workspace_bytes = turned_bytes(&p) + p.thread_bytes * site->threads;
    needs->stat_parts = p.groups * p.bands;
}

double mdmt_conv_forward_cost(const mdmt_site *site, const mdmt_conv_micro *micro)
{
    plan p;
    plan_forward(site, micro, &p);
    return plan_cost(&p, micro);
}

typedef struct {
    const mdmt_conv_micro *micro;
    const float *w;
    float *packed;
    int taps; /* of a task: those of an output block, all input blocks */
} pack_job;

static void pack_task(void *context, int out, int thread)
{
    const pack_job *j = context;
    const size_t from = MDMT_BLOCK * MDMT_BLOCK, to = (size_t)MDMT_BLOCK * j->micro->pixel;
    (void)thread;
    for (size_t t = (size_t)out * j->taps; t < ((size_t)out + 1) * j->taps; t++) {
        j->micro->pack(j->packed + t * to, j->w + t * from);
    }
}

mdmt_status mdmt_conv_forward_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                  const mdmt_call *call)
{
    plan p;
    plan_forward(site, micro, &p);
    const float *bias = site->op->inputs > 2 && site->in[2] ? call->in[2].data : NULL;
    const float *weights = call->in[1].data;
    if (mdmt_conv_is_paired(micro)) {
        pack_job pack = {.micro = micro,
                         .w = weights,
                         .packed = call->workspace,
                         .taps = p.phase[0].rows * p.phase[0].columns * p.blocks};
        mdmt_parallel(site->pool, p.out_blocks, pack_task, &pack);
        weights = call->workspace;
    }
    job j = {.site = site,
             .micro = micro,
             .plan = &p,
             .x = call->in[0],
             .weights = weights,
             .init = bias,
             .start = bias ? MDMT_INIT_BIAS : MDMT_INIT_ZERO,
             .past = mdmt_conv_is_past(site->out[0], micro, call->out[0],
                                       p.cin * p.phase[0].rows * p.phase[0].columns),
             .y = call->out[0],
             .stats = site->op->outputs > 1 && site->out[1] ? call->out[1] : NULL,
             .scratch = (char *)call->workspace + turned_bytes(&p)};
    mdmt_parallel(site->pool, tasks_of(&p), run_task, &j);
    return MDMT_OK;
}

/* ---- data gradient ---- */

typedef struct {
    const mdmt_conv_micro *micro;
    const plan *plan;
    mdmt_geometry g;
    const float *w;
    float *turned;
} turn_job;

/* w [dy block][dx block][kh][kw][16 in][16 out] to, for each phase,
 * [dx block][dy block][taps, last first][16 out][16 in]; a task is a dy block,
 * whose weights are read in order. */
static void turn_task(void *context, int out, int thread)
{
    const turn_job *j = context;
    const plan *p = j->plan;
    const mdmt_geometry *g = &j->g;
    const size_t tap_floats = MDMT_BLOCK * MDMT_BLOCK, to = (size_t)MDMT_BLOCK * p->pixel;
    const float *src = j->w + (size_t)out * p->out_blocks * g->kh * g->kw * tap_floats;
    int row_step = g->sh / greatest_divisor(g->dh, g->sh);
    int column_step = g->sw / greatest_divisor(g->dw, g->sw);
    (void)thread;
    for (int in = 0; in < p->out_blocks; in++, src += (size_t)g->kh * g->kw * tap_floats) {
        for (int i = 0; i < p->phases; i++) {
            const phase *f = &p->phase[i];
            float *dst =
                j->turned + f->weights + ((size_t)in * p->blocks + out) * f->rows * f->columns * to;
            for (int t = 0; t < f->rows * f->columns; t++, dst += to) {
                int kh = f->kh - t / f->columns * row_step;
                int kw = f->kw - t % f->columns * column_step;
                j->micro->transpose(dst, src + (size_t)(kh * g->kw + kw) * tap_floats);
            }
        }
    }
}

int mdmt_conv_data_supports(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    return g.groups == 1 && !g.plain && site->in[1]->kind == MDMT_W_DENSE &&
           g.kh * g.kw <= MDMT_CONV_TAPS && g.sh * g.sw <= MDMT_CONV_PHASES;
}

void mdmt_conv_data_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs)
{
    plan p;
    plan_data(site, micro, &p);
    needs->workspace_bytes = turned_bytes(&p) + p.thread_bytes * site->threads;
    needs->inplace_inputs = 1u << 2;
}

double mdmt_conv_data_cost(const mdmt_site *site, const mdmt_conv_micro *micro)
{
    plan p;
    plan_data(site, micro, &p);
    return plan_cost(&p, micro);
}

mdmt_status mdmt_conv_data_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                               const mdmt_call *call)
{
    plan p;
    plan_data(site, micro, &p);
    const float *addend = site->op->inputs > 2 && site->in[2] ? call->in[2].data : NULL;
    turn_job turn = {.micro = micro,
                     .plan = &p,
                     .g = mdmt_conv_geometry(site),
                     .w = call->in[1].data,
                     .turned = call->workspace};
    mdmt_parallel(site->pool, p.blocks, turn_task, &turn);
    job j = {.site = site,
             .micro = micro,
             .plan = &p,
             .x = call->in[0],
             .weights = call->workspace,
             .init = addend,
             .start = addend ? MDMT_INIT_LOAD : MDMT_INIT_ZERO,
             .past = !p.gaps && addend != call->out[0] &&
                     mdmt_conv_is_past(site->out[0], micro, call->out[0],
                                       p.cin * p.phase[0].rows * p.phase[0].columns),
             .y = call->out[0],
             .scratch = (char *)call->workspace + turned_bytes(&p)};
    mdmt_parallel(site->pool, tasks_of(&p), run_task, &j);
    return MDMT_OK;
}
