/* One pixel of one channel block: sixteen float lanes, as one AVX-512 register,
 * a pair of AVX2 registers or four of NEON. The memory-bound passes are written once
 * on these and compiled for each instruction set; each sum is taken in the same order
 * in all. Included by files compiled for one of them only. */
#ifndef MDMT_CPU_LANES_H
#define MDMT_CPU_LANES_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdint.h>

#include "kernels.h"
#include "map_type.h"
#include "streams.h"

#define MDMT_INLINE            static inline __attribute__((always_inline))
#define MDMT_PASTE_(name, isa) name##__##isa
#define MDMT_PASTE(name, isa)  MDMT_PASTE_(name, isa)
#define MDMT_TEXT_(name)       #name
#define MDMT_TEXT(name)        MDMT_TEXT_(name)
/* MDMT_KERNEL(mdmt_f32_add) is mdmt_f32_add__avx512. */
#define MDMT_KERNEL(name)      MDMT_PASTE(name, MDMT_LANES_ISA)
#define MDMT_KERNEL_TEXT(name) MDMT_TEXT(MDMT_KERNEL(name))

#if defined(__AVX512F__)

#define MDMT_LANES_ISA   avx512
#define MDMT_LANES_LEVEL MDMT_ISA_AVX512
#define MDMT_REGISTERS   32 /* of this size, in all */
typedef __m512 lanes;
typedef __mmask16 lanes_mask;
typedef __m128i lane_bytes; /* one byte a lane */

MDMT_INLINE lanes lanes_load_float(const float *p)
{
    return _mm512_loadu_ps(p);
}
MDMT_INLINE void lanes_store_float(float *p, lanes v)
{
    _mm512_storeu_ps(p, v);
}
/* Past the caches; p 64-byte aligned. */
MDMT_INLINE void lanes_stream_float(float *p, lanes v)
{
    _mm512_stream_ps(p, v);
}
MDMT_INLINE lanes lanes_set(float v)
{
    return _mm512_set1_ps(v);
}
MDMT_INLINE lanes lanes_zero(void)
{
    return _mm512_setzero_ps();
}
MDMT_INLINE lanes lanes_add(lanes a, lanes b)
{
    return _mm512_add_ps(a, b);
}
MDMT_INLINE lanes lanes_sub(lanes a, lanes b)
{
    return _mm512_sub_ps(a, b);
}
MDMT_INLINE lanes lanes_mul(lanes a, lanes b)
{
    return _mm512_mul_ps(a, b);
}
MDMT_INLINE lanes lanes_div(lanes a, lanes b)
{
    return _mm512_div_ps(a, b);
}
MDMT_INLINE lanes lanes_sqrt(lanes a)
{
    return _mm512_sqrt_ps(a);
}
/* a * b + c, rounded once. */
MDMT_INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* c - a * b, rounded once. */
MDMT_INLINE lanes lanes_fnma(lanes a, lanes b, lanes c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* max(0, v); a NaN stays a NaN. */
MDMT_INLINE lanes lanes_relu(lanes v)
{
    return _mm512_max_ps(_mm512_setzero_ps(), v);
}
/* v where y > 0, else 0. */
MDMT_INLINE lanes lanes_where_positive(lanes y, lanes v)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ), v);
}
/* Where a > b or a is a NaN. */
MDMT_INLINE lanes_mask lanes_above(lanes a, lanes b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}
/* a where the mask is set, else b. */
MDMT_INLINE lanes lanes_select(lanes_mask mask, lanes a, lanes b)
{
    return _mm512_mask_mov_ps(b, mask, a);
}
MDMT_INLINE lane_bytes lane_bytes_set(int v)
{
    return _mm_set1_epi8((char)v);
}
MDMT_INLINE lane_bytes lane_bytes_add(lane_bytes a, int v)
{
    return _mm_add_epi8(a, _mm_set1_epi8((char)v));
}
MDMT_INLINE lane_bytes lane_bytes_select(lanes_mask mask, lane_bytes a, lane_bytes b)
{
    return _mm_mask_mov_epi8(b, mask, a);
}
MDMT_INLINE lane_bytes lane_bytes_load(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
MDMT_INLINE void lane_bytes_store(uint8_t *p, lane_bytes v)
{
    _mm_storeu_si128((__m128i *)(void *)p, v);
}
/* v where the byte equals k, else 0. */
MDMT_INLINE lanes lanes_where_equal(lane_bytes bytes, lane_bytes k, lanes v)
{
    return _mm512_maskz_mov_ps(_mm_cmpeq_epi8_mask(bytes, k), v);
}
/* sum[l] += v[l] */
MDMT_INLINE void lanes_accumulate(double *sum, lanes v)
{
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    _mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), low));
    _mm512_storeu_pd(sum + 8, _mm512_add_pd(_mm512_loadu_pd(sum + 8), high));
}

