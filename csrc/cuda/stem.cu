/* Stems of 3 x 3 taps in steps of 2, forward and the gradient of their weights (stem_tiles.cuh):
 * the image is read as it is, and statistics are added up while the results are in registers. */
#include "stem_tiles.cuh"

/* More outputs cost this kernel another walk over the image for each 32. */
enum { MOST_OUTPUTS = 64 };

static int is_weight(const mdmt_cuda_site *site)
{
    return strcmp(site->op->record->name, "conv2d_bwd_weight") == 0;
}

static int serves(const mdmt_cuda_site *site)
{
    const mdmt_tensor *x = site->in[0], *w = is_weight(site) ? site->out[0] : site->in[1];
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, site->op);
    int can = w->kind == MDMT_W_STEM && x->kind == MDMT_IMAGE && x->dim[1] <= STEM_INPUTS &&
              w->dim[0] <= MOST_OUTPUTS;
    for (int i = 0; i < 2; i++) {
        can = can && w->dim[2 + i] == STEM_KERNEL && a->stride[i] == STEM_STEP &&
              a->dilation[i] == 1 && a->pad[i] < STEM_KERNEL;
    }
    return can;
}

static stem_tiling tiling_of(const mdmt_cuda_site *site)
{
    const mdmt_tensor *y = is_weight(site) ? site->in[1] : site->out[0];
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, site->op);
    return stem_tiling_of(y->dim[0], mdmt_up(y->dim[1]), y->dim[2], y->dim[3], a->pad[0],
                          a->pad[1]);
}

/* What both kernels begin with. */
static size_t prepare(const mdmt_cuda_site *site, const mdmt_cuda_call *call, stem_kernel *k)
{
    const int *dim = site->in[0]->dim;
    k->t = tiling_of(site);
    k->x.data = (const float *)call->in[0].data;
    k->x.c = dim[1];
    k->x.h = dim[2];
    k->x.w = dim[3];
    return (size_t)k->t.parts * (size_t)k->t.chunks;
}

template <class T>
static mdmt_status forward(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    stem_forward<T> f;
    memset((void *)&f, 0, sizeof f);
    size_t blocks = prepare(site, call, &f);
    f.y = mdmt_map_of<T>(site->out[0], call->out[0]);
    f.w = (const float *)call->in[1].data;
    f.bias = (const float *)call->input(site, 2);
    f.stats = (float *)call->output(site, 1);
    return mdmt_launch_rounds(site->stream, blocks, f);
}

static mdmt_status conv2d(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(forward, site, call);
}

static mdmt_status forward_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->stat_parts = tiling_of(site).parts;
    return MDMT_OK;
}

/* The parts merged. */
struct weight_totals {
    float *dw;
    size_t channels, up;

    MDMT_HD void done(size_t i, double total) const
    {
        dw[i] = i % up < channels ? (float)total : 0.0f;
    }
};

template <class T> static mdmt_status weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_tensor *w = site->out[0];
    stem_weight<T> f;
    memset((void *)&f, 0, sizeof f);
    size_t blocks = prepare(site, call, &f), count = mdmt_stored_elements(w);
    f.dy = mdmt_map_of<T>(site->in[1], call->in[1].data);
    f.partial = (float *)call->workspace;
    MDMT_TRY(mdmt_launch_rounds(site->stream, blocks, f));
    weight_totals totals = {(float *)call->out[0], (size_t)w->dim[0], (size_t)mdmt_up(w->dim[0])};
    return mdmt_sum_rows(site->stream, f.partial, count, count, f.t.parts, totals);
}

static mdmt_status conv2d_bwd_weight(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(weight, site, call);
}

static mdmt_status weight_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    needs->workspace_bytes =
        sizeof(float) * mdmt_stored_elements(site->out[0]) * (size_t)tiling_of(site).parts;
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_stem[] = {
    {"conv2d", "cuda_conv2d_stem3", serves, forward_needs, conv2d},
    {"conv2d_bwd_weight", "cuda_conv2d_bwd_weight_stem3", serves, weight_needs, conv2d_bwd_weight},
    {NULL, NULL, NULL, NULL, NULL}};
