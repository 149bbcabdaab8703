/* Direct convolution, weight gradient:
 *   dw[k][c][kh][kw] = sum over n, oh, ow of x[n][c][oh s - p + kh d][..] dy[n][k][oh][ow]
 *
 * A task owns some output and some input blocks and a slice of the pixels. It
 * goes through the slice in bands, whose x is staged in the second-level cache,
 * and through a band in strips of about a hundred pixels, whose x and dy stay in
 * the first level while all taps use them. Sums start anew with every strip and
 * every slice, which keeps rounding errors small; slices are added in order.
 *
 * In pairs (bfloat16) the dy of a strip is staged, too. A word of x holds two
 * neighbouring pixels: with one column of taps the pixels 2 i and 2 i + 1; with
 * more, i and i + 1, since a tap may begin at any pixel, and every other word is
 * read. The second pixel of a last, odd word is a zero in dy. */
#include "conv_direct.h"

#include <string.h>

enum {
    STRIP_PIXELS = 112,
    STAGE_BYTES = 256 * 1024,
    TASKS = 32,          /* aimed at                                             */
    SLICE_PIXELS = 1500, /* at least; a slice costs as much as about eight pixels */
    SHORT_SLICE = 392    /* the same where there are too few tasks otherwise      */
};

typedef struct {
    mdmt_geometry g;
    int lazy, staged;
    int pixel; /* words of a pixel's block in a map                       */
    int every; /* pairs: pixels from a word of x to the next; 0: no pairs */
    int words; /* of a row of dy: ow, or half as many                     */
    int blocks, out_blocks;
    int in_step, out_step;  /* blocks of a task              */
    int ins, outs;          /* how many such                 */
    int group, band, strip; /* images; rows; rows           */
    int bands;              /* of an image group             */
    int total;              /* bands of all image groups     */
    int slices;
    int stage_columns;          /* words of a phase's row */
    size_t x_sample, dy_sample; /* floats between images  */
    int far_step;               /* see mdmt_conv_weight_tile */
    size_t row_floats, block_floats, image_floats;
    size_t weight_floats, partial_bytes, thread_bytes;
    size_t dy_bytes; /* of a thread's staged strip, within thread_bytes */
} plan;

typedef struct {
    const mdmt_conv_micro *micro;
    const plan *plan;
    mdmt_value x;
    const float *dy;
    float *dw, *partial;
    char *scratch;
} job;

static void plan_window(plan *p)
{
    const mdmt_geometry *g = &p->g;
    int column_max = (g->ow - 1) * g->sw + (g->kw - 1) * g->dw - g->pl;
    p->staged = p->every || p->lazy || g->sw > 1 || g->pl > 0 || column_max >= g->w;
    p->stage_columns = mdmt_ceil_div((column_max + g->pl) / g->sw + 1, mdmt_max(1, p->every));
    int span = (g->kh - 1) * g->dh + 1;
    if (p->staged) {
        p->row_floats = (size_t)p->stage_columns * g->sw * MDMT_BLOCK;
        size_t row_bytes = p->row_floats * sizeof(float) * p->in_step * p->group;
        int fit = ((int)((size_t)STAGE_BYTES / row_bytes) - span) / g->sh + 1;
        p->band = mdmt_max(1, fit / p->strip) * p->strip;
        p->band = mdmt_min(p->band, mdmt_ceil_div(g->oh, p->strip) * p->strip);
        int rows = (p->band - 1) * g->sh + span;
        p->block_floats = mdmt_round_up(p->row_floats * rows, 2 * MDMT_BLOCK) + MDMT_BLOCK;
        p->image_floats = p->block_floats * p->in_step;
        p->thread_bytes = mdmt_round_up(p->image_floats * p->group * sizeof(float), 4096);
        if (p->every) {
            size_t words = (size_t)p->group * p->strip * p->words * 2 * MDMT_BLOCK;
            p->dy_bytes = mdmt_round_up(words * sizeof(float), 4096);
            p->thread_bytes += p->dy_bytes;
        }
    } else {
        p->row_floats = (size_t)g->w * MDMT_BLOCK;
        p->block_floats = p->row_floats * g->h;
        p->image_floats = p->x_sample;
        p->band = p->strip;
        p->thread_bytes = 0;
    }
    p->bands = mdmt_ceil_div(g->oh, p->band);
}

