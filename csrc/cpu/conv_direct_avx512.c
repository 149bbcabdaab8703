/* Inner kernels of direct convolution for AVX-512: 14 pixels x 2 vectors of 16
 * outputs, 28 accumulators; one broadcast load feeds two multiply-adds. */
typedef int mdmt_conv_direct_avx512_unit; /* a unit is never empty */

#if defined(__AVX512F__)

#include <immintrin.h>

#include "conv_direct.h"
#include "kernels.h"

#define VEC           __m512
#define VL            16
#define VZERO()       _mm512_setzero_ps()
#define VLOAD(p)      _mm512_loadu_ps(p)
#define VSTORE(p, v)  _mm512_storeu_ps(p, v)
#define VSTREAM(p, v) _mm512_stream_ps(p, v)
#define VSET1(f)      _mm512_set1_ps(f)
#define VFMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define VDOT(a, b, c) VFMA(a, b, c)
#define VADD(a, b)    _mm512_add_ps(a, b)
#define VSUB(a, b)    _mm512_sub_ps(a, b)
#define VMAX(a, b)    _mm512_max_ps(a, b)

#include "conv_tile.h"

#include "conv_stage_tile.h"

#define TILES(columns)                                                                             \
    DEFINE_TILE(tile_1_##columns, 1, columns, 1, 16)                                               \
    DEFINE_TILE(tile_2_##columns, 1, columns, 2, 16)                                               \
    DEFINE_TILE(stem_1_##columns, 1, columns, 1, 1)                                                \
    DEFINE_TILE(stem_2_##columns, 1, columns, 2, 1)
#define PAIRS(columns)                                                                             \
    DEFINE_TILE(pair_1_##columns, 2, columns, 1, 16)                                               \
    DEFINE_TILE(pair_2_##columns, 2, columns, 2, 16)
#define QUADS(columns)                                                                             \
    DEFINE_TILE(quad_1_##columns, 4, columns, 1, 16)                                               \
    DEFINE_TILE(quad_2_##columns, 4, columns, 2, 16)
#define WEIGHTS(channels)                                                                          \
    DEFINE_WEIGHT(weight_1_##channels, channels, 1)                                                \
    DEFINE_WEIGHT(weight_2_##channels, channels, 2)
#define LONG_WEIGHTS(channels) DEFINE_WEIGHT(weight_1_##channels, channels, 1)

TILES(1)
TILES(2)
TILES(3)
TILES(4)
TILES(5)
TILES(6)
TILES(7)
TILES(8)
TILES(9)
TILES(10)
TILES(11)
TILES(12)
TILES(13)
TILES(14)
PAIRS(1)
PAIRS(2)
PAIRS(3)
PAIRS(4)
PAIRS(5)
PAIRS(6)
PAIRS(7)
QUADS(1)
QUADS(2)
QUADS(3)
WEIGHTS(1)
WEIGHTS(2)
WEIGHTS(3)
WEIGHTS(4)
WEIGHTS(5)
WEIGHTS(6)
WEIGHTS(7)
WEIGHTS(8)
LONG_WEIGHTS(9)
LONG_WEIGHTS(10)
LONG_WEIGHTS(11)
LONG_WEIGHTS(12)
LONG_WEIGHTS(13)
LONG_WEIGHTS(14)
LONG_WEIGHTS(15)
LONG_WEIGHTS(16)

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

#define ROW14(prefix)                                                                              \
    {                                                                                              \
        0, prefix##1, prefix##2, prefix##3, prefix##4, prefix##5, prefix##6, prefix##7, prefix##8, \
            prefix##9, prefix##10, prefix##11, prefix##12, prefix##13, prefix##14                  \
    }
#define ROW7(prefix)                                                                               \
    {                                                                                              \
        0, prefix##1, prefix##2, prefix##3, prefix##4, prefix##5, prefix##6, prefix##7             \
    }

static const mdmt_conv_micro micro = {
    .floats_per_cycle = 32,
    .pixel = MDMT_BLOCK,
    .columns = 14,
    .pair_columns = 7,
    .pair_widest = 7,
    .quad_columns = 3,
    .quad_widest = 3,
    .tile_blocks = 2,
    .weight_blocks = 2,
    .channels = {16, 8},
    .tile = {ROW14(tile_1_), ROW14(tile_2_)},
    .pair = {ROW7(pair_1_), ROW7(pair_2_)},
    .quad = {{0, quad_1_1, quad_1_2, quad_1_3}, {0, quad_2_1, quad_2_2, quad_2_3}},
    .stem = {ROW14(stem_1_), ROW14(stem_2_)},
    .weight = {{0, weight_1_1, weight_1_2, weight_1_3, weight_1_4, weight_1_5, weight_1_6,
                weight_1_7, weight_1_8, weight_1_9, weight_1_10, weight_1_11, weight_1_12,
                weight_1_13, weight_1_14, weight_1_15, weight_1_16},
               {0, weight_2_1, weight_2_2, weight_2_3, weight_2_4, weight_2_5, weight_2_6,
                weight_2_7, weight_2_8}},
    .stage = stage_pixels,
    .stage_any = mdmt_f32_conv_load__avx512,
    .fence = end_stores,
    .transpose = transpose_block,
    .accumulate = accumulate_floats,
};

#define ISA      avx512
#define ISA_ENUM MDMT_ISA_AVX512
#define DTYPE    f32
#define ROUNDED  0
#include "conv_impl.h"

#endif
