/* Depthwise convolutions in all three passes, and the stem: the convolution of an
 * IMAGE of few channels, whose weights [I][kh][kw][O up] are like those of I
 * depthwise ones. Those that networks are made of: depth_tiles.cuh. */
#include <stdlib.h>

#include "depth_tensor.cuh"
#include "depth_tiles.cuh"

static const mdmt_tensor *weights_of(const mdmt_cuda_site *site)
{
    int is_weight = strcmp(site->op->record->name, "conv2d_bwd_weight") == 0;
    return is_weight ? site->out[0] : site->in[1];
}

static int is_depthwise(const mdmt_cuda_site *site)
{
    return weights_of(site)->kind == MDMT_W_DEPTH;
}

static int is_stem(const mdmt_cuda_site *site)
{
    return weights_of(site)->kind == MDMT_W_STEM && site->in[0]->kind == MDMT_IMAGE;
}

static mdmt_window_geometry window_of(const mdmt_cuda_site *site)
{
    return mdmt_conv_window(MDMT_ATTRS(mdmt_conv_attrs, site->op), weights_of(site));
}

/* Geometries that depth_tiles.cuh serves. */
static int is_tiled(const mdmt_cuda_site *site)
{
    mdmt_window_geometry g = window_of(site);
    return is_depthwise(site) && g.kh == g.kw && (g.kh == 3 || g.kh == 5) && g.sh == g.sw &&
           (g.sh == 1 || g.sh == 2) && g.dh == 1 && g.dw == 1;
}

static int has_few_pixels(const mdmt_tensor *map)
{
    return (size_t)map->dim[0] * (size_t)map->dim[2] * (size_t)map->dim[3] < 0x7fffffff;
}

/* Those of them that depth_tensor.cuh serves, and where tensor cores were faster on an H100: there
 * each tile costs less and each launch more. MDMT_CUDA_DEPTH=tensor|tiles decides for all. */
static int on_tensor_cores(const mdmt_cuda_site *site, const mdmt_tensor *y, int pays)
{
    const char *wish = getenv("MDMT_CUDA_DEPTH");
    if (site->precision != MDMT_CUDA_BF16 || !is_tiled(site) || !has_few_pixels(site->in[0]) ||
        !has_few_pixels(y)) {
        return 0;
    }
    return wish && strcmp(wish, "tensor") == 0 ? 1
           : wish && strcmp(wish, "tiles") == 0 ? 0
                                                : pays;
}

static size_t elements_of(const mdmt_tensor *map)
{
    return (size_t)map->dim[0] * (size_t)map->dim[1] * (size_t)map->dim[2] * (size_t)map->dim[3];
}

static int is_tensor_forward(const mdmt_cuda_site *site)
{
    const mdmt_tensor *x = site->in[0], *y = site->out[0];
    return on_tensor_cores(site, y, elements_of(x) + elements_of(y) >= 30000000);
}

static int is_tensor_weight(const mdmt_cuda_site *site)
{
    const mdmt_tensor *x = site->in[0], *dy = site->in[1];
    mdmt_window_geometry g = window_of(site);
    int large = elements_of(x) + elements_of(dy) >= 18000000;
    return on_tensor_cores(site, dy, g.kh == 5 || (g.sh == 1 && large));
}

/* Runs body<T, kernel, stride>(site, ...). */
#define DEPTH_BY_STRIDE(body, T, K, site, ...)                                                     \
    (window_of(site).sh == 1 ? body<T, K, 1>(__VA_ARGS__) : body<T, K, 2>(__VA_ARGS__))
#define DEPTH_BY_KERNEL(body, T, site, ...)                                                        \
    (window_of(site).kh == 3 ? DEPTH_BY_STRIDE(body, T, 3, site, __VA_ARGS__)                      \
                             : DEPTH_BY_STRIDE(body, T, 5, site, __VA_ARGS__))
#define DEPTH_TENSOR(body, site, ...) DEPTH_BY_KERNEL(body, mdmt_bf16, site, __VA_ARGS__)
#define DEPTH_TILED(body, site, ...)                                                               \
    ((site)->precision == MDMT_CUDA_BF16 ? DEPTH_BY_KERNEL(body, mdmt_bf16, site, __VA_ARGS__)     \
                                         : DEPTH_BY_KERNEL(body, float, site, __VA_ARGS__))

/* ---- what stands under a tap: a pack of a map, or one number of an image ---- */

