/* Elementwise passes over whatever layout a tensor has: activation, its
 * backward, sum of two tensors. All of them map padding zeros to zeros. Included
 * once by act_avx2.c and once by act_avx512.c. */
#include "lanes.h"

enum { ACT_CHUNK = 64 * 1024 }; /* floats a task */

typedef struct {
    const float *a, *b;
    float *out;
    int64_t count;
    int op; /* what act_chunk does */
} act_job;

enum { ACT_RELU_FORWARD, ACT_RELU_BWD, ACT_ADD, ACT_COPY };

/* Floats stored for a tensor of these kinds. */
static int64_t act_count(const mdmt_tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->dims; i++) {
        int padded = (tensor->kind == MDMT_MAP && i == 1) || tensor->kind == MDMT_VECTOR;
        count *= padded ? (int64_t)mdmt_blocks(tensor->dim[i]) * MDMT_BLOCK : tensor->dim[i];
    }
    return count;
}

MDMT_INLINE lanes act_lanes(int op, lanes a, lanes b)
{
    switch (op) {
    case ACT_RELU_FORWARD:
        return lanes_relu(a);
    case ACT_RELU_BWD:
        return lanes_where_positive(b, a);
    case ACT_ADD:
        return lanes_add(a, b);
    default:
        return a;
    }
}

MDMT_INLINE void act_chunk(const act_job *job, int64_t at, int64_t end, int op)
{
    const float *b = job->b ? job->b : job->a;
    for (; at + MDMT_BLOCK <= end; at += MDMT_BLOCK) {
        lanes_store(job->out + at, act_lanes(op, lanes_load(job->a + at), lanes_load(b + at)));
    }
    if (at < end) { /* the last few of all */
        float x[MDMT_BLOCK] = {0}, y[MDMT_BLOCK] = {0};
        for (int64_t i = at; i < end; i++) {
            x[i - at] = job->a[i];
            y[i - at] = b[i];
        }
        lanes_store(x, act_lanes(op, lanes_load(x), lanes_load(y)));
        for (int64_t i = at; i < end; i++) {
            job->out[i] = x[i - at];
        }
    }
}

static void act_task(void *context, int task, int thread)
{
    const act_job *job = context;
    int64_t at = (int64_t)task * ACT_CHUNK, end = at + ACT_CHUNK;
    (void)thread;
    end = end < job->count ? end : job->count;
    switch (job->op) {
    case ACT_RELU_FORWARD:
        act_chunk(job, at, end, ACT_RELU_FORWARD);
        break;
    case ACT_RELU_BWD:
        act_chunk(job, at, end, ACT_RELU_BWD);
        break;
    case ACT_ADD:
        act_chunk(job, at, end, ACT_ADD);
        break;
    default:
        act_chunk(job, at, end, ACT_COPY);
        break;
    }
}

static mdmt_status act_go(const mdmt_site *site, const mdmt_call *call, int op)
{
    act_job job = {.a = call->in[0].data,
                   .b = site->op->inputs > 1 ? call->in[1].data : NULL,
                   .out = call->out[0],
                   .count = act_count(site->in[0]),
                   .op = op};
    if (op == ACT_COPY && job.out == job.a) {
        return MDMT_OK;
    }
    mdmt_parallel(site->pool, (int)((job.count + ACT_CHUNK - 1) / ACT_CHUNK), act_task, &job);
    return MDMT_OK;
}

static int act_relu(const mdmt_site *site)
{
    return MDMT_ATTRS(mdmt_act_attrs, site->op)->act == MDMT_ACT_RELU;
}

static mdmt_status act_forward_run(const mdmt_site *site, const mdmt_call *call)
{
    return act_go(site, call, act_relu(site) ? ACT_RELU_FORWARD : ACT_COPY);
}

static mdmt_status act_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    return act_go(site, call, act_relu(site) ? ACT_RELU_BWD : ACT_COPY);
}

static mdmt_status add_run(const mdmt_site *site, const mdmt_call *call)
{
    return act_go(site, call, ACT_ADD);
}

static int add_supports(const mdmt_site *site)
{
    const mdmt_tensor *x = site->in[0];
    int known = x->kind == MDMT_MAP || x->kind == MDMT_ROWS || x->kind == MDMT_VECTOR ||
                x->kind == MDMT_IMAGE;
    return known && x->dtype == MDMT_F32;
}

static int act_supports(const mdmt_site *site)
{
    int act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    return add_supports(site) && (act == MDMT_ACT_NONE || act == MDMT_ACT_RELU);
}

static void act_one_needs(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u;
}

static void act_two_needs(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 3u;
}

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_act_forward) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_act_forward),
    .isa = MDMT_LANES_LEVEL,
    .supports = act_supports,
    .needs = act_one_needs,
    .run = act_forward_run,
};

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_act_bwd) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_act_bwd),
    .isa = MDMT_LANES_LEVEL,
    .supports = act_supports,
    .needs = act_two_needs,
    .run = act_bwd_run,
};

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_add) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_add),
    .isa = MDMT_LANES_LEVEL,
    .supports = add_supports,
    .needs = act_two_needs,
    .run = add_run,
};
