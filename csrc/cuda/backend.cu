/* Fills mdmt_backend: storage, conversion, the choice of kernels, Adam. */
#include <stdlib.h>

#include "cudnn.cuh"

static mdmt_gpu *gpu_of(const mdmt_backend *backend)
{
    return (mdmt_gpu *)(uintptr_t)backend; /* base is its first member */
}

static int wish_is(const char *name, const char *value)
{
    const char *wish = getenv(name);
    return wish && strcmp(wish, value) == 0;
}

static size_t stored_bytes(const mdmt_gpu *gpu, const mdmt_tensor *tensor)
{
    return mdmt_stored_elements(tensor) * mdmt_element(tensor, gpu->options.precision);
}

static size_t gpu_tensor_bytes(const mdmt_backend *backend, const mdmt_tensor *tensor)
{
    return tensor->lazy_source < 0 ? stored_bytes(gpu_of(backend), tensor) : 0;
}

static size_t gpu_view_bytes(const mdmt_backend *backend, const mdmt_tensor *view)
{
    return (size_t)view->view_from * mdmt_element(view, gpu_of(backend)->options.precision);
}

/* ---- kernels ---- */

static const mdmt_cuda_impl *const lists[] = {
    mdmt_cuda_norm, mdmt_cuda_norm_bwd, mdmt_cuda_elements, mdmt_cuda_pool,
    mdmt_cuda_stem, mdmt_cuda_library,  mdmt_cuda_depth,    mdmt_cuda_conv,
    mdmt_cuda_rows, mdmt_cuda_loss,     mdmt_cuda_images,   mdmt_cuda_dense};

static mdmt_cuda_site site_of(mdmt_gpu *gpu, const mdmt_graph *graph, const mdmt_op *op)
{
    mdmt_cuda_site site;
    memset(&site, 0, sizeof site);
    site.op = op;
    site.number = graph->number;
    site.gpu = gpu;
    site.precision = gpu->options.precision;
    site.stream = gpu->stream;
    for (int i = 0; i < op->inputs; i++) {
        site.in[i] = op->in[i] >= 0 ? &graph->tensor[op->in[i]] : NULL;
    }
    for (int i = 0; i < op->outputs; i++) {
        site.out[i] = op->out[i] >= 0 ? &graph->tensor[op->out[i]] : NULL;
    }
    return site;
}

/* The first kernel of the op that supports the site; `force` (or NULL): the
 * beginning of its name. */
static mdmt_status choose(const mdmt_cuda_site *site, const char *force,
                          const mdmt_cuda_impl **chosen)
{
    int named = 0;
    for (size_t l = 0; l < sizeof lists / sizeof *lists; l++) {
        for (const mdmt_cuda_impl *impl = lists[l]; impl->op; impl++) {
            if (strcmp(impl->op, site->op->record->name) != 0 ||
                (force && strncmp(impl->name, force, strlen(force)) != 0)) {
                continue;
            }
            named = 1;
            if (!impl->supports || impl->supports(site)) {
                *chosen = impl;
                return MDMT_OK;
            }
        }
    }
    if (!force) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "the op %s has no kernel on the GPU",
                               site->op->record->name);
    }
    return named ? mdmt_lent->fail(MDMT_UNSUPPORTED,
                                   "the kernel %s cannot do this %s; leave the choice open or "
                                   "name another",
                                   force, site->op->record->name)
                 : mdmt_lent->fail(MDMT_BAD_ARGUMENT, "the op %s has no kernel named %s on the GPU",
                                   site->op->record->name, force);
}

static mdmt_status gpu_prepare(mdmt_backend *backend, mdmt_graph *graph, mdmt_op *op,
                               const char *force, mdmt_kernel *kernel)
{
    mdmt_gpu *gpu = gpu_of(backend);
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    mdmt_cuda_site site = site_of(gpu, graph, op);
    const mdmt_cuda_impl *impl = NULL;
    mdmt_cuda_needs needs = {0, 0, 0};
    MDMT_TRY(choose(&site, force, &impl));
    if (impl->needs) {
        MDMT_TRY(impl->needs(&site, &needs));
    }
    for (int i = 0; i < op->outputs; i++) {
        if (op->out[i] >= 0 && graph->tensor[op->out[i]].kind == MDMT_STATS) {
            graph->tensor[op->out[i]].dim[0] = needs.stat_parts;
        }
    }
    kernel->name = impl->name;
    kernel->impl = impl;
    kernel->workspace_bytes = needs.workspace_bytes;
    kernel->inplace_inputs = needs.inplace_inputs & op->record->inplace_inputs;
    return MDMT_OK;
}

