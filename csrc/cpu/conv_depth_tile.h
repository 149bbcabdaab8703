/* Depthwise convolution: the register tiles of the forward pass and the data gradient.
 *
 * A tile is R rows of T neighbouring result pixels of one block of channels, all in
 * registers; each staged pixel is loaded once for all taps of a row that use it. The sum of a
 * pixel is taken in the order of the taps, whatever the tile, so that tiles may overlap. */
#ifndef MDMT_CPU_CONV_DEPTH_TILE_H
#define MDMT_CPU_CONV_DEPTH_TILE_H

#include "conv_depth_body.h"

/* Registers of sums in a tile, at most. */
enum { DEPTH_SUMS = MDMT_REGISTERS / 2 };

#if defined(__clang__)
#define DEPTH_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DEPTH_UNROLL _Pragma("GCC unroll 32")
#endif

enum {
    DEPTH_LINE = MDMT_MAPS_BF16 ? 2 : 1, /* pixels of a line of the cache */
    DEPTH_ROWS = 2,
    DEPTH_POINTERS = DEPTH_TAPS + 2 * (DEPTH_ROWS - 1)
};

/* Result rows to be made: tap row r of result row i reads row[i * stride + r]. */
typedef struct {
    const float *row[DEPTH_POINTERS];
    int first, end;     /* tap rows that matter     */
    int width;          /* result pixels of a row   */
    const float *w;     /* [taps][taps][16]         */
    const float *add;   /* [16]: where sums begin   */
    float *to;          /* result rows; NULL: only the rounded ones are wanted */
    ptrdiff_t to_row;   /* floats                   */
    map_float *rounded; /* maps of bfloat16: result rows in their place, or NULL */
    ptrdiff_t rounded_row;
    const map_float *ahead; /* source rows to be fetched meanwhile */
} depth_rows;

typedef void (*depth_rows_fn)(const depth_rows *rows);

/* Asks for the lines of p to be in L2 soon: a burst of them would leave no room in L1. */
MDMT_INLINE void depth_fetch(const map_float *p, const int pixels)
{
    DEPTH_UNROLL
    for (int i = 0; i < pixels; i += DEPTH_LINE) {
        __builtin_prefetch(p + i * MDMT_BLOCK, 0, 2);
    }
}

MDMT_INLINE void depth_tile(const depth_rows *a, int at, const int K, const int S, const int T,
                            const int R)
{
    depth_fetch(a->ahead + (ptrdiff_t)at * S * S * R * MDMT_BLOCK, T * R * S * S);
    for (int half = 0; half < MDMT_BLOCK; half += REG_FLOATS) {
        reg sum[DEPTH_SUMS];
        DEPTH_UNROLL
        for (int i = 0; i < R * T; i++) {
            sum[i] = reg_load(a->add + half);
        }
        for (int r = a->first; r < a->end; r++) {
            reg w[DEPTH_TAPS];
            DEPTH_UNROLL
            for (int s = 0; s < K; s++) {
                w[s] = reg_load(a->w + (r * K + s) * MDMT_BLOCK + half);
            }
            DEPTH_UNROLL
            for (int i = 0; i < R; i++) {
                const float *x = a->row[i * S + r] + (ptrdiff_t)at * S * MDMT_BLOCK + half;
                DEPTH_UNROLL
                for (int j = 0; j < (T - 1) * S + K; j++) {
                    reg v = reg_load(x + j * MDMT_BLOCK);
                    DEPTH_UNROLL
                    for (int s = 0; s < K; s++) {
                        if (j >= s && (j - s) % S == 0 && (j - s) / S < T) {
                            int t = i * T + (j - s) / S;
                            sum[t] = reg_fma(v, w[s], sum[t]);
                        }
                    }
                }
            }
        }
        if (!MDMT_MAPS_BF16 || a->to) {
            float *to = a->to + at * MDMT_BLOCK + half;
            DEPTH_UNROLL
            for (int i = 0; i < R * T; i++) {
                reg_store(to + i / T * a->to_row + i % T * MDMT_BLOCK, sum[i]);
            }
        }
        if (MDMT_MAPS_BF16 && a->rounded) {
            map_float *to = a->rounded + at * MDMT_BLOCK;
            DEPTH_UNROLL
            for (int i = 0; i < R * T; i++) {
                reg_store_map(to + i / T * a->rounded_row + i % T * MDMT_BLOCK, sum[i]);
            }
        }
    }
}

