/* Direct convolution, weight gradient:
 *   dw[k][c][kh][kw] = sum over n, oh, ow of x[n][c][oh s - p + kh d][..] dy[n][k][oh][ow]
 *
 * A task owns some output and some input blocks and a slice of the pixels. It
 * goes through the slice in bands, whose x is staged in the second-level cache,
 * and through a band in strips of about a hundred pixels, whose x and dy stay in
 * the first level while all taps use them. Sums start anew with every strip and
 * every slice, which keeps rounding errors small; slices are added in order. */
#include "conv_direct.h"

#include <string.h>

enum {
    STRIP_PIXELS = 112,
    STAGE_BYTES = 256 * 1024,
    WEIGHT_BYTES = 288 * 1024,       /* dw of a task               */
    PARTIAL_BYTES = 6 * 1024 * 1024, /* of all slices             */
    TASKS = 32
};

typedef struct {
    mdmt_geometry g;
    int lazy, staged;
    int blocks, out_blocks;
    int in_step, out_step;  /* blocks of a task              */
    int ins, outs;          /* how many such                 */
    int group, band, strip; /* images; rows; rows           */
    int bands;              /* of an image group             */
    int total;              /* bands of all image groups     */
    int slices;
    int stage_columns;
    size_t row_floats, block_floats, image_floats;
    size_t weight_floats, partial_bytes, thread_bytes;
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
    p->staged = p->lazy || g->sw > 1 || g->pl > 0 || column_max >= g->w;
    p->stage_columns = (column_max + g->pl) / g->sw + 1;
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
    } else {
        p->row_floats = (size_t)g->w * MDMT_BLOCK;
        p->block_floats = p->row_floats * g->h;
        p->image_floats = p->block_floats * p->blocks;
        p->band = p->strip;
        p->thread_bytes = 0;
    }
    p->bands = mdmt_ceil_div(g->oh, p->band);
}

static void plan_weight(const mdmt_site *site, plan *p)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    if (g.kh * g.kw * g.sh * g.sw == 1 && !g.pt && !g.pl && !g.pb && !g.pr &&
        g.h * g.w <= 2 * STRIP_PIXELS) {
        g.w *= g.h;
        g.h = g.oh = 1;
        g.ow = g.w;
    }
    *p = (plan){.g = g, .lazy = site->in[0]->lazy_source >= 0};
    p->blocks = mdmt_blocks(g.c);
    p->out_blocks = mdmt_blocks(g.k);
    int tap_bytes = g.kh * g.kw * MDMT_BLOCK * MDMT_BLOCK * (int)sizeof(float);
    p->in_step = mdmt_min(p->blocks, tap_bytes > 4096 ? 8 : 16);
    p->in_step = mdmt_ceil_div(p->blocks, mdmt_ceil_div(p->blocks, p->in_step));
    int room = mdmt_max(1, WEIGHT_BYTES / (tap_bytes * p->in_step * 2)); /* pairs */
    p->out_step = 2 * mdmt_min(mdmt_ceil_div(p->out_blocks, 2), tap_bytes > 4096 ? 1 : room);
    p->ins = mdmt_ceil_div(p->blocks, p->in_step);
    p->outs = mdmt_ceil_div(p->out_blocks, p->out_step);
    p->group = mdmt_min(g.n, mdmt_max(1, STRIP_PIXELS / (g.oh * g.ow)));
    p->strip = mdmt_min(g.oh, mdmt_max(1, STRIP_PIXELS / g.ow));
    plan_window(p);
    p->total = mdmt_ceil_div(g.n, p->group) * p->bands;
    p->weight_floats = (size_t)p->blocks * p->out_blocks * tap_bytes / sizeof(float);
    size_t bytes = p->weight_floats * sizeof(float);
    int most = (int)((size_t)PARTIAL_BYTES / bytes);
    p->slices = mdmt_min(mdmt_ceil_div(TASKS, p->ins * p->outs), mdmt_min(most, p->total));
    p->slices = mdmt_max(1, p->slices);
    p->partial_bytes = p->slices > 1 ? mdmt_round_up(bytes * p->slices, 4096) : 0;
}

