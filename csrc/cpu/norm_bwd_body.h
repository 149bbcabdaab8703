/* Batch normalisation with activation, backward. Forward: y = gamma (x - mean)
 * invstd + beta [+ residual], z = act(y). With g = dz act'(y), M = N H W:
 *   dbeta = sum g, dgamma = invstd sum g (x - mean), dpre = g,
 *   dx = gamma invstd (g - dbeta / M - (x - mean) invstd dgamma / M)
 * (Ioffe & Szegedy 2015), without the two mean terms in evaluation mode, where
 * mean and invstd do not depend on x. gamma invstd is `scale`.
 *
 * One pass takes the sums, a second one makes dx, about one channel block behind
 * it, so that it finds its data in a cache. Included by norm_avx2.c and
 * norm_avx512.c. */
#include <sched.h>
#include <stdatomic.h>

#include "access.h"
#include "map_walk.h"

typedef enum { MASK_NONE, MASK_X, MASK_Z } mask_kind;

typedef struct {
    const float *dz, *x, *z;
    const float *scale, *shift, *mean, *invstd;
    float *dx, *dgamma, *dbeta, *dpre;
    double *sums; /* [blocks][parts][2][lanes]: sum g, sum g (x - mean) */
    float *terms; /* [blocks][2][lanes]: slope and offset of the mean terms */
    map_shape shape;
    mask_kind mask;
    int training, stream; /* stream: dx goes past the caches */
    atomic_int *left;     /* per block: parts whose sums are not yet taken, then -1 */
} bwd_job;

MDMT_INLINE lanes bwd_masked(mask_kind mask, lanes g, lanes x, lanes_affine affine, const float *z)
{
    if (mask == MASK_NONE) {
        return g;
    }
    return lanes_where_positive(mask == MASK_Z ? lanes_load(z) : lanes_apply(affine, x), g);
}

/* What a run needs of its channel block, and its accumulators. */
typedef struct {
    const float *dz, *x, *z;
    float *dpre, *dx;
    int64_t ahead;
    lanes_affine affine;
    lanes mean, sum[LANES_SUMS], dot[LANES_SUMS];
} bwd_run;

/* One pixel (the float at `at`): adds to accumulator u; writes g to dpre where
 * that is asked for (`write`) and, in evaluation mode (`finish`), dx. */
MDMT_INLINE void bwd_sum_pixel(bwd_run *run, int64_t at, int u, mask_kind mask, int write,
                               int finish)
{
    lanes x = lanes_load(run->x + at);
    lanes g = bwd_masked(mask, lanes_load(run->dz + at), x, run->affine, run->z + at);
    lanes_fetch(run->x + at + run->ahead);
    lanes_fetch(run->dz + at + run->ahead);
    if (mask == MASK_Z) {
        lanes_fetch(run->z + at + run->ahead);
    }
    run->sum[u] = lanes_add(run->sum[u], g);
    run->dot[u] = lanes_fma(g, lanes_sub(x, run->mean), run->dot[u]);
    if (write) {
        lanes_store(run->dpre + at, g);
    }
    if (finish) {
        lanes_store(run->dx + at, lanes_mul(run->affine.scale, g));
    }
}

