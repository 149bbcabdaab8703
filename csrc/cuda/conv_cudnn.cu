/* Dense convolutions by cuDNN. Channels are passed as they are stored: those beyond
 * C are zeros in maps and weights alike, so that results are exact and every count
 * is a multiple of 8, as tensor cores want it. The image of a stem is made such a
 * map first. */
#include "cudnn.cuh"
#include "cudnn_api.h"
#include "geometry.cuh"
#include "stem.cuh"

struct conv_sizes {
    mdmt_conv_key key;
    size_t x, w, dw, plan; /* bytes in the workspace; 0: not needed */
    int stem;
    mdmt_stem_form form; /* of a stem */
    int added;           /* the addend of a gradient is still to be added */
    void *made;          /* the plan, or NULL */
    float milliseconds;  /* its time where it was measured, else 0 */
};

static mdmt_conv_pass pass_of(const mdmt_cuda_site *site)
{
    const char *name = site->op->record->name;
    return strcmp(name, "conv2d_bwd_data") == 0     ? MDMT_CONV_DATA
           : strcmp(name, "conv2d_bwd_weight") == 0 ? MDMT_CONV_WEIGHT
                                                    : MDMT_CONV_FORWARD;
}

static void fill_map(int *dim, int *pitch, const mdmt_tensor *t, int dense)
{
    for (int i = 0; i < 4; i++) {
        dim[i] = i == 1 ? mdmt_up(t->dim[1]) : t->dim[i];
    }
    *pitch = dense ? mdmt_up(t->dim[1]) : mdmt_pitch(t);
}

/* Bytes of a tensor as a MAP without the pitch of a root. */
static size_t dense_bytes(const mdmt_cuda_site *site, const mdmt_tensor *t)
{
    mdmt_tensor dense = *t;
    dense.pitch = 0;
    dense.kind = MDMT_MAP;
    return mdmt_round_up(mdmt_stored_elements(&dense) * mdmt_element(&dense, site->precision), 256);
}

/* The gradient of weights from maps of bfloat16: in float, or rounded to bfloat16 as PyTorch's are.
 * Few engines write floats, and on a GPU of capability 9.0 they were ten times slower than the
 * others: what is rounded is taken where it is clearly faster, or where nothing is known. */
static void plan_weight(mdmt_gpu *gpu, conv_sizes *s, size_t elements)
{
    mdmt_conv_key rounded = s->key;
    float time = 0;
    size_t room = 0;
    rounded.result_type = CUDNN_BF16;
    void *plan = mdmt_cudnn_plan(gpu, &rounded, 0, &room, &time);
    s->made = mdmt_cudnn_plan(gpu, &s->key, time, &s->plan, &s->milliseconds);
    if (plan &&
        (!s->made || !(s->milliseconds > 0 && time > 0) || time < 0.95f * s->milliseconds)) {
        s->key = rounded;
        s->dw = mdmt_round_up(elements * 2, 256);
        s->plan = room;
        s->made = plan;
        s->milliseconds = time;
    }
}

/* x, w and y of a convolution, and what it does; `fold`: of the image of a stem. */
static void describe(const mdmt_cuda_site *site, const mdmt_tensor *x, const mdmt_tensor *w,
                     const mdmt_tensor *y, int fold, conv_sizes *s)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, site->op);
    int bf16 = site->precision == MDMT_CUDA_BF16;
    memset((void *)s, 0, sizeof *s);
    mdmt_conv_key *k = &s->key;
    k->pass = pass_of(site);
    s->stem = w->kind == MDMT_W_STEM;
    int lazy = k->pass != MDMT_CONV_DATA && x->lazy_source >= 0;
    s->x = lazy ? dense_bytes(site, x) : 0;
    fill_map(k->x, &k->x_pitch, x, lazy);
    fill_map(k->y, &k->y_pitch, y, 0);
    for (int i = 0; i < 4; i++) {
        k->w[i] = i < 2 ? mdmt_up(w->dim[i]) : w->dim[i];
    }
    for (int i = 0; i < 2; i++) {
        k->stride[i] = fold ? 1 : a->stride[i];
        k->dilation[i] = a->dilation[i];
        k->before[i] = fold ? 0 : a->pad[i];
        k->after[i] = fold ? 0 : a->pad[2 + i];
    }
    if (s->stem) {
        s->form = mdmt_stem_form_of(x, w, y, a, fold);
        k->w[1] = k->x[1] = k->x_pitch = s->form.width;
        for (int i = 0; i < 2; i++) {
            k->x[2 + i] = s->form.map[i];
            k->w[2 + i] = s->form.taps[i];
        }
        size_t pixels = (size_t)k->x[0] * (size_t)k->x[2] * (size_t)k->x[3];
        s->x = mdmt_round_up(pixels * (size_t)s->form.width * (bf16 ? 2 : 4), 256);
    }
    k->map_type = bf16 ? CUDNN_BF16 : CUDNN_FLOAT;
    k->result_type = CUDNN_FLOAT;
    k->exact = site->precision == MDMT_CUDA_FP32;
    k->deterministic = site->gpu->options.deterministic;
}

