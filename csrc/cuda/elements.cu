/* Elementwise ops: activation, its gradient, sum, gate; channels picked from
 * several maps; zeros; a lazy tensor stored. */
#include "divisor.cuh"
#include "samples.cuh"

/* ---- the arithmetic of one element; a, b: the inputs ---- */

struct act_rule {
    int act;
    MDMT_HD float of(float a, float b) const
    {
        (void)b;
        return mdmt_act_of(act, a);
    }
};

/* a = dy, b = x or y = act(x). */
struct act_bwd_rule {
    int act;
    MDMT_HD float of(float a, float b) const
    {
        float slope = mdmt_slope_of(act, b);
        return slope == 0 ? 0.0f : slope * a;
    }
};

struct add_rule {
    int act;
    MDMT_HD float of(float a, float b) const
    {
        return a + b;
    }
};

template <class T, class R> struct on_maps {
    mdmt_map<T> a, b, out; /* b.data NULL: absent */
    R rule;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_pack u = a.load(pixel, pack), v = b.data ? b.load(pixel, pack) : mdmt_zero_pack();
        for (int i = 0; i < MDMT_PACK; i++) {
            u.v[i] = rule.of(u.v[i], v.v[i]);
        }
        out.store(pixel, pack, u);
    }
};

/* ROWS and whatever else is stored plainly. */
template <class R> struct on_numbers {
    const float *a, *b;
    float *out;
    R rule;

    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        out[i] = rule.of(a[i], b ? b[i] : 0.0f);
    }
};

template <class T, class R>
static mdmt_status elements(const mdmt_cuda_site *site, const mdmt_cuda_call *call, R rule)
{
    const void *second = call->input(site, 1);
    if (site->out[0]->kind != MDMT_MAP) {
        on_numbers<R> f = {(const float *)call->in[0].data, (const float *)second,
                           (float *)call->out[0], rule};
        return mdmt_count_over(site->stream, mdmt_stored_elements(site->out[0]), f);
    }
    on_maps<T, R> f;
    memset((void *)&f, 0, sizeof f);
    f.a = mdmt_map_of<T>(site->in[0], call->in[0].data);
    if (second) {
        f.b = mdmt_map_of<T>(site->in[1], second);
    }
    f.out = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.rule = rule;
    return mdmt_walk_over(site->stream, f.out.pixels(), f.out.packs, f);
}

template <class R>
static mdmt_status with_rule(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    R rule = {0};
    if (site->op->record->attr_bytes == sizeof(mdmt_act_attrs)) {
        rule.act = MDMT_ATTRS(mdmt_act_attrs, site->op)->act;
    }
    return site->precision == MDMT_CUDA_BF16 ? elements<mdmt_bf16>(site, call, rule)
                                             : elements<float>(site, call, rule);
}

static mdmt_status over_inputs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->inplace_inputs = site->op->inputs > 1 ? 3u : 1u;
    return MDMT_OK;
}

/* ---- a map as it is loaded, and gates ---- */

/* ACT: one of MDMT_ACT_*, or -1 where it is read from the source. */
template <class T, int ACT> struct stored {
    enum { AHEAD = ACT < 0 ? 1 : 4 };
    struct constants {
        mdmt_pack scale, shift;
    };
    typedef mdmt_raw<T> items;
    mdmt_source<T> x;
    mdmt_map<T> out;
    mdmt_divisor area; /* H W */

    MDMT_HD void prepare(constants *c, int pack) const
    {
        if (x.scale) {
            c->scale = mdmt_load_pack(x.scale + pack * MDMT_PACK);
            c->shift = mdmt_load_pack(x.shift + pack * MDMT_PACK);
        }
    }
    MDMT_HD items read(uint32_t pixel, int pack) const
    {
        return x.map.raw(pixel, pack);
    }
    MDMT_HD void write(const constants &c, const items &item, uint32_t pixel, int pack) const
    {
        mdmt_pack p = mdmt_unpack(item);
        for (int i = 0; x.scale && i < MDMT_PACK; i++) {
            p.v[i] = mdmt_act_as<sizeof(T) == 2>(ACT < 0 ? x.act : ACT,
                                                 c.scale.v[i] * p.v[i] + c.shift.v[i]);
        }
        if (x.gate) {
            size_t row = (size_t)area.of(pixel) * (size_t)x.map.c;
            mdmt_pack g = mdmt_row_pack(x.gate + row, x.map.c, pack);
            for (int i = 0; i < MDMT_PACK; i++) {
                p.v[i] *= g.v[i];
            }
        }
        out.store(pixel, pack, p);
    }
};

