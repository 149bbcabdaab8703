/* Direct convolution of an IMAGE, a plain array of few channels: forward and
 * weight gradient of the first layer. Lanes are output channels; pixels of the
 * image are broadcast one by one. Bands of rows are brought into a padded
 * scratch first, and a gradient that is stored in bfloat16, strip by strip. */
#include "conv_direct.h"

#include <string.h>

enum {
    CHANNELS = 16,      /* at most; beyond them the layout makes no sense */
    BAND_PIXELS = 1568, /* of the output, for a task                     */
    STRIP_PIXELS = 112, /* of dy, which stay in the L1                   */
    SLICES = 32
};

typedef struct {
    mdmt_geometry g;
    int out_blocks;
    int band, bands; /* output rows of a task; bands of an image */
    int columns;     /* of the scratch: of one column phase (forward), of a row (weights) */
    int slices;      /* weight gradient */
    size_t row_floats, plane_floats;
    int pixel;           /* words of a pixel's block of y or dy: 16, or 8 in bfloat16 */
    size_t sample;       /* words between the images of y or dy                       */
    int strip;           /* weight gradient: rows of dy that are taken at once        */
    size_t strip_floats; /* of a staged block of them; 0: dy is read as it is   */
    size_t weight_floats, partial_bytes, thread_bytes;
} plan;

typedef struct {
    const mdmt_site *site;
    const mdmt_conv_micro *micro;
    const plan *plan;
    const float *x, *w, *bias, *dy;
    float *y, *stats, *dw, *partial;
    int past; /* y is stored past the caches */
    char *scratch;
} job;

static void plan_stem(const mdmt_site *site, const mdmt_conv_micro *micro, plan *p, int phases)
{
    *p = (plan){.g = mdmt_conv_geometry(site), .pixel = micro->pixel};
    const mdmt_geometry *g = &p->g;
    p->sample = mdmt_conv_words(phases ? site->out[0] : site->in[1], micro);
    p->out_blocks = mdmt_blocks(g->k);
    p->band = mdmt_min(g->oh, mdmt_max(1, BAND_PIXELS / g->ow));
    p->bands = mdmt_ceil_div(g->oh, p->band);
    p->band = mdmt_ceil_div(g->oh, p->bands);
    p->bands = mdmt_ceil_div(g->oh, p->band);
    int width = (g->ow - 1) * g->sw + (g->kw - 1) * g->dw + 1;
    p->columns = phases ? mdmt_ceil_div(width, g->sw) : width;
    p->row_floats = (size_t)p->columns * (phases ? g->sw : 1);
    p->plane_floats = p->row_floats * ((p->band - 1) * g->sh + (g->kh - 1) * g->dh + 1);
    p->thread_bytes = mdmt_round_up(p->plane_floats * g->c * sizeof(float), 4096);
    p->strip = mdmt_max(1, STRIP_PIXELS / g->ow);
    if (!phases && p->pixel < MDMT_BLOCK) {
        p->strip_floats = (size_t)p->strip * g->ow * MDMT_BLOCK;
        p->thread_bytes +=
            mdmt_round_up(p->strip_floats * micro->weight_blocks * sizeof(float), 4096);
    }
    p->weight_floats = (size_t)p->out_blocks * g->c * g->kh * g->kw * MDMT_BLOCK;
    p->slices = mdmt_min(SLICES, g->n * p->bands);
    p->partial_bytes = mdmt_round_up(p->weight_floats * sizeof(float) * p->slices, 4096);
}

/* Rows row0 .. of image n, padded: [channel][row][column phase][position], with
 * one phase where `phases` is 0. Rows outside the image are left as they are:
 * nobody reads them. */
