/* Pooling and its gradients, with PyTorch's rules for ties, NaN and divisors. */
#include "geometry.cuh"
#include "pool3.cuh"
#include "samples.cuh"

/* ---- maximum ---- */

template <class T> struct max_forward {
    mdmt_source<T> x;
    mdmt_map<T> y;
    mdmt_map<uint8_t> where; /* data NULL: not wanted */
    mdmt_window_geometry g;

    /* The first maximum in the order of the scan wins; a NaN beats everything, the
     * last NaN wins. The number kept is r * kw + s of its tap. */
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, y.h, y.w);
        mdmt_pack best = mdmt_zero_pack();
        int index[MDMT_PACK];
        for (int i = 0; i < MDMT_PACK; i++) {
            best.v[i] = -INFINITY;
            index[i] = -1;
        }
        for (int r = 0; r < g.kh; r++) {
            int h = mdmt_tap_at(p.y, g.sh, g.pt, r, g.dh, x.map.h);
            for (int s = 0; h >= 0 && s < g.kw; s++) {
                int w = mdmt_tap_at(p.x, g.sw, g.pl, s, g.dw, x.map.w);
                if (w < 0) {
                    continue;
                }
                mdmt_pack v = x.load(x.map.pixel(p.n, h, w), pack);
                for (int i = 0; i < MDMT_PACK; i++) {
                    if (index[i] < 0 || v.v[i] > best.v[i] || v.v[i] != v.v[i]) {
                        best.v[i] = v.v[i];
                        index[i] = r * g.kw + s;
                    }
                }
            }
        }
        y.store(pixel, pack, best);
        if (where.data) {
            note(pixel, pack, index);
        }
    }
    MDMT_HD void note(size_t pixel, int pack, const int *index) const
    {
        mdmt_raw<uint8_t> raw;
        for (int i = 0; i < MDMT_PACK; i++) {
            raw.v[i] = pack * MDMT_PACK + i < y.c ? (uint8_t)index[i] : (uint8_t)0;
        }
        *(mdmt_raw<uint8_t> *)(void *)(where.data + where.at(pixel, pack)) = raw;
    }
};

/* The stride of a window that pool3.cuh serves, else 0. */
static int stride_of_3x3(const mdmt_window_geometry &g)
{
    int square = g.kh == 3 && g.kw == 3 && g.dh == 1 && g.dw == 1 && g.sh == g.sw;
    return square && g.sh <= 2 && g.pt <= 2 && g.pl <= 2 ? g.sh : 0;
}

template <class T, int STRIDE, bool LAZY>
static mdmt_status max_3x3(mdmt_stream_handle stream, const max_forward<T> &f)
{
    mdmt_max3<T, max_forward<T>, STRIDE, LAZY> fast;
    fast.any = f;
    if (fast.set(f.y.n, (size_t)f.y.h, mdmt_ceil_div((size_t)f.y.w, 2), f.y.packs)) {
        return mdmt_launch(stream, fast.blocks(), fast);
    }
    return mdmt_walk_over(stream, f.y.pixels(), f.y.packs, f);
}

template <class T>
static mdmt_status max_pool_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    max_forward<T> f;
    memset((void *)&f, 0, sizeof f);
    f.x = mdmt_source_of<T>(site->in[0], call->in[0]);
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.g = mdmt_pool_window(MDMT_ATTRS(mdmt_pool_attrs, site->op), 1);
    if (call->output(site, 1)) {
        f.where = mdmt_map_of<uint8_t>(site->out[1], call->out[1]);
    }
    int stride = stride_of_3x3(f.g), lazy = f.x.scale != NULL;
    if (stride && !f.x.gate && (!lazy || f.x.act == MDMT_ACT_RELU)) {
        mdmt_status (*fast)(mdmt_stream_handle, const max_forward<T> &) =
            stride == 2 ? lazy ? max_3x3<T, 2, true> : max_3x3<T, 2, false>
            : lazy      ? max_3x3<T, 1, true>
                        : max_3x3<T, 1, false>;
        return fast(site->stream, f);
    }
    return mdmt_walk_over(site->stream, f.y.pixels(), f.y.packs, f);
}

static mdmt_status max_pool(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(max_pool_of, site, call);
}

