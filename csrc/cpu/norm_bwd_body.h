/* Batch normalisation with activation, backward. Forward: y = gamma (x - mean)
 * invstd + beta [+ residual], z = act(y). With d the gradient at z (see MDMT_BN_DZ),
 * g = d act'(y), M = N H W:
 *   dbeta = sum g, dgamma = invstd sum g (x - mean), dpre = g,
 *   dx = gamma invstd (g - dbeta / M - (x - mean) invstd dgamma / M) [+ addend]
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

typedef struct {
    map_at dz, x, z, addend, dx; /* data: NULL where absent */
    map_at dpre;                 /* or dx itself: where the first pass leaves g */
    const float *scale, *shift, *mean, *invstd, *gate, *pooled;
    float *dgamma, *dbeta;
    double *sums; /* [blocks][parts][2][lanes]: sum g, sum g (x - mean) */
    float *terms; /* [blocks][2][lanes]: slope and offset of the mean terms */
    map_shape shape;
    mdmt_act act;
    int scaled;           /* d is not dz alone                       */
    int from_z;           /* y is not scale x + shift: the mask is z's */
    int training, stream; /* stream: dx goes past the caches */
    atomic_int *left;     /* per block: parts whose sums are not yet taken, then -1 */
} bwd_job;

/* What a loop is compiled for, as constants. */
typedef struct {
    mdmt_act act;
    int from_z, scaled;
    int write;         /* sums: g goes to dpre                */
    int added, stream; /* dx: an addend; past the caches */
} bwd_kind;

/* What a run needs of its channel block and sample, and its accumulators. */
typedef struct {
    const map_float *dz, *x, *z, *addend;
    map_float *dpre, *dx;
    int64_t dz_step, addend_step; /* elements a pixel; 0: the same zeros for all */
    int64_t dz_ahead, x_ahead, z_ahead, addend_ahead;
    lanes gate, pooled;
    lanes_affine affine;
    lanes mean, sum[LANES_SUMS], dot[LANES_SUMS];
} bwd_run;

static const map_float bwd_zeros[MDMT_BLOCK];

/* The part of a run that both passes need; d is read from `from`. */
MDMT_INLINE bwd_run bwd_run_of(const bwd_job *job, int block, const map_run *at, map_at from,
                               bwd_kind kind)
{
    bwd_run run = {.x = map_point(job->x, at),
                   .x_ahead = map_ahead(job->x, at),
                   .dz = bwd_zeros,
                   .affine = lanes_affine_load(job->scale, job->shift, block),
                   .mean = lanes_load(job->mean + (ptrdiff_t)block * MDMT_BLOCK)};
    if (!kind.scaled || from.data) {
        run.dz = map_point(from, at);
        run.dz_ahead = map_ahead(from, at);
        run.dz_step = MDMT_BLOCK;
    }
    if (kind.from_z) {
        run.z = map_point(job->z, at);
        run.z_ahead = map_ahead(job->z, at);
    }
    if (kind.scaled) {
        int channels = job->shape.channels;
        const int64_t row = at->sample * channels;
        const lanes share = lanes_set(1.0f / (float)job->shape.area);
        run.gate = job->gate ? lanes_load_row(job->gate + row, channels, block) : lanes_set(1.0f);
        run.pooled =
            job->pooled ? lanes_load_row(job->pooled + row, channels, block) : lanes_zero();
        run.pooled = lanes_mul(run.pooled, share);
    }
    return run;
}

/* g of pixel i, whose x is given. */
MDMT_INLINE lanes bwd_masked(const bwd_run *run, int64_t i, lanes x, bwd_kind kind)
{
    const map_float *dz = run->dz + i * (kind.scaled ? run->dz_step : MDMT_BLOCK);
    lanes g = lanes_load(dz);
    lanes_fetch(dz + run->dz_ahead);
    if (kind.scaled) {
        g = lanes_fma(g, run->gate, run->pooled);
    }
    if (kind.act == MDMT_ACT_NONE) {
        return g;
    }
    if (kind.from_z) {
        lanes_fetch(run->z + i * MDMT_BLOCK + run->z_ahead);
        return lanes_gradient(kind.act, g, lanes_load(run->z + i * MDMT_BLOCK));
    }
    return lanes_gradient_at(kind.act, g, lanes_apply(run->affine, x));
}