static mdmt_status gpu_run(mdmt_backend *backend, const mdmt_graph *graph, const mdmt_op *op,
                           const mdmt_kernel *kernel, const mdmt_value *in, void *const *out,
                           void *workspace, const mdmt_step *step)
{
    mdmt_gpu *gpu = gpu_of(backend);
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    mdmt_cuda_site site = site_of(gpu, graph, op);
    mdmt_cuda_call call = {in, out, (char *)workspace, step};
    return ((const mdmt_cuda_impl *)kernel->impl)->run(&site, &call);
}

/* ---- branches: a stream of their own, whose work waits where the line's could start ---- */

static mdmt_status gpu_branch_begin(mdmt_backend *backend)
{
    mdmt_gpu *gpu = gpu_of(backend);
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    MDMT_TRY(mdmt_event_record(gpu->forked, gpu->line));
    MDMT_TRY(mdmt_event_before(gpu->forked, gpu->branch));
    MDMT_TRY(mdmt_cudnn_follow(gpu, gpu->branch));
    gpu->stream = gpu->branch;
    gpu->branching = 1;
    return MDMT_OK;
}

/* Whatever fails, what comes next is given to the line. */
static mdmt_status gpu_branch_end(mdmt_backend *backend)
{
    mdmt_gpu *gpu = gpu_of(backend);
    gpu->stream = gpu->line;
    mdmt_status status = mdmt_event_record(gpu->branched, gpu->branch);
    MDMT_TRY(mdmt_cudnn_follow(gpu, gpu->line));
    return status;
}

static mdmt_status gpu_branch_join(mdmt_backend *backend)
{
    mdmt_gpu *gpu = gpu_of(backend);
    if (!gpu->branching) {
        return MDMT_OK;
    }
    gpu->branching = 0;
    return mdmt_event_before(gpu->branched, gpu->line);
}

/* ---- between plain host arrays and the layouts ---- */

/* Bytes from the first to the last that belong to a tensor: a view ends before its
 * root's last pixel does. */
static size_t span_bytes(const mdmt_gpu *gpu, const mdmt_tensor *t)
{
    size_t elements = mdmt_stored_elements(t);
    if (t->kind == MDMT_MAP) {
        elements -= (size_t)(mdmt_pitch(t) - mdmt_up(t->dim[1]));
    }
    return elements * mdmt_element(t, gpu->options.precision);
}

static mdmt_status gpu_upload(mdmt_backend *backend, const mdmt_tensor *tensor, void *data,
                              const void *host)
{
    mdmt_gpu *gpu = gpu_of(backend);
    size_t bytes = mdmt_element(tensor, gpu->options.precision);
    size_t count = 1, plain = tensor->dtype == MDMT_U8 ? 1 : 4;
    if (tensor->view_of >= 0) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "a part of a tensor cannot be written alone");
    }
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    for (int i = 0; i < tensor->dims; i++) {
        count *= (size_t)tensor->dim[i];
    }
    char *staged = (char *)mdmt_lent->acquire(stored_bytes(gpu, tensor), 1); /* zeroed */
    if (!staged) {
        return MDMT_NO_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        char *to = staged + mdmt_stored_at(tensor, i) * bytes;
        const char *from = (const char *)host + i * plain;
        if (bytes == 2) {
            float f;
            memcpy(&f, from, sizeof f);
            mdmt_from_float(f, (mdmt_bf16 *)(void *)to);
        } else {
            memcpy(to, from, bytes);
        }
    }
    mdmt_status status = mdmt_device_write(gpu->stream, data, staged, stored_bytes(gpu, tensor));
    mdmt_lent->release(staged);
    return status == MDMT_OK ? mdmt_gpu_mirror_again(gpu, data, stored_bytes(gpu, tensor)) : status;
}

