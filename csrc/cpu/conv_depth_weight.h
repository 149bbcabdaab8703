/* Depthwise convolution, weight gradient:
 *   dw[c][r][s] = sum over n, oh, ow of dy[n][c][oh][ow] x[n][c][oh S - pt + r][ow S - pl + s]
 *
 * The taps' sums stay in registers while some rows of dy go by. Sums are taken in float over at
 * most DEPTH_RUN pixels and some rows, those of a task in double, those of the tasks in order. */
#ifndef MDMT_CPU_CONV_DEPTH_WEIGHT_H
#define MDMT_CPU_CONV_DEPTH_WEIGHT_H

#include "conv_depth_forward.h"

enum {
    WEIGHT_ROWS = 14, /* rows of dy in one go, at most */
    WEIGHT_POINTERS = DEPTH_TAPS + 2 * (WEIGHT_ROWS - 1),
    WEIGHT_TAPS = DEPTH_TAPS * DEPTH_TAPS,
    WEIGHT_GROUP = 4096 /* pixels of a task of several samples, at most */
};

/* Rows of dy, and the staged rows: tap row r of row i reads x[i * stride + r]. */
typedef struct {
    const float *x[WEIGHT_POINTERS];
    const map_float *dy;
    ptrdiff_t dy_row; /* elements */
    int rows, width;
    float *sum; /* [taps][taps][16] */
} weight_rows;

typedef void (*weight_fn)(const weight_rows *a);

typedef struct {
    depth_cut cut;
    depth_stage stage;
    depth_map x, dy;
    int channels, taps, stride, top, width;
    int rows; /* of dy in one go */
    weight_fn fn;
    size_t dw; /* floats of dw */
    size_t thread_floats;
} weight_plan;

typedef struct {
    weight_plan plan;
    mdmt_value x;
    const map_float *dy;
    float *dw, *partial; /* partial: [parts][dw], or NULL */
    float *scratch;
} weight_job;

/* T pixels from pixel `at` of row i on: tap rows r0 .. r0 + R - 1. */
MDMT_INLINE void weight_pixels(const weight_rows *a, int i, int at, reg *sum, int half, const int K,
                               const int S, const int T, const int r0, const int R)
{
    reg dy[4];
    DEPTH_UNROLL
    for (int t = 0; t < T; t++) {
        dy[t] = reg_load_map(a->dy + i * a->dy_row + (at + t) * MDMT_BLOCK + half);
    }
    DEPTH_UNROLL
    for (int j = 0; j < (T - 1) * S + K; j++) {
        DEPTH_UNROLL
        for (int r = 0; r < R; r++) {
            reg x = reg_load(a->x[i * S + r0 + r] + (at * S + j) * MDMT_BLOCK + half);
            DEPTH_UNROLL
            for (int s = 0; s < K; s++) {
                if (j >= s && (j - s) % S == 0 && (j - s) / S < T) {
                    sum[r * K + s] = reg_fma(x, dy[(j - s) / S], sum[r * K + s]);
                }
            }
        }
    }
}

/* Tap rows r0 .. r0 + R - 1. */
MDMT_INLINE void weight_tap_rows(const weight_rows *a, const int K, const int S, const int r0,
                                 const int R)
{
    for (int half = 0; half < MDMT_BLOCK; half += REG_FLOATS) {
        float *to = a->sum + r0 * K * MDMT_BLOCK + half;
        reg sum[WEIGHT_TAPS];
        DEPTH_UNROLL
        for (int k = 0; k < R * K; k++) {
            sum[k] = reg_load(to + k * MDMT_BLOCK);
        }
        for (int i = 0; i < a->rows; i++) {
            int at = 0;
            for (; at + 4 <= a->width; at += 4) {
                weight_pixels(a, i, at, sum, half, K, S, 4, r0, R);
            }
            for (; at < a->width; at++) {
                weight_pixels(a, i, at, sum, half, K, S, 1, r0, R);
            }
        }
        DEPTH_UNROLL
        for (int k = 0; k < R * K; k++) {
            reg_store(to + k * MDMT_BLOCK, sum[k]);
        }
    }
}

MDMT_INLINE void weight_all_taps(const weight_rows *a, const int K, const int S)
{
#if MDMT_REGISTERS >= 32
    weight_tap_rows(a, K, S, 0, K);
#else
    if (K == 3) {
        weight_tap_rows(a, K, S, 0, 3);
    } else {
        weight_tap_rows(a, K, S, 0, 2);
        weight_tap_rows(a, K, S, 2, 2);
        weight_tap_rows(a, K, S, 4, 1);
    }
#endif
}

#define WEIGHT_FN(K, S)                                                                            \
    static void weight_rows_##K##_##S(const weight_rows *a)                                        \
    {                                                                                              \
        weight_all_taps(a, K, S);                                                                  \
    }
WEIGHT_FN(3, 1)
WEIGHT_FN(3, 2)
WEIGHT_FN(5, 1)
WEIGHT_FN(5, 2)

static const weight_fn weight_fns[2][2] = {{weight_rows_3_1, weight_rows_3_2},
                                           {weight_rows_5_1, weight_rows_5_2}};