/* Pixel i: adds to accumulator u, writes g to dpre where that is asked for. */
MDMT_INLINE void bwd_sum_pixel(bwd_run *run, int64_t i, int u, bwd_kind kind)
{
    lanes x = lanes_load(run->x + i * MDMT_BLOCK);
    lanes_fetch(run->x + i * MDMT_BLOCK + run->x_ahead);
    lanes g = bwd_masked(run, i, x, kind);
    run->sum[u] = lanes_add(run->sum[u], g);
    run->dot[u] = lanes_fma(g, lanes_sub(x, run->mean), run->dot[u]);
    if (kind.write) {
        lanes_store(run->dpre + i * MDMT_BLOCK, g);
    }
}

MDMT_INLINE void bwd_sum_pixels(const bwd_job *job, int block, const map_run *at, double *sums,
                                bwd_kind kind)
{
    bwd_run run = bwd_run_of(job, block, at, job->dz, kind);
    run.dpre = kind.write ? map_point(job->dpre, at) : NULL;
    for (int u = 0; u < LANES_SUMS; u++) {
        run.sum[u] = run.dot[u] = lanes_zero();
    }
    int64_t i = 0;
    for (; i + LANES_SUMS <= at->pixels; i += LANES_SUMS) {
        for (int u = 0; u < LANES_SUMS; u++) {
            bwd_sum_pixel(&run, i + u, u, kind);
        }
    }
    for (; i < at->pixels; i++) {
        bwd_sum_pixel(&run, i, 0, kind);
    }
    lanes_accumulate(sums, lanes_sum(run.sum));
    lanes_accumulate(sums + MDMT_BLOCK, lanes_sum(run.dot));
}

#define BWD_SUM(...)          bwd_sum_pixels(job, block, run, sums, (bwd_kind){__VA_ARGS__})
#define BWD_SUM_PLAIN(which)  BWD_SUM(.act = which)
#define BWD_SUM_SCALED(which) BWD_SUM(.act = which, .scaled = 1)

/* One loop for each combination that bwd_supports lets through. */
static void bwd_sum_run(const bwd_job *job, int block, const map_run *run, double *sums)
{
    if (job->act == MDMT_ACT_SILU && job->dpre.data && job->scaled) {
        BWD_SUM(.act = MDMT_ACT_SILU, .scaled = 1, .write = 1);
    } else if (job->act == MDMT_ACT_SILU && job->dpre.data) {
        BWD_SUM(.act = MDMT_ACT_SILU, .write = 1);
    } else if (job->scaled) {
        LANES_EACH_ACT(job->act, BWD_SUM_SCALED);
    } else if (!job->dpre.data && !job->from_z) {
        LANES_EACH_ACT(job->act, BWD_SUM_PLAIN);
    } else if (job->from_z && job->act == MDMT_ACT_RELU && job->dpre.data) {
        BWD_SUM(.act = MDMT_ACT_RELU, .from_z = 1, .write = 1);
    } else if (job->from_z && job->act == MDMT_ACT_RELU) {
        BWD_SUM(.act = MDMT_ACT_RELU, .from_z = 1);
    } else if (job->from_z && job->dpre.data) {
        BWD_SUM(.act = MDMT_ACT_RELU6, .from_z = 1, .write = 1);
    } else if (job->from_z) {
        BWD_SUM(.act = MDMT_ACT_RELU6, .from_z = 1);
    } else if (job->act == MDMT_ACT_RELU) {
        BWD_SUM(.act = MDMT_ACT_RELU, .write = 1);
    } else if (job->act == MDMT_ACT_RELU6) {
        BWD_SUM(.act = MDMT_ACT_RELU6, .write = 1);
    } else {
        BWD_SUM(.write = 1);
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
        bwd_sum_run(job, block, &run, sums);
    }
}

/* Merges the parts of a block, in order: dgamma, dbeta and what dx needs,
 * dx = scale g + slope (x - mean) + offset [+ addend]. */
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
        scale = job->training ? scale : 0; /* of the mean terms */
        slope[lane] = (float)(-scale * invstd * invstd * total[MDMT_BLOCK + lane] / count);
        offset[lane] = (float)(-scale * total[lane] / count);
    }
}

