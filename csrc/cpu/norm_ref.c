/* Batch normalisation in its parts: fold, apply with activation, backward. */
#include <math.h>

#include "access.h"
#include "kernels.h"

enum { B = MDMT_BLOCK };

typedef struct {
    const mdmt_site *site;
    const mdmt_call *call;
    mdmt_view x, y; /* y: norm_act's output */
    mdmt_view in[MDMT_BN_INPUTS], dx, dpre;
    mdmt_act act;
    const mdmt_value *residual; /* norm_act; or NULL */
    mdmt_view residual_view;
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

/* Task: block cb of channels. */
static void moments_task(void *context, int cb, int thread)
{
    const norm_job *job = context;
    (void)thread;
    const mdmt_tensor *stats = job->site->in[0];
    float *mean = job->call->out[0], *var = job->call->out[1];
    for (int c = cb * B; c < (cb + 1) * B; c++) {
        double m = 0, v = 0, count;
        if (c < stats->dim[2]) {
            merge_stats(job->call->in[0].data, stats->dim[0],
                        (size_t)mdmt_blocks(stats->dim[2]) * B, c, &m, &v, &count);
        }
        mean[c] = (float)m;
        var[c] = (float)v;
    }
}

static mdmt_status stats_moments(const mdmt_site *site, const mdmt_call *call)
{
    norm_job job = {.site = site, .call = call};
    mdmt_parallel(site->pool, mdmt_blocks(site->in[0]->dim[2]), moments_task, &job);
    return MDMT_OK;
}

/* Batch moments of channel c of a fold: from its statistics, or as given. */
static void fold_moments(const norm_job *job, int c, double *mean, double *variance)
{
    const mdmt_value *in = job->call->in;
    double count;
    if (job->site->in[0]) {
        size_t row = (size_t)mdmt_blocks(job->site->in[1]->dim[0]) * B;
        merge_stats(in[0].data, job->site->in[0]->dim[0], row, c, mean, variance, &count);
    } else {
        *mean = ((const float *)in[5].data)[c];
        *variance = ((const float *)in[6].data)[c];
    }
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
    for (int c = cb * B; c < (cb + 1) * B; c++) {
        double mean = 0, invstd = 0, factor = 0, offset = 0;
        if (c < channels) {
            double variance, count = a->count;
            if (a->training) {
                fold_moments(job, c, &mean, &variance);
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
                if (job->residual) {
                    at = mdmt_at(&job->residual_view, n, c, h, w);
                    v += mdmt_load(job->residual, at, c);
                }
                value[lane] = mdmt_activate(job->act, v);
            }
            mdmt_store_block(&job->y, job->call->out[0], n, cb, h, w, value, lanes);
        }
    }
}

static mdmt_status norm_act(const mdmt_site *site, const mdmt_call *call)
{
    norm_job job = {.site = site,
                    .call = call,
                    .x = mdmt_view_of(site->in[0]),
                    .y = mdmt_view_of(site->out[0]),
                    .act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act};
    if (mdmt_optional_in(site, call, 3)) {
        job.residual = &call->in[3];
        job.residual_view = mdmt_view_of(site->in[3]);
    }
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), apply_task, &job);
    return MDMT_OK;
}

static void over_x_or_residual(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u << 0 | 1u << 3;
}

/* Element (n, c, h, w) of an input of bn_bwd; zero where it is absent. */
static double bwd_input(const norm_job *job, int input, int n, int c, int h, int w)
{
    const float *data = mdmt_optional_in(job->site, job->call, input);
    return data ? (double)data[mdmt_at(&job->in[input], n, c, h, w)] : 0.0;
}

/* Gradient before the activation, at one element. Forward: z = act(y) with
 * y = scale x + shift [+ residual], then z gate, and the mean of z. */
static double masked(const norm_job *job, int n, int c, int h, int w)
{
    const mdmt_value *in = job->call->in;
    double d = bwd_input(job, MDMT_BN_DZ, n, c, h, w);
    if (mdmt_optional_in(job->site, job->call, MDMT_BN_GATE)) {
        d *= bwd_input(job, MDMT_BN_GATE, n, c, 0, 0);
    }
    d += bwd_input(job, MDMT_BN_POOLED, n, c, 0, 0) / ((double)job->x.h * job->x.w);
    double v;
    if (mdmt_optional_in(job->site, job->call, MDMT_BN_Z)) {
        v = bwd_input(job, MDMT_BN_Z, n, c, h, w);
    } else {
        v = (double)((const float *)in[MDMT_BN_SCALE].data)[c] *
                bwd_input(job, MDMT_BN_X, n, c, h, w) +
            (double)((const float *)in[MDMT_BN_SHIFT].data)[c];
        v = mdmt_act_needs_input(job->act) ? v : mdmt_activate(job->act, v);
    }
    double slope = mdmt_activate_slope(job->act, v);
    return slope == 0 ? 0.0 : d * slope;
}

/* Sums over N, H, W of d = the masked gradient and of d * xhat, where
 * xhat = (x - mean) invstd. */