template <class T> struct depth_x {
    mdmt_source<T> x;
    MDMT_HD int height() const
    {
        return x.map.h;
    }
    MDMT_HD int width() const
    {
        return x.map.w;
    }
    MDMT_HD int inputs() const
    {
        return 1;
    }
    MDMT_HD mdmt_pack load(int n, int i, int h, int w, int pack) const
    {
        (void)i;
        mdmt_pack a = mdmt_zero_pack(), b = a;
        if (x.scale) {
            a = mdmt_load_pack(x.scale + pack * MDMT_PACK);
            b = mdmt_load_pack(x.shift + pack * MDMT_PACK);
        }
        return mdmt_lazy_pack(x, x.map.load(x.map.pixel(n, h, w), pack), a, b, pack, n);
    }
};

struct image_x {
    const float *data; /* (N, C, H, W) */
    int c, h, w;
    MDMT_HD int height() const
    {
        return h;
    }
    MDMT_HD int width() const
    {
        return w;
    }
    MDMT_HD int inputs() const
    {
        return c;
    }
    MDMT_HD mdmt_pack load(int n, int i, int row, int column, int pack) const
    {
        (void)pack;
        size_t plane = (size_t)n * (size_t)c + (size_t)i;
        float v = data[(plane * (size_t)h + (size_t)row) * (size_t)w + (size_t)column];
        mdmt_pack p;
        for (int k = 0; k < MDMT_PACK; k++) {
            p.v[k] = v;
        }
        return p;
    }
};

/* ---- forward ---- */

template <class T, class X> struct tap_forward {
    X x;
    mdmt_map<T> y;
    const float *w, *bias; /* bias: or NULL */
    mdmt_window_geometry g;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, y.h, y.w);
        mdmt_pack acc = bias ? mdmt_load_pack(bias + pack * MDMT_PACK) : mdmt_zero_pack();
        size_t up = (size_t)(y.packs * MDMT_PACK);
        for (int i = 0; i < x.inputs(); i++) {
            for (int r = 0; r < g.kh; r++) {
                int h = mdmt_tap_at(p.y, g.sh, g.pt, r, g.dh, x.height());
                for (int s = 0; h >= 0 && s < g.kw; s++) {
                    int col = mdmt_tap_at(p.x, g.sw, g.pl, s, g.dw, x.width());
                    if (col < 0) {
                        continue;
                    }
                    size_t tap = (size_t)((i * g.kh + r) * g.kw + s);
                    mdmt_pack v = x.load(p.n, i, h, col, pack);
                    mdmt_pack u = mdmt_load_pack(w + tap * up + (size_t)(pack * MDMT_PACK));
                    for (int k = 0; k < MDMT_PACK; k++) {
                        acc.v[k] += v.v[k] * u.v[k];
                    }
                }
            }
        }
        y.store(pixel, pack, acc);
    }
};

static mdmt_status statistics(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    float *stats = (float *)call->output(site, 1);
    return stats
               ? mdmt_cuda_map_stats(site, site->out[0], call->out[0], stats, site->out[1]->dim[0])
               : MDMT_OK;
}

template <class T, class X>
static mdmt_status forward(const mdmt_cuda_site *site, const mdmt_cuda_call *call, const X &x)
{
    tap_forward<T, X> f = {x, mdmt_map_of<T>(site->out[0], call->out[0]),
                           (const float *)call->in[1].data, (const float *)call->input(site, 2),
                           window_of(site)};
    MDMT_TRY(mdmt_walk_over(site->stream, f.y.pixels(), f.y.packs, f));
    return statistics(site, call);
}

template <class T, int K, int S>
static mdmt_status forward_tiles(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_forward_tiles<T, K, S> f;
    memset((void *)&f, 0, sizeof f);
    mdmt_window_geometry g = window_of(site);
    f.x = mdmt_source_of<T>(site->in[0], call->in[0]);
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.w = (const float *)call->in[1].data;
    f.bias = (const float *)call->input(site, 2);
    f.top = g.pt;
    f.left = g.pl;
    depth_walk walk = {f.y.n, f.y.h, f.y.w, f.y.packs, K, S, 0, f.STRIPS, f.SLOTS};
    f.t = depth_tiling_of(walk);
    MDMT_TRY(mdmt_launch_rounds(site->stream, (size_t)f.t.tiles * (size_t)f.t.chunks, f));
    return statistics(site, call);
}

/* `out`: the map of the results' size. */
static depth_plan plan_of(const mdmt_cuda_site *site, const mdmt_tensor *out, int resident)
{
    const int *dim = out->dim;
    mdmt_window_geometry g = window_of(site);
    depth_wish wish = {dim[0], dim[2], dim[3], mdmt_up(dim[1]) / MDMT_PACK, g.kh, g.sh, resident};
    return depth_plan_of(wish);
}

