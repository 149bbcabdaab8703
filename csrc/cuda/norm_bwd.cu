/* Batch normalisation backward, with activation, residual and gate. */
#include "divisor.cuh"
#include "site.cuh"

/* Whether the slope is the same from what the activation reads as from what it gives. */
MDMT_HD int only_cuts(int act)
{
    return act == MDMT_ACT_RELU || act == MDMT_ACT_RELU6;
}

/* d act'(y), from y = what mdmt_slope_of reads; a zero slope gives 0 whatever d is. */
template <int QUICK> MDMT_HD float through(int act, float v, float d)
{
    if (act == MDMT_ACT_NONE) {
        return d;
    }
    if (only_cuts(act)) {
        return v > 0 && (act == MDMT_ACT_RELU || v < 6) ? d : 0.0f;
    }
    float slope = mdmt_slope_as<QUICK>(act, v);
    return slope == 0 ? 0.0f : d * slope;
}

/* What both passes read. A map whose data is NULL is absent. ACT as in apply; GATED: whether there
 * may be a gate or a pooled gradient, which belong to samples, not to pixels. */
template <class T, int ACT, int GATED> struct bn_inputs {
    struct constants {
        mdmt_pack scale, shift, mean;
    };
    struct items {
        mdmt_raw<T> dz, x, z;
    };
    mdmt_map<T> dz, x, z;
    const float *scale, *shift, *mean, *invstd, *gate, *pooled;
    int act;
    float per_pixel;   /* 1 / (H W) */
    mdmt_divisor area; /* H W; looked at where GATED */

    MDMT_HD void prepare(constants *c, int pack) const
    {
        c->scale = mdmt_load_pack(scale + pack * MDMT_PACK);
        c->shift = mdmt_load_pack(shift + pack * MDMT_PACK);
        c->mean = mdmt_load_pack(mean + pack * MDMT_PACK);
    }
    MDMT_HD items read(uint32_t pixel, int pack) const
    {
        items i;
        i.x = x.raw(pixel, pack);
        if (dz.data) {
            i.dz = dz.raw(pixel, pack);
        }
        if (z.data) {
            i.z = z.raw(pixel, pack);
        }
        return i;
    }
    /* The gradient before the activation: see ops/attrs.h. */
    MDMT_HD mdmt_pack masked(const constants &k, const items &item, uint32_t pixel, int pack) const
    {
        const int kind = ACT < 0 ? act : ACT;
        mdmt_pack d = mdmt_zero_pack(), v;
        if (dz.data) {
            d = mdmt_unpack(item.dz);
        }
        if (GATED && (gate || pooled)) {
            size_t row = (size_t)area.of(pixel) * (size_t)x.c;
            if (gate) {
                mdmt_pack g = mdmt_row_pack(gate + row, x.c, pack);
                for (int i = 0; i < MDMT_PACK; i++) {
                    d.v[i] *= g.v[i];
                }
            }
            if (pooled) {
                mdmt_pack more = mdmt_row_pack(pooled + row, x.c, pack);
                for (int i = 0; i < MDMT_PACK; i++) {
                    d.v[i] += more.v[i] * per_pixel;
                }
            }
        }
        if (kind == MDMT_ACT_NONE) {
            return d;
        }
        if (z.data) {
            v = mdmt_unpack(item.z);
        } else {
            mdmt_pack xv = mdmt_unpack(item.x);
            for (int i = 0; i < MDMT_PACK; i++) {
                float y = k.scale.v[i] * xv.v[i] + k.shift.v[i];
                v.v[i] = mdmt_slope_reads_input(kind) || only_cuts(kind) ? y : mdmt_act_of(kind, y);
            }
        }
        for (int i = 0; i < MDMT_PACK; i++) {
            d.v[i] = through<sizeof(T) == 2>(kind, v.v[i], d.v[i]);
        }
        return d;
    }
};

/* KEEPS: the gradient before the activation is stored on the way, so that the second pass need not
 * make it again from two maps. */