/* The plan, and what follows from it for the workspace. */
static void plan(const mdmt_cuda_site *site, const mdmt_tensor *x, conv_sizes *s)
{
    mdmt_conv_key *k = &s->key;
    int bf16 = site->precision == MDMT_CUDA_BF16, weight = k->pass == MDMT_CONV_WEIGHT;
    size_t elements = (size_t)k->w[0] * (size_t)k->w[1] * (size_t)(k->w[2] * k->w[3]);
    /* Nobody else asks the library to pad one side more than the other, and an engine of 9.19 made
     * a wrong gradient of weights then: such convolutions are left to the backend's own kernels. */
    if (k->before[0] != k->after[0] || k->before[1] != k->after[1]) {
        return;
    }
    s->w = (bf16 || s->stem) && !weight ? mdmt_round_up(elements * (bf16 ? 2 : 4), 256) : 0;
    s->dw = s->stem && weight ? mdmt_round_up(elements * 4, 256) : 0;
    if (bf16 && weight) {
        plan_weight(site->gpu, s, elements);
        return;
    }
    int added = k->pass == MDMT_CONV_DATA && site->op->inputs > 2 && site->in[2];
    k->accumulate = added; /* rounded once, and the addend read by the way */
    s->made = mdmt_cudnn_plan(site->gpu, k, 0, &s->plan, &s->milliseconds);
    if (added && !s->made) {
        k->accumulate = 0;
        s->added = 1;
        s->x = dense_bytes(site, x);
        fill_map(k->x, &k->x_pitch, x, 1);
        s->made = mdmt_cudnn_plan(site->gpu, k, 0, &s->plan, &s->milliseconds);
    }
}

/* The plan and the parts of the workspace; 0 when cuDNN does not do it. */
static int sizes_of(const mdmt_cuda_site *site, conv_sizes *s)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, site->op);
    mdmt_conv_pass pass = pass_of(site);
    const mdmt_tensor *x = pass == MDMT_CONV_DATA ? site->out[0] : site->in[0];
    const mdmt_tensor *w = pass == MDMT_CONV_WEIGHT ? site->out[0] : site->in[1];
    const mdmt_tensor *y = pass == MDMT_CONV_DATA     ? site->in[0]
                           : pass == MDMT_CONV_WEIGHT ? site->in[1]
                                                      : site->out[0];
    int stem = w->kind == MDMT_W_STEM && x->kind == MDMT_IMAGE && pass != MDMT_CONV_DATA &&
               x->dim[1] <= MDMT_PACK;
    if ((w->kind != MDMT_W_DENSE && !stem) || !mdmt_cudnn_ready(site->gpu)) {
        memset((void *)s, 0, sizeof *s);
        return 0;
    }
    describe(site, x, w, y, 0, s);
    plan(site, x, s);
    if (stem && mdmt_stem_folds(x, w, a)) {
        conv_sizes folded;
        describe(site, x, w, y, 1, &folded);
        plan(site, x, &folded);
        int known = s->milliseconds > 0 && folded.milliseconds > 0;
        if (folded.made && (!s->made || !known || folded.milliseconds <= s->milliseconds)) {
            *s = folded;
        }
    }
    return s->made != NULL;
}

/* The library's workspace begins at a multiple of this, as memory of cudaMalloc does, on which
 * engines are measured; a program's memory is cut at multiples of MDMT_ALIGN. */
enum { ROOM_ALIGN = 256 };

static int supports(const mdmt_cuda_site *site)
{
    conv_sizes s;
    return sizes_of(site, &s);
}

