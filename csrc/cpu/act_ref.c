/* Elementwise ops over the whole storage of a tensor: activation, its gradient,
 * sum. Padding lanes are zeros and stay so. */
#include "access.h"
#include "kernels.h"
#include "layout.h"

enum { CHUNK = 16384 }; /* elements of a task */

typedef struct {
    const float *a, *b;
    float *out;
    mdmt_act act;
    size_t count;
} flat_job;

static size_t chunk_end(const flat_job *job, int task)
{
    size_t end = ((size_t)task + 1) * CHUNK;
    return end < job->count ? end : job->count;
}

static mdmt_status run_flat(const mdmt_site *site, const mdmt_call *call, mdmt_task_fn task)
{
    flat_job job = {.a = call->in[0].data,
                    .b = site->op->inputs > 1 ? call->in[1].data : NULL,
                    .out = call->out[0],
                    .count = mdmt_storage_elements(site->out[0])};
    if (site->op->record != &mdmt_op_add) {
        job.act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    }
    mdmt_parallel(site->pool, (int)((job.count + CHUNK - 1) / CHUNK), task, &job);
    return MDMT_OK;
}

static void act_task(void *context, int task, int thread)
{
    const flat_job *job = context;
    (void)thread;
    for (size_t i = (size_t)task * CHUNK, end = chunk_end(job, task); i < end; i++) {
        job->out[i] = (float)mdmt_activate(job->act, (double)job->a[i]);
    }
}

/* a = dy, b = y = act(x): dx. */
static void act_bwd_task(void *context, int task, int thread)
{
    const flat_job *job = context;
    (void)thread;
    int relu = job->act == MDMT_ACT_RELU;
    for (size_t i = (size_t)task * CHUNK, end = chunk_end(job, task); i < end; i++) {
        job->out[i] = relu && job->b[i] <= 0 ? 0.0f : job->a[i];
    }
}

static void add_task(void *context, int task, int thread)
{
    const flat_job *job = context;
    (void)thread;
    for (size_t i = (size_t)task * CHUNK, end = chunk_end(job, task); i < end; i++) {
        job->out[i] = job->a[i] + job->b[i];
    }
}

static mdmt_status act_forward(const mdmt_site *site, const mdmt_call *call)
{
    return run_flat(site, call, act_task);
}

static mdmt_status act_bwd(const mdmt_site *site, const mdmt_call *call)
{
    return run_flat(site, call, act_bwd_task);
}

static mdmt_status add(const mdmt_site *site, const mdmt_call *call)
{
    return run_flat(site, call, add_task);
}

static void over_inputs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->inplace_inputs = site->op->inputs > 1 ? 3u : 1u;
}

const mdmt_cpu_impl mdmt_f32_act_forward__ref = {.name = "mdmt_f32_act_forward__ref",
                                                 .needs = over_inputs,
                                                 .cost = mdmt_ref_cost,
                                                 .run = act_forward};
const mdmt_cpu_impl mdmt_f32_act_bwd__ref = {
    .name = "mdmt_f32_act_bwd__ref", .needs = over_inputs, .cost = mdmt_ref_cost, .run = act_bwd};
const mdmt_cpu_impl mdmt_f32_add__ref = {
    .name = "mdmt_f32_add__ref", .needs = over_inputs, .cost = mdmt_ref_cost, .run = add};
