/* Batch normalisation in its parts: statistics, moments, fold, apply with
 * activation and residual, backward. */
#include "site.cuh"

/* ---- statistics ---- */

template <class T> struct stats_sums {
    mdmt_map<T> x;
    float *stats; /* (parts, MDMT_STATS_ROWS, channels) */
    size_t pixels, per_part;
    int channels;

    /* Sums of x - p and of its square, p = the part's first value. */
    MDMT_HD void add(mdmt_pack *sums, size_t pixel, int pack, int z, size_t first) const
    {
        (void)z;
        mdmt_pack v = x.load(pixel, pack), pivot = x.load(first, pack);
        for (int i = 0; i < MDMT_PACK; i++) {
            float d = v.v[i] - pivot.v[i];
            sums[0].v[i] += d;
            sums[1].v[i] += d * d;
        }
    }
    MDMT_HD void done(int k, int part, int c, int z, float total) const
    {
        (void)z;
        size_t row = (size_t)channels, first = (size_t)part * per_part;
        float *to = stats + (size_t)part * MDMT_STATS_ROWS * row + (size_t)c;
        to[(k ? MDMT_STATS_SQUARE : MDMT_STATS_SUM) * row] = total;
        if (k == 0) {
            size_t count = first + per_part < pixels ? per_part : pixels - first;
            float pivot = mdmt_to_float(x.data[first * (size_t)x.pitch + (size_t)c]);
            to[MDMT_STATS_COUNT * row] = c < x.c ? (float)count : 0.0f;
            to[MDMT_STATS_PIVOT * row] = c < x.c ? pivot : 0.0f;
        }
    }
};

int mdmt_cuda_stat_parts(const mdmt_tensor *map)
{
    size_t pixels = (size_t)map->dim[0] * (size_t)map->dim[2] * (size_t)map->dim[3];
    return mdmt_parts_of(pixels, mdmt_up(map->dim[1]) / MDMT_PACK, 1);
}

template <class T>
static mdmt_status map_stats(const mdmt_cuda_site *site, const mdmt_tensor *x, const void *data,
                             float *stats, int parts)
{
    mdmt_map<T> map = mdmt_map_of<T>(x, data);
    stats_sums<T> f = {map, stats, map.pixels(), mdmt_ceil_div(map.pixels(), (size_t)parts),
                       map.packs * MDMT_PACK};
    return mdmt_reduce_over<2>(site->stream, map.pixels(), map.packs, parts, 1, f);
}

mdmt_status mdmt_cuda_map_stats(const mdmt_cuda_site *site, const mdmt_tensor *x, const void *data,
                                float *stats, int parts)
{
    return site->precision == MDMT_CUDA_BF16 ? map_stats<mdmt_bf16>(site, x, data, stats, parts)
                                             : map_stats<float>(site, x, data, stats, parts);
}

static mdmt_status channel_stats(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return mdmt_cuda_map_stats(site, site->in[0], call->in[0].data, (float *)call->out[0],
                               site->out[0]->dim[0]);
}

static mdmt_status stats_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->stat_parts = mdmt_cuda_stat_parts(site->in[0]);
    return MDMT_OK;
}

/* Mean and sum of squares of the deviations of n elements, merged with more (Chan, Golub &
 * LeVeque 1983). */
struct merged {
    double n, mean, m2;

    MDMT_HD void add(double pn, double pmean, double pm2)
    {
        if (pn > 0) {
            double delta = pmean - mean, total = n + pn;
            mean += delta * (pn / total);
            m2 += (pm2 < 0 ? 0 : pm2) + delta * delta * (n * pn / total);
            n = total;
        }
    }
    MDMT_HD double variance() const
    {
        return n > 0 ? m2 / n : 0;
    }
};

/* f.done(c, mean, variance) for each stored channel of partial statistics: 32 threads share the
 * parts of a channel, then they are merged in order. */
template <class F> struct merge_stats {
    enum { COLUMNS = 8, ROWS = 32, THREADS = COLUMNS * ROWS, PHASES = 2 };
    struct shared_type {
        merged part[ROWS][COLUMNS];
    };
    F f;
    const float *stats; /* (parts, MDMT_STATS_ROWS, row) */
    int parts, channels;
    size_t row;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int column = thread % COLUMNS, first = thread / COLUMNS;
        size_t c = block * COLUMNS + (size_t)column;
        merged m = {0, 0, 0};
        if (phase == 0) {
            for (int part = first; (int)c < channels && part < parts; part += ROWS) {
                const float *s = stats + (size_t)part * MDMT_STATS_ROWS * row + c;
                double n = s[MDMT_STATS_COUNT * row], sum = s[MDMT_STATS_SUM * row];
                if (n > 0) {
                    m.add(n, (double)s[MDMT_STATS_PIVOT * row] + sum / n,
                          (double)s[MDMT_STATS_SQUARE * row] - sum * sum / n);
                }
            }
            shared.part[first][column] = m;
        } else if (first == 0 && c < row) {
            for (int r = 0; r < ROWS; r++) {
                m.add(shared.part[r][column].n, shared.part[r][column].mean,
                      shared.part[r][column].m2);
            }
            f.done(c, m.mean, m.variance());
        }
    }
};

