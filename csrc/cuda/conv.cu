/* Convolutions: dense ones of feature maps (where no library does them), and any
 * other by its definition. Depthwise and stem: depth.cu. */
#include "geometry.cuh"

/* x, w and y of conv2d, conv2d_bwd_data and conv2d_bwd_weight alike. */
struct conv_tensors {
    const mdmt_tensor *x, *w, *y;
};

static conv_tensors tensors_of(const mdmt_cuda_site *site)
{
    conv_tensors t = {site->in[0], site->in[1], site->out[0]};
    if (strcmp(site->op->record->name, "conv2d_bwd_data") == 0) {
        t.x = site->out[0];
        t.y = site->in[0];
    } else if (strcmp(site->op->record->name, "conv2d_bwd_weight") == 0) {
        t.w = site->out[0];
        t.y = site->in[1];
    }
    return t;
}

static mdmt_window_geometry window_of(const mdmt_cuda_site *site)
{
    return mdmt_conv_window(MDMT_ATTRS(mdmt_conv_attrs, site->op), tensors_of(site).w);
}

static int is_dense(const mdmt_cuda_site *site)
{
    return tensors_of(site).w->kind == MDMT_W_DENSE;
}

/* ---- dense: weights [O up][kh][kw][I up] ---- */

template <class T> struct dense_forward {
    mdmt_map<T> x, y;
    const float *w, *bias; /* bias: or NULL */
    mdmt_window_geometry g;

    /* acc[k] += sum over channels of x at pixel `from` times the weights of tap. */
    MDMT_HD void tap(mdmt_pack *acc, size_t from, int pack, int tap) const
    {
        size_t inner = (size_t)(x.packs * MDMT_PACK), taps = (size_t)(g.kh * g.kw);
        for (int cp = 0; cp < x.packs; cp++) {
            mdmt_pack v = x.load(from, cp);
            for (int k = 0; k < MDMT_PACK; k++) {
                size_t row = (size_t)(pack * MDMT_PACK + k) * taps + (size_t)tap;
                mdmt_pack u = mdmt_load_pack(w + row * inner + (size_t)(cp * MDMT_PACK));
                for (int i = 0; i < MDMT_PACK; i++) {
                    acc->v[k] += v.v[i] * u.v[i];
                }
            }
        }
    }
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, y.h, y.w);
        mdmt_pack acc = bias ? mdmt_load_pack(bias + pack * MDMT_PACK) : mdmt_zero_pack();
        for (int r = 0; r < g.kh; r++) {
            int h = mdmt_tap_at(p.y, g.sh, g.pt, r, g.dh, x.h);
            for (int s = 0; h >= 0 && s < g.kw; s++) {
                int col = mdmt_tap_at(p.x, g.sw, g.pl, s, g.dw, x.w);
                if (col >= 0) {
                    tap(&acc, x.pixel(p.n, h, col), pack, r * g.kw + s);
                }
            }
        }
        y.store(pixel, pack, acc);
    }
};

template <class T> struct dense_data {
    mdmt_map<T> dy, dx, addend; /* addend.data: or NULL */
    const float *w;
    mdmt_window_geometry g;

    MDMT_HD void tap(mdmt_pack *acc, size_t from, int pack, int tap) const
    {
        size_t inner = (size_t)(dx.packs * MDMT_PACK), taps = (size_t)(g.kh * g.kw);
        for (int kp = 0; kp < dy.packs; kp++) {
            mdmt_pack d = dy.load(from, kp);
            for (int k = 0; k < MDMT_PACK; k++) {
                size_t row = (size_t)(kp * MDMT_PACK + k) * taps + (size_t)tap;
                mdmt_pack u = mdmt_load_pack(w + row * inner + (size_t)(pack * MDMT_PACK));
                for (int i = 0; i < MDMT_PACK; i++) {
                    acc->v[i] += d.v[k] * u.v[i];
                }
            }
        }
    }
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_place p = mdmt_place_of(pixel, dx.h, dx.w);
        mdmt_pack acc = addend.data ? addend.load(pixel, pack) : mdmt_zero_pack();
        for (int r = 0; r < g.kh; r++) {
            int oh = mdmt_window_at(p.y, g.sh, g.pt, r, g.dh, dy.h);
            for (int s = 0; oh >= 0 && s < g.kw; s++) {
                int ow = mdmt_window_at(p.x, g.sw, g.pl, s, g.dw, dy.w);
                if (ow >= 0) {
                    tap(&acc, dy.pixel(p.n, oh, ow), pack, r * g.kw + s);
                }
            }
        }
        dx.store(pixel, pack, acc);
    }
};

