/* All kernels of the CPU backend; select.c orders them. One line each. */
#ifndef MDMT_CPU_KERNELS_H
#define MDMT_CPU_KERNELS_H

#include "cpu.h"

#if defined(__x86_64__)
#define MDMT_X86 1
#if !defined(MDMT_NO_BF16) /* set where the compiler does not know the instructions */
#define MDMT_BF16 1
#endif
#elif defined(__aarch64__)
#define MDMT_ARM 1
#endif

/* Adam over flat slabs, of the gradients times `scale`. run() uses the pool itself. */
typedef struct {
    const char *name;
    mdmt_isa isa;
    void (*run)(mdmt_pool *pool, const mdmt_adam *adam, const mdmt_update *update, float scale);
} mdmt_adam_impl;

/* All kernels of an op in this build, best first, ending with NULL; NULL when the CPU has none. */
const mdmt_cpu_impl *const *mdmt_cpu_kernels(const mdmt_op_record *record);

/* The cost of every reference: INFINITY. */
double mdmt_ref_cost(const mdmt_site *site);

/* References: support everything. */
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data__ref;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight__ref;
extern const mdmt_cpu_impl mdmt_f32_channel_sum__ref;
extern const mdmt_cpu_impl mdmt_f32_channel_stats__ref;
extern const mdmt_cpu_impl mdmt_f32_bn_fold__ref;
extern const mdmt_cpu_impl mdmt_f32_norm_act__ref;
extern const mdmt_cpu_impl mdmt_f32_bn_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_act_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_act_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_add__ref;
extern const mdmt_cpu_impl mdmt_f32_gate__ref;
extern const mdmt_cpu_impl mdmt_f32_gate_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_zeros__ref, mdmt_bf16_zeros__ref;
extern const mdmt_cpu_impl mdmt_f32_channel_gather__ref;
extern const mdmt_cpu_impl mdmt_f32_stats_moments__ref;
extern const mdmt_cpu_impl mdmt_f32_max_pool_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_max_pool_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_avg_pool_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_avg_pool_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_global_avg_pool_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_global_avg_pool_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_upsample_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_upsample_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_mask_sums__ref;
extern const mdmt_cpu_impl mdmt_f32_mask_sums_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_flatten_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_flatten_bwd__ref;
extern const mdmt_cpu_impl mdmt_f32_linear_forward__ref;
extern const mdmt_cpu_impl mdmt_f32_linear_bwd_data__ref;
extern const mdmt_cpu_impl mdmt_f32_linear_bwd_weight__ref;
extern const mdmt_cpu_impl mdmt_f32_dropout__ref;
extern const mdmt_cpu_impl mdmt_f32_masked_loss__ref;
extern const mdmt_cpu_impl mdmt_f32_images__ref;
extern const mdmt_adam_impl mdmt_f32_adam__ref;

/* Those of the instruction sets. Ops over MAPs, which have kernels for maps of bfloat16, too: */
#define MDMT_FAST_ON_MAPS(X) \
    X(channel_stats) \
    X(norm_act) \
    X(bn_bwd) \
    X(act_forward) \
    X(act_bwd) \
    X(add) \
    X(gate) \
    X(gate_bwd) \
    X(max_pool_forward) \
    X(max_pool_bwd) \
    X(avg_pool_forward) \
    X(avg_pool_bwd) \
    X(global_avg_pool_forward) \
    X(global_avg_pool_bwd) \
    X(channel_gather) \
    X(upsample_forward) \
    X(upsample_bwd) \
    X(mask_sums) \
    X(mask_sums_bwd) \
    X(conv2d_forward_winograd4) \
    X(conv2d_forward_winograd2) \
    X(conv2d_bwd_data_winograd4) \
    X(conv2d_bwd_data_winograd2) \
    X(conv2d_bwd_weight_winograd4) \
    X(conv2d_bwd_weight_winograd2) \
    X(conv2d_forward_depth) \
    X(conv2d_bwd_data_depth) \
    X(conv2d_bwd_weight_depth) \
    X(channel_sum) \
    X(flatten_forward) \
    X(flatten_bwd) \
    X(conv2d_forward_direct) \
    X(conv2d_forward_stem) \
    X(conv2d_bwd_data_direct) \
    X(conv2d_bwd_weight_direct) \
    X(conv2d_bwd_weight_stem)
/* Others: */
#define MDMT_FAST_ON_FLOATS(X) \
    X(linear_forward) \
    X(linear_bwd_data) \
    X(linear_bwd_weight) \
    X(bn_fold) \
    X(dropout)

#if defined(MDMT_X86)
#define MDMT_DECLARE_FAST(name) \
    extern const mdmt_cpu_impl mdmt_f32_##name##__avx512, mdmt_f32_##name##__avx2;
extern const mdmt_cpu_impl mdmt_f32_images__avx2;
extern const mdmt_adam_impl mdmt_f32_adam__avx512, mdmt_f32_adam__avx2;
#elif defined(MDMT_ARM)
#define MDMT_DECLARE_FAST(name) extern const mdmt_cpu_impl mdmt_f32_##name##__neon;
extern const mdmt_cpu_impl mdmt_f32_images__neon;
extern const mdmt_adam_impl mdmt_f32_adam__neon;
#else
#define MDMT_DECLARE_FAST(name)
#endif
MDMT_FAST_ON_MAPS(MDMT_DECLARE_FAST)
MDMT_FAST_ON_FLOATS(MDMT_DECLARE_FAST)

#if defined(MDMT_BF16)
#define MDMT_DECLARE_BF16(name) extern const mdmt_cpu_impl mdmt_bf16_##name##__avx512;
MDMT_FAST_ON_MAPS(MDMT_DECLARE_BF16)
#endif

#endif