static mdmt_status gpu_download(mdmt_backend *backend, const mdmt_tensor *tensor, const void *data,
                                void *host)
{
    mdmt_gpu *gpu = gpu_of(backend);
    size_t bytes = mdmt_element(tensor, gpu->options.precision), span = span_bytes(gpu, tensor);
    size_t count = 1, plain = tensor->dtype == MDMT_U8 ? 1 : 4;
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    for (int i = 0; i < tensor->dims; i++) {
        count *= (size_t)tensor->dim[i];
    }
    char *staged = (char *)mdmt_lent->acquire(span, 1);
    if (!staged) {
        return MDMT_NO_MEMORY;
    }
    mdmt_status status = mdmt_device_read(gpu->stream, staged, data, span);
    if (status == MDMT_OK) {
        status = mdmt_gpu_check_fault(gpu);
    }
    for (size_t i = 0; status == MDMT_OK && i < count; i++) {
        const char *from = staged + mdmt_stored_at(tensor, i) * bytes;
        char *to = (char *)host + i * plain;
        if (bytes == 2) {
            float f = mdmt_to_float(*(const mdmt_bf16 *)(const void *)from);
            memcpy(to, &f, sizeof f);
        } else {
            memcpy(to, from, bytes);
        }
    }
    mdmt_lent->release(staged);
    return status;
}

static mdmt_status gpu_slab_open(mdmt_backend *backend, mdmt_slab *slab, size_t bytes,
                                 const char *what)
{
    slab->data = NULL;
    slab->bytes = 0;
    if (bytes == 0) {
        return MDMT_OK;
    }
    MDMT_TRY(mdmt_device_use(gpu_of(backend)->options.device));
    mdmt_gpu *gpu = gpu_of(backend);
    size_t size = mdmt_round_up(bytes, 256);
    mdmt_status status = mdmt_device_alloc(&slab->data, size, what);
    if (status == MDMT_NO_MEMORY && gpu->residents) {
        /* Images can come batch by batch, this cannot. */
        mdmt_gpu_forget_images(gpu);
        gpu->written_valid = 0;
        status = mdmt_device_alloc(&slab->data, size, what);
    }
    MDMT_TRY(status);
    slab->bytes = size;
    status = mdmt_gpu_slab_note(gpu, slab);
    if (status != MDMT_OK) {
        mdmt_device_free(slab->data);
        slab->data = NULL;
        slab->bytes = 0;
    }
    return status;
}

static void gpu_slab_close(mdmt_backend *backend, mdmt_slab *slab)
{
    mdmt_device_use(gpu_of(backend)->options.device);
    mdmt_gpu_slab_forget(gpu_of(backend), slab->data);
    mdmt_device_free(slab->data);
    slab->data = NULL;
    slab->bytes = 0;
}

static mdmt_status gpu_adam(mdmt_backend *backend, const mdmt_adam *adam, const mdmt_update *update,
                            double *norm)
{
    mdmt_gpu *gpu = gpu_of(backend);
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    return mdmt_gpu_adam_now(gpu, adam, update, norm);
}

static mdmt_status gpu_accumulate(mdmt_backend *backend, const mdmt_update *update, float *sums,
                                  int part, int parts, float scale)
{
    mdmt_gpu *gpu = gpu_of(backend);
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    return mdmt_gpu_accumulate(gpu, update, sums, part, parts, scale);
}

static mdmt_status gpu_wait(mdmt_backend *backend)
{
    MDMT_TRY(mdmt_device_use(gpu_of(backend)->options.device));
    return mdmt_device_wait(gpu_of(backend)->stream);
}

/* ---- life ---- */

static void gpu_close(mdmt_backend *backend)
{
    mdmt_gpu *gpu = gpu_of(backend);
    if (!gpu->opened) {
        mdmt_lent->release(gpu);
        return;
    }
    mdmt_device_use(gpu->options.device);
    if (gpu->line) {
        mdmt_device_wait(gpu->line); /* what runs may be the library's, and goes with its plans */
    }
    if (gpu->branch) {
        mdmt_device_wait(gpu->branch);
    }
    mdmt_cudnn_close(gpu);
    mdmt_event_close(gpu->branched);
    mdmt_event_close(gpu->forked);
    mdmt_stream_close(gpu->branch);
    mdmt_stream_close(gpu->line);
    gpu->stream = NULL;
    mdmt_gpu_forget_images(gpu);
    mdmt_device_free(gpu->state);
    mdmt_device_free(gpu->series);
    mdmt_device_free(gpu->squares);
    mdmt_device_free(gpu->fault);
    mdmt_device_free(gpu->sample_index);
    mdmt_device_free(gpu->sample_source);
    mdmt_lent->release(gpu);
}

