/* Linear layers and their gradients, flatten, dropout. */
#include "../base/philox.h"
#include "access.h"
#include "kernels.h"

enum { B = MDMT_BLOCK, ROWS_PER_TASK = 16 };

typedef struct {
    const float *a, *b, *bias;
    float *out;
    int n, i, o; /* samples, inputs, outputs of the layer */
} linear_job;

/* y[n][o] = bias[o] + sum_i x[n][i] w[o][i]; task: sample n. */
static void linear_task(void *context, int n, int thread)
{
    const linear_job *job = context;
    (void)thread;
    const float *x = job->a + (size_t)n * (size_t)job->i;
    for (int o = 0; o < job->o; o++) {
        const float *w = job->b + (size_t)o * (size_t)job->i;
        double sum = job->bias ? (double)job->bias[o] : 0.0;
        for (int i = 0; i < job->i; i++) {
            sum += (double)x[i] * (double)w[i];
        }
        job->out[(size_t)n * (size_t)job->o + (size_t)o] = (float)sum;
    }
}

static mdmt_status linear_forward(const mdmt_site *site, const mdmt_call *call)
{
    linear_job job = {.a = call->in[0].data,
                      .b = call->in[1].data,
                      .bias = mdmt_optional_in(site, call, 2),
                      .out = call->out[0],
                      .n = site->in[0]->dim[0],
                      .i = site->in[1]->dim[1],
                      .o = site->in[1]->dim[0]};
    mdmt_parallel(site->pool, job.n, linear_task, &job);
    return MDMT_OK;
}

/* dx[n][i] = sum_o dy[n][o] w[o][i]; task: sample n. */
static void linear_data_task(void *context, int n, int thread)
{
    const linear_job *job = context;
    (void)thread;
    const float *dy = job->a + (size_t)n * (size_t)job->o;
    for (int i = 0; i < job->i; i++) {
        double sum = 0;
        for (int o = 0; o < job->o; o++) {
            sum += (double)dy[o] * (double)job->b[(size_t)o * (size_t)job->i + (size_t)i];
        }
        job->out[(size_t)n * (size_t)job->i + (size_t)i] = (float)sum;
    }
}

static mdmt_status linear_bwd_data(const mdmt_site *site, const mdmt_call *call)
{
    linear_job job = {.a = call->in[0].data,
                      .b = call->in[1].data,
                      .out = call->out[0],
                      .n = site->in[0]->dim[0],
                      .i = site->in[1]->dim[1],
                      .o = site->in[1]->dim[0]};
    mdmt_parallel(site->pool, job.n, linear_data_task, &job);
    return MDMT_OK;
}

/* dw[o][i] = sum_n dy[n][o] x[n][i]; task: 16 rows o. */
static void linear_weight_task(void *context, int task, int thread)
{
    const linear_job *job = context;
    (void)thread;
    for (int o = task * ROWS_PER_TASK; o < (task + 1) * ROWS_PER_TASK && o < job->o; o++) {
        for (int i = 0; i < job->i; i++) {
            double sum = 0;
            for (int n = 0; n < job->n; n++) {
                sum += (double)job->b[(size_t)n * (size_t)job->o + (size_t)o] *
                       (double)job->a[(size_t)n * (size_t)job->i + (size_t)i];
            }
            job->out[(size_t)o * (size_t)job->i + (size_t)i] = (float)sum;
        }
    }
}

static mdmt_status linear_bwd_weight(const mdmt_site *site, const mdmt_call *call)
{
    linear_job job = {.a = call->in[0].data,
                      .b = call->in[1].data,
                      .out = call->out[0],
                      .n = site->in[0]->dim[0],
                      .i = site->in[0]->dim[1],
                      .o = site->in[1]->dim[1]};
    mdmt_parallel(site->pool, (job.o + ROWS_PER_TASK - 1) / ROWS_PER_TASK, linear_weight_task,
                  &job);
    return MDMT_OK;
}

typedef struct {
    const float *in;
    float *out;
    mdmt_view map;
    uint64_t key, step;
    uint32_t stream;
    float rate, scale;
} element_job;

/* Between a map and rows of its C * H * W elements; task: sample n. */
static void flatten_task(void *context, int n, int thread)
{
    const element_job *job = context;
    (void)thread;
    float *to = job->out + (size_t)n * (size_t)(job->map.c * job->map.h * job->map.w);
    for (int c = 0; c < job->map.c; c++) {
        for (int h = 0; h < job->map.h; h++) {
            for (int w = 0; w < job->map.w; w++) {
                *to++ = job->in[mdmt_at(&job->map, n, c, h, w)];
            }
        }
    }
}