static const float *stage_band(const job *j, int n, int row0, int rows, int phases, int thread)
{
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const int step = phases ? g->sw : 1;
    float *stage = (float *)(j->scratch + (size_t)thread * p->thread_bytes);
    for (int c = 0; c < g->c; c++) {
        const float *src = j->x + ((size_t)n * g->c + c) * g->h * g->w;
        for (int r = mdmt_max(0, row0); r < mdmt_min(g->h, row0 + rows); r++) {
            float *dst = stage + c * p->plane_floats + (size_t)(r - row0) * p->row_floats;
            const float *from = src + (size_t)r * g->w;
            for (int f = 0; f < step; f++, dst += p->columns) {
                int first = f - g->pl;
                int left = mdmt_min(first < 0 ? mdmt_ceil_div(-first, step) : 0, p->columns);
                int end = first < g->w ? (g->w - 1 - first) / step + 1 : 0;
                end = mdmt_max(left, mdmt_min(end, p->columns));
                memset(dst, 0, (size_t)left * sizeof(float));
                for (int i = left; i < end; i++) {
                    dst[i] = from[first + i * step];
                }
                memset(dst + end, 0, (size_t)(p->columns - end) * sizeof(float));
            }
        }
    }
    return stage;
}

/* ---- forward ---- */

/* One output row of one or two output blocks. `x`: the row's first input row;
 * `start`: it is the first of the part of the statistics. */
static void forward_row(const job *j, const float *x, const int *tap, int n, int row, int block,
                        int blocks, int part, int start)
{
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const int top = row * g->sh - g->pt, taps = g->kh * g->kw;
    int a0 = top < 0 ? mdmt_ceil_div(-top, g->dh) : 0;
    int a1 = top >= g->h ? 0 : mdmt_min(g->kh, (g->h - 1 - top) / g->dh + 1);
    a0 = mdmt_min(a0, g->kh);
    a1 = mdmt_max(a0, a1);
    const size_t plane = (size_t)g->oh * g->ow * p->pixel;
    mdmt_conv_tile t = {.x_block = (ptrdiff_t)p->plane_floats,
                        .tap = tap + a0 * g->kw,
                        .taps = (a1 - a0) * g->kw,
                        .w_block = (ptrdiff_t)taps * MDMT_BLOCK,
                        .w_out = (ptrdiff_t)g->c * taps * MDMT_BLOCK,
                        .blocks = g->c,
                        .last = 1,
                        .start = j->bias ? MDMT_INIT_BIAS : MDMT_INIT_ZERO,
                        .init = j->bias ? j->bias + block * MDMT_BLOCK : NULL,
                        .past = j->past,
                        .y_pixel = p->pixel,
                        .y_out = (ptrdiff_t)plane};
    if (j->stats) {
        t.stats_row = (ptrdiff_t)p->out_blocks * MDMT_BLOCK;
        t.stats = j->stats + (ptrdiff_t)part * MDMT_STATS_ROWS * t.stats_row + block * MDMT_BLOCK;
        t.stats_start = start;
    }
    t.w = j->w + block * t.w_out + a0 * g->kw * MDMT_BLOCK;
    float *y = j->y + n * p->sample + block * plane + (size_t)row * g->ow * p->pixel;
    int tiles = mdmt_ceil_div(g->ow, j->micro->columns);
    for (int i = 0, column = 0; i < tiles; i++) {
        int columns = (g->ow - column + tiles - i - 1) / (tiles - i);
        t.x = x + column;
        t.y = y + column * p->pixel;
        j->micro->stem[blocks - 1][columns](&t);
        t.stats_start = 0;
        column += columns;
    }
}

static void forward_task(void *context, int task, int thread)
{
    const job *j = context;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    int n = task / p->bands, row0 = task % p->bands * p->band;
    int row1 = mdmt_min(g->oh, row0 + p->band);
    int tap[MDMT_CONV_TAPS];
    for (int a = 0; a < g->kh; a++) {
        for (int b = 0; b < g->kw; b++) {
            int column = b * g->dw;
            tap[a * g->kw + b] =
                a * g->dh * (int)p->row_floats + column % g->sw * p->columns + column / g->sw;
        }
    }
    int rows = (row1 - row0 - 1) * g->sh + (g->kh - 1) * g->dh + 1;
    const float *x = stage_band(j, n, row0 * g->sh - g->pt, rows, 1, thread);
    for (int block = 0, blocks; block < p->out_blocks; block += blocks) {
        blocks = mdmt_min(j->micro->tile_blocks, p->out_blocks - block);
        for (int row = row0; row < row1; row++) {
            forward_row(j, x + (size_t)(row - row0) * g->sh * p->row_floats, tap, n, row, block,
                        blocks, task, row == row0);
        }
    }
    if (j->stats) {
        size_t lanes = (size_t)p->out_blocks * MDMT_BLOCK;
        float *count = j->stats + (size_t)task * MDMT_STATS_ROWS * lanes;
        for (size_t i = 0; i < lanes; i++) {
            count[i] = (float)(row1 - row0) * (float)g->ow;
        }
    }
    if (j->past) {
        j->micro->fence();
    }
}