template <class F>
static mdmt_status merge_all(const mdmt_cuda_site *site, const float *stats, const mdmt_tensor *s,
                             const F &f)
{
    size_t row = (size_t)mdmt_up(s->dim[2]);
    merge_stats<F> kernel = {f, stats, s->dim[0], s->dim[2], row};
    return mdmt_launch(site->stream, row / merge_stats<F>::COLUMNS, kernel);
}

struct moments {
    float *mean, *var;

    MDMT_HD void done(size_t c, double m, double v) const
    {
        mean[c] = (float)m;
        var[c] = (float)v;
    }
};

static mdmt_status stats_moments(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    moments f = {(float *)call->out[0], (float *)call->out[1]};
    return merge_all(site, (const float *)call->in[0].data, site->in[0], f);
}

/* scale = gamma / sqrt(var + eps), shift = beta - mean * scale; in training the
 * running statistics move towards the batch's, the variance unbiased. */
struct fold {
    const float *gamma, *beta, *given_mean, *given_var;
    float *rmean, *rvar, *scale, *shift, *mean, *invstd;
    int channels, training;
    double count, eps, momentum;

    MDMT_HD void done(size_t c, double m, double v) const
    {
        double deviation = 0, factor = 0, offset = 0;
        if ((int)c < channels) {
            if (training) {
                double unbiased = count > 1 ? v * (count / (count - 1)) : v;
                rmean[c] = (float)((1 - momentum) * (double)rmean[c] + momentum * m);
                rvar[c] = (float)((1 - momentum) * (double)rvar[c] + momentum * unbiased);
            }
            deviation = 1.0 / sqrt(v + eps);
            factor = (double)gamma[c] * deviation;
            offset = (double)beta[c] - m * factor;
        }
        scale[c] = (float)factor;
        shift[c] = (float)offset;
        if (mean) {
            mean[c] = (int)c < channels ? (float)m : 0.0f;
        }
        if (invstd) {
            invstd[c] = (float)deviation;
        }
    }
    /* Without partial statistics: one thread per stored channel. */
    MDMT_HD void at(uint32_t c, int unused) const
    {
        (void)unused;
        const float *from = training ? given_mean : rmean, *spread = training ? given_var : rvar;
        int live = (int)c < channels;
        done(c, live ? (double)from[c] : 0.0, live ? (double)spread[c] : 0.0);
    }
};

static mdmt_status bn_fold(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_norm_attrs *a = MDMT_ATTRS(mdmt_norm_attrs, site->op);
    const float *in[7];
    float *out[4];
    for (int i = 0; i < 7; i++) {
        in[i] = (const float *)call->input(site, i);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = (float *)call->output(site, i);
    }
    int channels = site->in[1]->dim[0];
    fold f = {in[1],
              in[2],
              in[5],
              in[6],
              (float *)call->in[3].data,
              (float *)call->in[4].data,
              out[0],
              out[1],
              out[2],
              out[3],
              channels,
              a->training,
              (double)a->count,
              (double)a->eps,
              (double)a->momentum};
    return a->training && in[0] ? merge_all(site, in[0], site->in[0], f)
                                : mdmt_count_over(site->stream, (size_t)mdmt_up(channels), f);
}

/* ---- z = act(scale x + shift [+ residual]) ---- */

template <class T> struct apply {
    mdmt_map<T> x, z;
    mdmt_source<T> residual;
    const float *scale, *shift;
    int act, has_residual;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_pack v = x.load(pixel, pack);
        mdmt_pack a = mdmt_load_pack(scale + pack * MDMT_PACK);
        mdmt_pack b = mdmt_load_pack(shift + pack * MDMT_PACK);
        mdmt_pack r = mdmt_zero_pack();
        if (has_residual) {
            r = residual.load(pixel, pack);
        }
        for (int i = 0; i < MDMT_PACK; i++) {
            v.v[i] = mdmt_act_of(act, a.v[i] * v.v[i] + b.v[i] + r.v[i]);
        }
        z.store(pixel, pack, v);
    }
};

template <class T>
static mdmt_status norm_act_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    apply<T> f;
    memset((void *)&f, 0, sizeof f);
    f.x = mdmt_map_of<T>(site->in[0], call->in[0].data);
    f.z = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.scale = (const float *)call->in[1].data;
    f.shift = (const float *)call->in[2].data;
    f.act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    f.has_residual = call->input(site, 3) != NULL;
    if (f.has_residual) {
        f.residual = mdmt_source_of<T>(site->in[3], call->in[3]);
    }
    return mdmt_walk_over(site->stream, f.x.pixels(), f.x.packs, f);
}

