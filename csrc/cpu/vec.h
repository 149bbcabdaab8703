/* One vector register of floats with partial loads and stores, for code that is
 * written once for all instruction sets and does not care how wide it is. Included
 * by files compiled for one of them only. */
#ifndef MDMT_CPU_VEC_H
#define MDMT_CPU_VEC_H

#include "lanes.h"

#if defined(__AVX512F__)

enum { VEC = 16 }; /* floats */
typedef __m512 vec;
typedef __mmask16 vec_mask;

/* The first n lanes, 0 <= n <= VEC. */
MDMT_INLINE vec_mask vec_first(int n)
{
    return (vec_mask)((1u << n) - 1u);
}
/* The lanes of the mask; zeros elsewhere, whose memory is not touched. */
MDMT_INLINE vec vec_load(vec_mask mask, const float *p)
{
    return _mm512_maskz_loadu_ps(mask, p);
}
MDMT_INLINE void vec_store(vec_mask mask, float *p, vec v)
{
    _mm512_mask_storeu_ps(p, mask, v);
}
MDMT_INLINE vec vec_set(float v)
{
    return _mm512_set1_ps(v);
}
/* a * b + c, rounded once. */
MDMT_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* The sum of all lanes: halves onto each other, always in the same order. */
MDMT_INLINE float vec_sum(vec v)
{
    return _mm512_reduce_add_ps(v);
}

#elif defined(__AVX2__)

enum { VEC = 8 }; /* floats */
typedef __m256 vec;
typedef __m256i vec_mask;

MDMT_INLINE vec_mask vec_first(int n)
{
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(const void *)(ones + 8 - n));
}
MDMT_INLINE vec vec_load(vec_mask mask, const float *p)
{
    return _mm256_maskload_ps(p, mask);
}
MDMT_INLINE void vec_store(vec_mask mask, float *p, vec v)
{
    _mm256_maskstore_ps(p, mask, v);
}
MDMT_INLINE vec vec_set(float v)
{
    return _mm256_set1_ps(v);
}
MDMT_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
MDMT_INLINE float vec_sum(vec v)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

#elif defined(__aarch64__)

enum { VEC = 4 }; /* floats */
typedef float32x4_t vec;
typedef int vec_mask; /* how many */

MDMT_INLINE vec_mask vec_first(int n)
{
    return n;
}
MDMT_INLINE vec vec_load(vec_mask mask, const float *p)
{
    return neon_load_first(p, mask);
}
MDMT_INLINE void vec_store(vec_mask mask, float *p, vec v)
{
    neon_store_first(p, mask, v);
}
MDMT_INLINE vec vec_set(float v)
{
    return vdupq_n_f32(v);
}
MDMT_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}
MDMT_INLINE float vec_sum(vec v)
{
    const float32x2_t half = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
}

#endif
#endif