template <class T, int ACT>
static mdmt_status store_as(const mdmt_cuda_site *site, const mdmt_source<T> &x,
                            const mdmt_map<T> &out)
{
    stored<T, ACT> f = {x, out, mdmt_divisor_of((size_t)x.map.h * (size_t)x.map.w)};
    return mdmt_sweep_over(site->stream, out.pixels(), out.packs, f);
}

template <class T>
static mdmt_status store_map(const mdmt_cuda_site *site, const mdmt_source<T> &x,
                             const mdmt_map<T> &out)
{
    constexpr int silu = sizeof(T) == 2 ? MDMT_ACT_SILU : -1;
    if (out.pixels() > 0x7fffffff) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "a feature map is too large for one launch");
    }
    return x.scale && x.act == MDMT_ACT_SILU ? store_as<T, silu>(site, x, out)
                                             : store_as<T, -1>(site, x, out);
}

template <class T>
static mdmt_status store_source(const mdmt_cuda_site *site, const mdmt_tensor *x,
                                const mdmt_value *value, void *to)
{
    mdmt_tensor dense = *x;
    dense.pitch = 0;
    return store_map(site, mdmt_source_of<T>(x, *value), mdmt_map_of<T>(&dense, to));
}

mdmt_status mdmt_cuda_store_lazy(const mdmt_cuda_site *site, const mdmt_tensor *x,
                                 const mdmt_value *value, void *to)
{
    return site->precision == MDMT_CUDA_BF16 ? store_source<mdmt_bf16>(site, x, value, to)
                                             : store_source<float>(site, x, value, to);
}

/* y = x s: a load with s as the gate. */
template <class T>
static mdmt_status gate_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    mdmt_source<T> x = mdmt_source_of<T>(site->in[0], call->in[0]);
    x.gate = (const float *)call->in[1].data;
    return store_map(site, x, mdmt_map_of<T>(site->out[0], call->out[0]));
}

static mdmt_status gate(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(gate_of, site, call);
}

static mdmt_status over_stored_first(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->inplace_inputs = site->in[0]->lazy_source < 0 ? 1u : 0u;
    return MDMT_OK;
}

/* ds[n][c] = sum over H, W of dy x */
template <class T>
static mdmt_status gate_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return mdmt_sum_samples<true>(site->stream, mdmt_source_of<T>(site->in[1], call->in[1]),
                                  mdmt_map_of<T>(site->in[0], call->in[0].data), 1.0f,
                                  (float *)call->out[0]);
}

static mdmt_status gate_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(gate_bwd_of, site, call);
}

/* ---- channels picked from several maps ----
 * A block has some pixels: it loads the packs that hold the channels wanted, into shared memory,
 * and puts the packs of y together there, so that whole packs travel. */

/* Of one launch, whose tables travel with the arguments: packs of y, packs loaded. */
enum { GATHER_PACKS = 32, GATHER_LOADS = 64 };

struct alignas(16) gather_pack {
    int16_t number[MDMT_PACK]; /* of the loaded channels of a pixel; -1: zero */
};