/* A block makes 8 x 8 weights of one tap; its threads share out the pixels. */
template <class T> struct dense_weight {
    enum { THREADS = 64, PHASES = 2, CELLS = MDMT_PACK * MDMT_PACK };
    struct shared_type {
        float sum[THREADS][CELLS];
    };
    mdmt_map<T> x, dy;
    float *dw;
    mdmt_window_geometry g;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int cp = (int)(block % (size_t)x.packs);
        int tap = (int)(block / (size_t)x.packs % (size_t)(g.kh * g.kw));
        int kp = (int)(block / (size_t)x.packs / (size_t)(g.kh * g.kw));
        if (phase == 0) {
            gather(kp, tap, cp, thread, shared);
            return;
        }
        float total = 0;
        for (int t = 0; t < THREADS; t++) {
            total += shared.sum[t][thread];
        }
        size_t row = (size_t)(kp * MDMT_PACK + thread / MDMT_PACK) * (size_t)(g.kh * g.kw);
        size_t c = (size_t)(cp * MDMT_PACK + thread % MDMT_PACK);
        dw[(row + (size_t)tap) * (size_t)(x.packs * MDMT_PACK) + c] = total;
    }
    MDMT_HD void gather(int kp, int tap, int cp, int thread, shared_type &shared) const
    {
        float acc[CELLS];
        for (int i = 0; i < CELLS; i++) {
            acc[i] = 0;
        }
        uint32_t pixels = (uint32_t)dy.n * (uint32_t)dy.h * (uint32_t)dy.w;
        for (uint32_t pixel = (uint32_t)thread; pixel < pixels; pixel += THREADS) {
            mdmt_place p = mdmt_place_of(pixel, dy.h, dy.w);
            int h = mdmt_tap_at(p.y, g.sh, g.pt, tap / g.kw, g.dh, x.h);
            int w = mdmt_tap_at(p.x, g.sw, g.pl, tap % g.kw, g.dw, x.w);
            if (h < 0 || w < 0) {
                continue;
            }
            mdmt_pack d = dy.load(pixel, kp), v = x.load(x.pixel(p.n, h, w), cp);
            for (int i = 0; i < CELLS; i++) {
                acc[i] += d.v[i / MDMT_PACK] * v.v[i % MDMT_PACK];
            }
        }
        for (int i = 0; i < CELLS; i++) {
            shared.sum[thread][i] = acc[i];
        }
    }
};

/* x as a stored map: itself, or a lazy one written to the workspace. */
template <class T>
static mdmt_status stored_x(const mdmt_cuda_site *site, const mdmt_cuda_call *call, mdmt_map<T> *x)
{
    *x = mdmt_map_of<T>(site->in[0], call->in[0].data);
    if (call->in[0].scale || call->in[0].gate) {
        mdmt_tensor dense = *site->in[0];
        dense.pitch = 0;
        MDMT_TRY(mdmt_cuda_store_lazy(site, site->in[0], &call->in[0], call->workspace));
        *x = mdmt_map_of<T>(&dense, call->workspace);
    }
    return MDMT_OK;
}

static size_t lazy_bytes(const mdmt_cuda_site *site)
{
    mdmt_tensor dense = *site->in[0];
    dense.pitch = 0;
    return dense.lazy_source < 0
               ? 0
               : mdmt_stored_elements(&dense) * mdmt_element(&dense, site->precision);
}

static mdmt_status finish_stats(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    float *stats = (float *)call->output(site, 1);
    return stats
               ? mdmt_cuda_map_stats(site, site->out[0], call->out[0], stats, site->out[1]->dim[0])
               : MDMT_OK;
}