/* How many blocks a task takes and into how many slices the pixels are cut. A
 * staged x must serve enough output blocks and a dy enough input blocks; a slice
 * must be long enough to pay for its own dw. */
static void cut_blocks(plan *p)
{
    const mdmt_geometry *g = &p->g;
    const int taps = g->kh * g->kw;
    const double pixels = (double)g->n * g->oh * g->ow;
    p->weight_floats = (size_t)p->blocks * p->out_blocks * taps * MDMT_BLOCK * MDMT_BLOCK;
    int most_in = taps > 4 ? 4 : 16, most_out = taps > 4 ? 8 : 16;
    int least_in = taps > 4 ? 2 : 8, least_out = taps > 4 ? 4 : 8;
    p->slices = mdmt_max(1, mdmt_min(TASKS, (int)(pixels / SLICE_PIXELS)));
    for (;;) {
        p->in_step = mdmt_ceil_div(p->blocks, mdmt_ceil_div(p->blocks, most_in));
        int pairs = mdmt_ceil_div(p->out_blocks, 2);
        p->out_step = 2 * mdmt_ceil_div(pairs, mdmt_ceil_div(2 * pairs, most_out));
        p->ins = mdmt_ceil_div(p->blocks, p->in_step);
        p->outs = mdmt_ceil_div(p->out_blocks, p->out_step);
        if (p->ins * p->outs * p->slices >= TASKS) {
            break;
        }
        if (most_out > least_out && mdmt_min(p->out_step, most_out) >= p->in_step) {
            most_out /= 2;
        } else if (most_in > least_in) {
            most_in /= 2;
        } else if (most_out > least_out) {
            most_out /= 2;
        } else {
            break;
        }
    }
    const int most_slices = mdmt_max(p->slices, (int)(pixels / SHORT_SLICE));
    p->slices = mdmt_min(most_slices, mdmt_ceil_div(TASKS, p->ins * p->outs));
}

static void plan_weight(const mdmt_site *site, const mdmt_conv_micro *micro, plan *p)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    if (g.kh * g.kw * g.sh * g.sw == 1 && !g.pt && !g.pl && !g.pb && !g.pr &&
        g.h * g.w <= 2 * STRIP_PIXELS) {
        g.w *= g.h;
        g.h = g.oh = 1;
        g.ow = g.w;
    }
    *p = (plan){.g = g,
                .lazy = site->in[0]->lazy_source >= 0,
                .pixel = micro->pixel,
                .words = g.ow,
                .x_sample = mdmt_conv_words(site->in[0], micro),
                .dy_sample = mdmt_conv_words(site->in[1], micro)};
    p->blocks = mdmt_blocks(g.c);
    p->out_blocks = mdmt_blocks(g.k);
    if (mdmt_conv_is_paired(micro)) {
        p->every = g.kw == 1 ? 2 : 1;
        p->words = mdmt_ceil_div(g.ow, 2);
    }
    cut_blocks(p);
    const int pixels = STRIP_PIXELS * (p->every ? 2 : 1); /* as many words */
    p->group = mdmt_min(g.n, mdmt_max(1, pixels / (g.oh * g.ow)));
    p->strip = mdmt_min(g.oh, mdmt_max(1, pixels / g.ow));
    plan_window(p);
    p->total = mdmt_ceil_div(g.n, p->group) * p->bands;
    /* Lines from memory for each pixel of a tile: a strip's pass over the input blocks needs the
     * next dy, and its share of the next input. */
    double lines = 0.5 / p->in_step / (g.kh * g.kw) * 2 + 1.0 / p->out_step;
    p->far_step = lines <= 0.25 ? MDMT_BLOCK / 4 : lines <= 0.5 ? MDMT_BLOCK / 2 : MDMT_BLOCK;
    if (p->group > 1) { /* small maps are in a cache */
        p->far_step = MDMT_BLOCK;
    }
    p->slices = mdmt_min(p->slices, p->total);
    size_t bytes = p->weight_floats * sizeof(float);
    p->partial_bytes = p->slices > 1 ? mdmt_round_up(bytes * p->slices, 4096) : 0;
}

/* ---- staging ---- */

/* Input blocks in0 .. in1 of a band; returns where row `row0` and the leftmost
 * column begin, block in0. */