template <class T, int K, int S> static depth_plan forward_plan(const mdmt_cuda_site *site)
{
    return plan_of(site, site->out[0], depth_forward_tensor<K, S>::RESIDENT);
}

template <class T, int K, int S>
static mdmt_status forward_tensor(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_forward_tensor<K, S> f;
    memset((void *)&f, 0, sizeof f);
    mdmt_window_geometry g = window_of(site);
    f.x = mdmt_source_of<T>(site->in[0], call->in[0]);
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.w = (const float *)call->in[1].data;
    f.bias = (const float *)call->input(site, 2);
    f.stats = (float *)call->output(site, 1);
    f.top = g.pt;
    f.left = g.pl;
    f.t = forward_plan<T, K, S>(site);
    return mdmt_launch_rounds(site->stream, (size_t)f.t.parts * (size_t)f.t.chunks, f);
}

template <class T>
static depth_x<T> depth_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_x<T> x = {mdmt_source_of<T>(site->in[0], call->in[0])};
    return x;
}

static image_x image_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const int *dim = site->in[0]->dim;
    image_x x = {(const float *)call->in[0].data, dim[1], dim[2], dim[3]};
    return x;
}

static mdmt_status tensor_conv2d(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return DEPTH_TENSOR(forward_tensor, site, site, call);
}

static mdmt_status depth_conv2d(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    if (is_tiled(site)) {
        return DEPTH_TILED(forward_tiles, site, site, call);
    }
    return site->precision == MDMT_CUDA_BF16
               ? forward<mdmt_bf16>(site, call, depth_of<mdmt_bf16>(site, call))
               : forward<float>(site, call, depth_of<float>(site, call));
}

static mdmt_status stem_conv2d(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return site->precision == MDMT_CUDA_BF16 ? forward<mdmt_bf16>(site, call, image_of(site, call))
                                             : forward<float>(site, call, image_of(site, call));
}

static mdmt_status tensor_forward_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->stat_parts = DEPTH_TENSOR(forward_plan, site, site).parts;
    return MDMT_OK;
}

static mdmt_status forward_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->stat_parts = mdmt_cuda_stat_parts(site->out[0]);
    return MDMT_OK;
}

/* ---- the gradient of a map ---- */

template <class T> struct depth_data {
    mdmt_map<T> dy, dx, addend; /* addend.data: or NULL */
    const float *w;
    mdmt_window_geometry g;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, dx.h, dx.w);
        mdmt_pack acc = addend.data ? addend.load(pixel, pack) : mdmt_zero_pack();
        size_t up = (size_t)(dx.packs * MDMT_PACK);
        for (int r = 0; r < g.kh; r++) {
            int oh = mdmt_window_at(p.y, g.sh, g.pt, r, g.dh, dy.h);
            for (int s = 0; oh >= 0 && s < g.kw; s++) {
                int ow = mdmt_window_at(p.x, g.sw, g.pl, s, g.dw, dy.w);
                if (ow < 0) {
                    continue;
                }
                size_t tap = (size_t)(r * g.kw + s);
                mdmt_pack d = dy.load(dy.pixel(p.n, oh, ow), pack);
                mdmt_pack u = mdmt_load_pack(w + tap * up + (size_t)(pack * MDMT_PACK));
                for (int k = 0; k < MDMT_PACK; k++) {
                    acc.v[k] += d.v[k] * u.v[k];
                }
            }
        }
        dx.store(pixel, pack, acc);
    }
};

template <class T>
static mdmt_status depth_data_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_data<T> f;
    memset((void *)&f, 0, sizeof f);
    f.dy = mdmt_map_of<T>(site->in[0], call->in[0].data);
    f.dx = mdmt_map_of<T>(site->out[0], call->out[0]);
    if (call->input(site, 2)) {
        f.addend = mdmt_map_of<T>(site->in[2], call->in[2].data);
    }
    f.w = (const float *)call->in[1].data;
    f.g = window_of(site);
    return mdmt_walk_over(site->stream, f.dx.pixels(), f.dx.packs, f);
}

/* Groups of S x S pixels from the one that holds the first pixel to the last one's. */
static int groups_of(int size, int pad, int stride)
{
    return (pad + size - 1) / stride - pad / stride + 1;
}

