/* Batch normalisation, forward: statistics of a stored map, and normalisation
 * with activation and residual sum in one pass. Included once by norm_avx2.c and
 * once by norm_avx512.c. */
#include "access.h"
#include "map_walk.h"

/* ---- channel_stats: x (N, C, H, W) -> stats (parts, 4, C) ---- */

typedef struct {
    const float *x;
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
    const lanes pivot = lanes_load(job->x + run.offset);
    (void)thread;
    for (; run.pixels; map_next_run(&job->shape, block, end, &run)) {
        const float *x = job->x + run.offset;
        lanes s[LANES_SUMS], q[LANES_SUMS];
        for (int u = 0; u < LANES_SUMS; u++) {
            s[u] = q[u] = lanes_zero();
        }
        int64_t i = 0;
        for (; i + LANES_SUMS <= run.pixels; i += LANES_SUMS) {
            for (int u = 0; u < LANES_SUMS; u++) {
                lanes d = lanes_sub(lanes_load(x + (i + u) * MDMT_BLOCK), pivot);
                lanes_fetch(x + (i + u) * MDMT_BLOCK + run.ahead);
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
    stats_job job = {call->in[0].data, call->out[0], map_shape_of(site->in[0])};
    mdmt_parallel(site->pool, job.shape.blocks * job.shape.parts, stats_task, &job);
    return MDMT_OK;
}

static int stats_supports(const mdmt_site *site)
{
    return lanes_is_map(site->in[0]);
}

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_channel_stats) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_channel_stats),
    .isa = MDMT_LANES_LEVEL,
    .supports = stats_supports,
    .needs = stats_needs,
    .run = stats_run,
};

/* ---- norm_act: z = act(scale * x + shift [+ residual]) ---- */

typedef enum { RESIDUAL_NONE, RESIDUAL_STORED, RESIDUAL_LAZY, RESIDUAL_LAZY_RELU } residual_kind;

typedef struct {
    const float *x, *scale, *shift;
    mdmt_value residual;
    residual_kind kind;
    mdmt_act act;
    float *z;
    map_shape shape;
    int stream; /* z goes past the caches */
} norm_job;

MDMT_INLINE void norm_pixels(const float *x, const float *r, float *z, int64_t pixels,
                             lanes_affine affine, lanes_affine other, residual_kind kind,
                             mdmt_act act, int stream)
{
    for (int64_t i = 0; i < pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes v = lanes_apply(affine, lanes_load(x + i));
        lanes_fetch(x + i + MAP_AHEAD);
        if (kind != RESIDUAL_NONE) {
            lanes add = lanes_load(r + i);
            lanes_fetch(r + i + MAP_AHEAD);
            if (kind != RESIDUAL_STORED) {
                add = lanes_apply(other, add);
                add = kind == RESIDUAL_LAZY_RELU ? lanes_relu(add) : add;
            }
            v = lanes_add(v, add);
        }
        lanes_put(z + i, lanes_act(v, act), stream);
    }
}

/* One loop for each combination, so that none decides anything per pixel. */
MDMT_INLINE void norm_choose(const float *x, const float *r, float *z, int64_t pixels,
                             lanes_affine affine, lanes_affine other, residual_kind kind,
                             mdmt_act act, int stream)
{
    switch (kind) {
    case RESIDUAL_NONE:
        norm_pixels(x, r, z, pixels, affine, other, RESIDUAL_NONE, act, stream);
        break;
    case RESIDUAL_STORED:
        norm_pixels(x, r, z, pixels, affine, other, RESIDUAL_STORED, act, stream);
        break;
    case RESIDUAL_LAZY:
        norm_pixels(x, r, z, pixels, affine, other, RESIDUAL_LAZY, act, stream);
        break;
    case RESIDUAL_LAZY_RELU:
        norm_pixels(x, r, z, pixels, affine, other, RESIDUAL_LAZY_RELU, act, stream);
        break;
    }
}

static void norm_go(const norm_job *job, const float *x, const float *r, float *z, int64_t pixels,
                    lanes_affine affine, lanes_affine other)
{
    if (job->act == MDMT_ACT_RELU && job->stream) {
        norm_choose(x, r, z, pixels, affine, other, job->kind, MDMT_ACT_RELU, 1);
    } else if (job->act == MDMT_ACT_RELU) {
        norm_choose(x, r, z, pixels, affine, other, job->kind, MDMT_ACT_RELU, 0);
    } else if (job->stream) {
        norm_choose(x, r, z, pixels, affine, other, job->kind, MDMT_ACT_NONE, 1);
    } else {
        norm_choose(x, r, z, pixels, affine, other, job->kind, MDMT_ACT_NONE, 0);
    }
}

/* Walks the map as it lies in memory, MAP_PART pixels of any block a task. */
static void norm_task(void *context, int task, int thread)
{
    const norm_job *job = context;
    int64_t area = job->shape.area, at = (int64_t)task * MAP_PART, end = at + MAP_PART;
    int64_t all = job->shape.pixels * job->shape.blocks;
    (void)thread;
    end = end < all ? end : all;
    while (at < end) {
        int block = (int)(at / area % job->shape.blocks);
        int64_t left = area - at % area, pixels = end - at < left ? end - at : left;
        lanes_affine affine = lanes_affine_load(job->scale, job->shift, block), other = affine;
        if (job->kind >= RESIDUAL_LAZY) {
            other = lanes_affine_load(job->residual.scale, job->residual.shift, block);
        }
        const float *x = job->x + at * MDMT_BLOCK;
        const float *r = job->residual.data;
        r = r ? r + at * MDMT_BLOCK : x;
        float *z = job->z + at * MDMT_BLOCK;
        norm_go(job, x, r, z, pixels, affine, other);
        at += pixels;
    }
    if (job->stream) {
        _mm_sfence();
    }
}

static mdmt_status norm_run(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_value *in = call->in;
    norm_job job = {.x = in[0].data,
                    .scale = in[1].data,
                    .shift = in[2].data,
                    .kind = RESIDUAL_NONE,
                    .act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act,
                    .z = call->out[0],
                    .shape = map_shape_of(site->in[0])};
    if (mdmt_optional_in(site, call, 3)) {
        job.residual = in[3];
        job.kind = !in[3].scale                 ? RESIDUAL_STORED
                   : in[3].act == MDMT_ACT_RELU ? RESIDUAL_LAZY_RELU
                                                : RESIDUAL_LAZY;
    }
    int64_t all = job.shape.pixels * job.shape.blocks;
    job.stream = lanes_streams(all, job.z) && job.z != job.x && job.z != job.residual.data;
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

static int norm_supports(const mdmt_site *site)
{
    int act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    return lanes_is_map(site->in[0]) && (act == MDMT_ACT_NONE || act == MDMT_ACT_RELU);
}

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_norm_act) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_norm_act),
    .isa = MDMT_LANES_LEVEL,
    .supports = norm_supports,
    .needs = norm_needs,
    .run = norm_run,
};