/* dx: the sum of dy of the windows whose maximum it was. */
template <class T> struct max_backward {
    mdmt_map<T> dy, dx;
    mdmt_map<uint8_t> where;
    mdmt_window_geometry g;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, dx.h, dx.w);
        mdmt_pack sum = mdmt_zero_pack();
        for (int r = 0; r < g.kh; r++) {
            int oh = mdmt_window_at(p.y, g.sh, g.pt, r, g.dh, dy.h);
            for (int s = 0; oh >= 0 && s < g.kw; s++) {
                int ow = mdmt_window_at(p.x, g.sw, g.pl, s, g.dw, dy.w);
                if (ow < 0) {
                    continue;
                }
                size_t from = dy.pixel(p.n, oh, ow);
                mdmt_pack d = dy.load(from, pack);
                mdmt_raw<uint8_t> hit = mdmt_load_raw(where.data + where.at(from, pack));
                for (int i = 0; i < MDMT_PACK; i++) {
                    sum.v[i] += hit.v[i] == r * g.kw + s ? d.v[i] : 0.0f;
                }
            }
        }
        dx.store(pixel, pack, sum);
    }
};

template <class T>
static mdmt_status max_pool_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    max_backward<T> f = {mdmt_map_of<T>(site->in[0], call->in[0].data),
                         mdmt_map_of<T>(site->out[0], call->out[0]),
                         mdmt_map_of<uint8_t>(site->in[1], call->in[1].data),
                         mdmt_pool_window(MDMT_ATTRS(mdmt_pool_attrs, site->op), 1)};
    int stride = stride_of_3x3(f.g);
    size_t h = (size_t)f.dx.h, w = (size_t)f.dx.w;
    mdmt_max3_back2<T, max_backward<T>> two;
    mdmt_max3_back1<T, max_backward<T>> one;
    two.any = one.any = f;
    if (stride == 2 && two.set(f.dx.n, mdmt_ceil_div(h + (size_t)f.g.pt, 2),
                               mdmt_ceil_div(w + (size_t)f.g.pl, 2), f.dx.packs)) {
        return mdmt_launch(site->stream, two.blocks(), two);
    }
    if (stride == 1 && one.set(f.dx.n, h, mdmt_ceil_div(w, 2), f.dx.packs)) {
        return mdmt_launch(site->stream, one.blocks(), one);
    }
    return mdmt_walk_over(site->stream, f.dx.pixels(), f.dx.packs, f);
}

static mdmt_status max_pool_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(max_pool_bwd_of, site, call);
}

/* ---- average ---- */

/* First and last+1 position of a window in the input, and the extent that PyTorch
 * counts: up to the end of the padding, or only inside the input. */
struct extent {
    int from, to, counted;
};

MDMT_HD extent extent_of(int out, int kernel, int stride, int before, int after, int size,
                         int include_pad)
{
    extent e = {out * stride - before, out * stride - before + kernel, 0};
    e.to = e.to < size + after ? e.to : size + after;
    e.counted = e.to - e.from;
    e.from = e.from > 0 ? e.from : 0;
    e.to = e.to < size ? e.to : size;
    if (!include_pad) {
        e.counted = e.to - e.from;
    }
    return e;
}

template <class T> struct average {
    mdmt_map<T> x, y;
    mdmt_window_geometry g;
    int include_pad;

    MDMT_HD extent rows(int oh) const
    {
        return extent_of(oh, g.kh, g.sh, g.pt, g.pb, x.h, include_pad);
    }
    MDMT_HD extent columns(int ow) const
    {
        return extent_of(ow, g.kw, g.sw, g.pl, g.pr, x.w, include_pad);
    }
};

template <class T> struct average_forward : average<T> {
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, this->y.h, this->y.w);
        extent rows = this->rows(p.y), columns = this->columns(p.x);
        mdmt_pack sum = mdmt_zero_pack();
        for (int h = rows.from; h < rows.to; h++) {
            for (int w = columns.from; w < columns.to; w++) {
                mdmt_pack v = this->x.load(this->x.pixel(p.n, h, w), pack);
                for (int i = 0; i < MDMT_PACK; i++) {
                    sum.v[i] += v.v[i];
                }
            }
        }
        if (rows.from < rows.to && columns.from < columns.to) {
            float divisor = (float)(rows.counted * columns.counted);
            for (int i = 0; i < MDMT_PACK; i++) {
                sum.v[i] /= divisor;
            }
        }
        this->y.store(pixel, pack, sum);
    }
};