static mdmt_status needs(const mdmt_cuda_site *site, mdmt_cuda_needs *n)
{
    conv_sizes s;
    sizes_of(site, &s);
    size_t bytes = s.x + s.w + s.dw + s.plan;
    n->workspace_bytes = bytes ? bytes + ROOM_ALIGN - MDMT_ALIGN : 0;
    n->stat_parts = s.key.pass == MDMT_CONV_FORWARD ? mdmt_cuda_stat_parts(site->out[0]) : 0;
    n->inplace_inputs = s.key.pass == MDMT_CONV_DATA ? 1u << 2 : 0;
    return MDMT_OK;
}

/* ---- what stands around the library's call ---- */

template <class A, class B> struct converted {
    const A *from;
    B *to;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        mdmt_from_float(mdmt_to_float(from[i]), &to[i]);
    }
};

template <class T>
static mdmt_status turn_weights_of(const mdmt_cuda_site *site, const mdmt_tensor *w,
                                   const mdmt_stem_form *form, void *stem, void *dense,
                                   int to_dense)
{
    mdmt_stem_weights<T> f = {(float *)stem,      (T *)dense, w->dim[0],
                              mdmt_up(w->dim[0]), to_dense,   *form};
    return mdmt_count_over(site->stream, (size_t)f.up * (size_t)(form->taps[0] * form->taps[1]), f);
}

/* `type`: of the elements at `dense`. */
static mdmt_status turn_weights(const mdmt_cuda_site *site, const mdmt_tensor *w,
                                const mdmt_stem_form *form, void *stem, void *dense, int to_dense,
                                int type)
{
    return type == CUDNN_BF16 ? turn_weights_of<mdmt_bf16>(site, w, form, stem, dense, to_dense)
                              : turn_weights_of<float>(site, w, form, stem, dense, to_dense);
}

template <class T>
static mdmt_status turn_image(const mdmt_cuda_site *site, const mdmt_stem_form *form,
                              const void *image, void *map)
{
    mdmt_stem_map<T> f = {(const float *)image, (T *)map, *form};
    size_t area = (size_t)form->map[0] * (size_t)form->map[1];
    return mdmt_count_over(site->stream, (size_t)site->in[0]->dim[0] * area, f);
}

template <class T> struct plus_bias {
    mdmt_map<T> y;
    const float *bias;
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_pack v = y.load(pixel, pack), b = mdmt_load_pack(bias + pack * MDMT_PACK);
        for (int i = 0; i < MDMT_PACK; i++) {
            v.v[i] += b.v[i];
        }
        y.store(pixel, pack, v);
    }
};

template <class T> struct plus_map {
    enum { AHEAD = 4 };
    typedef mdmt_nothing constants;
    struct items {
        mdmt_raw<T> made, addend;
    };
    mdmt_map<T> made, addend, dx;

    MDMT_HD void prepare(constants *c, int pack) const
    {
        (void)c;
        (void)pack;
    }
    MDMT_HD items read(uint32_t pixel, int pack) const
    {
        items i = {made.raw(pixel, pack), addend.raw(pixel, pack)};
        return i;
    }
    MDMT_HD void write(const constants &c, const items &item, uint32_t pixel, int pack) const
    {
        (void)c;
        mdmt_pack v = mdmt_unpack(item.made), a = mdmt_unpack(item.addend);
        for (int i = 0; i < MDMT_PACK; i++) {
            v.v[i] += a.v[i];
        }
        dx.store(pixel, pack, v);
    }
};

template <class T>
static mdmt_status finish_forward(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    plus_bias<T> f = {mdmt_map_of<T>(site->out[0], call->out[0]),
                      (const float *)call->input(site, 2)};
    if (f.bias) {
        MDMT_TRY(mdmt_walk_over(site->stream, f.y.pixels(), f.y.packs, f));
    }
    float *stats = (float *)call->output(site, 1);
    return stats
               ? mdmt_cuda_map_stats(site, site->out[0], call->out[0], stats, site->out[1]->dim[0])
               : MDMT_OK;
}

/* The addend to where the gradient is added to it, unless it lies there. */
template <class T> struct copied {
    mdmt_map<T> from, to;
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        to.store(pixel, pack, from.load(pixel, pack));
    }
};

template <class T>
static mdmt_status bring_addend(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    copied<T> f = {mdmt_map_of<T>(site->in[2], call->in[2].data),
                   mdmt_map_of<T>(site->out[0], call->out[0])};
    return f.from.data == f.to.data ? MDMT_OK
                                    : mdmt_walk_over(site->stream, f.to.pixels(), f.to.packs, f);
}

