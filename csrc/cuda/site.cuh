/* Ops and their kernels in this backend. */
#ifndef MDMT_CUDA_SITE_CUH
#define MDMT_CUDA_SITE_CUH

#include "map.cuh"

struct mdmt_gpu; /* backend.cuh */

/* Where an op stands. */
struct mdmt_cuda_site {
    const mdmt_op *op;
    const mdmt_tensor *in[MDMT_MAX_IN], *out[MDMT_MAX_OUT]; /* NULL: absent */
    const int32_t *number;
    mdmt_gpu *gpu;
    mdmt_cuda_precision precision;
    mdmt_stream_handle stream;
};

struct mdmt_cuda_needs {
    size_t workspace_bytes;
    int stat_parts;
    uint32_t inplace_inputs;
};

struct mdmt_cuda_call {
    const mdmt_value *in;
    void *const *out;
    char *workspace;
    const mdmt_step *step;

    void *input(const mdmt_cuda_site *site, int i) const
    {
        return i < site->op->inputs && site->in[i] ? in[i].data : NULL;
    }
    void *output(const mdmt_cuda_site *site, int i) const
    {
        return i < site->op->outputs && site->out[i] ? out[i] : NULL;
    }
};

/* One kernel for an op; the first in the list that supports a site is taken. */
struct mdmt_cuda_impl {
    const char *op, *name;
    int (*supports)(const mdmt_cuda_site *site);                          /* NULL: all     */
    mdmt_status (*needs)(const mdmt_cuda_site *site, mdmt_cuda_needs *n); /* NULL: nothing */
    mdmt_status (*run)(const mdmt_cuda_site *site, const mdmt_cuda_call *call);
};

/* Lists, one per file; each ends with a NULL op. */
extern const mdmt_cuda_impl mdmt_cuda_norm[], mdmt_cuda_norm_bwd[], mdmt_cuda_elements[],
    mdmt_cuda_pool[], mdmt_cuda_conv[], mdmt_cuda_depth[], mdmt_cuda_rows[], mdmt_cuda_loss[],
    mdmt_cuda_images[], mdmt_cuda_dense[], mdmt_cuda_library[], mdmt_cuda_stem[];

/* Runs body<T> for the element type of the feature maps. */
#define MDMT_BY_PRECISION(body, site, call)                                                        \
    ((site)->precision == MDMT_CUDA_BF16 ? body<mdmt_bf16>(site, call) : body<float>(site, call))

/* norm.cu: statistics of the map `x` into (parts, 4, C up) at `stats`. */
mdmt_status mdmt_cuda_map_stats(const mdmt_cuda_site *site, const mdmt_tensor *x, const void *data,
                                float *stats, int parts);
int mdmt_cuda_stat_parts(const mdmt_tensor *map);
/* elements.cu: `value` as it is loaded, stored into `to` with the pitch of its own channels. */
mdmt_status mdmt_cuda_store_lazy(const mdmt_cuda_site *site, const mdmt_tensor *x,
                                 const mdmt_value *value, void *to);

#endif