MDMT_INLINE void bwd_sum_pixels(const bwd_job *job, int block, const map_run *at, double *sums,
                                mask_kind mask, int write, int finish)
{
    bwd_run run = {.dz = job->dz + at->offset,
                   .x = job->x + at->offset,
                   .z = mask == MASK_Z ? job->z + at->offset : NULL,
                   .dpre = write ? job->dpre + at->offset : NULL,
                   .dx = finish ? job->dx + at->offset : NULL,
                   .ahead = at->ahead,
                   .affine = lanes_affine_load(job->scale, job->shift, block),
                   .mean = lanes_load(job->mean + (ptrdiff_t)block * MDMT_BLOCK)};
    for (int u = 0; u < LANES_SUMS; u++) {
        run.sum[u] = run.dot[u] = lanes_zero();
    }
    int64_t i = 0;
    for (; i + LANES_SUMS <= at->pixels; i += LANES_SUMS) {
        for (int u = 0; u < LANES_SUMS; u++) {
            bwd_sum_pixel(&run, (i + u) * MDMT_BLOCK, u, mask, write, finish);
        }
    }
    for (; i < at->pixels; i++) {
        bwd_sum_pixel(&run, i * MDMT_BLOCK, 0, mask, write, finish);
    }
    lanes_accumulate(sums, lanes_sum(run.sum));
    lanes_accumulate(sums + MDMT_BLOCK, lanes_sum(run.dot));
}

/* One loop for each combination, so that none decides anything per pixel. */
MDMT_INLINE void bwd_sum_choose(const bwd_job *job, int block, const map_run *run, double *sums,
                                mask_kind mask)
{
    if (job->dpre && !job->training) {
        bwd_sum_pixels(job, block, run, sums, mask, 1, 1);
    } else if (job->dpre) {
        bwd_sum_pixels(job, block, run, sums, mask, 1, 0);
    } else if (!job->training) {
        bwd_sum_pixels(job, block, run, sums, mask, 0, 1);
    } else {
        bwd_sum_pixels(job, block, run, sums, mask, 0, 0);
    }
}

static void bwd_sum_part(const bwd_job *job, int block, int part)
{
    int64_t end = map_part_end(&job->shape, part);
    double *sums =
        job->sums + ((size_t)block * (size_t)job->shape.parts + (size_t)part) * 2 * MDMT_BLOCK;
    for (int i = 0; i < 2 * MDMT_BLOCK; i++) {
        sums[i] = 0;
    }
    map_run run = map_first_run(&job->shape, block, part);
    for (; run.pixels; map_next_run(&job->shape, block, end, &run)) {
        switch (job->mask) {
        case MASK_NONE:
            bwd_sum_choose(job, block, &run, sums, MASK_NONE);
            break;
        case MASK_X:
            bwd_sum_choose(job, block, &run, sums, MASK_X);
            break;
        case MASK_Z:
            bwd_sum_choose(job, block, &run, sums, MASK_Z);
            break;
        }
    }
}

/* Merges the parts of a block, in order: dgamma, dbeta and what dx needs,
 * dx = scale g + slope (x - mean) + offset. */
static void bwd_finish_block(const bwd_job *job, int block)
{
    const double *sums = job->sums + (size_t)block * (size_t)job->shape.parts * 2 * MDMT_BLOCK;
    double total[2 * MDMT_BLOCK] = {0};
    for (int part = 0; part < job->shape.parts; part++) {
        for (int i = 0; i < 2 * MDMT_BLOCK; i++) {
            total[i] += sums[(size_t)part * 2 * MDMT_BLOCK + (size_t)i];
        }
    }
    double count = (double)job->shape.pixels;
    float *slope = job->terms + (size_t)block * 2 * MDMT_BLOCK, *offset = slope + MDMT_BLOCK;
    for (int lane = 0; lane < MDMT_BLOCK; lane++) {
        int channel = block * MDMT_BLOCK + lane, used = channel < job->shape.channels;
        double scale = used ? job->scale[channel] : 0, invstd = used ? job->invstd[channel] : 0;
        if (job->dbeta) {
            job->dbeta[channel] = used ? (float)total[lane] : 0;
        }
        if (job->dgamma) {
            job->dgamma[channel] = (float)(total[MDMT_BLOCK + lane] * invstd);
        }
        slope[lane] = (float)(-scale * invstd * invstd * total[MDMT_BLOCK + lane] / count);
        offset[lane] = (float)(-scale * total[lane] / count);
    }
}

