/* Convolution, its gradients, and channel statistics: the definitions, summed
 * in double. Any kind of weights, groups, dilation, padding. */
#include <math.h>

#include "access.h"
#include "kernels.h"
#include "layout.h"

enum { B = MDMT_BLOCK };

double mdmt_ref_cost(const mdmt_site *site)
{
    (void)site;
    return INFINITY;
}

typedef struct {
    const mdmt_call *call;
    mdmt_geometry g;
    mdmt_view x, y;
    mdmt_weight_view w;
    int per_group;      /* output channels of a group    */
    const float *extra; /* bias or addend, or NULL       */
    float *stats;       /* conv2d: statistics, or NULL   */
    float *turned;      /* bwd_data, W_DENSE: [C / 16][K / 16][tap][k][c] */
} conv_job;

static conv_job conv_job_of(const mdmt_site *site, const mdmt_call *call, const mdmt_tensor *x,
                            const mdmt_tensor *y, const mdmt_tensor *w)
{
    conv_job job = {.call = call,
                    .g = mdmt_conv_geometry(site),
                    .x = mdmt_view_of(x),
                    .y = mdmt_view_of(y),
                    .w = mdmt_weight_view_of(w)};
    job.per_group = job.g.k / job.g.groups;
    return job;
}

/* Statistics of one channel of one sample: a part of STATS (parts = N). The
 * first value is the pivot. */
static void sample_stats(const mdmt_view *v, const float *data, int n, int c, float *stats)
{
    size_t row = (size_t)mdmt_blocks(v->c) * B;
    float *to = stats + (size_t)n * MDMT_STATS_ROWS * row + (size_t)c;
    float pivot = c < v->c ? data[mdmt_at(v, n, c, 0, 0)] : 0.0f;
    double sum = 0, square = 0;
    for (int h = 0; c < v->c && h < v->h; h++) {
        for (int w = 0; w < v->w; w++) {
            double d = (double)data[mdmt_at(v, n, c, h, w)] - (double)pivot;
            sum += d;
            square += d * d;
        }
    }
    to[MDMT_STATS_COUNT * row] = c < v->c ? (float)v->h * (float)v->w : 0.0f;
    to[MDMT_STATS_PIVOT * row] = pivot;
    to[MDMT_STATS_SUM * row] = (float)sum;
    to[MDMT_STATS_SQUARE * row] = (float)square;
}

/* x of a convolution, as its pixels are loaded. */
static double load_x(const conv_job *job, int n, int c, int h, int w)
{
    const mdmt_value *x = &job->call->in[0];
    double v = mdmt_load(x, mdmt_at(&job->x, n, c, h, w), c);
    return x->gate ? v * mdmt_gate_of(x, n, c, job->x.c) : v;
}

/* acc += v * w over a block of sixteen lanes. */
static inline void add_block(double *acc, double v, const float *w)
{
    for (int lane = 0; lane < B; lane++) {
        acc[lane] += v * (double)w[lane];
    }
}

/* The terms of one tap: x at pixel (h, col), all input channels. Without groups
 * the output channels share x and their weights lie side by side. */
static void forward_tap(const conv_job *job, int n, int kb, int h, int col, size_t tap, double *acc)
{
    const float *w = (const float *)job->call->in[1].data + tap;
    int lanes = mdmt_lanes(job->g.k, kb);
    for (int c = 0; c < job->w.i; c++) {
        const float *wp = w + mdmt_weight_at(&job->w, kb * B, c, 0, 0);
        if (job->g.groups == 1) {
            add_block(acc, load_x(job, n, c, h, col), wp);
            continue;
        }
        for (int lane = 0; lane < lanes; lane++) {
            int from = (kb * B + lane) / job->per_group * job->w.i + c;
            acc[lane] += load_x(job, n, from, h, col) * (double)wp[(size_t)lane * job->w.o_lane];
        }
    }
}

