/* Pooling and its gradients, with PyTorch's rules for ties, NaN and divisors. */
#include <math.h>

#include "access.h"
#include "kernels.h"

enum { B = MDMT_BLOCK };

typedef struct {
    const mdmt_call *call;
    mdmt_geometry g;
    mdmt_view x, y, where; /* where: of the argmax, which is never a view */
    int include_pad;
    uint8_t *argmax; /* max_pool: or NULL */
} pool_job;

static pool_job pool_job_of(const mdmt_site *site, const mdmt_call *call, const mdmt_tensor *x,
                            const mdmt_tensor *y)
{
    return (pool_job){.call = call,
                      .g = mdmt_pool_geometry(site),
                      .x = mdmt_view_of(x),
                      .y = mdmt_view_of(y),
                      .include_pad = MDMT_ATTRS(mdmt_pool_attrs, site->op)->count_include_pad};
}

/* Maximum of a window and the number r * kw + s of its tap. The first maximum
 * in the order of the scan wins; a NaN beats everything, the last NaN wins. */
static double max_of_window(const pool_job *job, int n, int c, int oh, int ow, int *index)
{
    const mdmt_geometry *g = &job->g;
    double best = -INFINITY;
    *index = -1;
    for (int r = 0; r < g->kh; r++) {
        int h = mdmt_tap(oh, g->sh, g->pt, r, g->dh, g->h);
        for (int s = 0; h >= 0 && s < g->kw; s++) {
            int w = mdmt_tap(ow, g->sw, g->pl, s, g->dw, g->w);
            if (w < 0) {
                continue;
            }
            double v = mdmt_load(&job->call->in[0], mdmt_at(&job->x, n, c, h, w), c);
            if (*index < 0 || v > best || isnan(v)) {
                best = v;
                *index = r * g->kw + s;
            }
        }
    }
    return best;
}

/* Task: sample n, block cb of channels (all pooling tasks). */
static void max_task(void *context, int task, int thread)
{
    const pool_job *job = context;
    (void)thread;
    int blocks = mdmt_blocks(job->x.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->x.c, cb);
    double value[B];
    for (int oh = 0; oh < job->g.oh; oh++) {
        for (int ow = 0; ow < job->g.ow; ow++) {
            for (int lane = 0; lane < B && cb * B + lane < job->y.padded; lane++) {
                int index = 0;
                if (lane < lanes) {
                    value[lane] = max_of_window(job, n, cb * B + lane, oh, ow, &index);
                }
                if (job->argmax) {
                    job->argmax[mdmt_at(&job->where, n, cb * B + lane, oh, ow)] = (uint8_t)index;
                }
            }
            mdmt_store_block(&job->y, job->call->out[0], n, cb, oh, ow, value, lanes);
        }
    }
}

static mdmt_status max_pool_forward(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = pool_job_of(site, call, site->in[0], site->out[0]);
    job.argmax = mdmt_optional_out(site, call, 1);
    if (job.argmax) {
        job.where = mdmt_view_of(site->out[1]);
    }
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), max_task, &job);
    return MDMT_OK;
}

/* dx of one element: the sum of dy of the windows whose maximum it was. */
static double max_gradient(const pool_job *job, int n, int c, int h, int w)
{
    const mdmt_geometry *g = &job->g;
    const float *dy = job->call->in[0].data;
    const uint8_t *argmax = job->call->in[1].data;
    double sum = 0;
    for (int r = 0; r < g->kh; r++) {
        int oh = mdmt_window(h, g->sh, g->pt, r, g->dh, g->oh);
        for (int s = 0; oh >= 0 && s < g->kw; s++) {
            int ow = mdmt_window(w, g->sw, g->pl, s, g->dw, g->ow);
            if (ow >= 0) {
                int hit = argmax[mdmt_at(&job->where, n, c, oh, ow)] == r * g->kw + s;
                sum += hit ? (double)dy[mdmt_at(&job->y, n, c, oh, ow)] : 0.0;
            }
        }
    }
    return sum;
}

/* First and last+1 position of an average's window in the input, and the extent
 * that PyTorch counts: up to the end of the padding, or only inside the input. */
typedef struct {
    int from, to, counted;
} extent;

static extent extent_of(int out, int kernel, int stride, int before, int after, int size,
                        int include_pad)
{
    extent e = {out * stride - before, out * stride - before + kernel, 0};
    e.to = e.to < size + after ? e.to : size + after;
    e.counted = e.to - e.from;
    e.from = e.from > 0 ? e.from : 0;
    e.to = e.to < size ? e.to : size;
    if (!include_pad) {
        e.counted = e.to - e.from;
    }
    return e;
}

static extent rows_of(const pool_job *job, int oh)
{
    const mdmt_geometry *g = &job->g;
    return extent_of(oh, g->kh, g->sh, g->pt, g->pb, g->h, job->include_pad);
}

static extent columns_of(const pool_job *job, int ow)
{
    const mdmt_geometry *g = &job->g;
    return extent_of(ow, g->kw, g->sw, g->pl, g->pr, g->w, job->include_pad);
}

static void average_task(void *context, int task, int thread)
{
    const pool_job *job = context;
    (void)thread;
    int blocks = mdmt_blocks(job->x.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->x.c, cb);
    const float *x = job->call->in[0].data;
    for (int oh = 0; oh < job->g.oh; oh++) {
        extent rows = rows_of(job, oh);
        for (int ow = 0; ow < job->g.ow; ow++) {
            extent columns = columns_of(job, ow);
            double value[B] = {0};
            for (int lane = 0; lane < lanes; lane++) {
                for (int h = rows.from; h < rows.to; h++) {
                    for (int w = columns.from; w < columns.to; w++) {
                        value[lane] += (double)x[mdmt_at(&job->x, n, cb * B + lane, h, w)];
                    }
                }
                if (rows.from < rows.to && columns.from < columns.to) {
                    value[lane] /= (double)rows.counted * columns.counted;
                }
            }
            mdmt_store_block(&job->y, job->call->out[0], n, cb, oh, ow, value, lanes);
        }
    }
}