/* x: dx, y: dy. */
template <class T> struct average_backward : average<T> {
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        const mdmt_window_geometry &g = this->g;
        mdmt_place p = mdmt_place_of(pixel, this->x.h, this->x.w);
        mdmt_pack sum = mdmt_zero_pack();
        for (int r = 0; r < g.kh; r++) {
            int oh = mdmt_window_at(p.y, g.sh, g.pt, r, 1, this->y.h);
            for (int s = 0; oh >= 0 && s < g.kw; s++) {
                int ow = mdmt_window_at(p.x, g.sw, g.pl, s, 1, this->y.w);
                if (ow < 0) {
                    continue;
                }
                float divisor = (float)(this->rows(oh).counted * this->columns(ow).counted);
                mdmt_pack d = this->y.load(this->y.pixel(p.n, oh, ow), pack);
                for (int i = 0; i < MDMT_PACK; i++) {
                    sum.v[i] += d.v[i] / divisor;
                }
            }
        }
        this->x.store(pixel, pack, sum);
    }
};

template <class T>
static mdmt_status avg_pool_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_pool_attrs *a = MDMT_ATTRS(mdmt_pool_attrs, site->op);
    average_forward<T> f;
    f.x = mdmt_map_of<T>(site->in[0], call->in[0].data);
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.g = mdmt_pool_window(a, 0);
    f.include_pad = a->count_include_pad;
    return mdmt_walk_over(site->stream, f.y.pixels(), f.y.packs, f);
}

static mdmt_status avg_pool(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(avg_pool_of, site, call);
}

template <class T>
static mdmt_status avg_pool_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_pool_attrs *a = MDMT_ATTRS(mdmt_pool_attrs, site->op);
    average_backward<T> f;
    f.x = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.y = mdmt_map_of<T>(site->in[0], call->in[0].data);
    f.g = mdmt_pool_window(a, 0);
    f.include_pad = a->count_include_pad;
    return mdmt_walk_over(site->stream, f.x.pixels(), f.x.packs, f);
}

static mdmt_status avg_pool_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(avg_pool_bwd_of, site, call);
}

/* ---- mean over all pixels ---- */

template <class T>
static mdmt_status global_avg_pool_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    mdmt_source<T> x = mdmt_source_of<T>(site->in[0], call->in[0]);
    return mdmt_sum_samples<false>(site->stream, x, x.map, (float)(x.map.h * x.map.w),
                                   (float *)call->out[0]);
}

static mdmt_status global_avg_pool(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(global_avg_pool_of, site, call);
}

template <class T> struct global_backward {
    const float *dy;
    mdmt_map<T> dx;
    float area;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        size_t row = (size_t)(pixel / ((uint32_t)dx.h * (uint32_t)dx.w)) * (size_t)dx.c;
        mdmt_pack v = mdmt_zero_pack();
        for (int i = 0; i < MDMT_PACK; i++) {
            int c = pack * MDMT_PACK + i;
            v.v[i] = c < dx.c ? dy[row + (size_t)c] / area : 0.0f;
        }
        dx.store(pixel, pack, v);
    }
};

template <class T>
static mdmt_status global_avg_pool_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    global_backward<T> f = {(const float *)call->in[0].data,
                            mdmt_map_of<T>(site->out[0], call->out[0]), 0.0f};
    f.area = (float)(f.dx.h * f.dx.w);
    return mdmt_walk_over(site->stream, f.dx.pixels(), f.dx.packs, f);
}

static mdmt_status global_avg_pool_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(global_avg_pool_bwd_of, site, call);
}

const mdmt_cuda_impl mdmt_cuda_pool[] = {
    {"max_pool", "cuda_max_pool", NULL, NULL, max_pool},
    {"max_pool_bwd", "cuda_max_pool_bwd", NULL, NULL, max_pool_bwd},
    {"avg_pool", "cuda_avg_pool", NULL, NULL, avg_pool},
    {"avg_pool_bwd", "cuda_avg_pool_bwd", NULL, NULL, avg_pool_bwd},
    {"global_avg_pool", "cuda_global_avg_pool", NULL, NULL, global_avg_pool},
    {"global_avg_pool_bwd", "cuda_global_avg_pool_bwd", NULL, NULL, global_avg_pool_bwd},
    {NULL, NULL, NULL, NULL, NULL}};
