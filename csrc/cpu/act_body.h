/* Elementwise passes over whatever layout a tensor has: activation, its backward,
 * sum of two tensors. All of them keep padding zeros zeros. Included once by
 * act_avx2.c and once by act_avx512.c, and by act_bf16.c for MAPs of bfloat16. */
#include "lanes_act.h"

enum { ACT_CHUNK = 16 * 1024 }; /* elements a task */

/* The tensors are seen as `count` elements, in spans of `span`; between spans each
 * tensor has its own distance. A span is a whole tensor where all are dense, a
 * channel block of a sample where padding lanes need care, else a sample. */
typedef struct {
    const map_float *a, *b;
    map_float *out;
    int64_t count, span;
    int64_t a_sample, b_sample, out_sample;
    int spans;     /* of a sample */
    int last_used; /* lanes of a sample's last span that are channels */
    mdmt_act act;
    int op;     /* what act_pixels does */
    int stream; /* out goes past the caches */
} act_job;

enum { ACT_FORWARD, ACT_BWD, ACT_ADD };

/* Elements stored for a tensor of these kinds. */
static int64_t act_count(const mdmt_tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->dims; i++) {
        int padded = (tensor->kind == MDMT_MAP && i == 1) || tensor->kind == MDMT_VECTOR;
        count *= padded ? (int64_t)mdmt_blocks(tensor->dim[i]) * MDMT_BLOCK : tensor->dim[i];
    }
    return count;
}

typedef struct {
    const map_float *a, *b;
    map_float *out;
    int64_t count;
    int used;
} act_run;

MDMT_INLINE lanes act_lanes(int op, mdmt_act act, const map_float *a, const map_float *b)
{
    switch (op) {
    case ACT_BWD:
        return lanes_gradient(act, lanes_load(a), lanes_load(b));
    case ACT_ADD:
        return lanes_add(lanes_load(a), lanes_load(b));
    default:
        return lanes_activate(act, lanes_load(a));
    }
}

MDMT_INLINE void act_pixels(const act_run *run, int op, mdmt_act act, int stream)
{
    const int lifted = op == ACT_FORWARD && lanes_act_lifts(act);
    const lanes_mask used = lanes_first(run->used);
    int64_t at = 0;
    for (; at + MDMT_BLOCK <= run->count; at += MDMT_BLOCK) {
        lanes v = act_lanes(op, act, run->a + at, run->b + at);
        lanes_put(run->out + at, lifted ? lanes_only(used, v) : v, stream);
    }
    if (at < run->count) { /* the last few of all */
        int left = (int)(run->count - at);
        map_float a[MDMT_BLOCK] = {0}, b[MDMT_BLOCK] = {0};
        for (int i = 0; i < left; i++) {
            a[i] = run->a[at + i];
            b[i] = run->b[at + i];
        }
        lanes_store(a, act_lanes(op, act, a, b));
        for (int i = 0; i < left; i++) {
            run->out[at + i] = a[i];
        }
    }
}

#define ACT_PIXELS_FORWARD(which) act_pixels(&run, ACT_FORWARD, which, 0)
#define ACT_PIXELS_BWD(which)     act_pixels(&run, ACT_BWD, which, 0)

static void act_task(void *context, int task, int thread)
{
    const act_job *job = context;
    int64_t at = (int64_t)task * ACT_CHUNK, end = at + ACT_CHUNK;
    (void)thread;
    end = end < job->count ? end : job->count;
    while (at < end) {
        int64_t sample = at / job->span / job->spans, block = at / job->span % job->spans;
        int64_t inside = block * job->span + at % job->span, left = job->span - at % job->span;
        act_run run = {.a = job->a + sample * job->a_sample + inside,
                       .b = job->b + sample * job->b_sample + inside,
                       .out = job->out + sample * job->out_sample + inside,
                       .count = end - at < left ? end - at : left,
                       .used = block + 1 < job->spans ? MDMT_BLOCK : job->last_used};
        if (job->op == ACT_FORWARD) {
            LANES_EACH_ACT(job->act, ACT_PIXELS_FORWARD);
        } else if (job->op == ACT_BWD) {
            LANES_EACH_ACT(job->act, ACT_PIXELS_BWD);
        } else if (job->stream) {
            act_pixels(&run, ACT_ADD, MDMT_ACT_NONE, 1);
        } else {
            act_pixels(&run, ACT_ADD, MDMT_ACT_NONE, 0);
        }
        at += run.count;
    }
    if (job->stream) {
        mdmt_end_streams();
    }
}