static mdmt_status avg_pool_forward(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = pool_job_of(site, call, site->in[0], site->out[0]);
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), average_task, &job);
    return MDMT_OK;
}

/* dx of one element: the sum of dy / divisor of the windows that cover it. */
static double average_gradient(const pool_job *job, int n, int c, int h, int w)
{
    const mdmt_geometry *g = &job->g;
    const float *dy = job->call->in[0].data;
    double sum = 0;
    for (int r = 0; r < g->kh; r++) {
        int oh = mdmt_window(h, g->sh, g->pt, r, 1, g->oh);
        for (int s = 0; oh >= 0 && s < g->kw; s++) {
            int ow = mdmt_window(w, g->sw, g->pl, s, 1, g->ow);
            if (ow >= 0) {
                double divisor = (double)rows_of(job, oh).counted * columns_of(job, ow).counted;
                sum += (double)dy[mdmt_at(&job->y, n, c, oh, ow)] / divisor;
            }
        }
    }
    return sum;
}

typedef double (*gradient_fn)(const pool_job *job, int n, int c, int h, int w);

static void gradient_block(const pool_job *job, int task, gradient_fn gradient)
{
    int blocks = mdmt_blocks(job->x.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->x.c, cb);
    double value[B];
    for (int h = 0; h < job->x.h; h++) {
        for (int w = 0; w < job->x.w; w++) {
            for (int lane = 0; lane < lanes; lane++) {
                value[lane] = gradient(job, n, cb * B + lane, h, w);
            }
            mdmt_store_block(&job->x, job->call->out[0], n, cb, h, w, value, lanes);
        }
    }
}

static void max_bwd_task(void *context, int task, int thread)
{
    (void)thread;
    gradient_block(context, task, max_gradient);
}

static void average_bwd_task(void *context, int task, int thread)
{
    (void)thread;
    gradient_block(context, task, average_gradient);
}

static mdmt_status max_pool_bwd(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = pool_job_of(site, call, site->out[0], site->in[0]);
    job.where = mdmt_view_of(site->in[1]);
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), max_bwd_task, &job);
    return MDMT_OK;
}

static mdmt_status avg_pool_bwd(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = pool_job_of(site, call, site->out[0], site->in[0]);
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), average_bwd_task, &job);
    return MDMT_OK;
}

/* Task: sample n. y[n][c] = mean over H, W of x. */
static void global_task(void *context, int n, int thread)
{
    const pool_job *job = context;
    (void)thread;
    float *y = job->call->out[0];
    for (int c = 0; c < job->x.c; c++) {
        double sum = 0;
        for (int h = 0; h < job->x.h; h++) {
            for (int w = 0; w < job->x.w; w++) {
                sum += mdmt_load(&job->call->in[0], mdmt_at(&job->x, n, c, h, w), c);
            }
        }
        y[mdmt_at(&job->y, n, c, 0, 0)] = (float)(sum / ((double)job->x.h * job->x.w));
    }
}

static mdmt_status global_avg_pool_forward(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = {.call = call, .x = mdmt_view_of(site->in[0]), .y = mdmt_view_of(site->out[0])};
    mdmt_parallel(site->pool, job.x.n, global_task, &job);
    return MDMT_OK;
}

static double global_gradient(const pool_job *job, int n, int c, int h, int w)
{
    (void)h;
    (void)w;
    const float *dy = job->call->in[0].data;
    return (double)dy[mdmt_at(&job->y, n, c, 0, 0)] / ((double)job->x.h * job->x.w);
}

static void global_bwd_task(void *context, int task, int thread)
{
    (void)thread;
    gradient_block(context, task, global_gradient);
}

static mdmt_status global_avg_pool_bwd(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = {.call = call, .x = mdmt_view_of(site->out[0]), .y = mdmt_view_of(site->in[0])};
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), global_bwd_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl mdmt_f32_max_pool_forward__ref = {
    .name = "mdmt_f32_max_pool_forward__ref", .cost = mdmt_ref_cost, .run = max_pool_forward};
const mdmt_cpu_impl mdmt_f32_max_pool_bwd__ref = {
    .name = "mdmt_f32_max_pool_bwd__ref", .cost = mdmt_ref_cost, .run = max_pool_bwd};
const mdmt_cpu_impl mdmt_f32_avg_pool_forward__ref = {
    .name = "mdmt_f32_avg_pool_forward__ref", .cost = mdmt_ref_cost, .run = avg_pool_forward};
const mdmt_cpu_impl mdmt_f32_avg_pool_bwd__ref = {
    .name = "mdmt_f32_avg_pool_bwd__ref", .cost = mdmt_ref_cost, .run = avg_pool_bwd};
const mdmt_cpu_impl mdmt_f32_global_avg_pool_forward__ref = {
    .name = "mdmt_f32_global_avg_pool_forward__ref",
    .cost = mdmt_ref_cost,
    .run = global_avg_pool_forward};
const mdmt_cpu_impl mdmt_f32_global_avg_pool_bwd__ref = {
    .name = "mdmt_f32_global_avg_pool_bwd__ref", .cost = mdmt_ref_cost, .run = global_avg_pool_bwd};