template <class T, int K, int S>
static mdmt_status data_tiles(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_data_tiles<T, K, S> f;
    memset((void *)&f, 0, sizeof f);
    mdmt_window_geometry g = window_of(site);
    f.x = mdmt_source_of<T>(site->in[0], call->in[0]);
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    if (call->input(site, 2)) {
        f.addend = mdmt_map_of<T>(site->in[2], call->in[2].data);
    }
    f.w = (const float *)call->in[1].data;
    f.top = g.pt;
    f.left = g.pl;
    depth_walk walk = {f.y.n,
                       groups_of(f.y.h, g.pt, S),
                       groups_of(f.y.w, g.pl, S),
                       f.y.packs,
                       (K + S - 1) / S,
                       1,
                       0,
                       f.STRIPS,
                       f.SLOTS};
    f.t = depth_tiling_of(walk);
    return mdmt_launch_rounds(site->stream, (size_t)f.t.tiles * (size_t)f.t.chunks, f);
}

static mdmt_status depth_bwd_data(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    if (is_tiled(site)) {
        return DEPTH_TILED(data_tiles, site, site, call);
    }
    return MDMT_BY_PRECISION(depth_data_of, site, call);
}

static mdmt_status data_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u << 2;
    return MDMT_OK;
}

/* ---- the gradient of the weights: four taps a job, parts merged afterwards ---- */

enum { TAPS_AT_ONCE = 4 };

template <class T, class X> struct tap_sums {
    X x;
    mdmt_map<T> dy;
    float *partial; /* (parts, taps, O up) */
    int taps;       /* inputs kh kw */
    mdmt_window_geometry g;

    MDMT_HD void add(mdmt_pack *sums, size_t pixel, int pack, int z, size_t first) const
    {
        (void)first;
        mdmt_place p = mdmt_place_of((uint32_t)pixel, dy.h, dy.w);
        mdmt_pack d = dy.load(pixel, pack);
        for (int t = 0; t < TAPS_AT_ONCE; t++) {
            int tap = z * TAPS_AT_ONCE + t, area = g.kh * g.kw;
            int h = mdmt_tap_at(p.y, g.sh, g.pt, tap % area / g.kw, g.dh, x.height());
            int w = mdmt_tap_at(p.x, g.sw, g.pl, tap % g.kw, g.dw, x.width());
            if (tap >= taps || h < 0 || w < 0) {
                continue;
            }
            mdmt_pack v = x.load(p.n, tap / area, h, w, pack);
            for (int k = 0; k < MDMT_PACK; k++) {
                sums[t].v[k] += d.v[k] * v.v[k];
            }
        }
    }
    MDMT_HD void done(int k, int part, int c, int z, float total) const
    {
        int tap = z * TAPS_AT_ONCE + k;
        if (tap < taps) {
            size_t row = (size_t)part * (size_t)taps + (size_t)tap;
            partial[row * (size_t)(dy.packs * MDMT_PACK) + (size_t)c] = total;
        }
    }
};

/* The parts merged. */
struct tap_totals {
    float *dw;
    int channels, stored;

    MDMT_HD void done(size_t i, double total) const
    {
        dw[i] = (int)(i % (size_t)stored) < channels ? (float)total : 0.0f;
    }
};

static int weight_jobs(const mdmt_cuda_site *site)
{
    const int *dim = site->out[0]->dim;
    return (dim[1] * dim[2] * dim[3] + TAPS_AT_ONCE - 1) / TAPS_AT_ONCE;
}

template <class T, int K, int S> static depth_tiling weight_tiling(const mdmt_cuda_site *site)
{
    typedef depth_weight_tiles<T, K, S> kernel;
    const int *dim = site->in[1]->dim;
    depth_walk walk = {dim[0], dim[2],         dim[3],       mdmt_up(dim[1]) / MDMT_PACK, K, S,
                       1,      kernel::STRIPS, kernel::SLOTS};
    return depth_tiling_of(walk);
}

template <class T, int K, int S> static depth_plan weight_plan(const mdmt_cuda_site *site)
{
    return plan_of(site, site->in[1], depth_weight_tensor<K, S>::RESIDENT);
}

/* Tiles of a part. */
static int tiles_per_part(const depth_tiling *t)
{
    int parts = (DEPTH_BLOCKS + t->chunks - 1) / t->chunks;
    return (t->tiles + parts - 1) / parts;
}

static int weight_parts(const mdmt_cuda_site *site)
{
    const int *dim = site->in[1]->dim;
    if (is_tiled(site)) {
        depth_tiling t = DEPTH_TILED(weight_tiling, site, site);
        return (t.tiles + tiles_per_part(&t) - 1) / tiles_per_part(&t);
    }
    size_t pixels = (size_t)dim[0] * (size_t)dim[2] * (size_t)dim[3];
    return mdmt_parts_of(pixels, mdmt_up(dim[1]) / MDMT_PACK, weight_jobs(site));
}