#elif defined(__AVX2__)

#define MDMT_LANES_ISA   avx2
#define MDMT_LANES_LEVEL MDMT_ISA_AVX2
#define MDMT_REGISTERS   16
typedef struct {
    __m256 a, b;
} lanes;
typedef lanes lanes_mask;
typedef struct {
    __m256i a, b;
} lane_bytes; /* one byte a lane, held in 32 bits */

#define MDMT_EACH(expression_a, expression_b) ((lanes){(expression_a), (expression_b)})

MDMT_INLINE lanes lanes_load_float(const float *p)
{
    return MDMT_EACH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
MDMT_INLINE void lanes_store_float(float *p, lanes v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
/* Past the caches; p 64-byte aligned: both halves of a line, one after the other. */
MDMT_INLINE void lanes_stream_float(float *p, lanes v)
{
    _mm256_stream_ps(p, v.a);
    _mm256_stream_ps(p + 8, v.b);
}
MDMT_INLINE lanes lanes_set(float v)
{
    return MDMT_EACH(_mm256_set1_ps(v), _mm256_set1_ps(v));
}
MDMT_INLINE lanes lanes_zero(void)
{
    return MDMT_EACH(_mm256_setzero_ps(), _mm256_setzero_ps());
}
MDMT_INLINE lanes lanes_add(lanes x, lanes y)
{
    return MDMT_EACH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}
MDMT_INLINE lanes lanes_sub(lanes x, lanes y)
{
    return MDMT_EACH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}
MDMT_INLINE lanes lanes_mul(lanes x, lanes y)
{
    return MDMT_EACH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}
MDMT_INLINE lanes lanes_div(lanes x, lanes y)
{
    return MDMT_EACH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}
MDMT_INLINE lanes lanes_sqrt(lanes x)
{
    return MDMT_EACH(_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b));
}
/* x * y + z, rounded once. */
MDMT_INLINE lanes lanes_fma(lanes x, lanes y, lanes z)
{
    return MDMT_EACH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
/* z - x * y, rounded once. */
MDMT_INLINE lanes lanes_fnma(lanes x, lanes y, lanes z)
{
    return MDMT_EACH(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
/* max(0, v); a NaN stays a NaN. */
MDMT_INLINE lanes lanes_relu(lanes v)
{
    __m256 zero = _mm256_setzero_ps();
    return MDMT_EACH(_mm256_max_ps(zero, v.a), _mm256_max_ps(zero, v.b));
}
/* v where y > 0, else 0. */
MDMT_INLINE lanes lanes_where_positive(lanes y, lanes v)
{
    __m256 zero = _mm256_setzero_ps();
    return MDMT_EACH(_mm256_and_ps(_mm256_cmp_ps(y.a, zero, _CMP_GT_OQ), v.a),
                     _mm256_and_ps(_mm256_cmp_ps(y.b, zero, _CMP_GT_OQ), v.b));
}
/* Where x > y or x is a NaN. */
MDMT_INLINE lanes_mask lanes_above(lanes x, lanes y)
{
    return MDMT_EACH(
        _mm256_or_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)),
        _mm256_or_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)));
}
/* x where the mask is set, else y. */
MDMT_INLINE lanes lanes_select(lanes_mask mask, lanes x, lanes y)
{
    return MDMT_EACH(_mm256_blendv_ps(y.a, x.a, mask.a), _mm256_blendv_ps(y.b, x.b, mask.b));
}
MDMT_INLINE lane_bytes lane_bytes_set(int v)
{
    return (lane_bytes){_mm256_set1_epi32(v), _mm256_set1_epi32(v)};
}
MDMT_INLINE lane_bytes lane_bytes_add(lane_bytes x, int v)
{
    __m256i all = _mm256_set1_epi32(v);
    return (lane_bytes){_mm256_add_epi32(x.a, all), _mm256_add_epi32(x.b, all)};
}
MDMT_INLINE lane_bytes lane_bytes_select(lanes_mask mask, lane_bytes x, lane_bytes y)
{
    return (lane_bytes){_mm256_blendv_epi8(y.a, x.a, _mm256_castps_si256(mask.a)),
                        _mm256_blendv_epi8(y.b, x.b, _mm256_castps_si256(mask.b))};
}
MDMT_INLINE lane_bytes lane_bytes_load(const uint8_t *p)
{
    __m128i all = _mm_loadu_si128((const __m128i *)(const void *)p);
    return (lane_bytes){_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}
MDMT_INLINE void lane_bytes_store(uint8_t *p, lane_bytes v)
{
    __m256i words = _mm256_packus_epi32(v.a, v.b); /* a0-3 b0-3 a4-7 b4-7 */
    words = _mm256_permute4x64_epi64(words, 0xD8);
    __m128i bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)p, bytes);
}
/* v where the byte equals k, else 0. */
MDMT_INLINE lanes lanes_where_equal(lane_bytes bytes, lane_bytes k, lanes v)
{
    return MDMT_EACH(_mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bytes.a, k.a)), v.a),
                     _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bytes.b, k.b)), v.b));
}
/* sum[l] += v[l] */
MDMT_INLINE void lanes_accumulate(double *sum, lanes v)
{
    __m256 half[2] = {v.a, v.b};
    for (int i = 0; i < 2; i++) {
        __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(half[i]));
        __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(half[i], 1));
        double *to = sum + 8 * i;
        _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), low));
        _mm256_storeu_pd(to + 4, _mm256_add_pd(_mm256_loadu_pd(to + 4), high));
    }
}

