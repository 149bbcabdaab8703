/* Where an element lies in the layouts of cpu.h: for code that prefers being
 * obviously right to being fast. Element offsets, not bytes. */
#ifndef MDMT_CPU_ACCESS_H
#define MDMT_CPU_ACCESS_H

#include <math.h>
#include <stddef.h>

#include "cpu.h"

/* Strides of an IMAGE, a MAP, or ROWS seen as (N, F, 1, 1). Channel c lies at
 * (c / 16) * block + (c % 16) * lane. */
typedef struct {
    int n, c, h, w;
    int padded; /* channels with the padding lanes */
    size_t sample, block, lane, row, column;
} mdmt_view;

static inline mdmt_view mdmt_view_of(const mdmt_tensor *tensor)
{
    mdmt_view v = {.n = tensor->dim[0], .c = tensor->dims > 1 ? tensor->dim[1] : 1, .h = 1, .w = 1};
    if (tensor->dims == 4) {
        v.h = tensor->dim[2];
        v.w = tensor->dim[3];
    }
    size_t area = (size_t)v.h * (size_t)v.w;
    if (tensor->kind == MDMT_MAP) {
        v.padded = mdmt_blocks(v.c) * MDMT_BLOCK;
        v.lane = 1;
        v.column = MDMT_BLOCK;
    } else {
        v.padded = v.c;
        v.lane = area;
        v.column = 1;
    }
    v.row = (size_t)v.w * v.column;
    v.block = area * MDMT_BLOCK;
    v.sample = tensor->kind == MDMT_MAP ? mdmt_map_sample(tensor) : area * (size_t)v.padded;
    return v;
}

static inline size_t mdmt_at(const mdmt_view *v, int n, int c, int h, int w)
{
    return (size_t)n * v->sample + (size_t)(c / MDMT_BLOCK) * v->block +
           (size_t)(c % MDMT_BLOCK) * v->lane + (size_t)h * v->row + (size_t)w * v->column;
}

/* Strides of the weights of a convolution: output and input channels in blocks
 * of 16 as above, `tap` from one kernel position (row-major) to the next. */
typedef struct {
    int o, i, kh, kw; /* i: per group */
    int padded_o, padded_i;
    size_t o_block, o_lane, i_block, i_lane, tap;
} mdmt_weight_view;

static inline mdmt_weight_view mdmt_weight_view_of(const mdmt_tensor *tensor)
{
    const int *dim = tensor->dim;
    mdmt_weight_view v = {.o = dim[0], .i = dim[1], .kh = dim[2], .kw = dim[3]};
    size_t taps = (size_t)v.kh * (size_t)v.kw;
    v.padded_o = mdmt_blocks(v.o) * MDMT_BLOCK;
    v.padded_i = v.i;
    v.o_lane = 1;
    v.tap = MDMT_BLOCK;
    switch (tensor->kind) {
    case MDMT_W_DENSE:
        v.padded_i = mdmt_blocks(v.i) * MDMT_BLOCK;
        v.tap = (size_t)MDMT_BLOCK * MDMT_BLOCK;
        v.i_lane = MDMT_BLOCK;
        v.i_block = taps * v.tap;
        break;
    case MDMT_W_STEM:
    case MDMT_W_DEPTH:
        v.i_lane = taps * v.tap;
        v.i_block = v.i_lane * MDMT_BLOCK;
        break;
    default: /* MDMT_W_GROUPED: plain */
        v.padded_o = v.o;
        v.tap = 1;
        v.i_lane = taps;
        v.i_block = taps * MDMT_BLOCK;
        v.o_lane = (size_t)v.i * taps;
        v.o_block = v.o_lane * MDMT_BLOCK;
        return v;
    }
    v.o_block = taps * MDMT_BLOCK * (size_t)v.padded_i;
    return v;
}

/* Of the weight of output channel o, input channel i of its group, tap r, s. */
static inline size_t mdmt_weight_at(const mdmt_weight_view *v, int o, int i, int r, int s)
{
    return (size_t)(o / MDMT_BLOCK) * v->o_block + (size_t)(o % MDMT_BLOCK) * v->o_lane +
           (size_t)(i / MDMT_BLOCK) * v->i_block + (size_t)(i % MDMT_BLOCK) * v->i_lane +
           (size_t)(r * v->kw + s) * v->tap;
}