MDMT_INLINE void bwd_apply_pixels(const bwd_job *job, int block, const map_run *at, bwd_kind kind)
{
    const float *terms = job->terms + (size_t)block * 2 * MDMT_BLOCK;
    const lanes slope = lanes_load(terms), offset = lanes_load(terms + MDMT_BLOCK);
    bwd_run run = bwd_run_of(job, block, at, job->dpre.data ? job->dpre : job->dz, kind);
    run.dx = map_point(job->dx, at);
    if (kind.added) {
        run.addend = job->addend.data ? map_point(job->addend, at) : bwd_zeros;
        run.addend_step = job->addend.data ? MDMT_BLOCK : 0;
        run.addend_ahead = job->addend.data ? map_ahead(job->addend, at) : 0;
    }
    for (int64_t i = 0; i < at->pixels; i++) {
        lanes x = lanes_load(run.x + i * MDMT_BLOCK);
        lanes_fetch(run.x + i * MDMT_BLOCK + run.x_ahead);
        lanes g = bwd_masked(&run, i, x, kind);
        lanes v = lanes_fma(slope, lanes_sub(x, run.mean), offset);
        if (kind.added) {
            v = lanes_add(v, lanes_load(run.addend + i * run.addend_step));
            lanes_fetch(run.addend + i * run.addend_step + run.addend_ahead);
        }
        lanes_put(run.dx + i * MDMT_BLOCK, lanes_fma(run.affine.scale, g, v), kind.stream);
    }
}

#define BWD_APPLY(...)          bwd_apply_pixels(job, block, run, (bwd_kind){__VA_ARGS__})
#define BWD_APPLY_PLAIN(which)  BWD_APPLY(.act = which)
#define BWD_APPLY_STREAM(which) BWD_APPLY(.act = which, .stream = 1)
#define BWD_APPLY_ANY(which)    BWD_APPLY(.act = which, .scaled = 1, .added = 1)

static void bwd_apply_run(const bwd_job *job, int block, const map_run *run)
{
    const mdmt_act act = job->dpre.data ? MDMT_ACT_NONE : job->act; /* dpre holds g already */
    const int from_z = job->from_z && !job->dpre.data;
    const int any = (job->scaled && !job->dpre.data) || job->addend.data;
    if (from_z && act == MDMT_ACT_RELU && any) {
        BWD_APPLY(.act = MDMT_ACT_RELU, .from_z = 1, .added = 1);
    } else if (from_z && act == MDMT_ACT_RELU) {
        BWD_APPLY(.act = MDMT_ACT_RELU, .from_z = 1);
    } else if (from_z) {
        BWD_APPLY(.act = MDMT_ACT_RELU6, .from_z = 1, .added = 1);
    } else if (job->dpre.data && any) {
        BWD_APPLY(.added = 1); /* g is scaled already */
    } else if (any) {
        LANES_EACH_ACT(act, BWD_APPLY_ANY);
    } else if (job->stream) {
        LANES_EACH_ACT(act, BWD_APPLY_STREAM);
    } else {
        LANES_EACH_ACT(act, BWD_APPLY_PLAIN);
    }
}