static const float *stage_band(const job *j, int image, int images, int in0, int in1, int row0,
                               int rows, int thread)
{
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const float *x = j->x.data;
    const size_t plane = (size_t)g->h * g->w * p->pixel;
    if (!p->staged) {
        return x + (size_t)image * p->x_sample + in0 * plane +
               ((ptrdiff_t)row0 * g->w - g->pl) * MDMT_BLOCK;
    }
    float *stage = (float *)(j->scratch + (size_t)thread * p->thread_bytes);
    int first = mdmt_max(0, row0), end = mdmt_min(g->h, row0 + rows);
    mdmt_conv_row row = {.columns = p->stage_columns,
                         .column_min = -g->pl,
                         .step = g->sw,
                         .width = g->w,
                         .next = (ptrdiff_t)g->sh * g->w * p->pixel};
    for (int f = 0; f < mdmt_min(32, g->sw); f++) {
        row.read |= (uint32_t)mdmt_conv_phase_is_read(f, 0, g->kw, g->dw, g->sw) << f;
    }
    for (int i = 0; i < images; i++) {
        for (int b = in0; b < in1; b++) {
            const float *src = x + (size_t)(image + i) * p->x_sample + b * plane;
            float *dst = stage + i * p->image_floats + (b - in0) * p->block_floats;
            float gate[MDMT_BLOCK];
            const mdmt_conv_load load = mdmt_conv_load_of(&j->x, image + i, b, g->c, gate);
            for (int r = first; r < end; r++) {
                if (g->sh > 1 && !mdmt_conv_phase_is_read(r, -g->pt, g->kh, g->dh, g->sh)) {
                    continue;
                }
                float *to = dst + (size_t)(r - row0) * p->row_floats;
                if (p->every) {
                    mdmt_conv_stage_pairs(j->micro, &row, p->every, to,
                                          src + (size_t)r * g->w * p->pixel, &load);
                } else {
                    mdmt_conv_stage_row(j->micro, &row, to, src + (size_t)r * g->w * p->pixel,
                                        &load);
                }
            }
        }
    }
    return stage;
}

/* ---- compute ---- */

/* A way through pixels that will be needed: blocks of images. */
typedef struct {
    const float *x; /* the first; NULL: nothing to fetch */
    ptrdiff_t x_image, x_block;
    int image, images, block, blocks, at, pixels; /* pixels of a block, one image */
    int pixel;                                    /* words                        */
} walk;

typedef struct {
    const job *job;
    const float *x; /* of the band: row row0 * sh - pt, first block of the task */
    int image, images;
    int row0, row1;   /* of the band                             */
    int row, row_end; /* of the strip                            */
    int in0, in1;     /* input blocks of the task                */
    int out, outs;    /* output blocks                           */
    int out0, out1;   /* of the task                             */
    int next;         /* the band after this one, or -1          */
    int thread;
    walk dy_ahead, x_ahead;                          /* of the next strip, the next band        */
    float *dw;                                       /* the whole, of the slice                 */
    int column[MDMT_CONV_TAPS];                      /* (kw) offset of a tap's column  */
    int first[MDMT_CONV_TAPS], rows[MDMT_CONV_TAPS]; /* (kh) rows of the strip's dy whose row of
                                                        x lies inside */
} pass;

static void start_task(pass *s)
{
    const plan *p = s->job->plan;
    const mdmt_geometry *g = &p->g;
    for (int b = 0; b < g->kw; b++) {
        int column = b * g->dw;
        s->column[b] = (column % g->sw * p->stage_columns + column / g->sw) * MDMT_BLOCK;
    }
}

/* Rows of dy with r sh + a dh - pt in 0 .. h - 1. */
static void start_strip(pass *s)
{
    const mdmt_geometry *g = &s->job->plan->g;
    for (int a = 0; a < g->kh; a++) {
        int low = g->pt - a * g->dh, high = g->h - 1 + g->pt - a * g->dh;
        int end = mdmt_min(s->row_end, high < 0 ? 0 : high / g->sh + 1);
        s->first[a] = mdmt_max(s->row, low > 0 ? mdmt_ceil_div(low, g->sh) : 0);
        s->rows[a] = end - s->first[a];
    }
}