/* The last tile overlaps the one before it. */
MDMT_INLINE void depth_rows_tiled(const depth_rows *a, const int K, const int S, const int T,
                                  const int R)
{
    for (int at = 0; at + T < a->width; at += T) {
        depth_tile(a, at, K, S, T, R);
    }
    depth_tile(a, a->width - T, K, S, T, R);
}

/* The data gradient of stride 2: T pairs of result pixels, an even and an odd one, which the
 * even and the odd taps of a row reach. Rows of staged source pixels as above, every other tap
 * row; the pair p reads the staged columns p .. p + K / 2. */
MDMT_INLINE void depth_pairs(const depth_rows *a, int at, const int K, const int T)
{
    const int E = K / 2;
    depth_fetch(a->ahead + (ptrdiff_t)at / 2 * MDMT_BLOCK, (T + 1) / 2);
    for (int half = 0; half < MDMT_BLOCK; half += REG_FLOATS) {
        reg even[DEPTH_SUMS / 2], odd[DEPTH_SUMS / 2];
        DEPTH_UNROLL
        for (int t = 0; t < T; t++) {
            even[t] = odd[t] = reg_set(0.0f);
        }
        for (int r = a->first; r < a->end; r += 2) {
            const float *x = a->row[r] + (ptrdiff_t)at * MDMT_BLOCK + half;
            reg w[DEPTH_TAPS];
            DEPTH_UNROLL
            for (int s = 0; s < K; s++) {
                w[s] = reg_load(a->w + (r * K + s) * MDMT_BLOCK + half);
            }
            DEPTH_UNROLL
            for (int j = 0; j < T + E; j++) {
                reg v = reg_load(x + j * MDMT_BLOCK);
                DEPTH_UNROLL
                for (int e = 0; e <= E; e++) {
                    int t = j - E + e;
                    if (t >= 0 && t < T) {
                        even[t] = reg_fma(v, w[2 * e], even[t]);
                        if (e < E) {
                            odd[t] = reg_fma(v, w[2 * e + 1], odd[t]);
                        }
                    }
                }
            }
        }
        DEPTH_UNROLL
        for (int t = 0; t < T; t++) {
            reg_store(a->to + 2 * (at + t) * MDMT_BLOCK + half, even[t]);
            reg_store(a->to + (2 * (at + t) + 1) * MDMT_BLOCK + half, odd[t]);
        }
    }
}

/* width: pairs, a multiple of T. */
MDMT_INLINE void depth_pairs_tiled(const depth_rows *a, const int K, const int T)
{
    for (int at = 0; at < a->width; at += T) {
        depth_pairs(a, at, K, T);
    }
}

#define DEPTH_ROWS_FN(K, S, T, R)                                                                  \
    static void depth_rows_##K##_##S##_##T##_##R(const depth_rows *a)                              \
    {                                                                                              \
        depth_rows_tiled(a, K, S, T, R);                                                           \
    }
#define DEPTH_PAIRS_FN(K, T)                                                                       \
    static void depth_pairs_##K##_##T(const depth_rows *a)                                         \
    {                                                                                              \
        depth_pairs_tiled(a, K, T);                                                                \
    }
#define DEPTH_ROWS_FNS(T, R)                                                                       \
    DEPTH_ROWS_FN(3, 1, T, R)                                                                      \
    DEPTH_ROWS_FN(3, 2, T, R)                                                                      \
    DEPTH_ROWS_FN(5, 1, T, R)                                                                      \
    DEPTH_ROWS_FN(5, 2, T, R)