/* ---- staging ---- */

static void stage_row(const plan *p, const mdmt_conv_micro *micro, float *dst, const float *src,
                      const float *scale, const float *shift, mdmt_act act)
{
    const mdmt_geometry *g = &p->g;
    for (int f = 0; f < g->sw; f++, dst += p->stage_columns * MDMT_BLOCK) {
        int first = f - g->pl; /* column of position 0 */
        int left = first < 0 ? mdmt_ceil_div(-first, g->sw) : 0;
        int end = first < g->w ? (g->w - 1 - first) / g->sw + 1 : 0;
        left = mdmt_min(left, p->stage_columns);
        end = mdmt_max(left, mdmt_min(end, p->stage_columns));
        memset(dst, 0, (size_t)left * MDMT_BLOCK * sizeof(float));
        micro->stage(dst + left * MDMT_BLOCK, src + (first + left * g->sw) * MDMT_BLOCK, end - left,
                     (ptrdiff_t)g->sw * MDMT_BLOCK, scale, shift, act);
        memset(dst + end * MDMT_BLOCK, 0,
               (size_t)(p->stage_columns - end) * MDMT_BLOCK * sizeof(float));
    }
}

/* Input blocks in0 .. in1 of a band; returns where row `row0` and the leftmost
 * column begin, block in0. */
static const float *stage_band(const job *j, int image, int images, int in0, int in1, int row0,
                               int rows, int thread)
{
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    const float *x = j->x.data;
    const size_t plane = (size_t)g->h * g->w * MDMT_BLOCK;
    if (!p->staged) {
        return x + ((size_t)image * p->blocks + in0) * plane +
               ((ptrdiff_t)row0 * g->w - g->pl) * MDMT_BLOCK;
    }
    float *stage = (float *)(j->scratch + (size_t)thread * p->thread_bytes);
    int first = mdmt_max(0, row0), end = mdmt_min(g->h, row0 + rows);
    for (int i = 0; i < images; i++) {
        for (int b = in0; b < in1; b++) {
            const float *src = x + ((size_t)(image + i) * p->blocks + b) * plane;
            float *dst = stage + i * p->image_floats + (b - in0) * p->block_floats;
            const float *scale = j->x.scale ? j->x.scale + b * MDMT_BLOCK : NULL;
            const float *shift = j->x.scale ? j->x.shift + b * MDMT_BLOCK : NULL;
            for (int r = first; r < end; r++) {
                stage_row(p, j->micro, dst + (size_t)(r - row0) * p->row_floats,
                          src + (size_t)r * g->w * MDMT_BLOCK, scale, shift, j->x.act);
            }
        }
    }
    return stage;
}

/* ---- compute ---- */

typedef struct {
    const job *job;
    const float *x; /* of the band: row row0 * sh - pt, first block of the task */
    int image, images;
    int row0;         /* of the band                       */
    int row, row_end; /* of the strip                      */
    int in, in0;      /* input block; the task's first     */
    int out, outs;    /* output blocks                     */
    float *dw;        /* the whole, of the slice           */
} pass;