#elif defined(__aarch64__)
#include "lanes_neon.h"
#endif

/* lanes_load, lanes_store and lanes_stream take pointers to floats and to what MAPs hold. */
#ifdef MDMT_BF16_MAPS
MDMT_INLINE lanes lanes_load_bf16(const uint16_t *p)
{
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
MDMT_INLINE void lanes_store_bf16(uint16_t *p, lanes v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh(v));
}
MDMT_INLINE void lanes_stream_bf16(uint16_t *p, lanes v)
{
    _mm256_stream_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh(v));
}
#define LANES_FOR(p, what)                                                                          \
    _Generic((p), const uint16_t *: what##_bf16, uint16_t *: what##_bf16, default: what##_float)
#else
#define LANES_FOR(p, what) what##_float
#endif
#define lanes_load(p)      LANES_FOR(p, lanes_load)(p)
#define lanes_store(p, v)  LANES_FOR(p, lanes_store)(p, v)
#define lanes_stream(p, v) LANES_FOR(p, lanes_stream)(p, v)
/* MDMT_MAP_KERNEL(add) is mdmt_f32_add__avx512, or mdmt_bf16_add__avx512 for MAPs of bfloat16. */
#define MDMT_MAP_KERNEL(name)       MDMT_KERNEL(MDMT_MAP_NAME(MDMT_MAP_TYPE, name))
#define MDMT_MAP_KERNEL_TEXT(name)  MDMT_TEXT(MDMT_MAP_KERNEL(name))

/* Whether a result of `pixels` blocks of lanes at `to` is better written past the
 * caches: it is larger than what they would keep of it until it is read. Only for
 * one that does not lie over an argument. */
static inline int lanes_streams(int64_t pixels, const map_float *to)
{
    const int64_t least = 2 << 20; /* bytes */
    return pixels * MDMT_BLOCK * (int64_t)sizeof(map_float) >= least && (uintptr_t)to % MDMT_ALIGN == 0;
}

/* Past the caches where `stream`, a constant, says so. */
MDMT_INLINE void lanes_put(map_float *p, lanes v, int stream)
{
    if (stream) {
        lanes_stream(p, v);
    } else {
        lanes_store(p, v);
    }
}

/* Asks for the line of p to be in L1 soon; p may lie beyond the tensor. */
MDMT_INLINE void lanes_fetch(const void *p)
{
    __builtin_prefetch(p);
}

/* Per-channel vectors of a value that is normalised while it is loaded. */
typedef struct {
    lanes scale, shift;
} lanes_affine;

MDMT_INLINE lanes_affine lanes_affine_load(const float *scale, const float *shift, int block)
{
    return (lanes_affine){lanes_load(scale + (ptrdiff_t)block * MDMT_BLOCK),
                          lanes_load(shift + (ptrdiff_t)block * MDMT_BLOCK)};
}

MDMT_INLINE lanes lanes_apply(lanes_affine affine, lanes v)
{
    return lanes_fma(v, affine.scale, affine.shift);
}

#endif
