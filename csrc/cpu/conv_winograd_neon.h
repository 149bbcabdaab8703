/* The vectors of conv_winograd_vector.h for NEON. For that file only. */
#ifndef MDMT_CPU_CONV_WINOGRAD_NEON_H
#define MDMT_CPU_CONV_WINOGRAD_NEON_H

#include <arm_neon.h>
#include <stddef.h>

#include "transpose_neon.h"

typedef float32x4_t vec;
enum { VW = 4, VPB = 4, GEMM_VECTORS = 4, TILE_ROWS = 6 };
INLINE vec load(const float *p)
{
    return vld1q_f32(p);
}
INLINE void store(float *p, vec a)
{
    vst1q_f32(p, a);
}
INLINE void store_past(float *p, vec a)
{
    vst1q_f32(p, a);
}
INLINE vec set1(float a)
{
    return vdupq_n_f32(a);
}
INLINE vec zero(void)
{
    return vdupq_n_f32(0.0f);
}
INLINE vec add(vec a, vec b)
{
    return vaddq_f32(a, b);
}
INLINE vec sub(vec a, vec b)
{
    return vsubq_f32(a, b);
}
INLINE vec mul(vec a, vec b)
{
    return vmulq_f32(a, b);
}
INLINE vec max(vec a, vec b)
{
    return vmaxq_f32(a, b);
}
/* a * b + c, c - a * b */
INLINE vec madd(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}
INLINE vec nmadd(vec a, vec b, vec c)
{
    return vfmsq_f32(c, a, b);
}

/* 16 x 16 floats of `from`, transposed into `to`. */
INLINE void transpose(const float *from, float *to)
{
    neon_transpose_block(to, from);
}

#endif
