/* The small matrix products between the transforms. */
#ifndef MDMT_CPU_CONV_WINOGRAD_GEMM_H
#define MDMT_CPU_CONV_WINOGRAD_GEMM_H

#include "conv_winograd_plan.h"
#include "conv_winograd_vector.h"

/* m[tile][out] = sum over channels of v[channel block][tile][channel] u[channel][out],
 * for `rows` tiles and a few vectors of outputs, u_second and m_second floats
 * apart in u and m. A block of channels of v is v_block floats, of u 256; a
 * tile 16. With `more` the sum is added to m. ahead_v and ahead_u are read soon
 * in the place of v and u, and fetched meanwhile. */
typedef struct {
    const float *v, *u, *ahead_v, *ahead_u;
    float *m;
    size_t v_block, u_second, m_second;
    int channels, more;
} tile_call;

typedef void tile_gemm(const tile_call *call);

INLINE void tile_rows(int rows, int vectors, const tile_call *call)
{
    vec sum[TILE_ROWS][GEMM_VECTORS];
    const float *v = call->v, *u = call->u, *ahead_v = call->ahead_v, *ahead_u = call->ahead_u;
    const size_t v_block = call->v_block, u_second = call->u_second, m_second = call->m_second;
    float *m = call->m;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            sum[r][j] = zero();
        }
    }
    for (int left = call->channels; left > 0; left -= 16) {
        int most = left < 16 ? left : 16;
        for (int c = 0; c < most; c++) {
            vec b[GEMM_VECTORS];
            __builtin_prefetch(ahead_v + c * 16, 0, 2);
            __builtin_prefetch(ahead_u + c * 16, 0, 2);
#pragma GCC unroll 16
            for (int j = 0; j < vectors; j++) {
                b[j] = load(u + c * 16 + j * u_second);
            }
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vec a = set1(v[r * 16 + c]);
#pragma GCC unroll 16
                for (int j = 0; j < vectors; j++) {
                    sum[r][j] = madd(a, b[j], sum[r][j]);
                }
            }
        }
        v += v_block;
        u += 256;
        ahead_v += v_block;
        ahead_u += 256;
    }
    if (call->more) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (int j = 0; j < vectors; j++) {
                sum[r][j] = add(sum[r][j], load(m + r * 16 + j * m_second));
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            store(m + r * 16 + j * m_second, sum[r][j]);
        }
    }
}

#define TILE_GEMM(rows, vectors)                                                                   \
    static void tile_gemm_##rows##x##vectors(const tile_call *call)                                \
    {                                                                                              \
        tile_rows(rows, vectors, call);                                                            \
    }

/* By rows - 1, of 1 to 6 rows. */
#define TILE_GEMMS_6(vectors)                                                                      \
    tile_gemm_1x##vectors, tile_gemm_2x##vectors, tile_gemm_3x##vectors, tile_gemm_4x##vectors,    \
        tile_gemm_5x##vectors, tile_gemm_6x##vectors
#define DEFINE_TILE_GEMMS_6(vectors)                                                               \
    TILE_GEMM(1, vectors)                                                                          \
    TILE_GEMM(2, vectors)                                                                          \
    TILE_GEMM(3, vectors)                                                                          \
    TILE_GEMM(4, vectors)                                                                          \
    TILE_GEMM(5, vectors)                                                                          \
    TILE_GEMM(6, vectors)
#define TILE_GEMMS_14(vectors)                                                                     \
    TILE_GEMMS_6(vectors), tile_gemm_7x##vectors, tile_gemm_8x##vectors, tile_gemm_9x##vectors,    \
        tile_gemm_10x##vectors, tile_gemm_11x##vectors, tile_gemm_12x##vectors,                    \
        tile_gemm_13x##vectors, tile_gemm_14x##vectors
#define DEFINE_TILE_GEMMS_14(vectors)                                                              \
    DEFINE_TILE_GEMMS_6(vectors)                                                                   \
    TILE_GEMM(7, vectors)                                                                          \
    TILE_GEMM(8, vectors)                                                                          \
    TILE_GEMM(9, vectors)                                                                          \
    TILE_GEMM(10, vectors)                                                                         \
    TILE_GEMM(11, vectors)                                                                         \
    TILE_GEMM(12, vectors)                                                                         \
    TILE_GEMM(13, vectors)                                                                         \
    TILE_GEMM(14, vectors)

