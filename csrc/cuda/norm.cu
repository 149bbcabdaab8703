/* Batch normalisation forward, in its parts: statistics, moments, fold, apply with
 * activation and residual. */
#include "site.cuh"

/* ---- statistics ---- */

template <class T> struct stats_sums {
    enum { RESIDENT = sizeof(T) == 2 ? 4 : 1 };
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

/* Of some parts of a channel: elements, sums of x - p and of its square, p being the pivot of the
 * channel's first part. */
struct merged {
    double n, sum, square;

    MDMT_HD void add(const merged &m)
    {
        n += m.n;
        sum += m.sum;
        square += m.square;
    }
};

/* f.done(c, mean, variance) for each stored channel of partial statistics: ROWS threads share the
 * parts of a channel, then their results are added in pairs, in double. */
template <class F> struct merge_stats {
    enum { COLUMNS = 8, ROWS = 64, THREADS = COLUMNS * ROWS, PHASES = 8, AHEAD = 4 };
    struct shared_type {
        merged part[ROWS][COLUMNS];
    };
    F f;
    const float *stats; /* (parts, MDMT_STATS_ROWS, row) */
    int parts, channels;
    size_t row;

    /* What part `at` adds; the sums about its own pivot become sums about `pivot`. */
    MDMT_HD merged part_of(size_t c, int at, double pivot) const
    {
        const float *s = stats + (size_t)at * MDMT_STATS_ROWS * row + c;
        double n = s[MDMT_STATS_COUNT * row], sum = s[MDMT_STATS_SUM * row];
        double square = s[MDMT_STATS_SQUARE * row];
        double away = (double)s[MDMT_STATS_PIVOT * row] - pivot;
        merged m = {n, sum + n * away, square + away * (2 * sum + n * away)};
        return m;
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int column = thread % COLUMNS, first = thread / COLUMNS;
        size_t c = block * COLUMNS + (size_t)column;
        int half = ROWS >> phase; /* of phase 1 to 6: 32, 16, ... 1 */
        if (phase == 0) {
            merged m = {0, 0, 0};
            if ((int)c < channels) {
                double pivot = stats[MDMT_STATS_PIVOT * row + c];
                int at = first;
                for (; at + (AHEAD - 1) * ROWS < parts; at += AHEAD * ROWS) {
                    MDMT_UNROLL for (int k = 0; k < AHEAD; k++)
                    {
                        m.add(part_of(c, at + k * ROWS, pivot));
                    }
                }
                for (; at < parts; at += ROWS) {
                    m.add(part_of(c, at, pivot));
                }
            }
            shared.part[first][column] = m;
        } else if (half && first < half) {
            shared.part[first][column].add(shared.part[first + half][column]);
        } else if (!half && first == 0 && c < row) {
            const merged &m = shared.part[0][column];
            double off = m.n > 0 ? m.sum / m.n : 0;
            double variance = m.n > 0 ? m.square / m.n - off * off : 0;
            double pivot = (int)c < channels ? (double)stats[MDMT_STATS_PIVOT * row + c] : 0;
            f.done(c, pivot + off, variance < 0 ? 0 : variance); /* a NaN stays one */
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

/* ACT: one of MDMT_ACT_*, or -1 where it is read from `act`. */
template <class T, int ACT> struct apply {
    enum { AHEAD = ACT < 0 ? 1 : 4 };
    struct constants {
        mdmt_pack scale, shift, residual_scale, residual_shift;
    };
    struct items {
        mdmt_raw<T> x, residual;
    };
    mdmt_map<T> x, z;
    mdmt_source<T> residual; /* map.data NULL: none; without a gate */
    const float *scale, *shift;
    int act;

    MDMT_HD void prepare(constants *c, int pack) const
    {
        c->scale = mdmt_load_pack(scale + pack * MDMT_PACK);
        c->shift = mdmt_load_pack(shift + pack * MDMT_PACK);
        if (residual.scale) {
            c->residual_scale = mdmt_load_pack(residual.scale + pack * MDMT_PACK);
            c->residual_shift = mdmt_load_pack(residual.shift + pack * MDMT_PACK);
        }
    }
    MDMT_HD items read(uint32_t pixel, int pack) const
    {
        items i;
        i.x = x.raw(pixel, pack);
        if (residual.map.data) {
            i.residual = residual.map.raw(pixel, pack);
        }
        return i;
    }
    MDMT_HD void write(const constants &c, const items &item, uint32_t pixel, int pack) const
    {
        mdmt_pack v = mdmt_unpack(item.x), r = mdmt_zero_pack();
        if (residual.map.data) {
            r = mdmt_unpack(item.residual);
        }
        for (int i = 0; residual.scale && i < MDMT_PACK; i++) {
            r.v[i] = mdmt_act_as<sizeof(T) == 2>(residual.act, c.residual_scale.v[i] * r.v[i] +
                                                                   c.residual_shift.v[i]);
        }
        for (int i = 0; i < MDMT_PACK; i++) {
            v.v[i] = mdmt_act_as<sizeof(T) == 2>(ACT < 0 ? act : ACT,
                                                 c.scale.v[i] * v.v[i] + c.shift.v[i] + r.v[i]);
        }
        z.store(pixel, pack, v);
    }
};

/* The residual stored, where it has a gate of its own. */
template <class T> struct gated_apply : apply<T, -1> {
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_pack v = this->x.load(pixel, pack), r = this->residual.load(pixel, pack);
        mdmt_pack a = mdmt_load_pack(this->scale + pack * MDMT_PACK);
        mdmt_pack b = mdmt_load_pack(this->shift + pack * MDMT_PACK);
        for (int i = 0; i < MDMT_PACK; i++) {
            v.v[i] = mdmt_act_as<sizeof(T) == 2>(this->act, a.v[i] * v.v[i] + b.v[i] + r.v[i]);
        }
        this->z.store(pixel, pack, v);
    }
};

template <class T, int ACT>
static void fill_apply(apply<T, ACT> *f, const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    memset((void *)f, 0, sizeof *f);
    f->x = mdmt_map_of<T>(site->in[0], call->in[0].data);
    f->z = mdmt_map_of<T>(site->out[0], call->out[0]);
    f->scale = (const float *)call->in[1].data;
    f->shift = (const float *)call->in[2].data;
    f->act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    if (call->input(site, 3)) {
        f->residual = mdmt_source_of<T>(site->in[3], call->in[3]);
    }
}

template <class T, int ACT>
static mdmt_status apply_all(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    apply<T, ACT> f;
    fill_apply(&f, site, call);
    return mdmt_sweep_over(site->stream, f.x.pixels(), f.x.packs, f);
}

template <class T>
static mdmt_status norm_act_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    if (call->input(site, 3) && call->in[3].gate) {
        gated_apply<T> f;
        fill_apply<T, -1>(&f, site, call);
        return mdmt_walk_over(site->stream, f.x.pixels(), f.x.packs, f);
    }
    switch (MDMT_ATTRS(mdmt_act_attrs, site->op)->act) {
    case MDMT_ACT_NONE:
        return apply_all<T, MDMT_ACT_NONE>(site, call);
    case MDMT_ACT_RELU:
        return apply_all<T, MDMT_ACT_RELU>(site, call);
    case MDMT_ACT_RELU6:
        return apply_all<T, MDMT_ACT_RELU6>(site, call);
    case MDMT_ACT_SILU:
        return apply_all<T, MDMT_ACT_SILU>(site, call);
    default:
        return apply_all<T, -1>(site, call);
    }
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

const mdmt_cuda_impl mdmt_cuda_norm[] = {
    {"channel_stats", "cuda_channel_stats", NULL, stats_needs, channel_stats},
    {"stats_moments", "cuda_stats_moments", NULL, NULL, stats_moments},
    {"bn_fold", "cuda_bn_fold", NULL, NULL, bn_fold},
    {"norm_act", "cuda_norm_act", NULL, over_x_or_residual, norm_act},
    {NULL, NULL, NULL, NULL, NULL}};
