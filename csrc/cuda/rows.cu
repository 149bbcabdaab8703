/* Linear layers and their gradients, channel sums, flatten, dropout. */
#include "backend.cuh"
#include "geometry.cuh"
#include "product.cuh"

/* y[n][o] = bias[o] + sum_i x[n][i] w[o][i] */
static mdmt_status linear(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    int samples = site->in[0]->dim[0], outputs = site->in[1]->dim[0], inputs = site->in[1]->dim[1];
    mdmt_factor<true> x = {(const float *)call->in[0].data, samples, inputs};
    mdmt_factor<true> w = {(const float *)call->in[1].data, outputs, inputs};
    return mdmt_multiply(site->stream, x, w, inputs, (const float *)call->input(site, 2),
                         (float *)call->out[0]);
}

/* dx[n][i] = sum_o dy[n][o] w[o][i] */
static mdmt_status linear_bwd_data(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    int samples = site->in[0]->dim[0], outputs = site->in[1]->dim[0], inputs = site->in[1]->dim[1];
    mdmt_factor<true> dy = {(const float *)call->in[0].data, samples, outputs};
    mdmt_factor<false> w = {(const float *)call->in[1].data, inputs, inputs};
    return mdmt_multiply(site->stream, dy, w, outputs, NULL, (float *)call->out[0]);
}

/* dw[o][i] = sum_n dy[n][o] x[n][i] */
static mdmt_status linear_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    int samples = site->in[0]->dim[0], inputs = site->in[0]->dim[1], outputs = site->in[1]->dim[1];
    mdmt_factor<false> dy = {(const float *)call->in[1].data, outputs, outputs};
    mdmt_factor<false> x = {(const float *)call->in[0].data, inputs, inputs};
    return mdmt_multiply(site->stream, dy, x, samples, NULL, (float *)call->out[0]);
}

/* ---- sum over all but the channels ---- */

template <class T> struct map_sums {
    mdmt_map<T> x;
    float *partial; /* (parts, channels) */

    MDMT_HD void add(mdmt_pack *sums, size_t pixel, int pack, int z, size_t first) const
    {
        (void)z;
        (void)first;
        mdmt_pack v = x.load(pixel, pack);
        for (int i = 0; i < MDMT_PACK; i++) {
            sums[0].v[i] += v.v[i];
        }
    }
    MDMT_HD void done(int k, int part, int c, int z, float total) const
    {
        (void)k;
        (void)z;
        partial[(size_t)part * (size_t)(x.packs * MDMT_PACK) + (size_t)c] = total;
    }
};

struct channel_totals {
    float *sum;
    MDMT_HD void done(size_t c, double total) const
    {
        sum[c] = (float)total;
    }
};

/* Channels beyond C become zero. */
struct clear_tail {
    float *sum;
    int channels;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        sum[channels + (int)i] = 0.0f;
    }
};

template <class T>
static mdmt_status channel_sum_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_tensor *x = site->in[0];
    size_t channels = (size_t)x->dim[1], stored = (size_t)mdmt_up(x->dim[1]), stride = channels;
    const float *rows = (const float *)call->in[0].data;
    int count = x->dim[0];
    channel_totals totals = {(float *)call->out[0]};
    clear_tail tail = {(float *)call->out[0], (int)channels};
    if (x->kind == MDMT_MAP) {
        map_sums<T> f = {mdmt_map_of<T>(x, call->in[0].data), (float *)call->workspace};
        rows = f.partial;
        count = mdmt_cuda_stat_parts(x);
        stride = stored;
        MDMT_TRY(mdmt_reduce_over<1>(site->stream, f.x.pixels(), f.x.packs, count, 1, f));
    }
    MDMT_TRY(mdmt_sum_rows(site->stream, rows, channels, stride, count, totals));
    return mdmt_count_over(site->stream, stored - channels, tail);
}

static mdmt_status channel_sum(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(channel_sum_of, site, call);
}

static mdmt_status sum_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    const mdmt_tensor *x = site->in[0];
    if (x->kind == MDMT_MAP) {
        needs->workspace_bytes =
            sizeof(float) * (size_t)mdmt_up(x->dim[1]) * (size_t)mdmt_cuda_stat_parts(x);
    }
    return MDMT_OK;
}

/* ---- between a map and rows of its C H W elements ---- */