static void gpu_forget_images(mdmt_backend *backend)
{
    mdmt_device_use(gpu_of(backend)->options.device);
    mdmt_gpu_forget_images(gpu_of(backend));
    gpu_of(backend)->written_valid = 0;
}

static mdmt_status open_device(mdmt_gpu *gpu)
{
    void *state, *fault;
    MDMT_TRY(mdmt_device_open(gpu->options.device));
    gpu->opened = 1;
    gpu->tune = !wish_is("MDMT_CUDA_TUNE", "off");
    gpu->tuning = mdmt_tuning_of(gpu->options.device);
    MDMT_TRY(mdmt_stream_open(&gpu->line, 1));
    gpu->stream = gpu->line;
    MDMT_TRY(mdmt_stream_open(&gpu->branch, 0));
    MDMT_TRY(mdmt_event_open(&gpu->forked, 0));
    MDMT_TRY(mdmt_event_open(&gpu->branched, 0));
    MDMT_TRY(mdmt_device_alloc(&state, sizeof *gpu->state, "state of a step"));
    gpu->state = (mdmt_gpu_state *)state;
    MDMT_TRY(mdmt_device_alloc(&fault, sizeof *gpu->fault, "state of a step"));
    gpu->fault = (mdmt_gpu_fault *)fault;
    return MDMT_OK;
}

/* Dense convolutions: cuDNN and matrix products read their maps as they lie in memory. */
static int gpu_stores_lazy(const mdmt_backend *base, const mdmt_graph *graph, const mdmt_op *op,
                           int input)
{
    (void)base;
    int weight = strcmp(op->record->name, "conv2d_bwd_weight") == 0;
    int forward = strcmp(op->record->name, "conv2d") == 0;
    int w = weight ? op->out[0] : forward ? op->in[1] : -1;
    return input == 0 && w >= 0 && graph->tensor[w].kind == MDMT_W_DENSE;
}

mdmt_status mdmt_cuda_open(mdmt_backend **backend, const mdmt_cuda_services *services,
                           const mdmt_cuda_options *options)
{
    mdmt_lent = services;
    mdmt_gpu *gpu = (mdmt_gpu *)services->acquire(1, sizeof *gpu); /* zeroed */
    if (!gpu) {
        return MDMT_NO_MEMORY;
    }
    gpu->options = *options;
    mdmt_backend *base = &gpu->base;
    base->name = "cuda";
    base->tensor_bytes = gpu_tensor_bytes;
    base->view_bytes = gpu_view_bytes;
    base->prepare = gpu_prepare;
    /* Whether activations that convolutions read are kept for the backward pass. If not, they are
     * computed again from what batch normalisation read, which takes time and saves memory. */
    base->stores_lazy = wish_is("MDMT_CUDA_KEEP", "off") ? NULL : gpu_stores_lazy;
    base->run = gpu_run;
    if (!wish_is("MDMT_CUDA_BRANCHES", "off")) {
        base->branch_begin = gpu_branch_begin;
        base->branch_end = gpu_branch_end;
        base->branch_join = gpu_branch_join;
    }
    base->upload = gpu_upload;
    base->download = gpu_download;
    base->slab_open = gpu_slab_open;
    base->slab_close = gpu_slab_close;
    base->adam = gpu_adam;
    base->accumulate = gpu_accumulate;
    base->wait = gpu_wait;
    base->forget_images = gpu_forget_images;
    mdmt_gpu_fill_series(base);
    mdmt_gpu_fill_recordings(base);
    base->close = gpu_close;
    mdmt_status status = open_device(gpu);
    if (status != MDMT_OK) {
        gpu_close(base);
        return status;
    }
    *backend = base;
    return MDMT_OK;
}