/* NaN passes through, as in PyTorch. */
static inline double mdmt_activate(mdmt_act act, double x)
{
    switch (act) {
    case MDMT_ACT_RELU:
        return x <= 0 ? 0.0 : x;
    case MDMT_ACT_RELU6:
        return x <= 0 ? 0.0 : x >= 6 ? 6.0 : x;
    case MDMT_ACT_SILU:
        return x / (1 + exp(-x));
    case MDMT_ACT_SIGMOID:
        return 1 / (1 + exp(-x));
    case MDMT_ACT_HARDSWISH:
        return x <= -3 ? 0.0 : x >= 3 ? x : x * (x + 3) / 6;
    case MDMT_ACT_HARDSIGMOID:
        return x <= -3 ? 0.0 : x >= 3 ? 1.0 : (x + 3) / 6;
    default:
        return x;
    }
}

/* act'(x) where mdmt_act_needs_input, else the derivative from v = act(x). At the kinks as
 * PyTorch: 0 for ReLU at 0, ReLU6 at 0 and 6, the hard sigmoid at -3 and 3; the hard swish has
 * 0 at -3 and 1 at 3. */
static inline double mdmt_activate_slope(mdmt_act act, double v)
{
    double s;
    switch (act) {
    case MDMT_ACT_RELU:
        return v > 0;
    case MDMT_ACT_RELU6:
        return v > 0 && v < 6;
    case MDMT_ACT_SILU:
        s = 1 / (1 + exp(-v));
        return s * (1 + v * (1 - s));
    case MDMT_ACT_SIGMOID:
        return v * (1 - v);
    case MDMT_ACT_HARDSWISH:
        return v <= -3 ? 0.0 : v >= 3 ? 1.0 : (2 * v + 3) / 6;
    case MDMT_ACT_HARDSIGMOID:
        return v > 0 && v < 1 ? 1.0 / 6 : 0.0;
    default:
        return 1;
    }
}

/* Element `at` of channel c of an argument that may be lazy, without its gate. */
static inline double mdmt_load(const mdmt_value *value, size_t at, int c)
{
    double x = ((const float *)value->data)[at];
    if (value->scale) {
        x = mdmt_activate(value->act, (double)value->scale[c] * x + (double)value->shift[c]);
    }
    return x;
}

/* The gate of channel c (of `channels`) of sample n, or 1. */
static inline double mdmt_gate_of(const mdmt_value *value, int n, int c, int channels)
{
    return value->gate ? value->gate[(size_t)n * (size_t)channels + (size_t)c] : 1.0;
}

static inline int mdmt_lanes(int channels, int block)
{
    int left = channels - block * MDMT_BLOCK;
    return left < MDMT_BLOCK ? left : MDMT_BLOCK;
}

/* Writes the first `lanes` of a block of 16 channels at one pixel, and zeros
 * beyond them where the layout has padding. */
static inline void mdmt_store_block(const mdmt_view *v, float *data, int n, int block, int h, int w,
                                    const double *value, int lanes)
{
    float *to = data + mdmt_at(v, n, block * MDMT_BLOCK, h, w);
    for (int lane = 0; lane < lanes; lane++) {
        to[(size_t)lane * v->lane] = (float)value[lane];
    }
    for (int lane = lanes; block * MDMT_BLOCK + lane < v->padded && lane < MDMT_BLOCK; lane++) {
        to[(size_t)lane * v->lane] = 0.0f;
    }
}

/* Data of an optional argument, or NULL where the op was given fewer or none. */
static inline void *mdmt_optional_in(const mdmt_site *site, const mdmt_call *call, int i)
{
    return i < site->op->inputs && site->in[i] ? call->in[i].data : NULL;
}

static inline void *mdmt_optional_out(const mdmt_site *site, const mdmt_call *call, int i)
{
    return i < site->op->outputs && site->out[i] ? call->out[i] : NULL;
}

/* Position in the input of a window's tap, or -1 where it falls on padding. */
static inline int mdmt_tap(int out, int stride, int pad, int tap, int dilation, int size)
{
    int at = out * stride - pad + tap * dilation;
    return at >= 0 && at < size ? at : -1;
}

/* The window whose tap lies on input position `in`, or -1. */
static inline int mdmt_window(int in, int stride, int pad, int tap, int dilation, int windows)
{
    int at = in + pad - tap * dilation;
    return at >= 0 && at % stride == 0 && at / stride < windows ? at / stride : -1;
}

#endif