/* By blocks of outputs - 1 where a block is one vector, else of one block. */
#if defined(__AVX512F__)
DEFINE_TILE_GEMMS_14(1)
DEFINE_TILE_GEMMS_14(2)
static tile_gemm *const tile_gemms[2][TILE_ROWS] = {{TILE_GEMMS_14(1)}, {TILE_GEMMS_14(2)}};
#elif defined(__AVX2__)
DEFINE_TILE_GEMMS_6(2)
static tile_gemm *const tile_gemms[2][TILE_ROWS] = {{TILE_GEMMS_6(2)}};
#else
DEFINE_TILE_GEMMS_6(4)
static tile_gemm *const tile_gemms[2][TILE_ROWS] = {{TILE_GEMMS_6(4)}};
#endif

/* One point: `tiles` tiles and `blocks` (1 or 2) blocks of outputs, u_block and
 * m_block floats apart; `call` has the rest, its ahead_ being those of the next
 * point. The rows are dealt out evenly. */
static void tile_product(int tiles, int blocks, size_t u_block, size_t m_block,
                         const tile_call *call)
{
    int calls = (tiles + TILE_ROWS - 1) / TILE_ROWS;
    for (int i = 0; i < calls; i++) {
        int from = tiles * i / calls, to = tiles * (i + 1) / calls;
        tile_call part = *call;
        part.v = call->v + (size_t)from * 16;
        part.m = call->m + (size_t)from * 16;
        part.ahead_v = i + 1 < calls ? call->v + (size_t)to * 16 : call->ahead_v;
        part.ahead_u = call->ahead_u + (i & 1 && blocks == 2 ? u_block : 0);
        if (VPB == 1) {
            part.u_second = u_block;
            part.m_second = m_block;
            tile_gemms[blocks - 1][to - from - 1](&part);
        } else {
            part.u_second = part.m_second = VW;
            for (int k = 0; k < blocks; k++, part.u += u_block, part.m += m_block) {
                tile_gemms[0][to - from - 1](&part);
            }
        }
    }
}

/* s[in][out] (+)= sum over `tiles` tiles of v[tile][in] d[tile][out], for `rows`
 * of the 16 inputs of a block and a few vectors of outputs. */
INLINE void sum_rows(int rows, int vectors, int tiles, const float *v, const float *d,
                     size_t d_second, const float *ahead, float *s, size_t s_second, int more)
{
    vec sum[16][GEMM_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            sum[r][j] = zero();
        }
    }
    for (int t = 0; t < tiles; t++, v += 16, d += 16, ahead += 16) {
        vec b[GEMM_VECTORS];
        __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            b[j] = load(d + j * d_second);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vec a = set1(v[r]);
#pragma GCC unroll 16
            for (int j = 0; j < vectors; j++) {
                sum[r][j] = madd(a, b[j], sum[r][j]);
            }
        }
    }
    if (more) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
            for (int j = 0; j < vectors; j++) {
                sum[r][j] = add(sum[r][j], load(s + r * 16 + j * s_second));
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            store(s + r * 16 + j * s_second, sum[r][j]);
        }
    }
}

/* One point: block of inputs by `blocks` (1 or 2) blocks of outputs. Long sums
 * are cut: each MDMT_WINO_SUM_TILES products are added up by themselves. `ahead`
 * is read soon in the place of v, and fetched meanwhile. */
static void sum_product(int tiles, int blocks, const float *v, const float *d, size_t d_block,
                        const float *ahead, float *s, size_t s_block, int more)
{
    int cuts = (tiles + MDMT_WINO_SUM_TILES - 1) / MDMT_WINO_SUM_TILES;
    for (int i = 0; i < cuts; i++, more = 1) {
        int t = mdmt_wino_cut(tiles, cuts, i), n = mdmt_wino_cut(tiles, cuts, i + 1) - t;
        const float *vt = v + (size_t)t * 16, *dt = d + (size_t)t * 16;
        const float *at = ahead + (size_t)t * 16;
#if defined(__AVX512F__)
        if (blocks == 2) {
            sum_rows(8, 2, n, vt, dt, d_block, at, s, s_block, more);
            sum_rows(8, 2, n, vt + 8, dt, d_block, at, s + 128, s_block, more);
        } else {
            sum_rows(16, 1, n, vt, dt, 0, at, s, 0, more);
        }
#else
        for (int k = 0; k < blocks; k++) {
            const float *dk = dt + k * d_block;
            float *sk = s + k * s_block;
            sum_rows(6, VPB, n, vt, dk, VW, at, sk, VW, more);
            sum_rows(5, VPB, n, vt + 6, dk, VW, at, sk + 96, VW, more);
            sum_rows(5, VPB, n, vt + 11, dk, VW, at, sk + 176, VW, more);
        }
#endif
    }
}

#endif
