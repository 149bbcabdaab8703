/* Attribute structs of the ops, and the list of their records.
 *
 * Notation: x (N,C,H,W), y (N,K,OH,OW), w (K, C/groups, kh, kw). Order of
 * inputs and outputs as listed; [t] is optional; ~t may be lazy.
 *
 *   op                 inputs                                   outputs
 *   conv2d             ~x, w, [bias (K)]                        y, [stats]   (stats: want_stats)
 *   conv2d_bwd_data    dy, w, [addend: like dx]                 dx (+ addend)
 *   conv2d_bwd_weight  ~x, dy                                   dw
 *   channel_sum        x MAP or ROWS                            sum (C)      (bias gradients)
 *   channel_stats      x MAP                                    stats
 *   stats_moments      stats                                    mean (C), var (C) (biased)
 *   bn_fold            [stats], gamma, beta, rmean, rvar,
 *                      [mean, var: instead of stats]            scale, shift, mean, invstd
 *   norm_act           x, scale, shift, [~residual]             z
 *   bn_bwd             [dz], x, scale, shift, mean, invstd, [z],
 *                      [gate ROWS], [pooled ROWS], [addend]     dx (+ addend), dgamma, dbeta,
 *                                                               [dpre]
 *   act                x                                        y
 *   act_bwd            dy, x if mdmt_act_needs_input, else y    dx
 *   add                a, b                                     a + b
 *   gate               ~x MAP, s ROWS (N,C)                     y = x s, broadcast over H, W
 *   gate_bwd           dy MAP, ~x MAP                           ds ROWS: sum over H, W of dy x
 *   channel_gather     ~x... MAPs                               y (see mdmt_gather_attrs)
 *   zeros              like MAP                                 zeros of the shape of `like`
 *   max_pool           ~x                                       y, [argmax U8 (N,C,OH,OW)]
 *   max_pool_bwd       dy, argmax                               dx
 *   avg_pool / _bwd    x / dy                                   y / dx
 *   upsample / _bwd    x / dy MAP                               y (N,C,2H,2W) / dx
 *   global_avg_pool / _bwd   ~x MAP / dy ROWS                   y ROWS (N,C) / dx MAP
 *   flatten / _bwd     x MAP / dy ROWS                          y ROWS (N, C*H*W) / dx MAP
 *   linear             x (N,I), w (O,I), [bias (O)]             y (N,O)
 *   linear_bwd_data    dy, w                                    dx
 *   linear_bwd_weight  x, dy                                    dw
 *   dropout            x                                        y   (its own gradient op)
 *   masked_loss        task (N) I32, target (N,k), logits...    loss, per_task, dlogits...
 *                      (weighted: target (N,2k), targets, then the weight of each)
 *   mask_sums          z MAP (N,1,H,W), mask IMAGE like z       sums ROWS (N, MDMT_MASK_SUMS)
 *   mask_sums_bwd      dsums, z, mask                           dz
 *   images             (none: reads the step's image sources)   x IMAGE, [mask IMAGE (N,1,H,W)]
 *
 * Semantic ops that exec/lower.c replaces before a graph runs:
 *   batch_norm         x, gamma, beta, rmean, rvar              y
 *   concat             MAPs of one N, H, W                      y, channels one after another
 *   channel_slice      x                                        y (channels from .. from + count)
 *   channel_shuffle    x                                        y (channel g (C / groups) + k of x
 *                                                               becomes k groups + g)
 */
#ifndef MDMT_OPS_ATTRS_H
#define MDMT_OPS_ATTRS_H

#include "../ir/record.h"

typedef struct {
    int stride[2]; /* rows, columns */
    int pad[4];    /* top, left, bottom, right; zeros */
    int dilation[2];
    int groups;
    int kernel[2];  /* bwd_weight only: kh, kw (elsewhere read off w)            */
    int size[2];    /* bwd_data only: H, W of dx                                 */
    int plain;      /* bwd_data, bwd_weight: x is an IMAGE, w a W_STEM           */
    int want_stats; /* conv2d: second output                                     */
    int same;       /* conv2d: pad is set by TensorFlow's rule "SAME" for the size of x:
                       ceil(H / stride) rows, the odd row of zeros at the bottom  */
} MDMT_ATTRS_TYPE mdmt_conv_attrs;

typedef struct {
    int kernel[2], stride[2], pad[4], dilation[2]; /* dilation: max_pool only      */
    int ceil_mode;
    int count_include_pad; /* avg_pool */
    int size[2];           /* _bwd: H, W of dx */
    int want_argmax;       /* max_pool: second output */
} MDMT_ATTRS_TYPE mdmt_pool_attrs;

/* Twice as high and wide, as PyTorch's interpolate with scale_factor 2: "nearest", or
 * "bilinear" without align_corners. */
typedef enum { MDMT_UPSAMPLE_NEAREST, MDMT_UPSAMPLE_BILINEAR } mdmt_upsample_mode;
typedef struct {
    int mode; /* mdmt_upsample_mode */
} MDMT_ATTRS_TYPE mdmt_upsample_attrs;

typedef struct {
    float eps, momentum; /* running = (1 - momentum) running + momentum batch (variance unbiased) */
    int training;        /* 1: batch statistics, running ones updated; 0: running ones */
    int count;           /* bn_fold: elements per channel, N H W                       */
} MDMT_ATTRS_TYPE mdmt_norm_attrs;