/* The next `pixels` of a walk. */
static const float *walk_on(walk *way, int pixels)
{
    const float *x = way->x + way->image * way->x_image + way->block * way->x_block +
                     (ptrdiff_t)way->at * way->pixel;
    way->at += pixels;
    if (way->at >= way->pixels) {
        way->at = 0;
        way->block++;
    }
    if (way->block == way->blocks) {
        way->block = 0;
        way->image++;
    }
    if (way->image == way->images) {
        way->x = NULL;
    }
    return x;
}

/* The dy that comes after this strip's. */
static walk next_strip(const pass *s)
{
    const plan *p = s->job->plan;
    const ptrdiff_t row = (ptrdiff_t)p->g.ow * p->pixel, plane = p->g.oh * row;
    const float *dy = s->job->dy + (ptrdiff_t)s->image * (ptrdiff_t)p->dy_sample + s->out * plane;
    walk way = {.pixel = p->pixel,
                .x_image = (ptrdiff_t)p->dy_sample,
                .x_block = plane,
                .images = s->images};
    int rows = p->strip;
    way.blocks = s->outs;
    if (s->row_end < s->row1) {
        way.x = dy + s->row_end * row;
        rows = mdmt_min(rows, s->row1 - s->row_end);
    } else if (s->out + s->outs < s->out1) {
        way.x = dy + s->outs * plane + s->row0 * row;
        way.blocks = mdmt_min(s->outs, s->out1 - s->out - s->outs);
    } else if (s->next >= 0) {
        way.x = s->job->dy + (ptrdiff_t)(s->next / p->bands * p->group) * way.x_image +
                s->out0 * plane + s->next % p->bands * p->band * row;
    }
    way.pixels = rows * p->g.ow;
    return way;
}

/* The input of the next band, so that staging does not wait for memory: for one tap and unit
 * strides, where it has as many pixels as dy. */
static walk next_band(const pass *s)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    walk way = {.pixel = p->pixel,
                .x_image = (ptrdiff_t)p->x_sample,
                .x_block = (ptrdiff_t)g->h * g->w * p->pixel,
                .blocks = s->in1 - s->in0};
    if (s->next >= 0 && p->staged && g->kh * g->kw * g->sh * g->sw == 1) {
        int image = s->next / p->bands * p->group, row0 = s->next % p->bands * p->band;
        way.x = (const float *)j->x.data + image * way.x_image + s->in0 * way.x_block +
                (ptrdiff_t)row0 * g->w * p->pixel;
        way.images = mdmt_min(p->group, g->n - image);
        way.pixels = mdmt_min(p->band, g->oh - row0) * g->w;
    }
    return way;
}

/* Sets what a tile fetches from memory. */
static void fetch_far(pass *s, mdmt_conv_weight_tile *t)
{
    int pixels = (int)(t->images * t->rows * t->columns * t->far_step / s->job->plan->pixel);
    t->far = NULL;
    if (s->dy_ahead.x) {
        t->far = walk_on(&s->dy_ahead, pixels);
    } else if (s->x_ahead.x) {
        t->far = walk_on(&s->x_ahead, pixels);
    }
}

/* All taps of one input block and one or two output blocks over a strip. The
 * first tile meanwhile fetches the next input block; all fetch the next dy, and
 * then the input of the next band. */
static void block_sum(pass *s, int in, mdmt_conv_weight_tile *t)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const int channels = mdmt_min(MDMT_BLOCK, g->c - in * MDMT_BLOCK);
    const int pieces = mdmt_ceil_div(channels, j->micro->channels[s->outs - 1]);
    const int piece = mdmt_ceil_div(channels, pieces);
    const float *dy = t->dy;
    const float *x = s->x + (in - s->in0) * p->block_floats;
    float *dw = s->dw + (size_t)(s->out * p->blocks + in) * g->kh * g->kw * MDMT_BLOCK * MDMT_BLOCK;
    const float *next = in + 1 < s->in1 ? x + p->block_floats : NULL;
    for (int a = 0; a < g->kh; a++, dw += (size_t)g->kw * MDMT_BLOCK * MDMT_BLOCK) {
        t->rows = s->rows[a];
        if (t->rows <= 0) {
            continue;
        }
        t->dy = dy + (ptrdiff_t)s->first[a] * t->dy_row;
        const float *row =
            x + ((ptrdiff_t)(s->first[a] - s->row0) * g->sh + a * g->dh) * (ptrdiff_t)p->row_floats;
        for (int b = 0; b < g->kw; b++) {
            for (int c = 0; c < channels; c += piece) {
                t->x = row + s->column[b] + c;
                t->dw = dw + (b * MDMT_BLOCK + c) * MDMT_BLOCK;
                t->ahead = NULL;
                if (next) {
                    t->ahead = next + (t->x - x);
                    next = NULL;
                }
                fetch_far(s, t);
                j->micro->weight[s->outs - 1][mdmt_min(piece, channels - c)](t);
            }
        }
    }
    t->dy = dy;
}