static weight_plan weight_plan_of(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    weight_plan p = {.x = depth_map_of(site->in[0]),
                     .dy = depth_map_of(site->in[1]),
                     .channels = g.c,
                     .taps = g.kh,
                     .stride = g.sh,
                     .top = g.pt,
                     .width = g.ow,
                     .fn = weight_fns[g.kh / 2 - 1][g.sh - 1]};
    p.stage = (depth_stage){.columns = (g.ow - 1) * g.sw + g.kw, .lead = g.pl};
    p.stage.pitch = (size_t)p.stage.columns * MDMT_BLOCK;
    int fit = (int)((size_t)DEPTH_RING / (p.stage.pitch * sizeof(float)));
    p.rows = (fit - g.kh) / g.sh + 1;
    p.rows = depth_max(1, depth_min(p.rows, depth_min(WEIGHT_ROWS, g.oh)));
    p.stage.slots = g.kh + (p.rows - 1) * g.sh;
    p.cut = depth_cut_of(g.n, g.c, g.oh, g.ow, 1, WEIGHT_GROUP / (g.oh * g.ow));
    p.dw = (size_t)p.cut.blocks * (size_t)(g.kh * g.kw) * MDMT_BLOCK;
    p.thread_floats = mdmt_round_up(depth_ring_floats(&p.stage), 1024);
    return p;
}

/* Float sums to double ones; the float ones begin anew. */
static void weight_flush(float *sum, double *total, int taps)
{
    for (int k = 0; k < taps * MDMT_BLOCK; k += MDMT_BLOCK) {
        lanes_accumulate(total + k, lanes_load(sum + k));
        lanes_store(sum + k, lanes_zero());
    }
}

static void weight_task(void *context, int task, int thread)
{
    const weight_job *job = context;
    const weight_plan *p = &job->plan;
    depth_task t = depth_task_of(&p->cut, task);
    depth_ring ring =
        depth_ring_open(&p->stage, job->scratch + (size_t)thread * p->thread_floats, &p->x);
    int taps = p->taps * p->taps, pixels = 0;
    float sum[WEIGHT_TAPS * MDMT_BLOCK] = {0};
    double total[WEIGHT_TAPS * MDMT_BLOCK] = {0};
    weight_rows a = {.dy_row = (ptrdiff_t)p->width * MDMT_BLOCK, .width = p->width, .sum = sum};
    for (int n = t.first_n; n < t.end_n; n++) {
        const map_float *dy = job->dy + (size_t)n * p->dy.sample + (size_t)t.block * p->dy.block;
        depth_ring_plane(&ring, &job->x, &p->x, p->channels, n, t.block,
                         t.first * p->stride - p->top);
        for (int row = t.first; row < t.end; row += a.rows) {
            int first = row * p->stride - p->top;
            a.rows = depth_min(p->rows, t.end - row);
            int used = p->taps + (a.rows - 1) * p->stride;
            depth_ring_until(&ring, first + used);
            for (int i = 0; i < used; i++) {
                a.x[i] = depth_ring_at(&ring, first + i);
            }
            a.dy = dy + (ptrdiff_t)row * a.dy_row;
            p->fn(&a);
            pixels += a.rows * p->width;
            if (pixels >= DEPTH_RUN) {
                weight_flush(sum, total, taps);
                pixels = 0;
            }
        }
    }
    weight_flush(sum, total, taps);
    float *to = job->partial ? job->partial + (size_t)t.part * p->dw : job->dw;
    to += (size_t)t.block * (size_t)taps * MDMT_BLOCK;
    for (int k = 0; k < taps * MDMT_BLOCK; k++) {
        to[k] = (float)total[k];
    }
}

/* dw of one block: the partial sums in order. */
static void weight_merge(void *context, int block, int thread)
{
    const weight_job *job = context;
    const weight_plan *p = &job->plan;
    int taps = p->taps * p->taps, parts = p->cut.groups * p->cut.bands;
    size_t at = (size_t)block * (size_t)taps * MDMT_BLOCK;
    (void)thread;
    for (int tap = 0; tap < taps; tap++, at += MDMT_BLOCK) {
        double total[MDMT_BLOCK] = {0};
        for (int part = 0; part < parts; part++) {
            lanes_accumulate(total, lanes_load(job->partial + (size_t)part * p->dw + at));
        }
        for (int lane = 0; lane < MDMT_BLOCK; lane++) {
            job->dw[at + (size_t)lane] = (float)total[lane];
        }
    }
}

static size_t weight_scratch_floats(const mdmt_site *site, const weight_plan *p)
{
    return p->thread_floats * (size_t)site->threads;
}

static mdmt_status weight_run(const mdmt_site *site, const mdmt_call *call)
{
    weight_job job = {.plan = weight_plan_of(site),
                      .x = call->in[0],
                      .dy = call->in[1].data,
                      .dw = call->out[0],
                      .scratch = call->workspace};
    const depth_cut *cut = &job.plan.cut;
    if (cut->groups * cut->bands > 1) {
        job.partial = job.scratch + weight_scratch_floats(site, &job.plan);
    }
    mdmt_parallel(site->pool, cut->tasks, weight_task, &job);
    if (job.partial) {
        mdmt_parallel(site->pool, cut->blocks, weight_merge, &job);
    }
    return MDMT_OK;
}

static void weight_needs(const mdmt_site *site, mdmt_needs *needs)
{
    weight_plan p = weight_plan_of(site);
    size_t parts = (size_t)p.cut.groups * (size_t)p.cut.bands;
    size_t floats = weight_scratch_floats(site, &p) + (parts > 1 ? parts * p.dw : 0);
    needs->workspace_bytes = floats * sizeof(float);
}

static int weight_supports(const mdmt_site *site)
{
    return depth_supports_weight(site, site->out[0]);
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(conv2d_bwd_weight_depth) = {
    .name = MDMT_MAP_KERNEL_TEXT(conv2d_bwd_weight_depth),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = weight_supports,
    .needs = weight_needs,
    .run = weight_run,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_GATES | MDMT_ACCEPTS_ACTS,
};

#endif
