/* Batch normalisation, forward: statistics of a stored map, and normalisation
 * with activation and residual sum in one pass. Included once by norm_avx2.c and
 * once by norm_avx512.c, and by norm_bf16.c for maps that are stored in bfloat16. */
#include "access.h"
#include "map_walk.h"

/* ---- channel_stats: x (N, C, H, W) -> stats (parts, 4, C) ---- */

typedef struct {
    map_at x;
    float *stats;
    map_shape shape;
} stats_job;

static void stats_task(void *context, int task, int thread)
{
    const stats_job *job = context;
    int block = task / job->shape.parts, part = task % job->shape.parts;
    int64_t end = map_part_end(&job->shape, part);
    double sum[MDMT_BLOCK] = {0}, square[MDMT_BLOCK] = {0};
    map_run run = map_first_run(&job->shape, block, part);
    const lanes pivot = lanes_load(map_point(job->x, &run));
    (void)thread;
    for (; run.pixels; map_next_run(&job->shape, block, end, &run)) {
        const map_float *x = map_point(job->x, &run);
        const int64_t ahead = map_ahead(job->x, &run);
        lanes s[LANES_SUMS], q[LANES_SUMS];
        for (int u = 0; u < LANES_SUMS; u++) {
            s[u] = q[u] = lanes_zero();
        }
        int64_t i = 0;
        for (; i + LANES_SUMS <= run.pixels; i += LANES_SUMS) {
            for (int u = 0; u < LANES_SUMS; u++) {
                lanes d = lanes_sub(lanes_load(x + (i + u) * MDMT_BLOCK), pivot);
                lanes_fetch(x + (i + u) * MDMT_BLOCK + ahead);
                s[u] = lanes_add(s[u], d);
                q[u] = lanes_fma(d, d, q[u]);
            }
        }
        for (; i < run.pixels; i++) {
            lanes d = lanes_sub(lanes_load(x + i * MDMT_BLOCK), pivot);
            s[0] = lanes_add(s[0], d);
            q[0] = lanes_fma(d, d, q[0]);
        }
        lanes_accumulate(sum, lanes_sum(s));
        lanes_accumulate(square, lanes_sum(q));
    }
    size_t row = (size_t)job->shape.blocks * MDMT_BLOCK;
    float *out = job->stats + (size_t)part * MDMT_STATS_ROWS * row + (size_t)block * MDMT_BLOCK;
    int64_t count = end - map_part_begin(&job->shape, part);
    lanes_store(out + MDMT_STATS_COUNT * row, lanes_set((float)count));
    lanes_store(out + MDMT_STATS_PIVOT * row, pivot);
    for (int lane = 0; lane < MDMT_BLOCK; lane++) {
        out[MDMT_STATS_SUM * row + lane] = (float)sum[lane];
        out[MDMT_STATS_SQUARE * row + lane] = (float)square[lane];
    }
}

static void stats_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->stat_parts = map_shape_of(site->in[0]).parts;
}

static mdmt_status stats_run(const mdmt_site *site, const mdmt_call *call)
{
    stats_job job = {map_at_of(site->in[0], call->in[0].data), call->out[0],
                     map_shape_of(site->in[0])};
    mdmt_parallel(site->pool, job.shape.blocks * job.shape.parts, stats_task, &job);
    return MDMT_OK;
}