#define DEPTH_PAIRS_FNS(T)                                                                         \
    DEPTH_PAIRS_FN(3, T)                                                                           \
    DEPTH_PAIRS_FN(5, T)
#define DEPTH_ENTRY(T, R)                                                                          \
    {                                                                                              \
        T, R,                                                                                      \
            {                                                                                      \
                {depth_rows_3_1_##T##_##R, depth_rows_3_2_##T##_##R},                              \
                {depth_rows_5_1_##T##_##R, depth_rows_5_2_##T##_##R},                              \
            },                                                                                     \
    }
#define DEPTH_PAIRS_ENTRY(T)                                                                       \
    {                                                                                              \
        T, 1,                                                                                      \
            {                                                                                      \
                {depth_pairs_3_##T, NULL},                                                         \
                {depth_pairs_5_##T, NULL},                                                         \
            },                                                                                     \
    }

/* All tiles, by [kernel 3, 5][stride 1, 2]. */
typedef struct {
    int pixels, rows;
    depth_rows_fn fn[2][2];
} depth_tiles;

DEPTH_ROWS_FNS(1, 1)
DEPTH_ROWS_FNS(3, 1)
DEPTH_ROWS_FNS(7, 1)
DEPTH_ROWS_FNS(8, 1)
DEPTH_ROWS_FNS(4, 2)
DEPTH_PAIRS_FNS(1)
DEPTH_PAIRS_FNS(3)
DEPTH_PAIRS_FNS(4)
#if MDMT_REGISTERS >= 32
DEPTH_ROWS_FNS(10, 1)
DEPTH_ROWS_FNS(14, 1)
DEPTH_ROWS_FNS(7, 2)
DEPTH_ROWS_FNS(8, 2)
DEPTH_PAIRS_FNS(5)
DEPTH_PAIRS_FNS(6)
DEPTH_PAIRS_FNS(7)
DEPTH_PAIRS_FNS(8)
#endif

static const depth_tiles depth_row_tiles[] = {
#if MDMT_REGISTERS >= 32
    DEPTH_ENTRY(14, 1), DEPTH_ENTRY(10, 1), DEPTH_ENTRY(7, 2), DEPTH_ENTRY(8, 2),
#endif
    DEPTH_ENTRY(8, 1),  DEPTH_ENTRY(7, 1),  DEPTH_ENTRY(4, 2), DEPTH_ENTRY(3, 1),
    DEPTH_ENTRY(1, 1),  {0, 0, {{0}}},
};

static const depth_tiles depth_pair_tiles[] = {
#if MDMT_REGISTERS >= 32
    DEPTH_PAIRS_ENTRY(7), DEPTH_PAIRS_ENTRY(8), DEPTH_PAIRS_ENTRY(6), DEPTH_PAIRS_ENTRY(5),
#endif
    DEPTH_PAIRS_ENTRY(4), DEPTH_PAIRS_ENTRY(3), DEPTH_PAIRS_ENTRY(1), {0, 0, {{0}}},
};

/* The tile that costs least for rows of `width` pixels (or pairs): registers of sums, of which
 * there should be enough to hide the latency of a multiply-add, and about two for its loads.
 * Where they overlap (not for pairs) no tile is wider than a row. */
static const depth_tiles *depth_tile_for(const depth_tiles *tiles, int width, int pairs)
{
    const depth_tiles *best = NULL;
    double least = 0;
    for (; tiles->pixels; tiles++) {
        if (!pairs && tiles->pixels > width) {
            continue;
        }
        int sums = tiles->pixels * tiles->rows * (1 + pairs);
        double cost = (double)depth_up(width, tiles->pixels) * ((sums < 8 ? 8 : sums) + 2);
        cost /= tiles->rows;
        if (!best || cost < least) {
            best = tiles;
            least = cost;
        }
    }
    return best;
}

#endif