typedef struct {
    int act;       /* mdmt_act */
    int training;  /* bn_bwd: statistics depend on x */
    int want_dpre; /* bn_bwd: fourth output, the gradient at the sum before the activation,
                      which the residual branch receives */
} MDMT_ATTRS_TYPE mdmt_act_attrs;

/* channel_gather: y[:, k] = x_i[:, c] with i = number >> 16, c = number & 0xffff for the k-th
 * of the integers that start at graph->number[table]; a negative number gives zeros. */
typedef struct {
    int channels; /* of y */
    int table;
} MDMT_ATTRS_TYPE mdmt_gather_attrs;

typedef struct {
    int from, count; /* channel_slice */
    int groups;      /* channel_shuffle */
} MDMT_ATTRS_TYPE mdmt_channel_attrs;

typedef struct {
    float rate; /* probability of zero; kept elements are scaled by 1 / (1 - rate) */
    int stream; /* which dropout of the net: keys the random numbers */
} MDMT_ATTRS_TYPE mdmt_dropout_attrs;

typedef struct {
    int size[2];  /* global_avg_pool_bwd, flatten_bwd: H, W of dx */
    int channels; /* flatten_bwd: C of dx */
} MDMT_ATTRS_TYPE mdmt_reshape_attrs;

enum { MDMT_MAX_TASKS = 16 };
/* DICE_CE is the loss of a mask: its "logits" in masked_loss are the sums of mask_sums. */
typedef enum {
    MDMT_LOSS_CE,
    MDMT_LOSS_BCE,
    MDMT_LOSS_MSE,
    MDMT_LOSS_ORDINAL,
    MDMT_LOSS_DICE_CE
} mdmt_loss_kind;
/* What mask_sums gives of a sample: with p = sigmoid(z) and the mask t in 0..1, the mean over the
 * pixels of the binary cross-entropy, and the sums of p t, p and t. */
enum { MDMT_MASK_ENTROPY, MDMT_MASK_BOTH, MDMT_MASK_GUESSED, MDMT_MASK_TRUE, MDMT_MASK_SUMS };
typedef enum {
    MDMT_REDUCE_MEAN,          /* sum over samples / samples of the batch          */
    MDMT_REDUCE_PER_TASK_MEAN, /* each task's mean over its own samples, weighted  */
    MDMT_REDUCE_SUM
} mdmt_reduction;
typedef struct {
    int tasks;
    int loss[MDMT_MAX_TASKS];     /* mdmt_loss_kind */
    float weight[MDMT_MAX_TASKS]; /* factor of each task's loss */
    int reduction;                /* mdmt_reduction */
    int want_gradient;            /* outputs 2.. : d loss / d logits */
    int weighted;                 /* target: its columns' weights follow them */
    float smoothing[MDMT_MAX_TASKS]; /* of ce: share of the target spread over all classes */
} MDMT_ATTRS_TYPE mdmt_loss_attrs;

typedef struct {
    int batch, channels, size[2]; /* of the output */
    int augment;                  /* 1: training augmentation */
    int want_mask;                /* second output: the masks of the samples, 0..1 */
    int colour;                   /* 1: some data sets have a plane for each channel */
    float mean[4], std[4];        /* per channel, of values in 0..1 */
} MDMT_ATTRS_TYPE mdmt_images_attrs;

/* bn_bwd with x (N,C,H,W): the gradient at the activation's output is
 *   dz[n,c,h,w] gate[n,c] + pooled[n,c] / (H W),
 * where dz (0), gate (1) and pooled (0) may be absent in that sense: `gate` is the gate that
 * multiplied the activation's output, `pooled` the gradient of its mean over the pixels. `addend`
 * is a gradient of x from elsewhere; dx = addend + this op's own, in place where they share. */
enum {
    MDMT_BN_DZ,
    MDMT_BN_X,
    MDMT_BN_SCALE,
    MDMT_BN_SHIFT,
    MDMT_BN_MEAN,
    MDMT_BN_INVSTD,
    MDMT_BN_Z,
    MDMT_BN_GATE,
    MDMT_BN_POOLED,
    MDMT_BN_ADDEND,
    MDMT_BN_INPUTS
};

extern const mdmt_op_record mdmt_op_conv2d, mdmt_op_conv2d_bwd_data, mdmt_op_conv2d_bwd_weight,
    mdmt_op_channel_sum, mdmt_op_channel_stats, mdmt_op_stats_moments, mdmt_op_batch_norm,
    mdmt_op_bn_fold, mdmt_op_norm_act, mdmt_op_bn_bwd, mdmt_op_act, mdmt_op_act_bwd, mdmt_op_add,
    mdmt_op_gate, mdmt_op_gate_bwd, mdmt_op_channel_gather, mdmt_op_zeros, mdmt_op_concat,
    mdmt_op_channel_slice, mdmt_op_channel_shuffle, mdmt_op_max_pool, mdmt_op_max_pool_bwd,
    mdmt_op_avg_pool, mdmt_op_avg_pool_bwd, mdmt_op_upsample, mdmt_op_upsample_bwd,
    mdmt_op_mask_sums, mdmt_op_mask_sums_bwd, mdmt_op_global_avg_pool, mdmt_op_global_avg_pool_bwd,
    mdmt_op_flatten, mdmt_op_flatten_bwd, mdmt_op_linear, mdmt_op_linear_bwd_data,
    mdmt_op_linear_bwd_weight, mdmt_op_dropout, mdmt_op_masked_loss, mdmt_op_images;

#endif