MDMT_INLINE void bwd_apply_pixels(const bwd_job *job, int block, const map_run *run, mask_kind mask,
                                  int stream)
{
    const float *terms = job->terms + (size_t)block * 2 * MDMT_BLOCK;
    const lanes slope = lanes_load(terms), offset = lanes_load(terms + MDMT_BLOCK);
    const lanes mean = lanes_load(job->mean + (ptrdiff_t)block * MDMT_BLOCK);
    const lanes_affine affine = lanes_affine_load(job->scale, job->shift, block);
    const float *from = job->dpre ? job->dpre : job->dz;
    const float *dz = from + run->offset, *x = job->x + run->offset;
    const float *z = mask == MASK_Z ? job->z + run->offset : NULL;
    float *dx = job->dx + run->offset;
    for (int64_t i = 0; i < run->pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes v = lanes_load(x + i);
        lanes g = bwd_masked(mask, lanes_load(dz + i), v, affine, z + i);
        lanes_fetch(x + i + run->ahead);
        lanes_fetch(dz + i + run->ahead);
        v = lanes_fma(affine.scale, g, lanes_fma(slope, lanes_sub(v, mean), offset));
        lanes_put(dx + i, v, stream);
    }
}

MDMT_INLINE void bwd_apply_choose(const bwd_job *job, int block, const map_run *run, int stream)
{
    switch (job->dpre ? MASK_NONE : job->mask) { /* dpre holds g already */
    case MASK_NONE:
        bwd_apply_pixels(job, block, run, MASK_NONE, stream);
        break;
    case MASK_X:
        bwd_apply_pixels(job, block, run, MASK_X, stream);
        break;
    case MASK_Z:
        bwd_apply_pixels(job, block, run, MASK_Z, stream);
        break;
    }
}

static void bwd_apply_part(const bwd_job *job, int block, int part)
{
    int64_t end = map_part_end(&job->shape, part);
    map_run run = map_first_run(&job->shape, block, part);
    for (; run.pixels; map_next_run(&job->shape, block, end, &run)) {
        if (job->stream) {
            bwd_apply_choose(job, block, &run, 1);
        } else {
            bwd_apply_choose(job, block, &run, 0);
        }
    }
    if (job->stream) {
        _mm_sfence();
    }
}

/* A whole block, both passes while it stays in L2. */
static void bwd_block_task(void *context, int task, int thread)
{
    const bwd_job *job = context;
    (void)thread;
    for (int part = 0; part < job->shape.parts; part++) {
        bwd_sum_part(job, task, part);
    }
    bwd_finish_block(job, task);
    for (int part = 0; job->training && part < job->shape.parts; part++) {
        bwd_apply_part(job, task, part);
    }
}

/* The thread that takes the last sum of a block merges them. */
static void bwd_sum_task(const bwd_job *job, int index)
{
    int block = index / job->shape.parts;
    bwd_sum_part(job, block, index % job->shape.parts);
    if (atomic_fetch_sub_explicit(&job->left[block], 1, memory_order_acq_rel) == 1) {
        bwd_finish_block(job, block);
        atomic_store_explicit(&job->left[block], -1, memory_order_release);
    }
}

static void bwd_apply_task(const bwd_job *job, int index)
{
    int block = index / job->shape.parts;
    for (int spins = 0; atomic_load_explicit(&job->left[block], memory_order_acquire) >= 0;) {
        _mm_pause();
        if (++spins % 1024 == 0) {
            sched_yield();
        }
    }
    bwd_apply_part(job, block, index % job->shape.parts);
}

/* Sums and applications in one sequence: first `lag` sums, then one of each in
 * turn, then the last applications. Tasks are taken in order, so the sums that an
 * application waits for are done or running: it cannot wait for ever. */
enum { BWD_SLACK = 8 };

