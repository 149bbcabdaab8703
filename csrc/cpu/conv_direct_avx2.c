/* Inner kernels of direct convolution for AVX2: 6 pixels x 2 vectors of 8
 * outputs (one block), 12 accumulators; one broadcast load feeds two
 * multiply-adds. */
typedef int mdmt_conv_direct_avx2_unit; /* a unit is never empty */

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

#include "conv_direct.h"
#include "kernels.h"

#define VEC             __m256
#define VL              8
#define VZERO()         _mm256_setzero_ps()
#define VLOAD(p)        _mm256_loadu_ps(p)
#define VSTORE(p, v)    _mm256_storeu_ps(p, v)
#define VSTREAM(p, v)   _mm256_stream_ps(p, v)
#define VSET1(f)        _mm256_set1_ps(f)
#define VFMA(a, b, c)   _mm256_fmadd_ps(a, b, c)
#define VDOT(a, b, c)   VFMA(a, b, c)
#define VTAKE(p)        VLOAD(p)
#define VPUT(p, v)      VSTORE(p, v)
#define VPUT_PAST(p, v) VSTREAM(p, v)
#define VADD(a, b)      _mm256_add_ps(a, b)
#define VSUB(a, b)      _mm256_sub_ps(a, b)
#define VMAX(a, b)      _mm256_max_ps(a, b)

#include "conv_tile.h"

#include "conv_stage_tile.h"

#include "conv_tile_narrow.h"

/* 8 x 8 floats, rows at distance 16. */
static void transpose_quarter(float *dst, const float *src)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) {
        r[i] = _mm256_loadu_ps(src + 16 * i);
    }
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    /* r[4 g + j] holds, in lane l, source rows 4 g .. 4 g + 3 of column 4 l + j. */
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_ps(dst + 16 * j, _mm256_permute2f128_ps(r[j], r[j + 4], 0x20));
        _mm256_storeu_ps(dst + 16 * (j + 4), _mm256_permute2f128_ps(r[j], r[j + 4], 0x31));
    }
}

static void transpose_block(float *dst, const float *src)
{
    transpose_quarter(dst, src);
    transpose_quarter(dst + 8, src + 8 * 16);
    transpose_quarter(dst + 8 * 16, src + 8);
    transpose_quarter(dst + 8 * 16 + 8, src + 8 * 16 + 8);
}

static const mdmt_conv_micro micro = {
    .floats_per_cycle = 16,
    .stage = stage_pixels,
    .stage_any = mdmt_f32_conv_load__avx2,
    .fence = end_stores,
    .transpose = transpose_block,
    .accumulate = accumulate_floats,
    NARROW_TILE_SET,
};

#define ISA      avx2
#define ISA_ENUM MDMT_ISA_AVX2
#define DTYPE    f32
#define IS_BF16  0
#define DIRECT   1
#define STEM     1
#include "conv_impl.h"

#endif