/* One pixel (oh, ow) of the output channels kb*16 .. : y = bias + sum w x. */
static void forward_pixel(const conv_job *job, int n, int kb, int oh, int ow, double *acc)
{
    const mdmt_geometry *g = &job->g;
    for (int lane = 0; lane < B; lane++) {
        acc[lane] = job->extra ? (double)job->extra[kb * B + lane] : 0.0;
    }
    for (int r = 0; r < g->kh; r++) {
        int h = mdmt_tap(oh, g->sh, g->pt, r, g->dh, g->h);
        for (int s = 0; h >= 0 && s < g->kw; s++) {
            int col = mdmt_tap(ow, g->sw, g->pl, s, g->dw, g->w);
            if (col >= 0) {
                forward_tap(job, n, kb, h, col, (size_t)(r * g->kw + s) * job->w.tap, acc);
            }
        }
    }
}

/* Task: sample n, block kb of output channels. */
static void forward_task(void *context, int task, int thread)
{
    const conv_job *job = context;
    (void)thread;
    int blocks = mdmt_blocks(job->g.k), n = task / blocks, kb = task % blocks;
    float *y = job->call->out[0];
    double acc[B];
    for (int oh = 0; oh < job->g.oh; oh++) {
        for (int ow = 0; ow < job->g.ow; ow++) {
            forward_pixel(job, n, kb, oh, ow, acc);
            mdmt_store_block(&job->y, y, n, kb, oh, ow, acc, mdmt_lanes(job->g.k, kb));
        }
    }
    for (int lane = 0; job->stats && lane < B; lane++) {
        sample_stats(&job->y, y, n, kb * B + lane, job->stats);
    }
}

static mdmt_status conv2d_forward(const mdmt_site *site, const mdmt_call *call)
{
    conv_job job = conv_job_of(site, call, site->in[0], site->out[0], site->in[1]);
    job.extra = mdmt_optional_in(site, call, 2);
    job.stats = mdmt_optional_out(site, call, 1);
    mdmt_parallel(site->pool, job.g.n * mdmt_blocks(job.g.k), forward_task, &job);
    return MDMT_OK;
}

static void part_per_sample(const mdmt_site *site, mdmt_needs *needs)
{
    needs->stat_parts = site->in[0]->dim[0];
}

/* Turns the blocks of dense weights from [c][k] to [k][c]; task: block cb. */
static void turn_task(void *context, int cb, int thread)
{
    const conv_job *job = context;
    (void)thread;
    const float *w = job->call->in[1].data;
    size_t taps = (size_t)job->g.kh * (size_t)job->g.kw;
    int blocks = mdmt_blocks(job->g.k);
    for (int kb = 0; kb < blocks; kb++) {
        for (size_t tap = 0; tap < taps; tap++) {
            const float *from = w + mdmt_weight_at(&job->w, kb * B, cb * B, 0, 0) + tap * B * B;
            float *to = job->turned + ((size_t)(cb * blocks + kb) * taps + tap) * B * B;
            for (int c = 0; c < B; c++) {
                for (int k = 0; k < B; k++) {
                    to[k * B + c] = from[c * B + k];
                }
            }
        }
    }
}

/* The terms of one window (oh, ow) that has the pixel under tap (r, s). */
static void data_tap(const conv_job *job, int n, int cb, int oh, int ow, int r, int s, double *acc)
{
    const mdmt_geometry *g = &job->g;
    const float *dy = job->call->in[0].data, *weight = job->call->in[1].data;
    if (job->turned) {
        size_t taps = (size_t)g->kh * (size_t)g->kw, tap = (size_t)(r * g->kw + s);
        const float *w = job->turned + ((size_t)(cb * mdmt_blocks(g->k)) * taps + tap) * B * B;
        for (int k = 0; k < g->k; k++) {
            add_block(acc, (double)dy[mdmt_at(&job->y, n, k, oh, ow)],
                      w + (size_t)(k / B) * taps * B * B + (size_t)(k % B) * B);
        }
        return;
    }
    for (int lane = 0; lane < mdmt_lanes(g->c, cb); lane++) {
        int c = cb * B + lane, group = c / job->w.i;
        for (int k = group * job->per_group; k < (group + 1) * job->per_group; k++) {
            acc[lane] += (double)dy[mdmt_at(&job->y, n, k, oh, ow)] *
                         (double)weight[mdmt_weight_at(&job->w, k, c % job->w.i, r, s)];
        }
    }
}