/* One tap of one input block and one or two output blocks over a strip. */
static void tap_sum(const pass *s, int a, int b)
{
    const job *j = s->job;
    const plan *p = j->plan;
    const mdmt_geometry *g = &p->g;
    /* Rows of dy whose row of x lies inside: r sh + a dh - pt in 0 .. h - 1. */
    int low = g->pt - a * g->dh, high = g->h - 1 + g->pt - a * g->dh;
    int first = low > 0 ? mdmt_ceil_div(low, g->sh) : 0;
    int end = high < 0 ? 0 : high / g->sh + 1;
    first = mdmt_max(first, s->row);
    end = mdmt_min(end, s->row_end);
    if (first >= end) {
        return;
    }
    const int taps = g->kh * g->kw, column = b * g->dw;
    const size_t plane = (size_t)g->oh * g->ow * MDMT_BLOCK;
    mdmt_conv_weight_tile t = {.x_pixel = MDMT_BLOCK,
                               .x_row = (ptrdiff_t)(g->sh * p->row_floats),
                               .x_image = (ptrdiff_t)p->image_floats,
                               .dy = j->dy + ((size_t)s->image * p->out_blocks + s->out) * plane +
                                     (size_t)first * g->ow * MDMT_BLOCK,
                               .dy_row = (ptrdiff_t)g->ow * MDMT_BLOCK,
                               .dy_image = (ptrdiff_t)(plane * p->out_blocks),
                               .dy_out = (ptrdiff_t)plane,
                               .dw_out = (ptrdiff_t)p->blocks * taps * MDMT_BLOCK * MDMT_BLOCK,
                               .images = s->images,
                               .rows = end - first,
                               .columns = g->ow};
    const float *x = s->x + (s->in - s->in0) * p->block_floats +
                     ((ptrdiff_t)(first - s->row0) * g->sh + a * g->dh) * (ptrdiff_t)p->row_floats +
                     (column % g->sw * p->stage_columns + column / g->sw) * MDMT_BLOCK;
    float *dw = s->dw + ((size_t)(s->out * p->blocks + s->in) * taps + a * g->kw + b) * MDMT_BLOCK *
                            MDMT_BLOCK;
    int channels = mdmt_min(MDMT_BLOCK, g->c - s->in * MDMT_BLOCK);
    int pieces = mdmt_ceil_div(channels, j->micro->channels[s->outs - 1]);
    for (int i = 0, c = 0; i < pieces; i++) {
        int count = (channels - c + pieces - i - 1) / (pieces - i);
        t.x = x + c;
        t.dw = dw + c * MDMT_BLOCK;
        j->micro->weight[s->outs - 1][count](&t);
        c += count;
    }
}

static void strip_sum(pass *s, int in0, int in1)
{
    const mdmt_geometry *g = &s->job->plan->g;
    for (s->in = in0; s->in < in1; s->in++) {
        for (int a = 0; a < g->kh; a++) {
            for (int b = 0; b < g->kw; b++) {
                tap_sum(s, a, b);
            }
        }
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
    pass s = {.job = j, .in0 = in0};
    s.dw = p->slices > 1 ? j->partial + p->weight_floats * slice : j->dw;
    clear_blocks(p, s.dw, in0, in1, out0, out1);
    for (int band = first; band < end; band++) {
        s.image = band / p->bands * p->group;
        s.images = mdmt_min(p->group, g->n - s.image);
        s.row0 = band % p->bands * p->band;
        int row1 = mdmt_min(g->oh, s.row0 + p->band);
        s.x = stage_band(j, s.image, s.images, in0, in1, s.row0 * g->sh - g->pt,
                         (row1 - s.row0 - 1) * g->sh + (g->kh - 1) * g->dh + 1, thread);
        for (s.out = out0; s.out < out1; s.out += s.outs) {
            s.outs = mdmt_min(j->micro->weight_blocks, out1 - s.out);
            for (s.row = s.row0; s.row < row1; s.row = s.row_end) {
                s.row_end = mdmt_min(row1, s.row + p->strip);
                strip_sum(&s, in0, in1);
            }
        }
    }
}

enum { MERGE_FLOATS = 16384 };

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
    (void)micro;
    plan_weight(site, &p);
    needs->workspace_bytes = p.partial_bytes + p.thread_bytes * site->threads;
}

double mdmt_conv_weight_cost(const mdmt_site *site, const mdmt_conv_micro *micro)
{
    plan p;
    plan_weight(site, &p);
    const mdmt_geometry *g = &p.g;
    double macs = (double)g->n * g->oh * g->ow * g->kh * g->kw * g->c * p.out_blocks * MDMT_BLOCK;
    double cycles = macs / micro->floats_per_cycle / 0.88;
    if (p.staged) {
        cycles += (double)g->n * g->h * g->w * p.blocks * p.outs * 4.0;
    }
    return cycles + (p.slices > 1 ? 0.25 * (double)p.weight_floats * p.slices : 0.0);
}

mdmt_status mdmt_conv_weight_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                 const mdmt_call *call)
{
    plan p;
    plan_weight(site, &p);
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
