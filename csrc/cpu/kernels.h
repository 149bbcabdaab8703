/* All kernels of the CPU backend; select.c orders them. One line each. */
#ifndef MDMT_CPU_KERNELS_H
#define MDMT_CPU_KERNELS_H

#include "cpu.h"

#if defined(__x86_64__)
#define MDMT_X86 1
#if !defined(MDMT_NO_BF16) /* set where the compiler does not know the instructions */
#define MDMT_BF16 1
#endif
#endif

/* Adam over flat slabs; `count` floats each. run() uses the pool itself. */
typedef struct {
    const char *name;
    mdmt_isa isa;
    void (*run)(mdmt_pool *pool, const mdmt_adam *adam, float *weights, const float *gradients,
                float *first, float *second, int64_t count);
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

#ifdef MDMT_X86
extern const mdmt_cpu_impl mdmt_f32_images__avx2;
/* Memory-bound passes. */
extern const mdmt_cpu_impl mdmt_f32_channel_stats__avx2, mdmt_f32_channel_stats__avx512;
extern const mdmt_cpu_impl mdmt_f32_norm_act__avx2, mdmt_f32_norm_act__avx512;
extern const mdmt_cpu_impl mdmt_f32_bn_bwd__avx2, mdmt_f32_bn_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_act_forward__avx2, mdmt_f32_act_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_act_bwd__avx2, mdmt_f32_act_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_add__avx2, mdmt_f32_add__avx512;
extern const mdmt_cpu_impl mdmt_f32_gate__avx2, mdmt_f32_gate__avx512;
extern const mdmt_cpu_impl mdmt_f32_gate_bwd__avx2, mdmt_f32_gate_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_max_pool_forward__avx2, mdmt_f32_max_pool_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_max_pool_bwd__avx2, mdmt_f32_max_pool_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_avg_pool_forward__avx2, mdmt_f32_avg_pool_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_avg_pool_bwd__avx2, mdmt_f32_avg_pool_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_global_avg_pool_forward__avx2;
extern const mdmt_cpu_impl mdmt_f32_global_avg_pool_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_global_avg_pool_bwd__avx2;
extern const mdmt_cpu_impl mdmt_f32_global_avg_pool_bwd__avx512;
extern const mdmt_adam_impl mdmt_f32_adam__avx2, mdmt_f32_adam__avx512;
extern const mdmt_cpu_impl mdmt_f32_channel_gather__avx2, mdmt_f32_channel_gather__avx512;
extern const mdmt_cpu_impl mdmt_f32_upsample_forward__avx2, mdmt_f32_upsample_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_upsample_bwd__avx2, mdmt_f32_upsample_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_mask_sums__avx2, mdmt_f32_mask_sums__avx512;
extern const mdmt_cpu_impl mdmt_f32_mask_sums_bwd__avx2, mdmt_f32_mask_sums_bwd__avx512;
/* Winograd convolution. */
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_winograd4__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_winograd4__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_winograd2__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_winograd2__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_winograd4__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_winograd4__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_winograd2__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_winograd2__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_winograd4__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_winograd4__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_winograd2__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_winograd2__avx512;
#ifdef MDMT_BF16
extern const mdmt_cpu_impl mdmt_bf16_conv2d_forward_winograd4__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_forward_winograd2__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_data_winograd4__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_data_winograd2__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_weight_winograd4__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_weight_winograd2__avx512;
#endif
/* Depthwise convolution. */
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_depth__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_depth__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_depth__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_depth__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_depth__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_depth__avx512;
/* Linear layers and small per-channel work. */
extern const mdmt_cpu_impl mdmt_f32_linear_forward__avx2, mdmt_f32_linear_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_linear_bwd_data__avx2, mdmt_f32_linear_bwd_data__avx512;
extern const mdmt_cpu_impl mdmt_f32_linear_bwd_weight__avx2, mdmt_f32_linear_bwd_weight__avx512;
extern const mdmt_cpu_impl mdmt_f32_channel_sum__avx2, mdmt_f32_channel_sum__avx512;
extern const mdmt_cpu_impl mdmt_f32_bn_fold__avx2, mdmt_f32_bn_fold__avx512;
extern const mdmt_cpu_impl mdmt_f32_flatten_forward__avx2, mdmt_f32_flatten_forward__avx512;
extern const mdmt_cpu_impl mdmt_f32_flatten_bwd__avx2, mdmt_f32_flatten_bwd__avx512;
extern const mdmt_cpu_impl mdmt_f32_dropout__avx2, mdmt_f32_dropout__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_direct__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_stem__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_direct__avx2;
#ifdef MDMT_BF16
extern const mdmt_cpu_impl mdmt_bf16_channel_stats__avx512, mdmt_bf16_norm_act__avx512;
extern const mdmt_cpu_impl mdmt_bf16_bn_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_act_forward__avx512, mdmt_bf16_act_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_add__avx512;
extern const mdmt_cpu_impl mdmt_bf16_gate__avx512, mdmt_bf16_gate_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_max_pool_forward__avx512, mdmt_bf16_max_pool_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_avg_pool_forward__avx512, mdmt_bf16_avg_pool_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_global_avg_pool_forward__avx512;
extern const mdmt_cpu_impl mdmt_bf16_global_avg_pool_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_channel_gather__avx512;
extern const mdmt_cpu_impl mdmt_bf16_upsample_forward__avx512, mdmt_bf16_upsample_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_mask_sums__avx512, mdmt_bf16_mask_sums_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_channel_sum__avx512;
extern const mdmt_cpu_impl mdmt_bf16_flatten_forward__avx512, mdmt_bf16_flatten_bwd__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_forward_depth__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_data_depth__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_weight_depth__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_forward_direct__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_data_direct__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_weight_direct__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_forward_stem__avx512;
extern const mdmt_cpu_impl mdmt_bf16_conv2d_bwd_weight_stem__avx512;
#endif
extern const mdmt_cpu_impl mdmt_f32_conv2d_forward_stem__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_direct__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_data_direct__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_direct__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_stem__avx512;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_direct__avx2;
extern const mdmt_cpu_impl mdmt_f32_conv2d_bwd_weight_stem__avx2;
#endif

#endif
