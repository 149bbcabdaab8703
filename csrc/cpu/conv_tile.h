/* Template: the inner kernels of direct convolution for one vector type. The
 * including file defines
 *   VEC, VL (floats of a vector), VZERO(), VLOAD(p), VSTORE(p, v), VSTREAM(p, v), VSET1(f),
 *   VFMA(a, b, c) = a b + c, VADD, VSUB, VMAX; VDOT(a, b, c) = c + the products of words of
 *   32 bits, which hold a float or two bfloat16; and VTAKE(p), VPUT(p, v), VPUT_PAST(p, v) for what
 *   is stored in maps.
 * Everything here is inlined with constant sizes, so that accumulators stay in
 * registers. */

#include "streams.h"

enum {
    PARTS = MDMT_BLOCK / VL, /* vectors of a block of 16 channels */
    TILE_VECTORS = 2 * PARTS /* of a tile's output blocks, at most */
};

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Multiply-adds of one word of input channels: x points at that of the tile's
 * first pixel, w at its 16 weights of the first output block. */
INLINE void tile_channel(VEC *acc, const float *x, ptrdiff_t x_row, const float *w, ptrdiff_t w_out,
                         const int rows, const int columns, const int blocks, const int pixel)
{
    VEC weight[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < blocks * PARTS; v++) {
        weight[v] = VLOAD(w + (v / PARTS) * w_out + (v % PARTS) * VL);
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int q = 0; q < columns; q++) {
            VEC value = VSET1(x[r * x_row + q * pixel]);
            UNROLL
            for (int v = 0; v < blocks * PARTS; v++) {
                acc[(r * columns + q) * blocks * PARTS + v] =
                    VDOT(value, weight[v], acc[(r * columns + q) * blocks * PARTS + v]);
            }
        }
    }
}

/* Brings the pixels of a tile into the L1 (soon) or the L2. */
INLINE void tile_fetch(const float *x, ptrdiff_t row, const int rows, const int columns,
                       const int pixel, const int soon)
{
    const int step = pixel == MDMT_BLOCK / 2 ? 2 : 1; /* pixels of a line */
    for (int r = 0; r < rows; r++) {
        for (int q = 0; q < columns; q += step) {
            if (soon) {
                __builtin_prefetch(x + r * row + q * pixel, 0, 3);
            } else {
                __builtin_prefetch(x + r * row + q * pixel, 0, 2);
            }
        }
    }
}

/* Adds a tile's outputs to the statistics of its part. */
INLINE void tile_stats(const VEC *acc, const mdmt_conv_tile *t, const int pixels, const int blocks)
{
    UNROLL
    for (int v = 0; v < blocks * PARTS; v++) {
        float *at = t->stats + v * VL;
        if (t->stats_start) {
            VSTORE(at + MDMT_STATS_PIVOT * t->stats_row, acc[v]);
            VSTORE(at + MDMT_STATS_SUM * t->stats_row, VZERO());
            VSTORE(at + MDMT_STATS_SQUARE * t->stats_row, VZERO());
        }
        const VEC pivot = VLOAD(at + MDMT_STATS_PIVOT * t->stats_row);
        VEC sum = VZERO(), square = VZERO();
        UNROLL
        for (int i = 0; i < pixels; i++) {
            VEC d = VSUB(acc[i * blocks * PARTS + v], pivot);
            sum = VADD(sum, d);
            square = VFMA(d, d, square);
        }
        at += MDMT_STATS_SUM * t->stats_row;
        VSTORE(at, VADD(VLOAD(at), sum));
        at += (MDMT_STATS_SQUARE - MDMT_STATS_SUM) * t->stats_row;
        VSTORE(at, VADD(VLOAD(at), square));
    }
}

/* Half lines are stored one after the other, so that they leave as whole ones. */
INLINE void tile_store(const VEC *acc, const mdmt_conv_tile *t, const int rows, const int columns,
                       const int blocks, const int past)
{
    UNROLL
    for (int b = 0; b < blocks; b++) {
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int q = 0; q < columns; q++) {
                UNROLL
                for (int p = 0; p < PARTS; p++) {
                    float *y = t->y + r * t->y_row + q * t->y_pixel + b * t->y_out + p * VL;
                    const VEC value = acc[(r * columns + q) * blocks * PARTS + b * PARTS + p];
                    if (past) {
                        VPUT_PAST(y, value);
                    } else {
                        VPUT(y, value);
                    }
                }
            }
        }
    }
}