static int64_t act_distance(const mdmt_tensor *tensor)
{
    return tensor->kind == MDMT_MAP ? (int64_t)mdmt_map_sample(tensor) : 0;
}

static mdmt_status act_go(const mdmt_site *site, const mdmt_call *call, int op, mdmt_act act)
{
    const mdmt_tensor *a = site->in[0], *b = op == ACT_FORWARD ? a : site->in[1];
    const int other = op == ACT_FORWARD ? 0 : 1, map = a->kind == MDMT_MAP;
    act_job job = {.a = call->in[0].data,
                   .b = call->in[other].data,
                   .out = call->out[0],
                   .count = act_count(a),
                   .a_sample = act_distance(a),
                   .b_sample = act_distance(b),
                   .out_sample = act_distance(site->out[0]),
                   .spans = 1,
                   .last_used = MDMT_BLOCK,
                   .act = act,
                   .op = op};
    job.span = job.count;
    job.stream = op == ACT_ADD && map && lanes_streams(job.count / MDMT_BLOCK, job.out) &&
                 job.out != job.a && job.out != job.b;
    if (op == ACT_FORWARD && act == MDMT_ACT_NONE && job.out == job.a) {
        return MDMT_OK;
    }
    if (map && op == ACT_FORWARD && lanes_act_lifts(act) && a->dim[1] % MDMT_BLOCK != 0) {
        job.spans = mdmt_blocks(a->dim[1]);
        job.span = (int64_t)mdmt_map_block(a);
        job.last_used = lanes_used(a->dim[1], job.spans - 1);
    } else if (map &&
               !(mdmt_map_is_dense(a) && mdmt_map_is_dense(b) && mdmt_map_is_dense(site->out[0]))) {
        job.span = job.count / a->dim[0];
    }
    mdmt_parallel(site->pool, (int)((job.count + ACT_CHUNK - 1) / ACT_CHUNK), act_task, &job);
    return MDMT_OK;
}

static mdmt_status act_forward_run(const mdmt_site *site, const mdmt_call *call)
{
    return act_go(site, call, ACT_FORWARD, (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act);
}

static mdmt_status act_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    return act_go(site, call, ACT_BWD, (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act);
}

static mdmt_status add_run(const mdmt_site *site, const mdmt_call *call)
{
    return act_go(site, call, ACT_ADD, MDMT_ACT_NONE);
}

static int add_supports(const mdmt_site *site)
{
    const mdmt_tensor *x = site->in[0];
    int known = x->kind == MDMT_MAP || x->kind == MDMT_ROWS || x->kind == MDMT_VECTOR ||
                x->kind == MDMT_IMAGE;
    return known && x->dtype == MDMT_F32;
}

/* Not: a VECTOR whose padding would be lifted. No network activates one. */
static int act_supports(const mdmt_site *site)
{
    mdmt_act act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    return add_supports(site) && !(site->in[0]->kind == MDMT_VECTOR && lanes_act_lifts(act));
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

const mdmt_cpu_impl MDMT_MAP_KERNEL(act_forward) = {
    .name = MDMT_MAP_KERNEL_TEXT(act_forward),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = act_supports,
    .needs = act_one_needs,
    .run = act_forward_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};

const mdmt_cpu_impl MDMT_MAP_KERNEL(act_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(act_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = add_supports,
    .needs = act_two_needs,
    .run = act_bwd_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};

const mdmt_cpu_impl MDMT_MAP_KERNEL(add) = {
    .name = MDMT_MAP_KERNEL_TEXT(add),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = add_supports,
    .needs = act_two_needs,
    .run = add_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