static void channel_sums(const norm_job *job, int c, double *sum, double *dot)
{
    const mdmt_value *in = job->call->in;
    double mean = ((const float *)in[MDMT_BN_MEAN].data)[c];
    double invstd = ((const float *)in[MDMT_BN_INVSTD].data)[c];
    *sum = *dot = 0;
    for (int n = 0; n < job->x.n; n++) {
        for (int h = 0; h < job->x.h; h++) {
            for (int w = 0; w < job->x.w; w++) {
                double d = masked(job, n, c, h, w);
                *sum += d;
                *dot += d * ((bwd_input(job, MDMT_BN_X, n, c, h, w) - mean) * invstd);
            }
        }
    }
}

/* Second pass, one pixel of block cb: dpre = d and, with M = N H W, in training
 * dx = addend + scale (d - dbeta / M - xhat dgamma / M); else addend + scale d. */
static void backward_pixel(const norm_job *job, int n, int cb, int h, int w, const double *sum,
                           const double *dot)
{
    const mdmt_value *in = job->call->in;
    const float *scale = in[MDMT_BN_SCALE].data, *mean = in[MDMT_BN_MEAN].data;
    const float *invstd = in[MDMT_BN_INVSTD].data;
    int lanes = mdmt_lanes(job->x.c, cb);
    int training = MDMT_ATTRS(mdmt_act_attrs, job->site->op)->training;
    double d[B], g[B], count = (double)job->x.n * job->x.h * job->x.w;
    for (int lane = 0; lane < lanes; lane++) {
        int c = cb * B + lane;
        d[lane] = masked(job, n, c, h, w);
        double x = bwd_input(job, MDMT_BN_X, n, c, h, w);
        double xhat = (x - (double)mean[c]) * (double)invstd[c];
        double mean_part = training ? (sum[lane] + xhat * dot[lane]) / count : 0.0;
        g[lane] =
            (double)scale[c] * (d[lane] - mean_part) + bwd_input(job, MDMT_BN_ADDEND, n, c, h, w);
    }
    float *dpre = mdmt_optional_out(job->site, job->call, 3);
    if (dpre) {
        mdmt_store_block(&job->dpre, dpre, n, cb, h, w, d, lanes);
    }
    if (job->call->out[0]) {
        mdmt_store_block(&job->dx, job->call->out[0], n, cb, h, w, g, lanes);
    }
}

/* Task: block cb of channels. dbeta = sum d, dgamma = sum d xhat, then dx. */
static void backward_task(void *context, int cb, int thread)
{
    const norm_job *job = context;
    (void)thread;
    float *dgamma = job->call->out[1], *dbeta = job->call->out[2];
    double sum[B] = {0}, dot[B] = {0};
    for (int lane = 0; lane < B; lane++) {
        if (lane < mdmt_lanes(job->x.c, cb)) {
            channel_sums(job, cb * B + lane, &sum[lane], &dot[lane]);
        }
        if (dgamma) {
            dgamma[cb * B + lane] = (float)dot[lane];
        }
        if (dbeta) {
            dbeta[cb * B + lane] = (float)sum[lane];
        }
    }
    for (int n = 0; n < job->x.n; n++) {
        for (int h = 0; h < job->x.h; h++) {
            for (int w = 0; w < job->x.w; w++) {
                backward_pixel(job, n, cb, h, w, sum, dot);
            }
        }
    }
}

static mdmt_status bn_bwd(const mdmt_site *site, const mdmt_call *call)
{
    norm_job job = {.site = site,
                    .call = call,
                    .x = mdmt_view_of(site->in[MDMT_BN_X]),
                    .act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, site->op)->act};
    for (int i = 0; i < site->op->inputs; i++) {
        if (site->in[i]) {
            job.in[i] = mdmt_view_of(site->in[i]);
        }
    }
    if (site->out[0]) {
        job.dx = mdmt_view_of(site->out[0]);
    }
    if (site->op->outputs > 3 && site->out[3]) {
        job.dpre = mdmt_view_of(site->out[3]);
    }
    mdmt_parallel(site->pool, mdmt_blocks(job.x.c), backward_task, &job);
    return MDMT_OK;
}

/* Every element is read in full before any output of it is written, so dx may
 * lie over dz, x, z or the addend, and dpre over dz. */
static void over_any_map(const mdmt_site *site, mdmt_needs *needs)
{
    (void)site;
    needs->inplace_inputs =
        1u << MDMT_BN_DZ | 1u << MDMT_BN_X | 1u << MDMT_BN_Z | 1u << MDMT_BN_ADDEND;
}

const mdmt_cpu_impl mdmt_f32_stats_moments__ref = {
    .name = "mdmt_f32_stats_moments__ref", .cost = mdmt_ref_cost, .run = stats_moments};
const mdmt_cpu_impl mdmt_f32_bn_fold__ref = {
    .name = "mdmt_f32_bn_fold__ref", .cost = mdmt_ref_cost, .run = bn_fold};
const mdmt_cpu_impl mdmt_f32_norm_act__ref = {.name = "mdmt_f32_norm_act__ref",
                                              .needs = over_x_or_residual,
                                              .cost = mdmt_ref_cost,
                                              .run = norm_act};
const mdmt_cpu_impl mdmt_f32_bn_bwd__ref = {
    .name = "mdmt_f32_bn_bwd__ref", .needs = over_any_map, .cost = mdmt_ref_cost, .run = bn_bwd};