/* One pixel (h, w) of the input channels cb*16 .. : dx = sum over the windows
 * that cover it of w dy. */
static void data_pixel(const conv_job *job, int n, int cb, int h, int w, double *acc)
{
    const mdmt_geometry *g = &job->g;
    for (int r = 0; r < g->kh; r++) {
        int oh = mdmt_window(h, g->sh, g->pt, r, g->dh, g->oh);
        for (int s = 0; oh >= 0 && s < g->kw; s++) {
            int ow = mdmt_window(w, g->sw, g->pl, s, g->dw, g->ow);
            if (ow >= 0) {
                data_tap(job, n, cb, oh, ow, r, s, acc);
            }
        }
    }
}

/* Task: sample n, block cb of input channels. */
static void data_task(void *context, int task, int thread)
{
    const conv_job *job = context;
    (void)thread;
    int blocks = mdmt_blocks(job->g.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->g.c, cb);
    float *dx = job->call->out[0];
    double acc[B] = {0};
    for (int h = 0; h < job->g.h; h++) {
        for (int w = 0; w < job->g.w; w++) {
            for (int lane = 0; lane < lanes; lane++) {
                acc[lane] =
                    job->extra ? (double)job->extra[mdmt_at(&job->x, n, cb * B + lane, h, w)] : 0.0;
            }
            data_pixel(job, n, cb, h, w, acc);
            mdmt_store_block(&job->x, dx, n, cb, h, w, acc, lanes);
        }
    }
}

static mdmt_status conv2d_bwd_data(const mdmt_site *site, const mdmt_call *call)
{
    conv_job job = conv_job_of(site, call, site->out[0], site->in[0], site->in[1]);
    job.extra = mdmt_optional_in(site, call, 2);
    if (site->in[1]->kind == MDMT_W_DENSE) {
        job.turned = call->workspace;
        mdmt_parallel(site->pool, mdmt_blocks(job.g.c), turn_task, &job);
    }
    mdmt_parallel(site->pool, job.g.n * mdmt_blocks(job.g.c), data_task, &job);
    return MDMT_OK;
}

static void data_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->inplace_inputs = 1u << 2; /* over the addend */
    if (site->in[1]->kind == MDMT_W_DENSE) {
        needs->workspace_bytes = mdmt_storage_bytes(site->in[1]);
    }
}

/* dw[k][c][r][s] of 16 output channels k = kb*16 ..: the sum over all pixels of
 * the output of dy times the x under that tap. */
static void weight_tap(const conv_job *job, int kb, int c, int r, int s, double *acc)
{
    const mdmt_geometry *g = &job->g;
    const float *dy = job->call->in[1].data;
    int lanes = mdmt_lanes(g->k, kb);
    for (int n = 0; n < g->n; n++) {
        for (int oh = 0; oh < g->oh; oh++) {
            int h = mdmt_tap(oh, g->sh, g->pt, r, g->dh, g->h);
            for (int ow = 0; h >= 0 && ow < g->ow; ow++) {
                int w = mdmt_tap(ow, g->sw, g->pl, s, g->dw, g->w);
                if (w < 0) {
                    continue;
                }
                const float *d = dy + mdmt_at(&job->y, n, kb * B, oh, ow);
                if (g->groups == 1) {
                    add_block(acc, load_x(job, n, c, h, w), d);
                    continue;
                }
                for (int lane = 0; lane < lanes; lane++) {
                    int from = (kb * B + lane) / job->per_group * job->w.i + c;
                    acc[lane] += load_x(job, n, from, h, w) * (double)d[lane];
                }
            }
        }
    }
}

