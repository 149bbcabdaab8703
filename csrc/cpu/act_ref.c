/* Elementwise ops: activation, its gradient, sum, gate; zeros. */
#include <string.h>

#include "access.h"
#include "kernels.h"

typedef struct {
    const mdmt_call *call;
    mdmt_view a, b, out;
    mdmt_act act;
} element_job;

/* What an op makes of element (n, c, h, w). */
typedef double (*element_fn)(const element_job *job, int n, int c, int h, int w);

static double element_of(const mdmt_value *value, const mdmt_view *v, int n, int c, int h, int w)
{
    return ((const float *)value->data)[mdmt_at(v, n, c, h, w)];
}

static double act_element(const element_job *job, int n, int c, int h, int w)
{
    return mdmt_activate(job->act, element_of(&job->call->in[0], &job->a, n, c, h, w));
}

/* a = dy, b = x or y = act(x): dx. */
static double act_bwd_element(const element_job *job, int n, int c, int h, int w)
{
    double v = element_of(&job->call->in[1], &job->b, n, c, h, w);
    double slope = mdmt_activate_slope(job->act, v);
    return slope == 0 ? 0.0 : slope * element_of(&job->call->in[0], &job->a, n, c, h, w);
}

static double add_element(const element_job *job, int n, int c, int h, int w)
{
    return (double)(float)(element_of(&job->call->in[0], &job->a, n, c, h, w) +
                           element_of(&job->call->in[1], &job->b, n, c, h, w));
}

static double gate_element(const element_job *job, int n, int c, int h, int w)
{
    return mdmt_load(&job->call->in[0], mdmt_at(&job->a, n, c, h, w), c) *
           element_of(&job->call->in[1], &job->b, n, c, 0, 0);
}

/* One block of 16 channels of one sample. */
static void element_block(const element_job *job, int task, element_fn element)
{
    int blocks = mdmt_blocks(job->out.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->out.c, cb);
    double value[MDMT_BLOCK];
    for (int h = 0; h < job->out.h; h++) {
        for (int w = 0; w < job->out.w; w++) {
            for (int lane = 0; lane < lanes; lane++) {
                value[lane] = element(job, n, cb * MDMT_BLOCK + lane, h, w);
            }
            mdmt_store_block(&job->out, job->call->out[0], n, cb, h, w, value, lanes);
        }
    }
}

#define ELEMENT_TASK(name)                                                                         \
    static void name##_task(void *context, int task, int thread)                                   \
    {                                                                                              \
        (void)thread;                                                                              \
        element_block(context, task, name##_element);                                              \
    }
ELEMENT_TASK(act)
ELEMENT_TASK(act_bwd)
ELEMENT_TASK(add)
ELEMENT_TASK(gate)

static mdmt_status run_elements(const mdmt_site *site, const mdmt_call *call, mdmt_task_fn task)
{
    element_job job = {
        .call = call, .a = mdmt_view_of(site->in[0]), .out = mdmt_view_of(site->out[0])};
    if (site->op->inputs > 1) {
        job.b = mdmt_view_of(site->in[1]);
    }
    if (site->op->record->attr_bytes == sizeof(mdmt_act_attrs)) {
        job.act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    }
    mdmt_parallel(site->pool, job.out.n * mdmt_blocks(job.out.c), task, &job);
    return MDMT_OK;
}

static mdmt_status act_forward(const mdmt_site *site, const mdmt_call *call)
{
    return run_elements(site, call, act_task);
}

static mdmt_status act_bwd(const mdmt_site *site, const mdmt_call *call)
{
    return run_elements(site, call, act_bwd_task);
}

static mdmt_status add(const mdmt_site *site, const mdmt_call *call)
{
    return run_elements(site, call, add_task);
}

static mdmt_status gate(const mdmt_site *site, const mdmt_call *call)
{
    return run_elements(site, call, gate_task);
}

/* Task: sample n. ds[n][c] = sum over H, W of dy x. */
static void gate_bwd_task(void *context, int n, int thread)
{
    const element_job *job = context;
    (void)thread;
    float *ds = job->call->out[0];
    for (int c = 0; c < job->a.c; c++) {
        double sum = 0;
        for (int h = 0; h < job->a.h; h++) {
            for (int w = 0; w < job->a.w; w++) {
                sum += element_of(&job->call->in[0], &job->a, n, c, h, w) *
                       mdmt_load(&job->call->in[1], mdmt_at(&job->b, n, c, h, w), c);
            }
        }
        ds[mdmt_at(&job->out, n, c, 0, 0)] = (float)sum;
    }
}

static mdmt_status gate_bwd(const mdmt_site *site, const mdmt_call *call)
{
    element_job job = {.call = call,
                       .a = mdmt_view_of(site->in[0]),
                       .b = mdmt_view_of(site->in[1]),
                       .out = mdmt_view_of(site->out[0])};
    mdmt_parallel(site->pool, job.a.n, gate_bwd_task, &job);
    return MDMT_OK;
}

typedef struct {
    char *out;
    size_t sample, bytes; /* from a sample to the next, and of one */
} zeros_job;

/* Task: sample n. */
static void zeros_task(void *context, int n, int thread)
{
    const zeros_job *job = context;
    (void)thread;
    memset(job->out + (size_t)n * job->sample, 0, job->bytes);
}

static mdmt_status zeros(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_tensor *map = site->out[0];
    const size_t element = site->bf16 ? sizeof(uint16_t) : sizeof(float);
    zeros_job job = {.out = call->out[0],
                     .sample = mdmt_map_sample(map) * element,
                     .bytes = (size_t)mdmt_blocks(map->dim[1]) * mdmt_map_block(map) * element};
    mdmt_parallel(site->pool, map->dim[0], zeros_task, &job);
    return MDMT_OK;
}

static void over_inputs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->inplace_inputs = site->op->inputs > 1 ? 3u : 1u;
}

static void over_first(const mdmt_site *site, mdmt_needs *needs)
{
    needs->inplace_inputs = site->in[0]->lazy_source < 0 ? 1u : 0u;
}

const mdmt_cpu_impl mdmt_f32_act_forward__ref = {.name = "mdmt_f32_act_forward__ref",
                                                 .needs = over_inputs,
                                                 .cost = mdmt_ref_cost,
                                                 .run = act_forward};
const mdmt_cpu_impl mdmt_f32_act_bwd__ref = {
    .name = "mdmt_f32_act_bwd__ref", .needs = over_inputs, .cost = mdmt_ref_cost, .run = act_bwd};
const mdmt_cpu_impl mdmt_f32_add__ref = {
    .name = "mdmt_f32_add__ref", .needs = over_inputs, .cost = mdmt_ref_cost, .run = add};
const mdmt_cpu_impl mdmt_f32_gate__ref = {
    .name = "mdmt_f32_gate__ref", .needs = over_first, .cost = mdmt_ref_cost, .run = gate};
const mdmt_cpu_impl mdmt_f32_gate_bwd__ref = {
    .name = "mdmt_f32_gate_bwd__ref", .cost = mdmt_ref_cost, .run = gate_bwd};
const mdmt_cpu_impl mdmt_f32_zeros__ref = {
    .name = "mdmt_f32_zeros__ref", .cost = mdmt_ref_cost, .run = zeros};
const mdmt_cpu_impl mdmt_bf16_zeros__ref = {
    .name = "mdmt_bf16_zeros__ref", .bf16 = 1, .cost = mdmt_ref_cost, .run = zeros};