template <class T>
static mdmt_status dense_forward_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    dense_forward<T> f;
    MDMT_TRY(stored_x(site, call, &f.x));
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.w = (const float *)call->in[1].data;
    f.bias = (const float *)call->input(site, 2);
    f.g = window_of(site);
    MDMT_TRY(mdmt_walk_over(site->stream, f.y.pixels(), f.y.packs, f));
    return finish_stats(site, call);
}

template <class T>
static mdmt_status dense_data_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    dense_data<T> f;
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

template <class T>
static mdmt_status dense_weight_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    dense_weight<T> f;
    MDMT_TRY(stored_x(site, call, &f.x));
    f.dy = mdmt_map_of<T>(site->in[1], call->in[1].data);
    f.dw = (float *)call->out[0];
    f.g = window_of(site);
    return mdmt_launch(site->stream, (size_t)(f.dy.packs * f.g.kh * f.g.kw) * (size_t)f.x.packs, f);
}

static mdmt_status forward_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->workspace_bytes = is_dense(site) ? lazy_bytes(site) : 0;
    needs->stat_parts = mdmt_cuda_stat_parts(site->out[0]);
    return MDMT_OK;
}

static mdmt_status data_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    (void)site;
    needs->inplace_inputs = 1u << 2;
    return MDMT_OK;
}

static mdmt_status weight_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->workspace_bytes = lazy_bytes(site);
    return MDMT_OK;
}

static mdmt_status dense_conv2d(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(dense_forward_of, site, call);
}

static mdmt_status dense_bwd_data(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(dense_data_of, site, call);
}

static mdmt_status dense_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(dense_weight_of, site, call);
}

/* ---- any convolution, one number a thread, by its definition ---- */

/* An IMAGE (float) or a MAP, channel by channel; lazy MAPs too. */
template <class X> struct any_map {
    X *data;
    mdmt_value how;
    int n, c, h, w, stored_c;
    size_t sample, channel, row, column;

    MDMT_HD size_t at(int i, int ch, int y, int x) const
    {
        return (size_t)i * sample + (size_t)ch * channel + (size_t)y * row + (size_t)x * column;
    }
    MDMT_HD float load(int i, int ch, int y, int x) const
    {
        float v = mdmt_to_float(data[at(i, ch, y, x)]);
        if (how.scale) {
            v = mdmt_act_of(how.act, how.scale[ch] * v + how.shift[ch]);
        }
        return how.gate ? v * how.gate[(size_t)i * (size_t)c + (size_t)ch] : v;
    }
};

template <class X> static any_map<X> any_map_of(const mdmt_tensor *t, const mdmt_value &value)
{
    any_map<X> m;
    size_t area = (size_t)t->dim[2] * (size_t)t->dim[3];
    int is_map = t->kind == MDMT_MAP;
    m.data = (X *)value.data;
    m.how = value;
    m.n = t->dim[0];
    m.c = t->dim[1];
    m.h = t->dim[2];
    m.w = t->dim[3];
    m.stored_c = is_map ? mdmt_up(m.c) : m.c;
    m.column = is_map ? (size_t)mdmt_pitch(t) : 1;
    m.row = (size_t)m.w * m.column;
    m.channel = is_map ? 1 : area;
    m.sample = area * (is_map ? m.column : (size_t)m.c);
    return m;
}

struct any_weights {
    int o, i, stored_o, stored_i; /* i: per group */
    size_t by_o, by_i, by_tap;
    MDMT_HD size_t at(int k, int c, int tap) const
    {
        return (size_t)k * by_o + (size_t)c * by_i + (size_t)tap * by_tap;
    }
};

