/* The vector type of the file that includes this: __m512, __m256 or float32x4_t. A block
 * of 16 channels is VPB vectors; products take up to GEMM_VECTORS of them at once. MAPs
 * are map_float (map_type.h); all else is floats. For the conv_winograd_<isa>.c files only. */
#ifndef MDMT_CPU_CONV_WINOGRAD_VECTOR_H
#define MDMT_CPU_CONV_WINOGRAD_VECTOR_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "map_type.h"
#include "streams.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

typedef __m512 vec;
enum { VW = 16, VPB = 1, GEMM_VECTORS = 2, TILE_ROWS = 14 };
INLINE vec load(const float *p)
{
    return _mm512_load_ps(p);
}
INLINE void store(float *p, vec a)
{
    _mm512_store_ps(p, a);
}
/* Past the caches; whole lines only pay. */
INLINE void store_past(float *p, vec a)
{
    _mm512_stream_ps(p, a);
}
INLINE vec set1(float a)
{
    return _mm512_set1_ps(a);
}
INLINE vec zero(void)
{
    return _mm512_setzero_ps();
}
INLINE vec add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
INLINE vec sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vec mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vec max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
/* a * b + c, c - a * b */
INLINE vec madd(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vec nmadd(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

/* 16 x 16 floats of `from`, transposed into `to`. */
INLINE void transpose(const float *from, float *to)
{
    vec r[16], s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        r[i] = load(from + 16 * i);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        __m512d a = _mm512_castps_pd(s[i]), b = _mm512_castps_pd(s[i + 1]);
        __m512d c = _mm512_castps_pd(s[i + 2]), d = _mm512_castps_pd(s[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        vec a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        vec b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        vec c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        vec d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
        store(to + 16 * i, _mm512_shuffle_f32x4(a, c, 0x88));
        store(to + 16 * (i + 8), _mm512_shuffle_f32x4(a, c, 0xdd));
        store(to + 16 * (i + 4), _mm512_shuffle_f32x4(b, d, 0x88));
        store(to + 16 * (i + 12), _mm512_shuffle_f32x4(b, d, 0xdd));
    }
}

#elif defined(__AVX2__)

typedef __m256 vec;
enum { VW = 8, VPB = 2, GEMM_VECTORS = 2, TILE_ROWS = 6 };
INLINE vec load(const float *p)
{
    return _mm256_load_ps(p);
}
INLINE void store(float *p, vec a)
{
    _mm256_store_ps(p, a);
}
/* Half lines would be slower past the caches. */
INLINE void store_past(float *p, vec a)
{
    _mm256_store_ps(p, a);
}
INLINE vec set1(float a)
{
    return _mm256_set1_ps(a);
}
INLINE vec zero(void)
{
    return _mm256_setzero_ps();
}
INLINE vec add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
INLINE vec sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vec mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vec max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
/* a * b + c, c - a * b */
INLINE vec madd(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vec nmadd(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

/* 8 x 8 floats of rows of 16. */
INLINE void transpose8(const float *from, float *to)
{
    vec r[8], s[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++) {
        r[i] = load(from + 16 * i);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        store(to + 16 * i, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        store(to + 16 * (i + 4), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

/* 16 x 16 floats of `from`, transposed into `to`. */
INLINE void transpose(const float *from, float *to)
{
    transpose8(from, to);
    transpose8(from + 8, to + 128);
    transpose8(from + 128, to + 8);
    transpose8(from + 136, to + 136);
}

#elif defined(__aarch64__)
#include "conv_winograd_neon.h"
#endif

/* ---- MAPs ---- */

#ifdef MDMT_BF16_MAPS

INLINE vec load_map(const map_float *p)
{
    const __m256i bits = _mm256_load_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
/* `count` pixels of a row, two of which are a line; past the caches only where
 * the first begins one. */
INLINE void store_map(map_float *p, const vec *a, int count, int past)
{
#pragma GCC unroll 16
    for (int i = 0; i + 1 < count; i += 2) {
        const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(a[i + 1], a[i]);
        if (past) {
            _mm512_stream_si512((__m512i *)(void *)(p + i * 16), pair);
        } else {
            _mm512_storeu_si512(p + i * 16, pair);
        }
    }
    if (count & 1) {
        const __m256i last = (__m256i)_mm512_cvtneps_pbh(a[count - 1]);
        if (past) {
            _mm256_stream_si256((__m256i *)(void *)(p + (count - 1) * 16), last);
        } else {
            _mm256_store_si256((__m256i *)(void *)(p + (count - 1) * 16), last);
        }
    }
}

#else

INLINE vec load_map(const map_float *p)
{
    return load(p);
}
/* `count` pixels of a row. */
INLINE void store_map(map_float *p, const vec *a, int count, int past)
{
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) {
        if (past) {
            store_past(p + i * 16, a[i]);
        } else {
            store(p + i * 16, a[i]);
        }
    }
}

#endif
#endif