/* Task: block kb of output channels, input channel c of each group (padding
 * lanes included, which become zero). */
static void weight_task(void *context, int task, int thread)
{
    const conv_job *job = context;
    (void)thread;
    int kb = task / job->w.padded_i, c = task % job->w.padded_i;
    float *dw = job->call->out[0];
    for (int r = 0; r < job->g.kh; r++) {
        for (int s = 0; s < job->g.kw; s++) {
            double acc[B] = {0};
            if (c < job->w.i) {
                weight_tap(job, kb, c, r, s, acc);
            }
            for (int k = kb * B; k < (kb + 1) * B && k < job->w.padded_o; k++) {
                dw[mdmt_weight_at(&job->w, k, c, r, s)] = k < job->g.k ? (float)acc[k % B] : 0.0f;
            }
        }
    }
}

static mdmt_status conv2d_bwd_weight(const mdmt_site *site, const mdmt_call *call)
{
    conv_job job = conv_job_of(site, call, site->in[0], site->in[1], site->out[0]);
    mdmt_parallel(site->pool, mdmt_blocks(job.g.k) * job.w.padded_i, weight_task, &job);
    return MDMT_OK;
}

/* Task: block cb of channels; sum over N, H, W. */
static void sum_task(void *context, int cb, int thread)
{
    const conv_job *job = context;
    (void)thread;
    const float *x = job->call->in[0].data;
    float *sum = job->call->out[0];
    for (int c = cb * B; c < (cb + 1) * B; c++) {
        double total = 0;
        for (int n = 0; c < job->x.c && n < job->x.n; n++) {
            for (int h = 0; h < job->x.h; h++) {
                for (int w = 0; w < job->x.w; w++) {
                    total += (double)x[mdmt_at(&job->x, n, c, h, w)];
                }
            }
        }
        sum[c] = (float)total;
    }
}

static mdmt_status channel_sum(const mdmt_site *site, const mdmt_call *call)
{
    conv_job job = {.call = call, .x = mdmt_view_of(site->in[0])};
    mdmt_parallel(site->pool, mdmt_blocks(job.x.c), sum_task, &job);
    return MDMT_OK;
}

static void stats_task(void *context, int n, int thread)
{
    const conv_job *job = context;
    (void)thread;
    for (int c = 0; c < mdmt_blocks(job->x.c) * B; c++) {
        sample_stats(&job->x, job->call->in[0].data, n, c, job->call->out[0]);
    }
}

static mdmt_status channel_stats(const mdmt_site *site, const mdmt_call *call)
{
    conv_job job = {.call = call, .x = mdmt_view_of(site->in[0])};
    mdmt_parallel(site->pool, job.x.n, stats_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl mdmt_f32_conv2d_forward__ref = {.name = "mdmt_f32_conv2d_forward__ref",
                                                    .needs = part_per_sample,
                                                    .cost = mdmt_ref_cost,
                                                    .run = conv2d_forward};
const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data__ref = {.name = "mdmt_f32_conv2d_bwd_data__ref",
                                                     .needs = data_needs,
                                                     .cost = mdmt_ref_cost,
                                                     .run = conv2d_bwd_data};
const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight__ref = {
    .name = "mdmt_f32_conv2d_bwd_weight__ref", .cost = mdmt_ref_cost, .run = conv2d_bwd_weight};
const mdmt_cpu_impl mdmt_f32_channel_sum__ref = {
    .name = "mdmt_f32_channel_sum__ref", .cost = mdmt_ref_cost, .run = channel_sum};
const mdmt_cpu_impl mdmt_f32_channel_stats__ref = {.name = "mdmt_f32_channel_stats__ref",
                                                   .needs = part_per_sample,
                                                   .cost = mdmt_ref_cost,
                                                   .run = channel_stats};