/* The strip's dy in words of two pixels: [output block][image][row][word][16]. */
static void stage_strip(const pass *s, mdmt_conv_weight_tile *t)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const size_t row = (size_t)g->ow * p->pixel, plane = (size_t)g->oh * row;
    const int rows = s->row_end - s->row;
    float *stage = (float *)(j->scratch + ((size_t)s->thread + 1) * p->thread_bytes - p->dy_bytes);
    const mdmt_conv_load load = {.act = MDMT_ACT_NONE};
    t->dy_row = (ptrdiff_t)p->words * MDMT_BLOCK;
    t->dy_image = rows * t->dy_row;
    t->dy_out = s->images * t->dy_image;
    t->dy = stage - s->row * t->dy_row; /* of row 0 */
    for (int k = 0; k < s->outs; k++) {
        for (int i = 0; i < s->images; i++) {
            const float *dy = j->dy + (size_t)(s->image + i) * p->dy_sample + (s->out + k) * plane;
            for (int r = s->row; r < s->row_end; r++, stage += t->dy_row) {
                j->micro->stage_pairs(stage, dy + r * row, p->words, 2, 0, g->ow, p->pixel, 0,
                                      &load);
            }
        }
    }
}

static void strip_sum(pass *s)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const size_t plane = (size_t)g->oh * g->ow * p->pixel;
    start_strip(s);
    mdmt_conv_weight_tile t = {.x_pixel = p->every == 1 ? 2 * MDMT_BLOCK : MDMT_BLOCK,
                               .x_row = (ptrdiff_t)(g->sh * p->row_floats),
                               .x_image = (ptrdiff_t)p->image_floats,
                               .dy = j->dy + (size_t)s->image * p->dy_sample + s->out * plane,
                               .dy_row = (ptrdiff_t)g->ow * MDMT_BLOCK,
                               .dy_image = (ptrdiff_t)p->dy_sample,
                               .dy_out = (ptrdiff_t)plane,
                               .dw_out =
                                   (ptrdiff_t)p->blocks * g->kh * g->kw * MDMT_BLOCK * MDMT_BLOCK,
                               .far_step = p->far_step,
                               .images = s->images,
                               .columns = p->words};
    if (p->every) {
        stage_strip(s, &t);
    }
    if (t.x_row == t.dy_row && g->kh == 1 && p->every != 1 && s->rows[0] > 0) {
        t.columns *= s->rows[0]; /* those whose x is no padding */
        s->rows[0] = 1;
    }
    s->dy_ahead = next_strip(s);
    for (int in = s->in0; in < s->in1; in++) {
        block_sum(s, in, &t);
    }
}

static void clear_blocks(const plan *p, float *dw, int in0, int in1, int out0, int out1)
{
    size_t block = (size_t)p->g.kh * p->g.kw * MDMT_BLOCK * MDMT_BLOCK;
    for (int k = out0; k < out1; k++) {
        memset(dw + ((size_t)k * p->blocks + in0) * block, 0,
               (size_t)(in1 - in0) * block * sizeof(float));
    }
}