static int supports(const mdmt_site *site, const mdmt_tensor *x)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    return g.groups == 1 && g.plain && (!x || x->lazy_source < 0) && g.c <= CHANNELS &&
           g.kh * g.kw <= MDMT_CONV_TAPS;
}

static double cost(const plan *p, const mdmt_conv_micro *micro)
{
    const mdmt_geometry *g = &p->g;
    double macs = (double)g->n * g->oh * g->ow * g->kh * g->kw * g->c * p->out_blocks * MDMT_BLOCK;
    return macs / micro->floats_per_cycle / 0.88 + 2.0 * g->n * g->c * g->h * g->w;
}

int mdmt_conv_stem_supports(const mdmt_site *site)
{
    return supports(site, site->in[0]) && site->in[1]->kind == MDMT_W_STEM;
}

void mdmt_conv_stem_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs)
{
    plan p;
    plan_stem(site, micro, &p, 1);
    needs->workspace_bytes = p.thread_bytes * site->threads;
    needs->stat_parts = p.g.n * p.bands;
}

double mdmt_conv_stem_cost(const mdmt_site *site, const mdmt_conv_micro *micro)
{
    plan p;
    plan_stem(site, micro, &p, 1);
    return cost(&p, micro);
}

mdmt_status mdmt_conv_stem_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                               const mdmt_call *call)
{
    plan p;
    plan_stem(site, micro, &p, 1);
    job j = {.site = site,
             .micro = micro,
             .plan = &p,
             .x = call->in[0].data,
             .w = call->in[1].data,
             .bias = site->op->inputs > 2 && site->in[2] ? call->in[2].data : NULL,
             .y = call->out[0],
             .past = mdmt_conv_is_past(site->out[0], micro, call->out[0], p.g.c * p.g.kh * p.g.kw),
             .stats = site->op->outputs > 1 && site->out[1] ? call->out[1] : NULL,
             .scratch = call->workspace};
    mdmt_parallel(site->pool, p.g.n * p.bands, forward_task, &j);
    return MDMT_OK;
}

/* ---- weight gradient ---- */

/* Adds rows row0 .. row1 of dy, the first of which is at `dy` (from block to block
 * `dy_out`), to all weights of one or two output blocks. `x`: the first input row of
 * the band, which begins at output row `band0`. */
static void weight_rows(const job *j, const float *x, const float *dy, size_t dy_out, float *dw,
                        int band0, int row0, int row1, int block, int blocks)
{
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const int taps = g->kh * g->kw;
    const int most = g->dw == 1 ? mdmt_min(g->kw, j->micro->channels[blocks - 1]) : 1;
    const int pieces = mdmt_ceil_div(g->kw, most);
    mdmt_conv_weight_tile t = {.x_pixel = g->sw,
                               .x_row = (ptrdiff_t)(g->sh * p->row_floats),
                               .dy_row = (ptrdiff_t)g->ow * MDMT_BLOCK,
                               .dy_out = (ptrdiff_t)dy_out,
                               .dw_out = (ptrdiff_t)g->c * taps * MDMT_BLOCK,
                               .images = 1,
                               .columns = g->ow};
    for (int a = 0; a < g->kh; a++) {
        int low = g->pt - a * g->dh, high = g->h - 1 + g->pt - a * g->dh;
        int first = mdmt_max(row0, low > 0 ? mdmt_ceil_div(low, g->sh) : 0);
        int end = mdmt_min(row1, high < 0 ? 0 : high / g->sh + 1);
        t.rows = end - first;
        if (t.rows <= 0) {
            continue;
        }
        t.dy = dy + (size_t)(first - row0) * g->ow * MDMT_BLOCK;
        for (int c = 0; c < g->c; c++) {
            const float *from =
                x + c * p->plane_floats +
                ((size_t)(first - band0) * g->sh + (size_t)a * g->dh) * p->row_floats;
            float *to = dw + block * t.dw_out + (c * taps + a * g->kw) * MDMT_BLOCK;
            for (int i = 0, b = 0; i < pieces; i++) {
                int count = (g->kw - b + pieces - i - 1) / (pieces - i);
                t.x = from + b * g->dw;
                t.dw = to + b * MDMT_BLOCK;
                j->micro->weight[blocks - 1][count](&t);
                b += count;
            }
        }
    }
}