static int stats_supports(const mdmt_site *site)
{
    return lanes_is_map(site->in[0]);
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(channel_stats) = {
    .name = MDMT_MAP_KERNEL_TEXT(channel_stats),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = stats_supports,
    .needs = stats_needs,
    .run = stats_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};

/* ---- norm_act: z = act(scale * x + shift [+ residual]) ---- */

enum { RESIDUAL_NONE = LANES_STORED + 1 }; /* or as LANES_EACH_LOAD says */

typedef struct {
    map_at x, r, z;
    const float *scale, *shift;
    mdmt_value residual; /* what is at r */
    mdmt_act act;
    map_shape shape;
    int stream; /* z goes past the caches */
} norm_job;

/* Pixels of one channel block of one sample. */
typedef struct {
    const map_float *x, *r;
    map_float *z;
    int64_t pixels;
    lanes_affine affine, other;
    lanes_mask used;
} norm_run;

MDMT_INLINE void norm_pixels(const norm_run *run, mdmt_act act, int residual, int stream)
{
    int lifted = lanes_act_lifts(act);
    if (residual < LANES_STORED) {
        lifted = lifted || lanes_act_lifts((mdmt_act)residual);
    }
    for (int64_t i = 0; i < run->pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes v = lanes_apply(run->affine, lanes_load(run->x + i));
        lanes_fetch(run->x + i + MAP_AHEAD);
        if (residual != RESIDUAL_NONE) {
            v = lanes_add(v, lanes_take(run->r + i, run->other, residual));
            lanes_fetch(run->r + i + MAP_AHEAD);
        }
        v = lanes_activate(act, v);
        lanes_put(run->z + i, lifted ? lanes_only(run->used, v) : v, stream);
    }
}

#define NORM_ALONE(which)            norm_pixels(run, which, RESIDUAL_NONE, 0)
#define NORM_ALONE_STREAM(which)     norm_pixels(run, which, RESIDUAL_NONE, 1)
#define NORM_STORED(which)           norm_pixels(run, which, LANES_STORED, 0)
#define NORM_STORED_STREAM(which)    norm_pixels(run, which, LANES_STORED, 1)
#define NORM_LAZY(which)             norm_pixels(run, MDMT_ACT_NONE, which, 0)
#define NORM_LAZY_RELU(which)        norm_pixels(run, MDMT_ACT_RELU, which, 0)
#define NORM_LAZY_STREAM(which)      norm_pixels(run, MDMT_ACT_NONE, which, 1)
#define NORM_LAZY_RELU_STREAM(which) norm_pixels(run, MDMT_ACT_RELU, which, 1)

/* One loop for each combination that norm_supports lets through. */
static void norm_go(const norm_job *job, const norm_run *run)
{
    if (!job->r.data) {
        if (job->stream) {
            LANES_EACH_ACT(job->act, NORM_ALONE_STREAM);
        } else {
            LANES_EACH_ACT(job->act, NORM_ALONE);
        }
    } else if (!job->residual.scale) {
        if (job->stream) {
            LANES_EACH_ACT(job->act, NORM_STORED_STREAM);
        } else {
            LANES_EACH_ACT(job->act, NORM_STORED);
        }
    } else if (job->act == MDMT_ACT_RELU) {
        if (job->stream) {
            LANES_EACH_ACT(job->residual.act, NORM_LAZY_RELU_STREAM);
        } else {
            LANES_EACH_ACT(job->residual.act, NORM_LAZY_RELU);
        }
    } else if (job->stream) {
        LANES_EACH_ACT(job->residual.act, NORM_LAZY_STREAM);
    } else {
        LANES_EACH_ACT(job->residual.act, NORM_LAZY);
    }
}

/* Walks the samples as they lie in memory, MAP_PART pixels of any block a task. */
static void norm_task(void *context, int task, int thread)
{
    const norm_job *job = context;
    int64_t area = job->shape.area, at = (int64_t)task * MAP_PART, end = at + MAP_PART;
    int64_t all = job->shape.pixels * job->shape.blocks;
    (void)thread;
    end = end < all ? end : all;
    while (at < end) {
        int block = (int)(at / area % job->shape.blocks);
        int64_t left = area - at % area;
        map_run walk = {.at = at,
                        .pixels = end - at < left ? end - at : left,
                        .sample = at / area / job->shape.blocks,
                        .inside = (block * area + at % area) * MDMT_BLOCK};
        norm_run run = {.x = map_point(job->x, &walk),
                        .z = map_point(job->z, &walk),
                        .pixels = walk.pixels,
                        .affine = lanes_affine_load(job->scale, job->shift, block),
                        .used = lanes_first(lanes_used(job->shape.channels, block))};
        if (job->r.data) {
            run.r = map_point(job->r, &walk);
            run.other = lanes_affine_of(&job->residual, block);
        }
        norm_go(job, &run);
        at += walk.pixels;
    }
    if (job->stream) {
        mdmt_end_streams();
    }
}

static mdmt_status norm_run_all(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_value *in = call->in;
    norm_job job = {.x = map_at_of(site->in[0], in[0].data),
                    .scale = in[1].data,
                    .shift = in[2].data,
                    .act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act,
                    .z = map_at_of(site->out[0], call->out[0]),
                    .shape = map_shape_of(site->in[0])};
    if (mdmt_optional_in(site, call, 3)) {
        job.residual = in[3];
        job.r = map_at_of(site->in[3], in[3].data);
    }
    int64_t all = job.shape.pixels * job.shape.blocks;
    job.stream =
        lanes_streams(all, job.z.data) && job.z.data != job.x.data && job.z.data != job.r.data;
    mdmt_parallel(site->pool, (int)((all + MAP_PART - 1) / MAP_PART), norm_task, &job);
    return MDMT_OK;
}

static void norm_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->inplace_inputs = 1u;
    if (site->op->inputs > 3 && site->in[3] && site->in[3]->lazy_source < 0) {
        needs->inplace_inputs |= 1u << 3;
    }
}

/* Not: a lazy residual before another activation than ReLU. No network has one. */
static int norm_supports(const mdmt_site *site)
{
    int act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    int lazy = site->op->inputs > 3 && site->in[3] && site->in[3]->lazy_source >= 0;
    return lanes_is_map(site->in[0]) && (!lazy || act == MDMT_ACT_NONE || act == MDMT_ACT_RELU);
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(norm_act) = {
    .name = MDMT_MAP_KERNEL_TEXT(norm_act),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = norm_supports,
    .needs = norm_needs,
    .run = norm_run_all,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_ACTS,
};
