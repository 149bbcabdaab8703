/* Batch normalisation in its parts: fold, apply with activation, backward. */
#include <math.h>

#include "access.h"
#include "kernels.h"

enum { B = MDMT_BLOCK };

typedef struct {
    const mdmt_site *site;
    const mdmt_call *call;
    mdmt_view x;
    mdmt_act act;
    const mdmt_value *extra; /* norm_act: residual, bn_bwd: z; or NULL */
} norm_job;

/* Mean, biased variance and count of one channel from its partial statistics,
 * merged in order (Chan, Golub & LeVeque 1983). */
static void merge_stats(const float *stats, int parts, size_t row, int c, double *mean,
                        double *variance, double *count)
{
    double n = 0, m = 0, m2 = 0;
    for (int part = 0; part < parts; part++) {
        const float *s = stats + (size_t)part * MDMT_STATS_ROWS * row + (size_t)c;
        double pn = s[MDMT_STATS_COUNT * row];
        if (pn <= 0) {
            continue;
        }
        double sum = s[MDMT_STATS_SUM * row];
        double pm = (double)s[MDMT_STATS_PIVOT * row] + sum / pn;
        double pm2 = (double)s[MDMT_STATS_SQUARE * row] - sum * sum / pn;
        double delta = pm - m, total = n + pn;
        m += delta * (pn / total);
        m2 += (pm2 < 0 ? 0 : pm2) + delta * delta * (n * pn / total);
        n = total;
    }
    *mean = m;
    *variance = n > 0 ? m2 / n : 0;
    *count = n;
}

/* scale = gamma / sqrt(var + eps), shift = beta - mean * scale. In training the
 * running statistics move towards the batch's, the variance unbiased; with one
 * element per channel, which has no unbiased variance, the biased one (zero). */
static void fold_task(void *context, int cb, int thread)
{
    const norm_job *job = context;
    (void)thread;
    const mdmt_norm_attrs *a = MDMT_ATTRS(mdmt_norm_attrs, job->site->op);
    const mdmt_value *in = job->call->in;
    void *const *out = job->call->out;
    const float *gamma = in[1].data, *beta = in[2].data;
    float *rmean = in[3].data, *rvar = in[4].data;
    float *scale = out[0], *shift = out[1], *mean_out = out[2], *invstd_out = out[3];
    int channels = job->site->in[1]->dim[0];
    size_t row = (size_t)mdmt_blocks(channels) * B;
    for (int c = cb * B; c < (cb + 1) * B; c++) {
        double mean = 0, invstd = 0, factor = 0, offset = 0;
        if (c < channels) {
            double variance, count;
            if (a->training) {
                int parts = job->site->in[0]->dim[0];
                merge_stats(in[0].data, parts, row, c, &mean, &variance, &count);
                double unbiased = count > 1 ? variance * (count / (count - 1)) : variance;
                double momentum = a->momentum;
                rmean[c] = (float)((1 - momentum) * (double)rmean[c] + momentum * mean);
                rvar[c] = (float)((1 - momentum) * (double)rvar[c] + momentum * unbiased);
            } else {
                mean = rmean[c];
                variance = rvar[c];
            }
            invstd = 1.0 / sqrt(variance + (double)a->eps);
            factor = (double)gamma[c] * invstd;
            offset = (double)beta[c] - mean * factor;
        }
        scale[c] = (float)factor;
        shift[c] = (float)offset;
        if (mean_out) {
            mean_out[c] = (float)mean;
        }
        if (invstd_out) {
            invstd_out[c] = (float)invstd;
        }
    }
}

static mdmt_status bn_fold(const mdmt_site *site, const mdmt_call *call)
{
    norm_job job = {.site = site, .call = call};
    mdmt_parallel(site->pool, mdmt_blocks(site->in[1]->dim[0]), fold_task, &job);
    return MDMT_OK;
}

/* Task: sample n, block cb: z = act(scale x + shift + residual). */
static void apply_task(void *context, int task, int thread)
{
    const norm_job *job = context;
    (void)thread;
    const mdmt_value *in = job->call->in;
    const float *x = in[0].data, *scale = in[1].data, *shift = in[2].data;
    int blocks = mdmt_blocks(job->x.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->x.c, cb);
    double value[B];
    for (int h = 0; h < job->x.h; h++) {
        for (int w = 0; w < job->x.w; w++) {
            for (int lane = 0; lane < lanes; lane++) {
                int c = cb * B + lane;
                size_t at = mdmt_at(&job->x, n, c, h, w);
                double v = (double)scale[c] * (double)x[at] + (double)shift[c];
                v += job->extra ? mdmt_load(job->extra, at, c) : 0.0;
                value[lane] = mdmt_activate(job->act, v);
            }
            mdmt_store_block(&job->x, job->call->out[0], n, cb, h, w, value, lanes);
        }
    }
}

static mdmt_status norm_act(const mdmt_site *site, const mdmt_call *call)
{
    norm_job job = {.site = site,
                    .call = call,
                    .x = mdmt_view_of(site->in[0]),
                    .act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act,
                    .extra = mdmt_optional_in(site, call, 3) ? &call->in[3] : NULL};
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), apply_task, &job);
    return MDMT_OK;
}

