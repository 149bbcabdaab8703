/* Small per-channel work around the layers: folding of batch statistics, dropout of
 * rows. Plain loops over sixteen lanes that the compiler vectorises. Included once by
 * rows_avx2.c and once by rows_avx512.c. */
#include <math.h>
#include <string.h>

#include "../base/philox.h"
#include "access.h"
#include "kernels.h"
#include "vec.h"

enum { LANES = MDMT_BLOCK };

/* ---- bn_fold: all parts are moved to the first part's pivot, which needs no
 * division, and summed in double: with d the distance of a part's pivot,
 * sum' = sum + n d and square' = square + 2 d sum + n d^2. ---- */

typedef struct {
    const mdmt_site *site;
    const mdmt_call *call;
    int channels, parts;
} fold_job;

MDMT_INLINE void fold_merge(const fold_job *job, int block, double *mean, double *variance,
                            double *count)
{
    const size_t row = (size_t)mdmt_blocks(job->channels) * LANES;
    const float *stats = (const float *)job->call->in[0].data + (size_t)block * LANES;
    const float *first = stats + MDMT_STATS_PIVOT * row;
    double n[LANES] = {0}, sum[LANES] = {0}, square[LANES] = {0};
    for (int part = 0; part < job->parts; part++) {
        const float *s = stats + (size_t)part * MDMT_STATS_ROWS * row;
        for (int lane = 0; lane < LANES; lane++) {
            double pn = (double)s[MDMT_STATS_COUNT * row + (size_t)lane];
            double d = (double)s[MDMT_STATS_PIVOT * row + (size_t)lane] - (double)first[lane];
            double ps = (double)s[MDMT_STATS_SUM * row + (size_t)lane];
            n[lane] += pn;
            sum[lane] += ps + pn * d;
            square[lane] +=
                (double)s[MDMT_STATS_SQUARE * row + (size_t)lane] + d * (2 * ps + pn * d);
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        double divisor = n[lane] > 0 ? n[lane] : 1;
        double shift = sum[lane] / divisor, v = square[lane] / divisor - shift * shift;
        mean[lane] = (double)first[lane] + shift;
        variance[lane] = v < 0 ? 0 : v;
        count[lane] = n[lane];
    }
}

/* Task: block of channels. As mdmt_f32_bn_fold__ref. */
static void fold_task(void *context, int block, int thread)
{
    const fold_job *job = context;
    (void)thread;
    const mdmt_norm_attrs *a = MDMT_ATTRS(mdmt_norm_attrs, job->site->op);
    const mdmt_value *in = job->call->in;
    const int from = block * LANES, lanes = mdmt_lanes(job->channels, block);
    const float *gamma = (const float *)in[1].data + from, *beta = (const float *)in[2].data + from;
    float *rmean = (float *)in[3].data + from, *rvar = (float *)in[4].data + from;
    double mean[LANES] = {0}, variance[LANES] = {0}, count[LANES] = {0};
    if (a->training) {
        fold_merge(job, block, mean, variance, count);
    }
    float result[4][LANES] = {{0}};
    for (int lane = 0; lane < lanes; lane++) {
        if (a->training) {
            double momentum = (double)a->momentum;
            double unbiased = count[lane] > 1 ? variance[lane] * (count[lane] / (count[lane] - 1))
                                              : variance[lane];
            rmean[lane] = (float)((1 - momentum) * (double)rmean[lane] + momentum * mean[lane]);
            rvar[lane] = (float)((1 - momentum) * (double)rvar[lane] + momentum * unbiased);
        } else {
            mean[lane] = (double)rmean[lane];
            variance[lane] = (double)rvar[lane];
        }
        double invstd = 1.0 / sqrt(variance[lane] + (double)a->eps);
        double scale = (double)gamma[lane] * invstd;
        result[0][lane] = (float)scale;
        result[1][lane] = (float)((double)beta[lane] - mean[lane] * scale);
        result[2][lane] = (float)mean[lane];
        result[3][lane] = (float)invstd;
    }
    for (int i = 0; i < 4; i++) {
        float *to = mdmt_optional_out(job->site, job->call, i);
        if (to) {
            memcpy(to + from, result[i], sizeof result[i]);
        }
    }
}

static mdmt_status bn_fold(const mdmt_site *site, const mdmt_call *call)
{
    fold_job job = {.site = site,
                    .call = call,
                    .channels = site->in[1]->dim[0],
                    .parts = site->in[0] ? site->in[0]->dim[0] : 0};
    mdmt_pool *pool = (int64_t)job.parts * job.channels <= 4096 ? NULL : site->pool;
    mdmt_parallel(pool, mdmt_blocks(job.channels), fold_task, &job);
    return MDMT_OK;
}

/* ---- dropout of unpadded tensors: sixteen Philox blocks side by side ---- */

enum { DROP_BLOCKS = 16, DROP_TASK = 4096 }; /* elements of a task: whole groups of blocks */

typedef struct {
    const float *in;
    float *out;
    uint64_t key, step, stream;
    float rate, scale;
    size_t count;
} drop_job;

/* word[j][l] = word j of the Philox block (counter + l; high); see philox.h. */
MDMT_INLINE void philox_blocks(uint64_t key, uint64_t counter, uint64_t high,
                               uint32_t word[4][DROP_BLOCKS])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t *c0 = word[0], *c1 = word[1], *c2 = word[2], *c3 = word[3];
    for (int l = 0; l < DROP_BLOCKS; l++) {
        c0[l] = (uint32_t)(counter + (uint64_t)l);
        c1[l] = (uint32_t)((counter + (uint64_t)l) >> 32);
        c2[l] = (uint32_t)high;
        c3[l] = (uint32_t)(high >> 32);
    }
    for (int round = 0; round < 10; round++) {
        for (int l = 0; l < DROP_BLOCKS; l++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[l], p1 = (uint64_t)0xCD9E8D57u * c2[l];
            uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1[l] ^ k0;
            uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3[l] ^ k1;
            c1[l] = (uint32_t)p1;
            c3[l] = (uint32_t)p0;
            c0[l] = n0;
            c2[l] = n2;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static void dropout_task(void *context, int task, int thread)
{
    const drop_job *job = context;
    (void)thread;
    size_t begin = (size_t)task * DROP_TASK;
    size_t end = begin + DROP_TASK < job->count ? begin + DROP_TASK : job->count;
    for (size_t at = begin; at < end; at += 4 * DROP_BLOCKS) {
        uint32_t word[4][DROP_BLOCKS], keep[4 * DROP_BLOCKS]; /* all bits or none: no branch */
        philox_blocks(job->key, at / 4 | job->stream << 40, job->step, word);
        for (int j = 0; j < 4; j++) {
            for (int l = 0; l < DROP_BLOCKS; l++) {
                keep[4 * l + j] = 0u - (uint32_t)(mdmt_uniform(word[j][l]) >= job->rate);
            }
        }
        int left = end - at < 4 * DROP_BLOCKS ? (int)(end - at) : 4 * DROP_BLOCKS;
        for (int e = 0; e < left; e++) {
            float value = job->in[at + (size_t)e] * job->scale;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            bits &= keep[e];
            memcpy(&value, &bits, sizeof bits);
            job->out[at + (size_t)e] = value;
        }
    }
}

static int dropout_supports(const mdmt_site *site)
{
    mdmt_kind kind = site->in[0]->kind;
    return kind == MDMT_ROWS || kind == MDMT_IMAGE;
}

static void dropout_needs(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u;
}

static mdmt_status dropout(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_dropout_attrs *a = MDMT_ATTRS(mdmt_dropout_attrs, site->op);
    drop_job job = {.in = call->in[0].data,
                    .out = call->out[0],
                    .key = mdmt_stream_key(call->step->seed, MDMT_STREAM_DROPOUT),
                    .step = call->step->step,
                    .stream = (uint32_t)a->stream,
                    .rate = a->rate,
                    .scale = 1.0f / (1.0f - a->rate),
                    .count = (size_t)mdmt_tensor_elements(site->in[0])};
    mdmt_parallel(site->pool, (int)((job.count + DROP_TASK - 1) / DROP_TASK), dropout_task, &job);
    return MDMT_OK;
}

/* Moments that were computed already leave nothing to gain. */
static int fold_supports(const mdmt_site *site)
{
    return site->in[0] || !MDMT_ATTRS(mdmt_norm_attrs, site->op)->training;
}

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_bn_fold) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_bn_fold),
    .isa = MDMT_LANES_LEVEL,
    .supports = fold_supports,
    .run = bn_fold,
};
const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_dropout) = {.name = MDMT_KERNEL_TEXT(mdmt_f32_dropout),
                                                     .isa = MDMT_LANES_LEVEL,
                                                     .supports = dropout_supports,
                                                     .needs = dropout_needs,
                                                     .run = dropout};