static void bwd_apply_part(const bwd_job *job, int block, int part)
{
    int64_t end = map_part_end(&job->shape, part);
    map_run run = map_first_run(&job->shape, block, part);
    for (; run.pixels; map_next_run(&job->shape, block, end, &run)) {
        bwd_apply_run(job, block, &run);
    }
    if (job->stream) {
        mdmt_end_streams();
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
    for (int part = 0; part < job->shape.parts; part++) {
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
        mdmt_relax();
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

/* Bytes of dz and x (and z) of a channel block that is one task, where there are
 * enough of them. The results do not depend on it. */
enum { BWD_BLOCK = 5 << 19, BWD_TASKS = 8 };

static bwd_job bwd_job_of(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_value *in = call->in;
    const mdmt_act_attrs *attrs = MDMT_ATTRS(mdmt_act_attrs, site->op);
    map_at map[MDMT_BN_INPUTS] = {{NULL, 0}};
    for (int i = 0; i < site->op->inputs; i++) {
        if (site->in[i] && site->in[i]->kind == MDMT_MAP) {
            map[i] = map_at_of(site->in[i], in[i].data);
        }
    }
    bwd_job job = {.dz = map[MDMT_BN_DZ],
                   .x = map[MDMT_BN_X],
                   .z = map[MDMT_BN_Z],
                   .addend = map[MDMT_BN_ADDEND],
                   .dx = map_at_of(site->out[0], call->out[0]),
                   .scale = in[MDMT_BN_SCALE].data,
                   .shift = in[MDMT_BN_SHIFT].data,
                   .mean = in[MDMT_BN_MEAN].data,
                   .invstd = in[MDMT_BN_INVSTD].data,
                   .gate = mdmt_optional_in(site, call, MDMT_BN_GATE),
                   .pooled = mdmt_optional_in(site, call, MDMT_BN_POOLED),
                   .dgamma = mdmt_optional_out(site, call, 1),
                   .dbeta = mdmt_optional_out(site, call, 2),
                   .shape = map_shape_of(site->in[MDMT_BN_X]),
                   .act = (mdmt_act)attrs->act,
                   .training = attrs->training};
    if (mdmt_optional_out(site, call, 3)) {
        job.dpre = map_at_of(site->out[3], call->out[3]);
    }
    job.scaled = !job.dz.data || job.gate || job.pooled;
    job.from_z = job.z.data && job.act != MDMT_ACT_NONE;
    const map_float *dx = job.dx.data;
    int large = lanes_streams(job.shape.pixels * job.shape.blocks, dx) && dx != job.dz.data;
    /* A sigmoid costs more than to store g and to load it again from a cache; but not rounded. */
    if (job.act == MDMT_ACT_SILU && !MDMT_MAPS_BF16 && job.addend.data != dx && !large) {
        job.dpre = job.dx;
    }
    job.stream = large && dx != job.x.data && dx != job.z.data && !job.addend.data && !job.scaled;
    return job;
}

static mdmt_status bwd_go(const mdmt_site *site, const mdmt_call *call)
{
    bwd_job job = bwd_job_of(site, call);
    int blocks = job.shape.blocks, parts = job.shape.parts;
    job.sums = call->workspace;
    job.terms = (float *)(job.sums + (size_t)blocks * (size_t)parts * 2 * MDMT_BLOCK);
    int64_t bytes = job.shape.pixels * MDMT_BLOCK * (int64_t)sizeof(map_float) * (job.from_z ? 3 : 2);
    if (parts == 1 || (bytes <= BWD_BLOCK && blocks >= BWD_TASKS)) {
        mdmt_parallel(site->pool, blocks, bwd_block_task, &job);
        return MDMT_OK;
    }
    job.left = (atomic_int *)(job.terms + (size_t)blocks * 2 * MDMT_BLOCK);
    for (int block = 0; block < blocks; block++) {
        atomic_init(&job.left[block], parts);
    }
    mdmt_parallel(site->pool, blocks * parts * 2, bwd_task, &job);
    return MDMT_OK;
}

static void bwd_needs(const mdmt_site *site, mdmt_needs *needs)
{
    map_shape shape = map_shape_of(site->in[MDMT_BN_X]);
    size_t blocks = (size_t)shape.blocks, parts = (size_t)shape.parts;
    needs->workspace_bytes = blocks * 2 * MDMT_BLOCK * (parts * sizeof(double) + sizeof(float)) +
                             blocks * sizeof(atomic_int);
    /* Each element is read before it is written; dpre is written before the addend
     * is read. */
    int dpre = site->op->outputs > 3 && site->out[3];
    needs->inplace_inputs = 1u << MDMT_BN_DZ | (dpre ? 0u : 1u << MDMT_BN_ADDEND);
}

/* Not: a mask that is neither of the ReLUs from z; dpre behind another activation or
 * of a gradient that is not dz alone. No lowering asks for them. */
static int bwd_supports(const mdmt_site *site)
{
    int act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act, inputs = site->op->inputs;
    int relu = act == MDMT_ACT_NONE || act == MDMT_ACT_RELU || act == MDMT_ACT_RELU6;
    int z = inputs > MDMT_BN_Z && site->in[MDMT_BN_Z];
    int dpre = site->op->outputs > 3 && site->out[3];
    int scaled = !site->in[MDMT_BN_DZ] || (inputs > MDMT_BN_GATE && site->in[MDMT_BN_GATE]) ||
                 (inputs > MDMT_BN_POOLED && site->in[MDMT_BN_POOLED]);
    return lanes_is_map(site->in[MDMT_BN_X]) && site->out[0] &&
           ((!z && !dpre) || (relu && !scaled));
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(bn_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(bn_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = bwd_supports,
    .needs = bwd_needs,
    .run = bwd_go,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
