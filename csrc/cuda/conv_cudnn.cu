/* Dense convolutions of feature maps by cuDNN. Channels are passed as they are
 * stored: those beyond C are zeros in maps and weights alike, so that results are
 * exact and every count is a multiple of 8, as tensor cores want it. */
#include "cudnn.cuh"
#include "cudnn_api.h"
#include "geometry.cuh"

struct conv_sizes {
    mdmt_conv_key key;
    size_t x, w, y, dw, plan; /* bytes in the workspace; 0: not needed */
    void *made;
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

static size_t dense_bytes(const mdmt_cuda_site *site, const mdmt_tensor *t)
{
    mdmt_tensor dense = *t;
    dense.pitch = 0;
    return mdmt_round_up(mdmt_stored_elements(&dense) * mdmt_element(&dense, site->precision), 256);
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
    memset((void *)s, 0, sizeof *s);
    if (w->kind != MDMT_W_DENSE || !mdmt_cudnn_ready(site->gpu)) {
        return 0;
    }
    int bf16 = site->precision == MDMT_CUDA_BF16;
    int added = pass == MDMT_CONV_DATA && site->op->inputs > 2 && site->in[2];
    s->x = added || (pass != MDMT_CONV_DATA && x->lazy_source >= 0) ? dense_bytes(site, x) : 0;
    mdmt_conv_key *k = &s->key;
    k->pass = pass;
    fill_map(k->x, &k->x_pitch, x, s->x > 0);
    fill_map(k->y, &k->y_pitch, y, 0);
    for (int i = 0; i < 4; i++) {
        k->w[i] = i < 2 ? mdmt_up(w->dim[i]) : w->dim[i];
    }
    for (int i = 0; i < 2; i++) {
        k->stride[i] = a->stride[i];
        k->dilation[i] = a->dilation[i];
        k->before[i] = a->pad[i];
        k->after[i] = a->pad[2 + i];
    }
    k->map_type = bf16 ? CUDNN_BF16 : CUDNN_FLOAT;
    k->result_type = CUDNN_FLOAT;
    k->exact = site->precision == MDMT_CUDA_FP32;
    k->deterministic = site->gpu->options.deterministic;
    size_t elements = mdmt_stored_elements(w);
    s->w = bf16 && pass != MDMT_CONV_WEIGHT ? mdmt_round_up(elements * 2, 256) : 0;
    s->made = mdmt_cudnn_plan(site->gpu, k, &s->plan);
    if (!s->made && bf16 && pass == MDMT_CONV_WEIGHT) {
        k->result_type = CUDNN_BF16; /* rounded once more, where no engine writes floats */
        s->dw = mdmt_round_up(elements * 2, 256);
        s->made = mdmt_cudnn_plan(site->gpu, k, &s->plan);
    }
    return s->made != NULL;
}

static int supports(const mdmt_cuda_site *site)
{
    conv_sizes s;
    return sizes_of(site, &s);
}

static mdmt_status needs(const mdmt_cuda_site *site, mdmt_cuda_needs *n)
{
    conv_sizes s;
    sizes_of(site, &s);
    n->workspace_bytes = s.x + s.w + s.dw + s.plan;
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
    mdmt_map<T> made, addend, dx;
    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        mdmt_pack v = made.load(pixel, pack), a = addend.load(pixel, pack);
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

template <class T>
static mdmt_status finish_data(const mdmt_cuda_site *site, const mdmt_cuda_call *call, void *made)
{
    mdmt_tensor dense = *site->out[0];
    dense.pitch = 0;
    plus_map<T> f = {mdmt_map_of<T>(&dense, made), mdmt_map_of<T>(site->in[2], call->in[2].data),
                     mdmt_map_of<T>(site->out[0], call->out[0])};
    return mdmt_walk_over(site->stream, f.dx.pixels(), f.dx.packs, f);
}

static mdmt_status run(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    conv_sizes s;
    if (!sizes_of(site, &s)) {
        return mdmt_lent->fail(MDMT_INTERNAL, "the plan of a convolution is gone");
    }
    char *room = call->workspace, *own_x = room, *own_w = own_x + s.x, *own_dw = own_w + s.w;
    int pass = s.key.pass;
    void *x = pass == MDMT_CONV_DATA ? call->out[0] : call->in[0].data;
    void *w = pass == MDMT_CONV_WEIGHT ? call->out[0] : call->in[1].data;
    void *y = pass == MDMT_CONV_DATA     ? call->in[0].data
              : pass == MDMT_CONV_WEIGHT ? call->in[1].data
                                         : call->out[0];
    size_t weights = mdmt_stored_elements(pass == MDMT_CONV_WEIGHT ? site->out[0] : site->in[1]);
    if (s.x) {
        x = own_x;
    }
    if (s.x && pass != MDMT_CONV_DATA) {
        MDMT_TRY(mdmt_cuda_store_lazy(site, site->in[0], &call->in[0], own_x));
    }
    if (s.w) {
        converted<float, mdmt_bf16> f = {(const float *)w, (mdmt_bf16 *)(void *)own_w};
        MDMT_TRY(mdmt_count_over(site->stream, weights, f));
        w = own_w;
    }
    MDMT_TRY(mdmt_cudnn_run(site->gpu, s.made, x, s.dw ? own_dw : w, y, own_dw + s.dw));
    if (s.dw) {
        converted<mdmt_bf16, float> f = {(const mdmt_bf16 *)(void *)own_dw, (float *)w};
        return mdmt_count_over(site->stream, weights, f);
    }
    int bf16 = site->precision == MDMT_CUDA_BF16;
    if (pass == MDMT_CONV_FORWARD) {
        return bf16 ? finish_forward<mdmt_bf16>(site, call) : finish_forward<float>(site, call);
    }
    if (pass == MDMT_CONV_DATA && s.x) {
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