/* The same where they lie in a map, staged if that is not of floats. */
static void weight_strip(const job *j, const float *x, float *dw, int n, int band0, int row0,
                         int row1, int block, int blocks, int thread)
{
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const size_t plane = (size_t)g->oh * g->ow * p->pixel;
    const float *dy = j->dy + n * p->sample + block * plane + (size_t)row0 * g->ow * p->pixel;
    if (!p->strip_floats) {
        weight_rows(j, x, dy, plane, dw, band0, row0, row1, block, blocks);
        return;
    }
    float *stage = (float *)(j->scratch + (size_t)(thread + 1) * p->thread_bytes) -
                   p->strip_floats * j->micro->weight_blocks;
    const int pixels = (row1 - row0) * g->ow;
    for (int b = 0; b < blocks; b++) { /* and brings the next strip */
        j->micro->stage(stage + b * p->strip_floats, dy + b * plane, pixels, p->pixel,
                        (ptrdiff_t)pixels * p->pixel, NULL, NULL, MDMT_ACT_NONE);
    }
    weight_rows(j, x, stage, p->strip_floats, dw, band0, row0, row1, block, blocks);
}

static void weight_task(void *context, int slice, int thread)
{
    const job *j = context;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const int total = g->n * p->bands;
    float *dw = j->partial + p->weight_floats * slice;
    memset(dw, 0, p->weight_floats * sizeof(float));
    for (int i = (int)((int64_t)total * slice / p->slices);
         i < (int)((int64_t)total * (slice + 1) / p->slices); i++) {
        int n = i / p->bands, band0 = i % p->bands * p->band;
        int band1 = mdmt_min(g->oh, band0 + p->band);
        const float *x =
            stage_band(j, n, band0 * g->sh - g->pt,
                       (band1 - band0 - 1) * g->sh + (g->kh - 1) * g->dh + 1, 0, thread);
        for (int block = 0, blocks; block < p->out_blocks; block += blocks) {
            blocks = mdmt_min(j->micro->weight_blocks, p->out_blocks - block);
            for (int row = band0; row < band1; row += p->strip) {
                weight_strip(j, x, dw, n, band0, row, mdmt_min(band1, row + p->strip), block,
                             blocks, thread);
            }
        }
    }
}

int mdmt_conv_stem_weight_supports(const mdmt_site *site)
{
    return supports(site, site->in[0]) && site->out[0]->kind == MDMT_W_STEM;
}

void mdmt_conv_stem_weight_needs(const mdmt_site *site, const mdmt_conv_micro *micro,
                                 mdmt_needs *needs)
{
    plan p;
    plan_stem(site, micro, &p, 0);
    needs->workspace_bytes = p.partial_bytes + p.thread_bytes * site->threads;
}

double mdmt_conv_stem_weight_cost(const mdmt_site *site, const mdmt_conv_micro *micro)
{
    plan p;
    plan_stem(site, micro, &p, 0);
    return cost(&p, micro);
}

mdmt_status mdmt_conv_stem_weight_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                      const mdmt_call *call)
{
    plan p;
    plan_stem(site, micro, &p, 0);
    job j = {.site = site,
             .micro = micro,
             .plan = &p,
             .x = call->in[0].data,
             .dy = call->in[1].data,
             .partial = call->workspace,
             .scratch = (char *)call->workspace + p.partial_bytes};
    mdmt_parallel(site->pool, p.slices, weight_task, &j);
    mdmt_conv_merge(site->pool, micro, call->out[0], j.partial, p.weight_floats, p.slices);
    return MDMT_OK;
}