static mdmt_status weight_totals(const mdmt_cuda_site *site, const mdmt_cuda_call *call, int parts)
{
    const mdmt_tensor *w = site->out[0];
    tap_totals totals = {(float *)call->out[0], w->dim[0], mdmt_up(w->dim[0])};
    size_t weights = mdmt_stored_elements(w);
    return mdmt_sum_rows(site->stream, (const float *)call->workspace, weights, weights, parts,
                         totals);
}

template <class T, class X>
static mdmt_status weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call, const X &x)
{
    const mdmt_tensor *w = site->out[0];
    int parts = weight_parts(site);
    tap_sums<T, X> f = {x, mdmt_map_of<T>(site->in[1], call->in[1].data), (float *)call->workspace,
                        w->dim[1] * w->dim[2] * w->dim[3], window_of(site)};
    MDMT_TRY(mdmt_reduce_over<TAPS_AT_ONCE>(site->stream, f.dy.pixels(), f.dy.packs, parts,
                                            weight_jobs(site), f));
    return weight_totals(site, call, parts);
}

template <class T, int K, int S>
static mdmt_status weight_tiles(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_weight_tiles<T, K, S> f;
    memset((void *)&f, 0, sizeof f);
    mdmt_window_geometry g = window_of(site);
    f.x = mdmt_source_of<T>(site->in[0], call->in[0]);
    f.dy = mdmt_source_of<T>(site->in[1], call->in[1]);
    f.partial = (float *)call->workspace;
    f.top = g.pt;
    f.left = g.pl;
    f.t = weight_tiling<T, K, S>(site);
    f.per_part = tiles_per_part(&f.t);
    f.parts = (f.t.tiles + f.per_part - 1) / f.per_part;
    MDMT_TRY(mdmt_launch_rounds(site->stream, (size_t)f.parts * (size_t)f.t.chunks, f));
    return weight_totals(site, call, f.parts);
}

template <class T, int K, int S>
static mdmt_status weight_tensor(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    depth_weight_tensor<K, S> f;
    memset((void *)&f, 0, sizeof f);
    mdmt_window_geometry g = window_of(site);
    f.x = mdmt_source_of<T>(site->in[0], call->in[0]);
    f.dy = mdmt_map_of<T>(site->in[1], call->in[1].data);
    f.partial = (float *)call->workspace;
    f.top = g.pt;
    f.left = g.pl;
    f.t = weight_plan<T, K, S>(site);
    MDMT_TRY(mdmt_launch_rounds(site->stream, (size_t)f.t.parts * (size_t)f.t.chunks, f));
    return weight_totals(site, call, f.t.parts);
}

static mdmt_status tensor_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return DEPTH_TENSOR(weight_tensor, site, site, call);
}

static mdmt_status depth_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    if (is_tiled(site)) {
        return DEPTH_TILED(weight_tiles, site, site, call);
    }
    return site->precision == MDMT_CUDA_BF16
               ? weight<mdmt_bf16>(site, call, depth_of<mdmt_bf16>(site, call))
               : weight<float>(site, call, depth_of<float>(site, call));
}

static mdmt_status stem_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return site->precision == MDMT_CUDA_BF16 ? weight<mdmt_bf16>(site, call, image_of(site, call))
                                             : weight<float>(site, call, image_of(site, call));
}

static mdmt_status weight_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->workspace_bytes =
        sizeof(float) * mdmt_stored_elements(site->out[0]) * (size_t)weight_parts(site);
    return MDMT_OK;
}

static mdmt_status tensor_weight_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->workspace_bytes = sizeof(float) * mdmt_stored_elements(site->out[0]) *
                             (size_t)DEPTH_TENSOR(weight_plan, site, site).parts;
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_depth[] = {
    {"conv2d", "cuda_conv2d_depth_tensor", is_tensor_forward, tensor_forward_needs, tensor_conv2d},
    {"conv2d", "cuda_conv2d_depth", is_depthwise, forward_needs, depth_conv2d},
    {"conv2d", "cuda_conv2d_stem", is_stem, forward_needs, stem_conv2d},
    {"conv2d_bwd_data", "cuda_conv2d_bwd_data_depth", is_depthwise, data_needs, depth_bwd_data},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_depth_tensor", is_tensor_weight,
     tensor_weight_needs, tensor_bwd_weight},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_depth", is_depthwise, weight_needs,
     depth_bwd_weight},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_stem", is_stem, weight_needs, stem_bwd_weight},
    {NULL, NULL, NULL, NULL, NULL}};