static void over_x_or_residual(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u << 0 | 1u << 3;
}

/* Gradient before the activation, at one element: dz where the activation let
 * it through. Forward: z = act(scale x + shift [+ residual]). */
static double masked(const norm_job *job, size_t at, int c)
{
    const mdmt_value *in = job->call->in;
    double dz = ((const float *)in[0].data)[at];
    if (job->act == MDMT_ACT_NONE) {
        return dz;
    }
    double z = job->extra ? (double)((const float *)job->extra->data)[at]
                          : (double)((const float *)in[2].data)[c] *
                                    (double)((const float *)in[1].data)[at] +
                                (double)((const float *)in[3].data)[c];
    return z <= 0 ? 0.0 : dz;
}

/* Sums over N, H, W of d = the masked gradient and of d * xhat, where
 * xhat = (x - mean) invstd. */
static void channel_sums(const norm_job *job, int c, double *sum, double *dot)
{
    const mdmt_value *in = job->call->in;
    const float *x = in[1].data;
    double mean = ((const float *)in[4].data)[c], invstd = ((const float *)in[5].data)[c];
    *sum = *dot = 0;
    for (int n = 0; n < job->x.n; n++) {
        for (int h = 0; h < job->x.h; h++) {
            for (int w = 0; w < job->x.w; w++) {
                size_t at = mdmt_at(&job->x, n, c, h, w);
                double d = masked(job, at, c);
                *sum += d;
                *dot += d * (((double)x[at] - mean) * invstd);
            }
        }
    }
}

/* Task: block cb of channels.
 * dbeta = sum d, dgamma = sum d xhat, and with M = N H W
 * training: dx = scale (d - dbeta / M - xhat dgamma / M); else dx = scale d. */
static void backward_task(void *context, int cb, int thread)
{
    const norm_job *job = context;
    (void)thread;
    const mdmt_value *in = job->call->in;
    const float *x = in[1].data, *scale = in[2].data, *mean = in[4].data, *invstd = in[5].data;
    const mdmt_act_attrs *a = MDMT_ATTRS(mdmt_act_attrs, job->site->op);
    void *const *out = job->call->out;
    float *dx = out[0], *dgamma = out[1], *dbeta = out[2];
    float *dpre = mdmt_optional_out(job->site, job->call, 3);
    int lanes = mdmt_lanes(job->x.c, cb);
    double sum[B] = {0}, dot[B] = {0};
    double count = (double)job->x.n * job->x.h * job->x.w;
    for (int lane = 0; lane < B; lane++) {
        if (lane < lanes) {
            channel_sums(job, cb * B + lane, &sum[lane], &dot[lane]);
        }
        if (dgamma) {
            dgamma[cb * B + lane] = (float)dot[lane];
        }
        if (dbeta) {
            dbeta[cb * B + lane] = (float)sum[lane];
        }
    }
    size_t pixels = (size_t)job->x.h * (size_t)job->x.w;
    for (size_t i = 0; i < (size_t)job->x.n * pixels; i++) {
        int n = (int)(i / pixels), h = (int)(i % pixels) / job->x.w;
        int w = (int)(i % pixels) % job->x.w;
        double d[B], g[B];
        for (int lane = 0; lane < lanes; lane++) {
            int c = cb * B + lane;
            size_t at = mdmt_at(&job->x, n, c, h, w);
            d[lane] = masked(job, at, c);
            double xhat = ((double)x[at] - (double)mean[c]) * (double)invstd[c];
            double mean_part = a->training ? (sum[lane] + xhat * dot[lane]) / count : 0.0;
            g[lane] = (double)scale[c] * (d[lane] - mean_part);
        }
        if (dpre) {
            mdmt_store_block(&job->x, dpre, n, cb, h, w, d, lanes);
        }
        if (dx) {
            mdmt_store_block(&job->x, dx, n, cb, h, w, g, lanes);
        }
    }
}

static mdmt_status bn_bwd(const mdmt_site *site, const mdmt_call *call)
{
    norm_job job = {.site = site,
                    .call = call,
                    .x = mdmt_view_of(site->in[1]),
                    .act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act,
                    .extra = mdmt_optional_in(site, call, 6) ? &call->in[6] : NULL};
    mdmt_parallel(site->pool, mdmt_blocks(job.x.c), backward_task, &job);
    return MDMT_OK;
}

/* Every element is read in full before any output of it is written, so dx may
 * lie over dz, x or z, and dpre over dz. */
static void over_any_map(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u << 0 | 1u << 1 | 1u << 6;
}

const mdmt_cpu_impl mdmt_f32_bn_fold__ref = {
    .name = "mdmt_f32_bn_fold__ref", .cost = mdmt_ref_cost, .run = bn_fold};
const mdmt_cpu_impl mdmt_f32_norm_act__ref = {.name = "mdmt_f32_norm_act__ref",
                                              .needs = over_x_or_residual,
                                              .cost = mdmt_ref_cost,
                                              .run = norm_act};
const mdmt_cpu_impl mdmt_f32_bn_bwd__ref = {
    .name = "mdmt_f32_bn_bwd__ref", .needs = over_any_map, .cost = mdmt_ref_cost, .run = bn_bwd};