template <class T> struct gather {
    enum { THREADS = 256, PHASES = 3, ROOM = 16384 / sizeof(T), PIXELS_MOST = 256 };
    struct shared_type {
        mdmt_raw<T> value[ROOM / MDMT_PACK];
        gather_pack made[GATHER_PACKS];
        int32_t load[GATHER_LOADS];
    };
    mdmt_source<T> x[MDMT_MAX_IN];
    mdmt_map<T> y;
    int first, packs, loads; /* packs of y; packs loaded */
    uint32_t pixels, each;   /* all; of a block */
    mdmt_divisor by_packs, by_loads;
    gather_pack made[GATHER_PACKS];
    int32_t load[GATHER_LOADS]; /* source << 16 | pack */

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        uint32_t from = (uint32_t)block * each, left = pixels - from;
        uint32_t here = left < each ? left : each;
        if (phase == 0) {
            /* The arguments are slow where neighbours read different ones. */
            for (int i = thread; i < packs; i += THREADS) {
                shared.made[i] = made[i];
            }
            for (int i = thread; i < loads; i += THREADS) {
                shared.load[i] = load[i];
            }
        } else if (phase == 1) {
            for (uint32_t i = (uint32_t)thread; i < here * (uint32_t)loads; i += THREADS) {
                uint32_t at = i, pixel = by_loads.split(&at);
                int32_t k = shared.load[at];
                shared.value[i] = loaded(x[k >> 16], from + pixel, k & 0xffff);
            }
        } else {
            for (uint32_t i = (uint32_t)thread; i < here * (uint32_t)packs; i += THREADS) {
                uint32_t pack = i, pixel = by_packs.split(&pack);
                size_t to = y.at(from + pixel, first + (int)pack);
                *(mdmt_raw<T> *)(void *)(y.data + to) =
                    picked(shared.value[pixel * (uint32_t)loads].v, shared.made[pack]);
            }
        }
    }
    MDMT_HD static mdmt_raw<T> picked(const T *value, gather_pack of)
    {
        mdmt_raw<T> raw;
        memset((void *)&raw, 0, sizeof raw);
        for (int i = 0; i < MDMT_PACK; i++) {
            if (of.number[i] >= 0) {
                raw.v[i] = value[of.number[i]];
            }
        }
        return raw;
    }
    MDMT_HD static mdmt_raw<T> loaded(const mdmt_source<T> &from, uint32_t pixel, int pack)
    {
        mdmt_raw<T> raw = mdmt_load_raw(from.map.data + from.map.at(pixel, pack));
        if (from.scale && !from.gate && from.act == MDMT_ACT_RELU) {
            mdmt_loader<T> loader(from, pack);
            mdmt_round_pack(loader.template of<MDMT_ACT_RELU>(raw), &raw);
        } else if (from.scale || from.gate) {
            mdmt_round_pack(from.load(pixel, pack), &raw);
        }
        return raw;
    }

    /* Takes the channels `table` of a pack of y, of which `wanted` exist. 0: no room. */
    int take(const int32_t *table, int wanted)
    {
        int added = loads;
        for (int i = 0; i < MDMT_PACK; i++) {
            made[packs].number[i] = -1;
            if (i >= wanted || table[i] < 0) {
                continue;
            }
            int32_t source = table[i] >> 16, c = table[i] & 0xffff, at = 0;
            while (at < added && load[at] != (source << 16 | c / MDMT_PACK)) {
                at++;
            }
            if (at == GATHER_LOADS) {
                return 0;
            }
            load[at] = source << 16 | c / MDMT_PACK;
            added = at == added ? added + 1 : added;
            made[packs].number[i] = (int16_t)(at * MDMT_PACK + c % MDMT_PACK);
        }
        loads = added;
        packs++;
        return 1;
    }
    mdmt_status start(mdmt_stream_handle stream)
    {
        size_t bytes = sizeof(mdmt_raw<T>) * (size_t)(loads ? loads : 1);
        size_t fit = sizeof(T) * ROOM / bytes;
        each = (uint32_t)(fit < (size_t)PIXELS_MOST ? fit : (size_t)PIXELS_MOST);
        by_packs = mdmt_divisor_of((size_t)packs);
        by_loads = mdmt_divisor_of((size_t)(loads ? loads : 1));
        return mdmt_launch(stream, mdmt_ceil_div(pixels, each), *this);
    }
};

template <class T>
static mdmt_status gather_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    gather<T> f;
    memset((void *)&f, 0, sizeof f);
    static_assert(sizeof f <= 4096 - 64, "the arguments of a kernel take at most 4 KB");
    const int32_t *table = site->number + MDMT_ATTRS(mdmt_gather_attrs, site->op)->table;
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    for (int i = 0; i < site->op->inputs; i++) {
        f.x[i] = mdmt_source_of<T>(site->in[i], call->in[i]);
    }
    if (f.y.pixels() > 0x7fffffff) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "a feature map is too large for one launch");
    }
    f.pixels = (uint32_t)f.y.pixels();
    for (int pack = 0; pack < f.y.packs; pack++) {
        int left = f.y.c - pack * MDMT_PACK;
        if (f.packs < GATHER_PACKS && f.take(table + pack * MDMT_PACK, left)) {
            continue;
        }
        MDMT_TRY(f.start(site->stream));
        f.first = pack--; /* which has its turn again */
        f.packs = f.loads = 0;
    }
    return f.start(site->stream);
}

static mdmt_status channel_gather(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(gather_of, site, call);
}

template <class T> struct zero {
    mdmt_map<T> out;
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        out.store(pixel, pack, mdmt_zero_pack());
    }
};

template <class T>
static mdmt_status zeros_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    zero<T> f = {mdmt_map_of<T>(site->out[0], call->out[0])};
    return mdmt_walk_over(site->stream, f.out.pixels(), f.out.packs, f);
}

static mdmt_status zeros(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(zeros_of, site, call);
}

const mdmt_cuda_impl mdmt_cuda_elements[] = {
    {"act", "cuda_act", NULL, over_inputs, with_rule<act_rule>},
    {"act_bwd", "cuda_act_bwd", NULL, over_inputs, with_rule<act_bwd_rule>},
    {"add", "cuda_add", NULL, over_inputs, with_rule<add_rule>},
    {"gate", "cuda_gate", NULL, over_stored_first, gate},
    {"gate_bwd", "cuda_gate_bwd", NULL, NULL, gate_bwd},
    {"channel_gather", "cuda_channel_gather", NULL, NULL, channel_gather},
    {"zeros", "cuda_zeros", NULL, NULL, zeros},
    {NULL, NULL, NULL, NULL, NULL}};
