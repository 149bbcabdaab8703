/* The CPU backend: which kernel an op gets. This is the only place that looks
 * at the instruction set. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adam.h"
#include "copies.h"
#include "kernels.h"
#include "layout.h"

/* The kernels of this build's instruction sets, best first: FAST of an op over MAPs, which has some
 * for maps of bfloat16, too; FAST_FLOATS of others. */
#if defined(MDMT_X86)
#define FAST_FLOATS(name) &mdmt_f32_##name##__avx512, &mdmt_f32_##name##__avx2,
#elif defined(MDMT_ARM)
#define FAST_FLOATS(name) &mdmt_f32_##name##__neon,
#else
#define FAST_FLOATS(name)
#endif
#if defined(MDMT_BF16)
#define FAST(name) &mdmt_bf16_##name##__avx512, FAST_FLOATS(name)
#else
#define FAST(name) FAST_FLOATS(name)
#endif

static const mdmt_cpu_impl *const conv2d_impls[] = {
    FAST(conv2d_forward_winograd4)
    FAST(conv2d_forward_winograd2)
    FAST(conv2d_forward_direct)
    FAST(conv2d_forward_stem)
    FAST(conv2d_forward_depth)
    &mdmt_f32_conv2d_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const conv2d_bwd_data_impls[] = {
    FAST(conv2d_bwd_data_winograd4)
    FAST(conv2d_bwd_data_winograd2)
    FAST(conv2d_bwd_data_direct)
    FAST(conv2d_bwd_data_depth)
    &mdmt_f32_conv2d_bwd_data__ref,
    NULL,
};

static const mdmt_cpu_impl *const conv2d_bwd_weight_impls[] = {
    FAST(conv2d_bwd_weight_winograd4)
    FAST(conv2d_bwd_weight_winograd2)
    FAST(conv2d_bwd_weight_direct)
    FAST(conv2d_bwd_weight_stem)
    FAST(conv2d_bwd_weight_depth)
    &mdmt_f32_conv2d_bwd_weight__ref,
    NULL,
};

static const mdmt_cpu_impl *const channel_sum_impls[] = {
    FAST(channel_sum)
    &mdmt_f32_channel_sum__ref,
    NULL,
};

static const mdmt_cpu_impl *const channel_stats_impls[] = {
    FAST(channel_stats)
    &mdmt_f32_channel_stats__ref,
    NULL,
};

static const mdmt_cpu_impl *const bn_fold_impls[] = {
    FAST_FLOATS(bn_fold)
    &mdmt_f32_bn_fold__ref,
    NULL,
};

static const mdmt_cpu_impl *const norm_act_impls[] = {
    FAST(norm_act)
    &mdmt_f32_norm_act__ref,
    NULL,
};

static const mdmt_cpu_impl *const bn_bwd_impls[] = {
    FAST(bn_bwd)
    &mdmt_f32_bn_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const act_impls[] = {
    FAST(act_forward)
    &mdmt_f32_act_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const act_bwd_impls[] = {
    FAST(act_bwd)
    &mdmt_f32_act_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const add_impls[] = {
    FAST(add)
    &mdmt_f32_add__ref,
    NULL,
};

static const mdmt_cpu_impl *const stats_moments_impls[] = {
    &mdmt_f32_stats_moments__ref,
    NULL,
};

static const mdmt_cpu_impl *const gate_impls[] = {
    FAST(gate)
    &mdmt_f32_gate__ref,
    NULL,
};

static const mdmt_cpu_impl *const gate_bwd_impls[] = {
    FAST(gate_bwd)
    &mdmt_f32_gate_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const channel_gather_impls[] = {
    FAST(channel_gather)
    &mdmt_f32_channel_gather__ref,
    NULL,
};

static const mdmt_cpu_impl *const zeros_impls[] = {
#ifdef MDMT_BF16
    &mdmt_bf16_zeros__ref,
#endif
    &mdmt_f32_zeros__ref,
    NULL,
};

static const mdmt_cpu_impl *const max_pool_impls[] = {
    FAST(max_pool_forward)
    &mdmt_f32_max_pool_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const max_pool_bwd_impls[] = {
    FAST(max_pool_bwd)
    &mdmt_f32_max_pool_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const avg_pool_impls[] = {
    FAST(avg_pool_forward)
    &mdmt_f32_avg_pool_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const avg_pool_bwd_impls[] = {
    FAST(avg_pool_bwd)
    &mdmt_f32_avg_pool_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const upsample_impls[] = {
    FAST(upsample_forward)
    &mdmt_f32_upsample_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const upsample_bwd_impls[] = {
    FAST(upsample_bwd)
    &mdmt_f32_upsample_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const mask_sums_impls[] = {
    FAST(mask_sums)
    &mdmt_f32_mask_sums__ref,
    NULL,
};

static const mdmt_cpu_impl *const mask_sums_bwd_impls[] = {
    FAST(mask_sums_bwd)
    &mdmt_f32_mask_sums_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const global_avg_pool_impls[] = {
    FAST(global_avg_pool_forward)
    &mdmt_f32_global_avg_pool_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const global_avg_pool_bwd_impls[] = {
    FAST(global_avg_pool_bwd)
    &mdmt_f32_global_avg_pool_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const flatten_impls[] = {
    FAST(flatten_forward)
    &mdmt_f32_flatten_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const flatten_bwd_impls[] = {
    FAST(flatten_bwd)
    &mdmt_f32_flatten_bwd__ref,
    NULL,
};

static const mdmt_cpu_impl *const linear_impls[] = {
    FAST_FLOATS(linear_forward)
    &mdmt_f32_linear_forward__ref,
    NULL,
};

static const mdmt_cpu_impl *const linear_bwd_data_impls[] = {
    FAST_FLOATS(linear_bwd_data)
    &mdmt_f32_linear_bwd_data__ref,
    NULL,
};

static const mdmt_cpu_impl *const linear_bwd_weight_impls[] = {
    FAST_FLOATS(linear_bwd_weight)
    &mdmt_f32_linear_bwd_weight__ref,
    NULL,
};

static const mdmt_cpu_impl *const dropout_impls[] = {
    FAST_FLOATS(dropout)
    &mdmt_f32_dropout__ref,
    NULL,
};

static const mdmt_cpu_impl *const masked_loss_impls[] = {
    &mdmt_f32_masked_loss__ref,
    NULL,
};

static const mdmt_cpu_impl *const images_impls[] = {
#if defined(MDMT_X86)
    &mdmt_f32_images__avx2,
#elif defined(MDMT_ARM)
    &mdmt_f32_images__neon,
#endif
    &mdmt_f32_images__ref,
    NULL,
};

static const mdmt_adam_impl *const adam_impls[] = {
    FAST_FLOATS(adam)
    &mdmt_f32_adam__ref,
    NULL,
};

static const mdmt_cpu_list lists[] = {
    {&mdmt_op_conv2d, conv2d_impls},
    {&mdmt_op_conv2d_bwd_data, conv2d_bwd_data_impls},
    {&mdmt_op_conv2d_bwd_weight, conv2d_bwd_weight_impls},
    {&mdmt_op_channel_sum, channel_sum_impls},
    {&mdmt_op_channel_stats, channel_stats_impls},
    {&mdmt_op_bn_fold, bn_fold_impls},
    {&mdmt_op_norm_act, norm_act_impls},
    {&mdmt_op_bn_bwd, bn_bwd_impls},
    {&mdmt_op_act, act_impls},
    {&mdmt_op_act_bwd, act_bwd_impls},
    {&mdmt_op_add, add_impls},
    {&mdmt_op_stats_moments, stats_moments_impls},
    {&mdmt_op_gate, gate_impls},
    {&mdmt_op_gate_bwd, gate_bwd_impls},
    {&mdmt_op_channel_gather, channel_gather_impls},
    {&mdmt_op_zeros, zeros_impls},
    {&mdmt_op_max_pool, max_pool_impls},
    {&mdmt_op_max_pool_bwd, max_pool_bwd_impls},
    {&mdmt_op_avg_pool, avg_pool_impls},
    {&mdmt_op_avg_pool_bwd, avg_pool_bwd_impls},
    {&mdmt_op_upsample, upsample_impls},
    {&mdmt_op_upsample_bwd, upsample_bwd_impls},
    {&mdmt_op_mask_sums, mask_sums_impls},
    {&mdmt_op_mask_sums_bwd, mask_sums_bwd_impls},
    {&mdmt_op_global_avg_pool, global_avg_pool_impls},
    {&mdmt_op_global_avg_pool_bwd, global_avg_pool_bwd_impls},
    {&mdmt_op_flatten, flatten_impls},
    {&mdmt_op_flatten_bwd, flatten_bwd_impls},
    {&mdmt_op_linear, linear_impls},
    {&mdmt_op_linear_bwd_data, linear_bwd_data_impls},
    {&mdmt_op_linear_bwd_weight, linear_bwd_weight_impls},
    {&mdmt_op_dropout, dropout_impls},
    {&mdmt_op_masked_loss, masked_loss_impls},
    {&mdmt_op_images, images_impls},
};

const mdmt_cpu_impl *const *mdmt_cpu_kernels(const mdmt_op_record *record)
{
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        if (lists[i].record == record) {
            return lists[i].impls;
        }
    }
    return NULL;
}

typedef struct {
    mdmt_backend base;
    mdmt_pool *pool; /* the caller's */
    mdmt_cpu_options options;
} cpu_backend;

static cpu_backend *cpu_of(const mdmt_backend *backend)
{
    return (cpu_backend *)(uintptr_t)backend; /* base is its first member */
}

static mdmt_site site_of(const cpu_backend *cpu, const mdmt_graph *graph, const mdmt_op *op)
{
    mdmt_site site = {.op = op,
                      .number = graph->number,
                      .pool = cpu->pool,
                      .threads = mdmt_pool_threads(cpu->pool),
                      .isa = cpu->options.isa,
                      .winograd = cpu->options.winograd};
    for (int i = 0; i < op->inputs; i++) {
        site.in[i] = op->in[i] >= 0 ? &graph->tensor[op->in[i]] : NULL;
    }
    for (int i = 0; i < op->outputs; i++) {
        site.out[i] = op->out[i] >= 0 ? &graph->tensor[op->out[i]] : NULL;
    }
    if (cpu->options.bf16) {
        for (int i = 0; i < op->inputs; i++) {
            site.bf16 |= mdmt_is_float_map(site.in[i]);
        }
        for (int i = 0; i < op->outputs; i++) {
            site.bf16 |= mdmt_is_float_map(site.out[i]);
        }
    }
    return site;
}

/* What a tensor asks of a kernel: mdmt_accepts. */
static int asked_by(const mdmt_tensor *t)
{
    if (!t || t->kind != MDMT_MAP) {
        return 0;
    }
    return (mdmt_map_is_dense(t) ? 0 : MDMT_ACCEPTS_VIEWS) |
           (t->lazy_gate < 0 ? 0 : MDMT_ACCEPTS_GATES) |
           (t->lazy_act <= MDMT_ACT_RELU ? 0 : MDMT_ACCEPTS_ACTS);
}

static int asked_by_site(const mdmt_site *site)
{
    int asked = 0;
    for (int i = 0; i < site->op->inputs; i++) {
        asked |= asked_by(site->in[i]);
    }
    for (int i = 0; i < site->op->outputs; i++) {
        asked |= asked_by(site->out[i]);
    }
    return asked;
}

static int usable(const mdmt_cpu_impl *impl, const mdmt_site *site, int asked)
{
    return mdmt_isa_includes(site->isa, impl->isa) && impl->bf16 == site->bf16 &&
           (impl->isa == MDMT_ISA_REF || !(asked & ~impl->accepts)) &&
           (!impl->supports || impl->supports(site));
}

/* Whether `force` (or NULL: no wish) allows the kernel: its name or a beginning of it. */
static int allowed(const mdmt_cpu_impl *impl, const char *force)
{
    return !force || strncmp(impl->name, force, strlen(force)) == 0;
}

/* The cheapest of those that `force` allows; a full name means that kernel only. */
static mdmt_status choose(const mdmt_site *site, int asked, const mdmt_cpu_impl *const *impls,
                          const char *force, const mdmt_cpu_impl **chosen)
{
    const mdmt_cpu_impl *best = NULL;
    double best_cost = 0;
    int named = 0;
    for (; *impls; impls++) {
        const mdmt_cpu_impl *impl = *impls;
        if (!allowed(impl, force)) {
            continue;
        }
        named++;
        if (!usable(impl, site, asked)) {
            continue;
        }
        double cost = impl->cost ? impl->cost(site) : 0.0;
        int exact = force && strcmp(impl->name, force) == 0;
        if (!best || cost < best_cost || exact) {
            best = impl;
            best_cost = cost;
        }
        if (exact) {
            break;
        }
    }
    const char *op = site->op->record->name;
    if (!named) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the op %s has no kernel named %s on the CPU", op,
                         force ? force : "");
    }
    if (!best) {
        char text[64] = "no input";
        if (site->in[0]) {
            mdmt_tensor_text(site->in[0], text);
        }
        return mdmt_fail(MDMT_UNSUPPORTED,
                         "the kernel %s cannot do this %s (first input %s, instruction set %s); "
                         "leave the choice open or name another",
                         force ? force : "", op, text, mdmt_isa_name(site->isa));
    }
    *chosen = best;
    return MDMT_OK;
}

/* Whether a kernel takes the site's MAPs as they are stored. */
static int takes_bf16(const mdmt_site *site, const mdmt_cpu_impl *const *impls, const char *force)
{
    const int asked = asked_by_site(site);
    for (; *impls; impls++) {
        if ((*impls)->bf16 && allowed(*impls, force) && usable(*impls, site, asked)) {
            return 1;
        }
    }
    return 0;
}

static mdmt_status cpu_prepare(mdmt_backend *backend, mdmt_graph *graph, mdmt_op *op,
                               const char *force, mdmt_kernel *kernel)
{
    mdmt_site site = site_of(cpu_of(backend), graph, op);
    mdmt_float_site copy = {.bytes = 0};
    const mdmt_cpu_impl *const *impls = mdmt_cpu_kernels(op->record);
    if (!impls) {
        return mdmt_fail(MDMT_UNSUPPORTED, "the op %s has no kernel on the CPU", op->record->name);
    }
    const mdmt_cpu_impl *impl = NULL;
    if (site.bf16 && !takes_bf16(&site, impls, force)) { /* floats, on copies */
        mdmt_float_site_of(&site, &copy);
        site = copy.site;
    }
    MDMT_TRY(choose(&site, asked_by_site(&site), impls, force, &impl));
    mdmt_needs needs = {0};
    if (impl->needs) {
        impl->needs(&site, &needs);
    }
    for (int i = 0; i < op->outputs; i++) {
        if (op->out[i] >= 0 && graph->tensor[op->out[i]].kind == MDMT_STATS) {
            if (needs.stat_parts < 1) {
                return mdmt_fail(MDMT_INTERNAL, "the kernel %s names no parts of its statistics",
                                 impl->name);
            }
            graph->tensor[op->out[i]].dim[0] = needs.stat_parts;
        }
    }
    *kernel = (mdmt_kernel){.name = impl->name,
                            .impl = impl,
                            .workspace_bytes =
                                copy.bytes ? mdmt_round_up(needs.workspace_bytes, 4096) + copy.bytes
                                           : needs.workspace_bytes,
                            .inplace_inputs = needs.inplace_inputs & op->record->inplace_inputs};
    return MDMT_OK;
}

static mdmt_status cpu_run(mdmt_backend *backend, const mdmt_graph *graph, const mdmt_op *op,
                           const mdmt_kernel *kernel, const mdmt_value *in, void *const *out,
                           void *workspace, const mdmt_step *step)
{
    mdmt_site site = site_of(cpu_of(backend), graph, op);
    mdmt_call call = {.in = in, .out = out, .workspace = workspace, .step = step};
    const mdmt_cpu_impl *impl = kernel->impl;
    if (site.bf16 && !impl->bf16) {
        mdmt_float_site copy;
        mdmt_float_site_of(&site, &copy);
        return mdmt_float_site_run(impl, &site, &call, kernel->workspace_bytes - copy.bytes);
    }
    return impl->run(&site, &call);
}

static size_t cpu_tensor_bytes(const mdmt_backend *backend, const mdmt_tensor *tensor)
{
    return cpu_of(backend)->options.bf16 ? mdmt_storage_bytes_bf16(tensor)
                                             : mdmt_storage_bytes(tensor);
}

static size_t cpu_view_bytes(const mdmt_backend *backend, const mdmt_tensor *view)
{
    size_t pixels = view->kind == MDMT_MAP ? (size_t)view->dim[2] * (size_t)view->dim[3] : 1;
    int narrow = cpu_of(backend)->options.bf16 && mdmt_is_float_map(view);
    return (size_t)view->view_from * pixels * (narrow ? sizeof(uint16_t) : sizeof(float));
}

enum { COPY_BYTES = 512 << 10 }; /* of a task */

typedef struct {
    char *to;
    const char *from;
    size_t bytes;
} copy_job;

static void copy_task(void *context, int task, int thread)
{
    const copy_job *job = context;
    const size_t at = (size_t)task * COPY_BYTES, left = job->bytes - at;
    (void)thread;
    memcpy(job->to + at, job->from + at, left < COPY_BYTES ? left : COPY_BYTES);
}

static mdmt_status cpu_upload(mdmt_backend *backend, const mdmt_tensor *tensor, void *data,
                              const void *host)
{
    const cpu_backend *cpu = cpu_of(backend);
    if (tensor->kind == MDMT_IMAGE && mdmt_layout_is_plain(tensor)) {
        copy_job job = {data, host, mdmt_storage_bytes(tensor)};
        mdmt_parallel(cpu->pool, (int)((job.bytes + COPY_BYTES - 1) / COPY_BYTES), copy_task, &job);
        return MDMT_OK;
    }
    if (cpu->options.bf16 && mdmt_is_float_map(tensor)) {
        mdmt_layout_pack_bf16(tensor, data, host);
    } else {
        mdmt_layout_pack(tensor, data, host);
    }
    return MDMT_OK;
}

static mdmt_status cpu_download(mdmt_backend *backend, const mdmt_tensor *tensor, const void *data,
                                void *host)
{
    if (cpu_of(backend)->options.bf16 && mdmt_is_float_map(tensor)) {
        mdmt_layout_unpack_bf16(tensor, host, data);
    } else {
        mdmt_layout_unpack(tensor, host, data);
    }
    return MDMT_OK;
}

static mdmt_status cpu_slab_open(mdmt_backend *backend, mdmt_slab *slab, size_t bytes,
                                 const char *what)
{
    (void)backend;
    const size_t big = (size_t)1 << 20; /* below it first touches cost nothing that matters */
    return bytes < big ? mdmt_slab_open(slab, bytes, what)
                       : mdmt_slab_open_touched(slab, bytes, what);
}

static void cpu_slab_close(mdmt_backend *backend, mdmt_slab *slab)
{
    (void)backend;
    mdmt_slab_close(slab);
}

static mdmt_status cpu_adam(mdmt_backend *backend, const mdmt_adam *adam, const mdmt_update *update,
                            double *norm)
{
    cpu_backend *cpu = cpu_of(backend);
    float scale = 1;
    if (!((float)adam->eps > 0)) {
        /* 0 / 0 would put NaN into the padding lanes. */
        return mdmt_fail(MDMT_BAD_ARGUMENT, "eps of Adam must be above 0, not %g", adam->eps);
    }
    const mdmt_adam_impl *const *impl = adam_impls;
    while (!mdmt_isa_includes(cpu->options.isa, (*impl)->isa)) {
        impl++;
    }
    if (adam->clip > 0) {
        *norm = mdmt_norm(cpu->pool, update->gradients, update->count);
        if (!isfinite(*norm)) {
            return MDMT_OK;
        }
        scale = mdmt_clip_scale(adam->clip, *norm);
    }
    (*impl)->run(cpu->pool, adam, update, scale);
    return MDMT_OK;
}

static mdmt_status cpu_accumulate(mdmt_backend *backend, const mdmt_update *update, float *sums,
                                  int part, int parts, float scale)
{
    mdmt_accumulate(cpu_of(backend)->pool, update->gradients, sums, update->count, part, parts,
                    scale);
    return MDMT_OK;
}

static void cpu_close(mdmt_backend *backend)
{
    mdmt_release(cpu_of(backend));
}

/* MDMT_CPU=ref|avx2|avx512|neon lowers the instruction set, never raises it. */
static mdmt_status lower_isa(mdmt_isa *isa)
{
    const char *wish = getenv("MDMT_CPU");
    if (!wish || !*wish) {
        return MDMT_OK;
    }
    const mdmt_isa wanted = mdmt_isa_named(wish);
    if (wanted == MDMT_ISAS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the environment variable MDMT_CPU is '%s'; use ref, avx2, avx512 or neon",
                         wish);
    }
    *isa = mdmt_isa_includes(*isa, wanted) ? wanted : *isa;
    return MDMT_OK;
}

/* MDMT_WINOGRAD=off|2|4 lowers the largest Winograd tile, never raises it. */
static mdmt_status lower_winograd(int *winograd)
{
    static const char *const names[] = {"off", "2", "4"};
    const char *wish = getenv("MDMT_WINOGRAD");
    if (!wish || !*wish) {
        return MDMT_OK;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(wish, names[i]) == 0) {
            *winograd = i < *winograd ? i : *winograd;
            return MDMT_OK;
        }
    }
    return mdmt_fail(MDMT_BAD_ARGUMENT,
                     "the environment variable MDMT_WINOGRAD is '%s'; use off, 2 or 4", wish);
}

int mdmt_cpu_has_bf16(void)
{
#ifdef MDMT_BF16
    return mdmt_has_avx512_bf16();
#else
    return 0;
#endif
}

mdmt_status mdmt_cpu_open(mdmt_backend **backend, mdmt_pool *pool, mdmt_cpu_options options)
{
    if (!mdmt_isa_includes(mdmt_detect_isa(), options.isa)) {
        return mdmt_fail(MDMT_UNSUPPORTED, "this processor (%s) has %s, not %s", mdmt_cpu_name(),
                         mdmt_isa_name(mdmt_detect_isa()), mdmt_isa_name(options.isa));
    }
    MDMT_TRY(lower_isa(&options.isa));
    MDMT_TRY(lower_winograd(&options.winograd));
    if (options.bf16 && (options.isa != MDMT_ISA_AVX512 || !mdmt_cpu_has_bf16())) {
        return mdmt_fail(MDMT_UNSUPPORTED,
                         "bfloat16 on the CPU needs the instruction set AVX512-BF16, which %s; use "
                         "the precision fp32",
                         options.isa != MDMT_ISA_AVX512 && mdmt_cpu_has_bf16()
                             ? "MDMT_CPU or the chosen backend leaves out"
                         : mdmt_has_avx512_bf16() ? "this build of mdmt was compiled without"
                                                  : "this processor does not have");
    }
    cpu_backend *cpu = mdmt_acquire(1, sizeof *cpu);
    if (!cpu) {
        return MDMT_NO_MEMORY;
    }
    *cpu = (cpu_backend){.base = {.name = "cpu",
                                  .tensor_bytes = cpu_tensor_bytes,
                                  .view_bytes = cpu_view_bytes,
                                  .prepare = cpu_prepare,
                                  .run = cpu_run,
                                  .upload = cpu_upload,
                                  .download = cpu_download,
                                  .slab_open = cpu_slab_open,
                                  .slab_close = cpu_slab_close,
                                  .adam = cpu_adam,
                                  .accumulate = cpu_accumulate,
                                  .close = cpu_close},
                         .pool = pool,
                         .options = options};
    *backend = &cpu->base;
    return MDMT_OK;
}