static void run_task(void *context, int task, int thread)
{
    const job *j = context;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    int slice = task % p->slices, part = task / p->slices;
    int in0 = part % p->ins * p->in_step, in1 = mdmt_min(p->blocks, in0 + p->in_step);
    int out0 = part / p->ins * p->out_step, out1 = mdmt_min(p->out_blocks, out0 + p->out_step);
    int first = (int)((int64_t)p->total * slice / p->slices);
    int end = (int)((int64_t)p->total * (slice + 1) / p->slices);
    pass s = {.job = j, .in0 = in0, .in1 = in1, .out0 = out0, .out1 = out1, .thread = thread};
    start_task(&s);
    s.dw = p->slices > 1 ? j->partial + p->weight_floats * slice : j->dw;
    clear_blocks(p, s.dw, in0, in1, out0, out1);
    for (int band = first; band < end; band++) {
        s.image = band / p->bands * p->group;
        s.images = mdmt_min(p->group, g->n - s.image);
        s.row0 = band % p->bands * p->band;
        s.row1 = mdmt_min(g->oh, s.row0 + p->band);
        s.x = stage_band(j, s.image, s.images, in0, in1, s.row0 * g->sh - g->pt,
                         (s.row1 - s.row0 - 1) * g->sh + (g->kh - 1) * g->dh + 1, thread);
        s.next = band + 1 < end ? band + 1 : -1;
        s.x_ahead = next_band(&s);
        for (s.out = out0; s.out < out1; s.out += s.outs) {
            s.outs = mdmt_min(j->micro->weight_blocks, out1 - s.out);
            for (s.row = s.row0; s.row < s.row1; s.row = s.row_end) {
                s.row_end = mdmt_min(s.row1, s.row + p->strip);
                strip_sum(&s);
            }
        }
    }
}

enum { MERGE_FLOATS = 4096 };

typedef struct {
    const mdmt_conv_micro *micro;
    float *dw;
    const float *partial;
    size_t floats;
    int slices;
} merge_job;

static void merge_task(void *context, int task, int thread)
{
    const merge_job *j = context;
    size_t at = (size_t)task * MERGE_FLOATS;
    size_t count = j->floats - at < MERGE_FLOATS ? j->floats - at : MERGE_FLOATS;
    (void)thread;
    memcpy(j->dw + at, j->partial + at, count * sizeof(float));
    for (int i = 1; i < j->slices; i++) {
        j->micro->accumulate(j->dw + at, j->partial + i * j->floats + at, count);
    }
}

void mdmt_conv_merge(mdmt_pool *pool, const mdmt_conv_micro *micro, float *dw, const float *partial,
                     size_t floats, int slices)
{
    merge_job j = {
        .micro = micro, .dw = dw, .partial = partial, .floats = floats, .slices = slices};
    mdmt_parallel(pool, (int)((floats + MERGE_FLOATS - 1) / MERGE_FLOATS), merge_task, &j);
}

int mdmt_conv_weight_supports(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    return g.groups == 1 && !g.plain && site->out[0]->kind == MDMT_W_DENSE &&
           g.kh * g.kw <= MDMT_CONV_TAPS;
}

void mdmt_conv_weight_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs)
{
    plan p;
    plan_weight(site, micro, &p);
    needs->workspace_bytes = p.partial_bytes + p.thread_bytes * site->threads;
}

double mdmt_conv_weight_cost(const mdmt_site *site, const mdmt_conv_micro *micro)
{
    plan p;
    plan_weight(site, micro, &p);
    const mdmt_geometry *g = &p.g;
    double macs = (double)g->n * g->oh * g->ow * g->kh * g->kw * g->c * p.out_blocks * MDMT_BLOCK;
    double cycles = macs / micro->floats_per_cycle / 0.88;
    if (p.staged) {
        cycles += (double)g->n * g->h * g->w * p.blocks * p.outs * 4.0;
    }
    if (p.every) {
        cycles += (double)g->n * g->oh * g->ow * p.out_blocks * p.ins * 4.0;
    }
    return cycles + (p.slices > 1 ? 0.25 * (double)p.weight_floats * p.slices : 0.0);
}

mdmt_status mdmt_conv_weight_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                 const mdmt_call *call)
{
    plan p;
    plan_weight(site, micro, &p);
    job j = {.micro = micro,
             .plan = &p,
             .x = call->in[0],
             .dy = call->in[1].data,
             .dw = call->out[0],
             .partial = call->workspace,
             .scratch = (char *)call->workspace + p.partial_bytes};
    mdmt_parallel(site->pool, p.ins * p.outs * p.slices, run_task, &j);
    if (p.slices > 1) {
        mdmt_conv_merge(site->pool, micro, j.dw, j.partial, p.weight_floats, p.slices);
    }
    return MDMT_OK;
}
