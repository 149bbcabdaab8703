/* Inner kernels of direct convolution for AVX-512: 14 pixels x 2 vectors of 16
 * outputs, 28 accumulators; one broadcast load feeds two multiply-adds. */
typedef int mdmt_conv_direct_avx512_unit; /* a unit is never empty */

#if defined(__AVX512F__)

#include "conv_direct.h"
#include "conv_vector_512.h"
#include "kernels.h"

#define VDOT(a, b, c)   VFMA(a, b, c)
#define VTAKE(p)        VLOAD(p)
#define VPUT(p, v)      VSTORE(p, v)
#define VPUT_PAST(p, v) VSTREAM(p, v)

#include "conv_tile.h"

#include "conv_stage_tile.h"

#define PIXEL 16
#include "conv_tile_set.h"

#include "conv_stem_set.h"

/* 16 x 16: pairs, quads, then 128-bit lanes are interleaved. */
static void transpose_block(float *dst, const float *src)
{
    __m512 r[16], t[16];
    for (int i = 0; i < 16; i++) {
        r[i] = _mm512_loadu_ps(src + 16 * i);
    }
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm512_castpd_ps(
                _mm512_unpacklo_pd(_mm512_castps_pd(t[i + k]), _mm512_castps_pd(t[i + k + 2])));
            r[i + 2 * k + 1] = _mm512_castpd_ps(
                _mm512_unpackhi_pd(_mm512_castps_pd(t[i + k]), _mm512_castps_pd(t[i + k + 2])));
        }
    }
    /* r[4 g + j] holds, in lane l, source rows 4 g .. 4 g + 3 of column 4 l + j. */
    for (int j = 0; j < 4; j++) {
        __m512 a = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
        __m512 b = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
        __m512 d = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
        _mm512_storeu_ps(dst + 16 * j, _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(dst + 16 * (j + 4), _mm512_shuffle_f32x4(b, d, 0x88));
        _mm512_storeu_ps(dst + 16 * (j + 8), _mm512_shuffle_f32x4(a, c, 0xdd));
        _mm512_storeu_ps(dst + 16 * (j + 12), _mm512_shuffle_f32x4(b, d, 0xdd));
    }
}

static const mdmt_conv_micro micro = {
    .floats_per_cycle = 32,
    .pixel = MDMT_BLOCK,
    TILE_SET,
    STEM_SET,
    .stage = stage_pixels,
    .stage_any = mdmt_f32_conv_load__avx512,
    .fence = end_stores,
    .transpose = transpose_block,
    .accumulate = accumulate_floats,
};

#define ISA      avx512
#define ISA_ENUM MDMT_ISA_AVX512
#define DTYPE    f32
#define IS_BF16  0
#define DIRECT   1
#define STEM     1
#include "conv_impl.h"

#endif