static void bwd_task(void *context, int task, int thread)
{
    const bwd_job *job = context;
    int count = job->shape.blocks * job->shape.parts, lag = job->shape.parts + BWD_SLACK;
    (void)thread;
    lag = lag < count ? lag : count;
    int turn = task - lag;
    if (turn < 0) {
        bwd_sum_task(job, task);
    } else if (turn >= 2 * (count - lag)) {
        bwd_apply_task(job, turn - (count - lag));
    } else if (turn % 2 == 0) {
        bwd_sum_task(job, lag + turn / 2);
    } else {
        bwd_apply_task(job, turn / 2);
    }
}

/* In evaluation mode the pass of the sums also makes dx. */
static void bwd_evaluation_task(void *context, int task, int thread)
{
    (void)thread;
    bwd_sum_task(context, task);
}

/* Bytes of dz and x (and z) of a channel block that is one task. The results do
 * not depend on it. */
enum { BWD_BLOCK = 5 << 19 };

static mdmt_status bwd_go(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_value *in = call->in;
    const mdmt_act_attrs *attrs = MDMT_ATTRS(mdmt_act_attrs, site->op);
    bwd_job job = {.dz = in[0].data,
                   .x = in[1].data,
                   .scale = in[2].data,
                   .shift = in[3].data,
                   .mean = in[4].data,
                   .invstd = in[5].data,
                   .z = mdmt_optional_in(site, call, 6),
                   .dx = call->out[0],
                   .dgamma = mdmt_optional_out(site, call, 1),
                   .dbeta = mdmt_optional_out(site, call, 2),
                   .dpre = mdmt_optional_out(site, call, 3),
                   .shape = map_shape_of(site->in[0]),
                   .training = attrs->training};
    if (attrs->act == MDMT_ACT_RELU) {
        job.mask = job.z ? MASK_Z : MASK_X;
    }
    int blocks = job.shape.blocks, parts = job.shape.parts;
    job.stream =
        lanes_streams(job.shape.pixels * blocks, job.dx) && job.dx != job.dz && job.dx != job.x;
    job.sums = call->workspace;
    job.terms = (float *)(job.sums + (size_t)blocks * (size_t)parts * 2 * MDMT_BLOCK);
    int64_t bytes = job.shape.pixels * MDMT_BLOCK * 4 * (job.mask == MASK_Z ? 3 : 2);
    if (bytes <= BWD_BLOCK) {
        mdmt_parallel(site->pool, blocks, bwd_block_task, &job);
        return MDMT_OK;
    }
    job.left = (atomic_int *)(job.terms + (size_t)blocks * 2 * MDMT_BLOCK);
    for (int block = 0; block < blocks; block++) {
        atomic_init(&job.left[block], parts);
    }
    if (job.training) {
        mdmt_parallel(site->pool, blocks * parts * 2, bwd_task, &job);
    } else {
        mdmt_parallel(site->pool, blocks * parts, bwd_evaluation_task, &job);
    }
    return MDMT_OK;
}

static void bwd_needs(const mdmt_site *site, mdmt_needs *needs)
{
    map_shape shape = map_shape_of(site->in[0]);
    size_t blocks = (size_t)shape.blocks, parts = (size_t)shape.parts;
    needs->workspace_bytes = blocks * 2 * MDMT_BLOCK * (parts * sizeof(double) + sizeof(float)) +
                             blocks * sizeof(atomic_int);
    /* dx over dz or over x: each element is read before it is written. */
    needs->inplace_inputs = 3u;
}

static int bwd_supports(const mdmt_site *site)
{
    int act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    for (int i = MDMT_BN_GATE; i < site->op->inputs; i++) {
        if (site->in[i]) {
            return 0;
        }
    }
    return site->in[0] && lanes_is_map(site->in[0]) &&
           (act == MDMT_ACT_NONE || act == MDMT_ACT_RELU);
}

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_bn_bwd) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_bn_bwd),
    .isa = MDMT_LANES_LEVEL,
    .supports = bwd_supports,
    .needs = bwd_needs,
    .run = bwd_go,
};