static mdmt_status norm_act(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(norm_act_of, site, call);
}

static mdmt_status over_x_or_residual(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u << 0 | 1u << 3;
    return MDMT_OK;
}

/* ---- backward ---- */

/* What both passes read. A map whose data is NULL is absent. */
template <class T> struct bn_inputs {
    mdmt_map<T> dz, x, z;
    const float *scale, *shift, *mean, *invstd, *gate, *pooled;
    int act;
    float per_pixel; /* 1 / (H W) */
    uint32_t area;   /* H W */

    /* The gradient before the activation, given x: see ops/attrs.h. */
    MDMT_HD mdmt_pack masked(uint32_t pixel, int pack, const mdmt_pack &xv) const
    {
        mdmt_pack d = dz.data ? dz.load(pixel, pack) : mdmt_zero_pack();
        mdmt_pack v;
        if (gate || pooled) {
            size_t row = (size_t)(pixel / area) * (size_t)x.c;
            for (int i = 0; i < MDMT_PACK; i++) {
                int c = pack * MDMT_PACK + i;
                if (c < x.c) {
                    d.v[i] = gate ? d.v[i] * gate[row + (size_t)c] : d.v[i];
                    d.v[i] += pooled ? pooled[row + (size_t)c] * per_pixel : 0.0f;
                }
            }
        }
        if (z.data) {
            v = z.load(pixel, pack);
        } else {
            mdmt_pack a = mdmt_load_pack(scale + pack * MDMT_PACK);
            mdmt_pack b = mdmt_load_pack(shift + pack * MDMT_PACK);
            for (int i = 0; i < MDMT_PACK; i++) {
                float y = a.v[i] * xv.v[i] + b.v[i];
                v.v[i] = mdmt_slope_reads_input(act) ? y : mdmt_act_of(act, y);
            }
        }
        for (int i = 0; i < MDMT_PACK; i++) {
            float slope = mdmt_slope_of(act, v.v[i]);
            d.v[i] = slope == 0 ? 0.0f : d.v[i] * slope;
        }
        return d;
    }
    MDMT_HD mdmt_pack xhat(int pack, const mdmt_pack &xv) const
    {
        mdmt_pack m = mdmt_load_pack(mean + pack * MDMT_PACK);
        mdmt_pack s = mdmt_load_pack(invstd + pack * MDMT_PACK), h;
        for (int i = 0; i < MDMT_PACK; i++) {
            h.v[i] = (xv.v[i] - m.v[i]) * s.v[i];
        }
        return h;
    }
};

template <class T> struct bn_sums {
    bn_inputs<T> in;
    float *partial; /* (parts, 2, channels) */
    int channels;

    MDMT_HD void add(mdmt_pack *sums, size_t pixel, int pack, int z, size_t first) const
    {
        (void)z;
        (void)first;
        mdmt_pack x = in.x.load(pixel, pack);
        mdmt_pack d = in.masked((uint32_t)pixel, pack, x), h = in.xhat(pack, x);
        for (int i = 0; i < MDMT_PACK; i++) {
            sums[0].v[i] += d.v[i];
            sums[1].v[i] += d.v[i] * h.v[i];
        }
    }
    MDMT_HD void done(int k, int part, int c, int z, float total) const
    {
        (void)z;
        partial[((size_t)part * 2 + (size_t)k) * (size_t)channels + (size_t)c] = total;
    }
};

/* Of rows of (2, stored) numbers. */
struct bn_totals {
    float *sum, *dot, *dgamma, *dbeta; /* dgamma, dbeta: or NULL */
    size_t stored;
    int channels;

    MDMT_HD void done(size_t i, double total) const
    {
        size_t c = i % stored;
        float v = (int)c < channels ? (float)total : 0.0f;
        float *also = i < stored ? dbeta : dgamma;
        (i < stored ? sum : dot)[c] = v;
        if (also) {
            also[c] = v;
        }
    }
};

template <class T> struct bn_apply {
    bn_inputs<T> in;
    mdmt_map<T> dx, dpre, addend; /* data NULL: absent */
    const float *sum, *dot;
    float per_element; /* 1 / (N H W) in training, else 0 */

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_pack x = in.x.load(pixel, pack), d = in.masked(pixel, pack, x);
        mdmt_pack h = in.xhat(pack, x), g;
        mdmt_pack a = mdmt_load_pack(in.scale + pack * MDMT_PACK);
        mdmt_pack s = mdmt_load_pack(sum + pack * MDMT_PACK);
        mdmt_pack t = mdmt_load_pack(dot + pack * MDMT_PACK);
        mdmt_pack more = addend.data ? addend.load(pixel, pack) : mdmt_zero_pack();
        for (int i = 0; i < MDMT_PACK; i++) {
            float mean_part = (s.v[i] + h.v[i] * t.v[i]) * per_element;
            g.v[i] = a.v[i] * (d.v[i] - mean_part) + more.v[i];
        }
        if (dpre.data) {
            dpre.store(pixel, pack, d);
        }
        if (dx.data) {
            dx.store(pixel, pack, g);
        }
    }
};