template <class T> struct flat {
    mdmt_map<T> map;
    float *rows;
    int to_rows;

    MDMT_HD void at(uint32_t pixel, int c) const
    {
        mdmt_place p = mdmt_place_of(pixel, map.h, map.w);
        T *here = map.data + (size_t)pixel * (size_t)map.pitch + (size_t)c;
        size_t plane = (size_t)p.n * (size_t)map.c + (size_t)c;
        float *there = rows + (plane * (size_t)map.h + (size_t)p.y) * (size_t)map.w + (size_t)p.x;
        if (!to_rows) {
            mdmt_from_float(c < map.c ? *there : 0.0f, here);
        } else if (c < map.c) {
            *there = mdmt_to_float(*here);
        }
    }
};

template <class T>
static mdmt_status flatten_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    int to_rows = site->in[0]->kind == MDMT_MAP;
    flat<T> f = {to_rows ? mdmt_map_of<T>(site->in[0], call->in[0].data)
                         : mdmt_map_of<T>(site->out[0], call->out[0]),
                 (float *)(to_rows ? call->out[0] : call->in[0].data), to_rows};
    return mdmt_walk_over(site->stream, f.map.pixels(), f.map.packs * MDMT_PACK, f);
}

static mdmt_status flatten(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(flatten_of, site, call);
}

/* ---- dropout: element e of the plain (N, C, H, W) array is kept where word e % 4
 * of the Philox block (e / 4, stream; step) is at least `rate` ---- */

struct drop_rule {
    const mdmt_gpu_step *step;
    uint32_t stream;
    float rate, scale;

    MDMT_HD float of(uint64_t element, float v) const
    {
        mdmt_philox4 block =
            mdmt_philox(step->dropout_key, element / 4 | (uint64_t)stream << 40, step->step);
        return mdmt_uniform(block.v[element % 4]) >= rate ? v * scale : 0.0f;
    }
};

struct drop_rows {
    drop_rule rule;
    const float *x;
    float *y;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        y[i] = rule.of(i, x[i]);
    }
};

template <class T> struct drop_map {
    drop_rule rule;
    mdmt_map<T> x, y;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, x.h, x.w);
        mdmt_pack v = x.load(pixel, pack);
        for (int i = 0; i < MDMT_PACK; i++) {
            uint64_t plane = (uint64_t)p.n * (uint64_t)x.c + (uint64_t)(pack * MDMT_PACK + i);
            uint64_t element = (plane * (uint64_t)x.h + (uint64_t)p.y) * (uint64_t)x.w;
            v.v[i] = rule.of(element + (uint64_t)p.x, v.v[i]);
        }
        y.store(pixel, pack, v);
    }
};

template <class T>
static mdmt_status dropout_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_dropout_attrs *a = MDMT_ATTRS(mdmt_dropout_attrs, site->op);
    drop_rule rule = {&site->gpu->state->step, (uint32_t)a->stream, a->rate,
                      1.0f / (1.0f - a->rate)};
    if (site->in[0]->kind != MDMT_MAP) {
        drop_rows f = {rule, (const float *)call->in[0].data, (float *)call->out[0]};
        return mdmt_count_over(site->stream, mdmt_stored_elements(site->in[0]), f);
    }
    drop_map<T> f = {rule, mdmt_map_of<T>(site->in[0], call->in[0].data),
                     mdmt_map_of<T>(site->out[0], call->out[0])};
    return mdmt_walk_over(site->stream, f.x.pixels(), f.x.packs, f);
}

static mdmt_status dropout(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    MDMT_TRY(mdmt_gpu_take_step(site->gpu, call->step, 0, 0));
    return MDMT_BY_PRECISION(dropout_of, site, call);
}

static mdmt_status over_input(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u;
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_rows[] = {
    {"linear", "cuda_linear", NULL, NULL, linear},
    {"linear_bwd_data", "cuda_linear_bwd_data", NULL, NULL, linear_bwd_data},
    {"linear_bwd_weight", "cuda_linear_bwd_weight", NULL, NULL, linear_bwd_weight},
    {"channel_sum", "cuda_channel_sum", NULL, sum_needs, channel_sum},
    {"flatten", "cuda_flatten", NULL, NULL, flatten},
    {"flatten_bwd", "cuda_flatten_bwd", NULL, NULL, flatten},
    {"dropout", "cuda_dropout", NULL, over_input, dropout},
    {NULL, NULL, NULL, NULL, NULL}};