template <class T>
static mdmt_status finish_data(const mdmt_cuda_site *site, const mdmt_cuda_call *call, void *made)
{
    mdmt_tensor dense = *site->out[0];
    dense.pitch = 0;
    plus_map<T> f = {mdmt_map_of<T>(&dense, made), mdmt_map_of<T>(site->in[2], call->in[2].data),
                     mdmt_map_of<T>(site->out[0], call->out[0])};
    return mdmt_sweep_over(site->stream, f.dx.pixels(), f.dx.packs, f);
}

/* x and w as the library reads them, into the workspace where they are others; `mirror`: of w,
 * where it has one. */
static mdmt_status bring(const mdmt_cuda_site *site, const mdmt_cuda_call *call,
                         const conv_sizes *s, char *own_x, char *own_w, void *w,
                         const mdmt_bf16 *mirror)
{
    int bf16 = site->precision == MDMT_CUDA_BF16;
    if (s->key.accumulate) {
        MDMT_TRY(MDMT_BY_PRECISION(bring_addend, site, call));
    }
    if (s->stem) {
        MDMT_TRY(bf16 ? turn_image<mdmt_bf16>(site, &s->form, call->in[0].data, own_x)
                      : turn_image<float>(site, &s->form, call->in[0].data, own_x));
    } else if (s->x && s->key.pass != MDMT_CONV_DATA) {
        MDMT_TRY(mdmt_cuda_store_lazy(site, site->in[0], &call->in[0], own_x));
    }
    if (s->w && s->stem) {
        return turn_weights(site, site->in[1], &s->form, w, own_w, 1, s->key.map_type);
    }
    if (s->w && !mirror) {
        converted<float, mdmt_bf16> f = {(const float *)w, (mdmt_bf16 *)(void *)own_w};
        return mdmt_count_over(site->stream, mdmt_stored_elements(site->in[1]), f);
    }
    return MDMT_OK;
}

/* dw as the library wrote it, as it is stored. */
static mdmt_status finish_weight(const mdmt_cuda_site *site, const conv_sizes *s, void *made,
                                 void *dw)
{
    if (s->stem) {
        return turn_weights(site, site->out[0], &s->form, dw, made, 0, s->key.result_type);
    }
    converted<mdmt_bf16, float> f = {(const mdmt_bf16 *)made, (float *)dw};
    return mdmt_count_over(site->stream, mdmt_stored_elements(site->out[0]), f);
}

static mdmt_status run(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    conv_sizes s;
    if (!sizes_of(site, &s)) {
        return mdmt_lent->fail(MDMT_INTERNAL, "the plan of a convolution is gone");
    }
    char *room = (char *)mdmt_round_up((uintptr_t)call->workspace, ROOM_ALIGN);
    char *own_x = room, *own_w = own_x + s.x, *own_dw = own_w + s.w;
    int pass = s.key.pass, bf16 = site->precision == MDMT_CUDA_BF16;
    void *x = pass == MDMT_CONV_DATA ? call->out[0] : call->in[0].data;
    void *w = pass == MDMT_CONV_WEIGHT ? call->out[0] : call->in[1].data;
    void *y = pass == MDMT_CONV_DATA     ? call->in[0].data
              : pass == MDMT_CONV_WEIGHT ? call->in[1].data
                                         : call->out[0];
    mdmt_bf16 *mirror = s.w && !s.stem ? mdmt_gpu_mirrored(site->gpu, w) : NULL;
    MDMT_TRY(bring(site, call, &s, own_x, own_w, w, mirror));
    void *read = mirror ? (void *)mirror : s.w ? own_w : s.dw ? own_dw : w;
    MDMT_TRY(mdmt_cudnn_run(site->gpu, s.made, s.x ? own_x : x, read, y, own_dw + s.dw));
    if (s.dw) {
        return finish_weight(site, &s, own_dw, w);
    }
    if (pass == MDMT_CONV_FORWARD) {
        return bf16 ? finish_forward<mdmt_bf16>(site, call) : finish_forward<float>(site, call);
    }
    if (s.added) {
        return bf16 ? finish_data<mdmt_bf16>(site, call, own_x)
                    : finish_data<float>(site, call, own_x);
    }
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_library[] = {
    {"conv2d", "cuda_conv2d_cudnn", supports, needs, run},
    {"conv2d_bwd_data", "cuda_conv2d_bwd_data_cudnn", supports, needs, run},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_cudnn", supports, needs, run},
    {NULL, NULL, NULL, NULL, NULL}};