static any_weights any_weights_of(const mdmt_tensor *t)
{
    size_t taps = (size_t)t->dim[2] * (size_t)t->dim[3];
    any_weights v = {t->dim[0], t->dim[1], mdmt_up(t->dim[0]), t->dim[1], 1, 0, 0};
    v.by_tap = (size_t)v.stored_o;
    v.by_i = taps * v.by_tap;
    if (t->kind == MDMT_W_DENSE) {
        v.stored_i = mdmt_up(v.i);
        v.by_tap = (size_t)v.stored_i;
        v.by_o = taps * v.by_tap;
        v.by_i = 1;
    } else if (t->kind == MDMT_W_GROUPED) {
        v.stored_o = v.o;
        v.by_tap = 1;
        v.by_i = taps;
        v.by_o = (size_t)v.i * taps;
    }
    return v;
}

template <class X, class T> struct any_conv {
    any_map<X> x;
    any_map<T> y;
    any_weights wv;
    const float *w, *extra; /* extra: bias, or NULL */
    const X *addend;        /* like x, or NULL */
    float *dw;
    mdmt_window_geometry g;
    int per_group;
};

/* One thread per pixel and stored channel of y. */
template <class X, class T> struct any_forward : any_conv<X, T> {
    MDMT_HD void at(uint32_t pixel, int k) const
    {
        const mdmt_window_geometry &g = this->g;
        mdmt_place p = mdmt_place_of(pixel, this->y.h, this->y.w);
        double sum = this->extra ? (double)this->extra[k] : 0.0;
        for (int tap = 0; k < this->y.c && tap < g.kh * g.kw; tap++) {
            int h = mdmt_tap_at(p.y, g.sh, g.pt, tap / g.kw, g.dh, this->x.h);
            int col = mdmt_tap_at(p.x, g.sw, g.pl, tap % g.kw, g.dw, this->x.w);
            for (int c = 0; h >= 0 && col >= 0 && c < this->wv.i; c++) {
                float v = this->x.load(p.n, k / this->per_group * this->wv.i + c, h, col);
                sum += (double)v * (double)this->w[this->wv.at(k, c, tap)];
            }
        }
        mdmt_from_float(k < this->y.c ? (float)sum : 0.0f,
                        this->y.data + this->y.at(p.n, k, p.y, p.x));
    }
};

/* One thread per pixel and stored channel of dx. */
template <class X, class T> struct any_data : any_conv<X, T> {
    MDMT_HD double windows(const mdmt_place &p, int c) const
    {
        const mdmt_window_geometry &g = this->g;
        int first = c / this->wv.i * this->per_group;
        double sum = 0;
        for (int tap = 0; tap < g.kh * g.kw; tap++) {
            int oh = mdmt_window_at(p.y, g.sh, g.pt, tap / g.kw, g.dh, this->y.h);
            int ow = mdmt_window_at(p.x, g.sw, g.pl, tap % g.kw, g.dw, this->y.w);
            for (int k = first; oh >= 0 && ow >= 0 && k < first + this->per_group; k++) {
                sum += (double)this->y.load(p.n, k, oh, ow) *
                       (double)this->w[this->wv.at(k, c % this->wv.i, tap)];
            }
        }
        return sum;
    }
    MDMT_HD void at(uint32_t pixel, int c) const
    {
        mdmt_place p = mdmt_place_of(pixel, this->x.h, this->x.w);
        size_t to = this->x.at(p.n, c, p.y, p.x);
        double sum = 0;
        if (c < this->x.c) {
            sum = windows(p, c) + (this->addend ? (double)mdmt_to_float(this->addend[to]) : 0.0);
        }
        mdmt_from_float((float)sum, this->x.data + to);
    }
};

/* One thread per stored weight. */
template <class X, class T> struct any_weight : any_conv<X, T> {
    MDMT_HD void at(uint32_t index, int c) const
    {
        const mdmt_window_geometry &g = this->g;
        int taps = g.kh * g.kw, k = (int)(index / (uint32_t)taps),
            tap = (int)(index % (uint32_t)taps);
        double sum = 0;
        int live = k < this->wv.o && c < this->wv.i;
        int from = live ? k / this->per_group * this->wv.i + c : 0;
        for (int n = 0; live && n < this->y.n; n++) {
            for (int oh = 0; oh < this->y.h; oh++) {
                int h = mdmt_tap_at(oh, g.sh, g.pt, tap / g.kw, g.dh, this->x.h);
                for (int ow = 0; h >= 0 && ow < this->y.w; ow++) {
                    int col = mdmt_tap_at(ow, g.sw, g.pl, tap % g.kw, g.dw, this->x.w);
                    if (col >= 0) {
                        sum += (double)this->x.load(n, from, h, col) *
                               (double)this->y.load(n, k, oh, ow);
                    }
                }
            }
        }
        this->dw[this->wv.at(k, c, tap)] = (float)sum;
    }
};