static mdmt_status flatten_forward(const mdmt_site *site, const mdmt_call *call)
{
    element_job job = {
        .in = call->in[0].data, .out = call->out[0], .map = mdmt_view_of(site->in[0])};
    mdmt_parallel(site->pool, job.map.n, flatten_task, &job);
    return MDMT_OK;
}

static void unflatten_task(void *context, int n, int thread)
{
    const element_job *job = context;
    (void)thread;
    const mdmt_view *v = &job->map;
    const float *from = job->in + (size_t)n * (size_t)(v->c * v->h * v->w);
    for (int cb = 0; cb < mdmt_blocks(v->c); cb++) {
        for (int h = 0; h < v->h; h++) {
            for (int w = 0; w < v->w; w++) {
                double value[B];
                int lanes = mdmt_lanes(v->c, cb);
                for (int lane = 0; lane < lanes; lane++) {
                    value[lane] = (double)from[((cb * B + lane) * v->h + h) * v->w + w];
                }
                mdmt_store_block(v, job->out, n, cb, h, w, value, lanes);
            }
        }
    }
}

static mdmt_status flatten_bwd(const mdmt_site *site, const mdmt_call *call)
{
    element_job job = {
        .in = call->in[0].data, .out = call->out[0], .map = mdmt_view_of(site->out[0])};
    mdmt_parallel(site->pool, job.map.n, unflatten_task, &job);
    return MDMT_OK;
}

/* Task: sample n. Element e, counted over the unpadded (N, C, H, W), is kept
 * where word e % 4 of the Philox block (e / 4, stream; step) is at least `rate`. */
static void dropout_task(void *context, int n, int thread)
{
    const element_job *job = context;
    (void)thread;
    const mdmt_view *v = &job->map;
    uint64_t element = (uint64_t)n * (uint64_t)v->c * (uint64_t)v->h * (uint64_t)v->w;
    uint64_t drawn = UINT64_MAX;
    mdmt_philox4 block = {{0}};
    for (int c = 0; c < v->padded; c++) {
        for (int h = 0; h < v->h; h++) {
            for (int w = 0; w < v->w; w++) {
                size_t at = mdmt_at(v, n, c, h, w);
                if (c >= v->c) {
                    job->out[at] = 0.0f;
                    continue;
                }
                if (element / 4 != drawn) {
                    drawn = element / 4;
                    block = mdmt_philox(job->key, drawn | (uint64_t)job->stream << 40, job->step);
                }
                int keep = mdmt_uniform(block.v[element % 4]) >= job->rate;
                job->out[at] = keep ? job->in[at] * job->scale : 0.0f;
                element++;
            }
        }
    }
}

static mdmt_status dropout(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_dropout_attrs *a = MDMT_ATTRS(mdmt_dropout_attrs, site->op);
    element_job job = {.in = call->in[0].data,
                       .out = call->out[0],
                       .map = mdmt_view_of(site->in[0]),
                       .key = mdmt_stream_key(call->step->seed, MDMT_STREAM_DROPOUT),
                       .step = call->step->step,
                       .stream = (uint32_t)a->stream,
                       .rate = a->rate,
                       .scale = 1.0f / (1.0f - a->rate)};
    mdmt_parallel(site->pool, job.map.n, dropout_task, &job);
    return MDMT_OK;
}

static void over_input(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u;
}

const mdmt_cpu_impl mdmt_f32_linear_forward__ref = {
    .name = "mdmt_f32_linear_forward__ref", .cost = mdmt_ref_cost, .run = linear_forward};
const mdmt_cpu_impl mdmt_f32_linear_bwd_data__ref = {
    .name = "mdmt_f32_linear_bwd_data__ref", .cost = mdmt_ref_cost, .run = linear_bwd_data};
const mdmt_cpu_impl mdmt_f32_linear_bwd_weight__ref = {
    .name = "mdmt_f32_linear_bwd_weight__ref", .cost = mdmt_ref_cost, .run = linear_bwd_weight};
const mdmt_cpu_impl mdmt_f32_flatten_forward__ref = {
    .name = "mdmt_f32_flatten_forward__ref", .cost = mdmt_ref_cost, .run = flatten_forward};
const mdmt_cpu_impl mdmt_f32_flatten_bwd__ref = {
    .name = "mdmt_f32_flatten_bwd__ref", .cost = mdmt_ref_cost, .run = flatten_bwd};
const mdmt_cpu_impl mdmt_f32_dropout__ref = {
    .name = "mdmt_f32_dropout__ref", .needs = over_input, .cost = mdmt_ref_cost, .run = dropout};