template <class T>
static mdmt_map<T> optional_map(const mdmt_cuda_site *site, const mdmt_cuda_call *call, int i)
{
    mdmt_map<T> none;
    memset((void *)&none, 0, sizeof none);
    return call->input(site, i) ? mdmt_map_of<T>(site->in[i], call->in[i].data) : none;
}

static int bwd_parts(const mdmt_cuda_site *site)
{
    return mdmt_cuda_stat_parts(site->in[MDMT_BN_X]);
}

template <class T>
static mdmt_status bn_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_act_attrs *attrs = MDMT_ATTRS(mdmt_act_attrs, site->op);
    bn_inputs<T> in;
    in.x = mdmt_map_of<T>(site->in[MDMT_BN_X], call->in[MDMT_BN_X].data);
    in.dz = optional_map<T>(site, call, MDMT_BN_DZ);
    in.z = optional_map<T>(site, call, MDMT_BN_Z);
    in.scale = (const float *)call->in[MDMT_BN_SCALE].data;
    in.shift = (const float *)call->in[MDMT_BN_SHIFT].data;
    in.mean = (const float *)call->in[MDMT_BN_MEAN].data;
    in.invstd = (const float *)call->in[MDMT_BN_INVSTD].data;
    in.gate = (const float *)call->input(site, MDMT_BN_GATE);
    in.pooled = (const float *)call->input(site, MDMT_BN_POOLED);
    in.act = attrs->act;
    in.area = (uint32_t)in.x.h * (uint32_t)in.x.w;
    in.per_pixel = (float)(1.0 / (double)in.area);
    int parts = bwd_parts(site), stored = in.x.packs * MDMT_PACK;
    float *sum = (float *)call->workspace, *dot = sum + stored, *partial = dot + stored;
    bn_sums<T> sums = {in, partial, stored};
    MDMT_TRY(mdmt_reduce_over<2>(site->stream, in.x.pixels(), in.x.packs, parts, 1, sums));
    bn_totals totals = {
        sum,    dot, (float *)call->output(site, 1), (float *)call->output(site, 2), (size_t)stored,
        in.x.c,
    };
    size_t row = 2 * (size_t)stored;
    MDMT_TRY(mdmt_sum_rows(site->stream, partial, row, row, parts, totals));
    bn_apply<T> f;
    memset((void *)&f, 0, sizeof f);
    f.in = in;
    f.sum = sum;
    f.dot = dot;
    f.per_element = attrs->training ? (float)(1.0 / (double)in.x.pixels()) : 0.0f;
    f.addend = optional_map<T>(site, call, MDMT_BN_ADDEND);
    if (call->output(site, 0)) {
        f.dx = mdmt_map_of<T>(site->out[0], call->out[0]);
    }
    if (call->output(site, 3)) {
        f.dpre = mdmt_map_of<T>(site->out[3], call->out[3]);
    }
    if (!f.dx.data && !f.dpre.data) {
        return MDMT_OK;
    }
    return mdmt_walk_over(site->stream, in.x.pixels(), in.x.packs, f);
}

static mdmt_status bn_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(bn_bwd_of, site, call);
}

/* The sums are complete before anything is written, and the second pass reads
 * each element in full before it writes it. */
static mdmt_status bwd_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    size_t stored = (size_t)mdmt_up(site->in[MDMT_BN_X]->dim[1]);
    needs->workspace_bytes = sizeof(float) * 2 * stored * (size_t)(bwd_parts(site) + 1);
    needs->inplace_inputs =
        1u << MDMT_BN_DZ | 1u << MDMT_BN_X | 1u << MDMT_BN_Z | 1u << MDMT_BN_ADDEND;
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_norm[] = {
    {"channel_stats", "cuda_channel_stats", NULL, stats_needs, channel_stats},
    {"stats_moments", "cuda_stats_moments", NULL, NULL, stats_moments},
    {"bn_fold", "cuda_bn_fold", NULL, NULL, bn_fold},
    {"norm_act", "cuda_norm_act", NULL, over_x_or_residual, norm_act},
    {"bn_bwd", "cuda_bn_bwd", NULL, bwd_needs, bn_bwd},
    {NULL, NULL, NULL, NULL, NULL}};