template <class T, int ACT, int GATED, int KEEPS> struct bn_sums {
    enum { AHEAD = ACT < 0 ? 1 : sizeof(T) == 2 ? 2 : 4 };
    enum { RESIDENT = sizeof(T) == 2 ? 2 : 1 };
    typedef typename bn_inputs<T, ACT, GATED>::constants constants;
    typedef typename bn_inputs<T, ACT, GATED>::items items;
    bn_inputs<T, ACT, GATED> in;
    float *partial; /* (parts, 2, channels) */
    int channels;
    mdmt_map<T> dpre; /* where KEEPS */

    MDMT_HD void prepare(constants *k, int pack) const
    {
        in.prepare(k, pack);
    }
    MDMT_HD items read(uint32_t pixel, int pack) const
    {
        return in.read(pixel, pack);
    }
    /* Sums of d and of d (x - mean). */
    MDMT_HD void take(mdmt_pack *sums, const constants &k, const items &item, uint32_t pixel,
                      int pack) const
    {
        mdmt_pack d = in.masked(k, item, pixel, pack), x = mdmt_unpack(item.x);
        for (int i = 0; i < MDMT_PACK; i++) {
            sums[0].v[i] += d.v[i];
            sums[1].v[i] += d.v[i] * (x.v[i] - k.mean.v[i]);
        }
        if (KEEPS) {
            dpre.store(pixel, pack, d);
        }
    }
    MDMT_HD void done(int k, int part, int c, int z, float total) const
    {
        (void)z;
        partial[((size_t)part * 2 + (size_t)k) * (size_t)channels + (size_t)c] =
            k ? total * in.invstd[c] : total;
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

/* dx = scale (d - (sum + xhat dot) / N) [+ addend], d the gradient before the activation. */
template <class T, int ACT, int GATED> struct bn_apply {
    /* Of bfloat16 as much as two blocks have registers for. */
    enum { SMALL = sizeof(T) == 2, RESIDENT = SMALL ? 2 : 1 };
    enum { AHEAD = ACT < 0 ? 1 : SMALL && !GATED ? 4 : 2 };
    struct constants {
        typename bn_inputs<T, ACT, GATED>::constants in;
        mdmt_pack offset, factor; /* dx = scale d + offset + factor (x - mean); SMALL: (x), the mean being in offset */
    };
    struct items {
        typename bn_inputs<T, ACT, GATED>::items in;
        mdmt_raw<T> addend;
    };
    bn_inputs<T, ACT, GATED> in;
    mdmt_map<T> dx, dpre, addend; /* data NULL: absent */
    const float *sum, *dot;
    float per_element; /* 1 / (N H W) in training, else 0 */

    MDMT_HD void prepare(constants *c, int pack) const
    {
        mdmt_pack s = mdmt_load_pack(sum + pack * MDMT_PACK);
        mdmt_pack t = mdmt_load_pack(dot + pack * MDMT_PACK);
        mdmt_pack deviation = mdmt_load_pack(in.invstd + pack * MDMT_PACK);
        in.prepare(&c->in, pack);
        for (int i = 0; i < MDMT_PACK; i++) {
            c->factor.v[i] = -c->in.scale.v[i] * (t.v[i] * per_element * deviation.v[i]);
            c->offset.v[i] = -c->in.scale.v[i] * (s.v[i] * per_element);
            if (SMALL) { /* x is rounded by far more than this loses */
                c->offset.v[i] -= c->factor.v[i] * c->in.mean.v[i];
            }
        }
    }
    MDMT_HD items read(uint32_t pixel, int pack) const
    {
        items i;
        i.in = in.read(pixel, pack);
        if (addend.data) {
            i.addend = addend.raw(pixel, pack);
        }
        return i;
    }
    MDMT_HD void write(const constants &c, const items &item, uint32_t pixel, int pack) const
    {
        mdmt_pack d = in.masked(c.in, item.in, pixel, pack), x = mdmt_unpack(item.in.x), g;
        for (int i = 0; i < MDMT_PACK; i++) {
            float above = SMALL ? x.v[i] : x.v[i] - c.in.mean.v[i];
            float mean_part = c.offset.v[i] + c.factor.v[i] * above;
            g.v[i] = c.in.scale.v[i] * d.v[i] + mean_part;
        }
        if (addend.data) {
            mdmt_pack more = mdmt_unpack(item.addend);
            for (int i = 0; i < MDMT_PACK; i++) {
                g.v[i] += more.v[i];
            }
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

template <class T, int ACT, int GATED>
static bn_inputs<T, ACT, GATED> inputs_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    bn_inputs<T, ACT, GATED> in;
    in.x = mdmt_map_of<T>(site->in[MDMT_BN_X], call->in[MDMT_BN_X].data);
    in.dz = optional_map<T>(site, call, MDMT_BN_DZ);
    in.z = optional_map<T>(site, call, MDMT_BN_Z);
    in.scale = (const float *)call->in[MDMT_BN_SCALE].data;
    in.shift = (const float *)call->in[MDMT_BN_SHIFT].data;
    in.mean = (const float *)call->in[MDMT_BN_MEAN].data;
    in.invstd = (const float *)call->in[MDMT_BN_INVSTD].data;
    in.gate = (const float *)call->input(site, MDMT_BN_GATE);
    in.pooled = (const float *)call->input(site, MDMT_BN_POOLED);
    in.act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    size_t area = (size_t)in.x.h * (size_t)in.x.w;
    in.area = mdmt_divisor_of(area);
    in.per_pixel = (float)(1.0 / (double)area);
    return in;
}

/* Of the workspace: sums of a channel, and those of each part. */
struct bn_room {
    int parts, stored;
    float *sum, *dot, *partial;

    bn_room(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
    {
        parts = bwd_parts(site);
        stored = mdmt_up(site->in[MDMT_BN_X]->dim[1]);
        sum = (float *)call->workspace;
        dot = sum + stored;
        partial = dot + stored;
    }
};

template <class T, int ACT, int GATED, int KEEPS>
static mdmt_status first_pass(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    bn_room room(site, call);
    bn_sums<T, ACT, GATED, KEEPS> sums;
    memset((void *)&sums, 0, sizeof sums);
    sums.in = inputs_of<T, ACT, GATED>(site, call);
    sums.partial = room.partial;
    sums.channels = room.stored;
    if (KEEPS) {
        sums.dpre = mdmt_map_of<T>(site->out[3], call->out[3]);
    }
    const mdmt_map<T> &x = sums.in.x;
    MDMT_TRY(mdmt_reduce_over<2>(site->stream, x.pixels(), x.packs, room.parts, 1, sums));
    bn_totals totals = {room.sum,
                        room.dot,
                        (float *)call->output(site, 1),
                        (float *)call->output(site, 2),
                        (size_t)room.stored,
                        x.c};
    size_t row = 2 * (size_t)room.stored;
    return mdmt_sum_rows(site->stream, room.partial, row, row, room.parts, totals);
}

/* kept: the gradient before the activation as the first pass stored it, or data NULL. */
template <class T, int ACT, int GATED>
static mdmt_status second_pass(const mdmt_cuda_site *site, const mdmt_cuda_call *call,
                               const mdmt_map<T> &kept)
{
    bn_room room(site, call);
    bn_apply<T, ACT, GATED> f;
    memset((void *)&f, 0, sizeof f);
    f.in = inputs_of<T, ACT, GATED>(site, call);
    f.sum = room.sum;
    f.dot = room.dot;
    f.per_element = MDMT_ATTRS(mdmt_act_attrs, site->op)->training
                        ? (float)(1.0 / (double)f.in.x.pixels())
                        : 0.0f;
    f.addend = optional_map<T>(site, call, MDMT_BN_ADDEND);
    if (call->output(site, 0)) {
        f.dx = mdmt_map_of<T>(site->out[0], call->out[0]);
    }
    if (kept.data) {
        f.in.dz = kept;
        f.in.z.data = NULL;
        f.in.act = MDMT_ACT_NONE;
    } else if (call->output(site, 3)) {
        f.dpre = mdmt_map_of<T>(site->out[3], call->out[3]);
    }
    if (!f.dx.data && !f.dpre.data) {
        return MDMT_OK;
    }
    return mdmt_sweep_over(site->stream, f.in.x.pixels(), f.in.x.packs, f);
}

template <class T, int ACT, int GATED>
static mdmt_status bn_bwd_as(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    mdmt_map<T> none;
    memset((void *)&none, 0, sizeof none);
    MDMT_TRY((first_pass<T, ACT, GATED, 0>(site, call)));
    return second_pass<T, ACT, GATED>(site, call, none);
}

/* With the gradient before the activation among the results, and in the way of no other input. A
 * cut leaves numbers as they are, so that what was stored is what would be made again. */
static int keeps(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return call->output(site, 3) && call->output(site, 0) && call->input(site, MDMT_BN_Z) &&
           !call->input(site, MDMT_BN_ADDEND);
}

template <class T>
static mdmt_status bn_bwd_kept(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    constexpr int none = sizeof(T) == 2 ? MDMT_ACT_NONE : -1;
    MDMT_TRY((first_pass<T, MDMT_ACT_RELU, 0, 1>(site, call)));
    return second_pass<T, none, 0>(site, call, mdmt_map_of<T>(site->out[3], call->out[3]));
}

/* Kernels of their own for the activations of the backbones, in bfloat16; where the maps are float,
 * memory takes so long that one for ReLU and one for the rest are enough. */
template <class T>
static mdmt_status bn_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    constexpr int many = sizeof(T) == 2;
    constexpr int none = many ? MDMT_ACT_NONE : -1, relu6 = many ? MDMT_ACT_RELU6 : -1;
    constexpr int silu = many ? MDMT_ACT_SILU : -1;
    int gated = call->input(site, MDMT_BN_GATE) || call->input(site, MDMT_BN_POOLED);
    int act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    if (gated) {
        return act == MDMT_ACT_SILU ? bn_bwd_as<T, silu, 1>(site, call)
                                    : bn_bwd_as<T, -1, 1>(site, call);
    }
    switch (act) {
    case MDMT_ACT_NONE:
        return bn_bwd_as<T, none, 0>(site, call);
    case MDMT_ACT_RELU:
        return keeps(site, call) ? bn_bwd_kept<T>(site, call)
                                 : bn_bwd_as<T, MDMT_ACT_RELU, 0>(site, call);
    case MDMT_ACT_RELU6:
        return bn_bwd_as<T, relu6, 0>(site, call);
    case MDMT_ACT_SILU:
        return bn_bwd_as<T, silu, 0>(site, call);
    default:
        return bn_bwd_as<T, -1, 0>(site, call);
    }
}

static mdmt_status bn_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const int *dim = site->in[MDMT_BN_X]->dim;
    if ((size_t)dim[0] * (size_t)dim[2] * (size_t)dim[3] > 0x7fffffff) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "a feature map is too large for one launch");
    }
    return MDMT_BY_PRECISION(bn_bwd_of, site, call);
}

/* Each pass reads an element in full before it writes it, and the second reads no input that the
 * first has written over. */
static mdmt_status bwd_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    size_t stored = (size_t)mdmt_up(site->in[MDMT_BN_X]->dim[1]);
    needs->workspace_bytes = sizeof(float) * 2 * stored * (size_t)(bwd_parts(site) + 1);
    needs->inplace_inputs =
        1u << MDMT_BN_DZ | 1u << MDMT_BN_X | 1u << MDMT_BN_Z | 1u << MDMT_BN_ADDEND;
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_norm_bwd[] = {{"bn_bwd", "cuda_bn_bwd", NULL, bwd_needs, bn_bwd},
                                             {NULL, NULL, NULL, NULL, NULL}};