/* pixel: words of a block's pixel in x: 16, 8 (pairs), or 1 (stem). */
INLINE void tile_body(const mdmt_conv_tile *tile, const int rows, const int columns,
                      const int blocks, const int pixel)
{
    VEC acc[32];
    const mdmt_conv_tile t = *tile;
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int q = 0; q < columns; q++) {
            UNROLL
            for (int v = 0; v < blocks * PARTS; v++) {
                acc[(r * columns + q) * blocks * PARTS + v] = VZERO();
            }
        }
    }
    if (t.start == MDMT_INIT_BIAS) {
        UNROLL
        for (int r = 0; r < rows * columns; r++) {
            UNROLL
            for (int v = 0; v < blocks * PARTS; v++) {
                acc[r * blocks * PARTS + v] = VLOAD(t.init + v * VL);
            }
        }
    } else if (t.start == MDMT_INIT_LOAD) {
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int q = 0; q < columns; q++) {
                UNROLL
                for (int v = 0; v < blocks * PARTS; v++) {
                    acc[(r * columns + q) * blocks * PARTS + v] =
                        VTAKE(t.init + r * t.y_row + q * t.y_pixel + (v / PARTS) * t.y_out +
                              (v % PARTS) * VL);
                }
            }
        }
    } else if (!t.past) {
        for (int v = 0; v < blocks; v++) {
            for (int r = 0; r < rows; r++) {
                for (int q = 0; q < columns; q++) {
                    __builtin_prefetch(t.y + r * t.y_row + q * t.y_pixel + v * t.y_out, 1, 3);
                }
            }
        }
    }
    int fetch = t.ahead ? t.ahead_first : -1;
    for (int b = 0; b < t.blocks; b++) {
        const float *w = t.w + b * t.w_block;
        const int channels = b + 1 < t.blocks ? pixel : t.last;
        if (pixel > 1 && t.taps == 1 && b + 1 < t.blocks) {
            tile_fetch(t.x + t.tap[0] + (b + 1) * t.x_block, t.x_row, rows, columns, pixel, 1);
        }
        for (int i = 0; i < t.taps; i++) {
            const float *x = t.x + b * t.x_block + t.tap[i];
            const float *weight = w;
            if (pixel == 1) {
                tile_channel(acc, x, t.x_row, weight, t.w_out, rows, columns, blocks, pixel);
                w += MDMT_BLOCK;
            } else {
                const float *const end = w + channels * MDMT_BLOCK;
                for (; weight < end; weight += MDMT_BLOCK, x++) {
                    tile_channel(acc, x, t.x_row, weight, t.w_out, rows, columns, blocks, pixel);
                }
                w += pixel * MDMT_BLOCK;
            }
        }
        if (b == fetch) {
            fetch += t.ahead_step;
            tile_fetch(t.ahead + b * t.ahead_block, t.ahead_row, rows, columns,
                       pixel, 0);
        }
    }
    if (t.stats) {
        tile_stats(acc, &t, rows * columns, blocks);
    }
    if (t.past) {
        tile_store(acc, &t, rows, columns, blocks, 1);
    } else {
        tile_store(acc, &t, rows, columns, blocks, 0);
    }
}

#define DEFINE_TILE(name, rows, columns, blocks, pixel)                                            \
    static void name(const mdmt_conv_tile *tile)                                                   \
    {                                                                                              \
        tile_body(tile, rows, columns, blocks, pixel);                                             \
    }

/* Pixels of a weight tile; `near`, `far`: whether to fetch t->ahead, t->far. */
INLINE void weight_pixels(const mdmt_conv_weight_tile *t, VEC *acc, const int channels,
                          const int blocks, const int near, const int far)
{
    const float *ahead = t->ahead, *away = t->far;
    for (int n = 0; n < t->images; n++) {
        for (int r = 0; r < t->rows; r++) {
            const float *x = t->x + n * t->x_image + r * t->x_row;
            const float *dy = t->dy + n * t->dy_image + r * t->dy_row;
            const float *const end = dy + t->columns * MDMT_BLOCK;
            for (; dy < end; dy += MDMT_BLOCK, x += t->x_pixel) {
                VEC grad[TILE_VECTORS];
                if (near) {
                    __builtin_prefetch(ahead);
                    ahead += t->x_pixel;
                }
                if (far) {
                    __builtin_prefetch(away);
                    away += t->far_step;
                }
                UNROLL
                for (int v = 0; v < blocks * PARTS; v++) {
                    grad[v] = VLOAD(dy + (v / PARTS) * t->dy_out + (v % PARTS) * VL);
                }
                UNROLL
                for (int c = 0; c < channels; c++) {
                    VEC value = VSET1(x[c]);
                    UNROLL
                    for (int v = 0; v < blocks * PARTS; v++) {
                        acc[c * blocks * PARTS + v] =
                            VDOT(value, grad[v], acc[c * blocks * PARTS + v]);
                    }
                }
            }
        }
    }
}

INLINE void weight_body(const mdmt_conv_weight_tile *tile, const int channels, const int blocks)
{
    VEC acc[32];
    const mdmt_conv_weight_tile t = *tile;
    UNROLL
    for (int i = 0; i < channels * blocks * PARTS; i++) {
        acc[i] = VZERO();
    }
    for (int v = 0; v < blocks; v++) {
        for (int c = 0; c < channels; c++) {
            __builtin_prefetch(t.dw + v * t.dw_out + c * MDMT_BLOCK, 1, 3);
        }
    }
    if (t.ahead && t.far) {
        weight_pixels(&t, acc, channels, blocks, 1, 1);
    } else if (t.ahead) {
        weight_pixels(&t, acc, channels, blocks, 1, 0);
    } else if (t.far) {
        weight_pixels(&t, acc, channels, blocks, 0, 1);
    } else {
        weight_pixels(&t, acc, channels, blocks, 0, 0);
    }
    UNROLL
    for (int c = 0; c < channels; c++) {
        UNROLL
        for (int v = 0; v < blocks * PARTS; v++) {
            float *dw = t.dw + (v / PARTS) * t.dw_out + c * MDMT_BLOCK + (v % PARTS) * VL;
            VSTORE(dw, VADD(VLOAD(dw), acc[c * blocks * PARTS + v]));
        }
    }
}

#define DEFINE_WEIGHT(name, channels, blocks)                                                      \
    static void name(const mdmt_conv_weight_tile *tile)                                            \
    {                                                                                              \
        weight_body(tile, channels, blocks);                                                       \
    }

static void end_stores(void)
{
    mdmt_end_streams();
}

static void accumulate_floats(float *dst, const float *src, size_t count)
{
    for (size_t i = 0; i < count; i += VL) {
        VSTORE(dst + i, VADD(VLOAD(dst + i), VLOAD(src + i)));
    }
}