template <class X, class T, template <class, class> class F>
static F<X, T> any_of(const mdmt_cuda_site *site, const mdmt_value &x, const mdmt_value &y)
{
    conv_tensors t = tensors_of(site);
    F<X, T> f;
    memset((void *)&f, 0, sizeof f);
    f.x = any_map_of<X>(t.x, x);
    f.y = any_map_of<T>(t.y, y);
    f.wv = any_weights_of(t.w);
    f.g = window_of(site);
    f.per_group = f.wv.o / f.g.groups;
    return f;
}

static mdmt_value stored_value(void *data)
{
    mdmt_value v;
    memset(&v, 0, sizeof v);
    v.data = data;
    return v;
}

template <class X, class T>
static mdmt_status any_forward_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    any_forward<X, T> f = any_of<X, T, any_forward>(site, call->in[0], stored_value(call->out[0]));
    f.w = (const float *)call->in[1].data;
    f.extra = (const float *)call->input(site, 2);
    size_t pixels = (size_t)f.y.n * (size_t)f.y.h * (size_t)f.y.w;
    MDMT_TRY(mdmt_walk_over(site->stream, pixels, f.y.stored_c, f));
    return finish_stats(site, call);
}

template <class X, class T>
static mdmt_status any_data_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    any_data<X, T> f = any_of<X, T, any_data>(site, stored_value(call->out[0]), call->in[0]);
    f.w = (const float *)call->in[1].data;
    f.addend = (const X *)call->input(site, 2);
    size_t pixels = (size_t)f.x.n * (size_t)f.x.h * (size_t)f.x.w;
    return mdmt_walk_over(site->stream, pixels, f.x.stored_c, f);
}

template <class X, class T>
static mdmt_status any_weight_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    any_weight<X, T> f = any_of<X, T, any_weight>(site, call->in[0], call->in[1]);
    f.dw = (float *)call->out[0];
    size_t rows = (size_t)f.wv.stored_o * (size_t)(f.g.kh * f.g.kw);
    return mdmt_walk_over(site->stream, rows, f.wv.stored_i, f);
}

/* The element types of x (float for an IMAGE) and of the other maps. */
#define BY_TYPES(body, site, call)                                                                 \
    ((site)->precision != MDMT_CUDA_BF16    ? body<float, float>(site, call)                       \
     : tensors_of(site).x->kind == MDMT_MAP ? body<mdmt_bf16, mdmt_bf16>(site, call)               \
                                            : body<float, mdmt_bf16>(site, call))

static mdmt_status any_conv2d(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return BY_TYPES(any_forward_of, site, call);
}

static mdmt_status any_bwd_data(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return BY_TYPES(any_data_of, site, call);
}

static mdmt_status any_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return BY_TYPES(any_weight_of, site, call);
}

static mdmt_status any_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->stat_parts = mdmt_cuda_stat_parts(site->out[0]);
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_conv[] = {
    {"conv2d", "cuda_conv2d_dense", is_dense, forward_needs, dense_conv2d},
    {"conv2d_bwd_data", "cuda_conv2d_bwd_data_dense", is_dense, data_needs, dense_bwd_data},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_dense", is_dense, weight_needs, dense_bwd_weight},
    {"conv2d", "cuda_conv2d_any", NULL, any_needs, any_conv2d},
    {"conv2d_bwd_data", "cuda_conv2d_bwd_data_any", NULL, data_needs, any_bwd_data},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_any", NULL, NULL, any_bwd_weight},
    {NULL, NULL, NULL, NULL, NULL}};
