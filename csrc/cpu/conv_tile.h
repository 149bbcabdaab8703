/* Template: the inner kernels of direct convolution for one vector type. The
 * including file defines
 *   VEC, VL (floats of a vector), VZERO(), VLOAD(p), VSTORE(p, v), VSET1(f),
 *   VFMA(a, b, c) = a b + c, VADD, VSUB, VMUL, VMAX.
 * Everything here is inlined with constant sizes, so that accumulators stay in
 * registers. */

enum { PARTS = MDMT_BLOCK / VL }; /* vectors of a block of 16 channels */

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Multiply-adds of one input channel: x points at the channel of the tile's
 * first pixel, w at the channel's 16 weights of the first output block. */
INLINE void tile_channel(VEC *acc, const float *x, ptrdiff_t x_row, const float *w, ptrdiff_t w_out,
                         const int rows, const int columns, const int blocks, const int pixel)
{
    VEC weight[2 * PARTS];
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
                    VFMA(value, weight[v], acc[(r * columns + q) * blocks * PARTS + v]);
            }
        }
    }
}

/* Brings the pixels of a tile into the L1 (soon) or the L2. */
INLINE void tile_fetch(const float *x, ptrdiff_t row, const int rows, const int columns,
                       const int pixel, const int soon)
{
    for (int r = 0; r < rows; r++) {
        for (int q = 0; q < columns; q++) {
            if (soon) {
                __builtin_prefetch(x + r * row + q * pixel, 0, 3);
            } else {
                __builtin_prefetch(x + r * row + q * pixel, 0, 2);
            }
        }
    }
}

/* pixel: distance of pixels in x, 16 or (stem) 1. */
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
                        VLOAD(t.init + r * t.y_row + q * t.y_pixel + (v / PARTS) * t.y_out +
                              (v % PARTS) * VL);
                }
            }
        }
    } else {
        for (int v = 0; v < blocks; v++) {
            for (int r = 0; r < rows; r++) {
                for (int q = 0; q < columns; q++) {
                    __builtin_prefetch(t.y + r * t.y_row + q * t.y_pixel + v * t.y_out, 1, 3);
                }
            }
        }
    }
    for (int b = 0; b < t.blocks; b++) {
        const float *w = t.w + b * t.w_block;
        const int channels = pixel == 1 ? 1 : b + 1 < t.blocks ? MDMT_BLOCK : t.last;
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
                w += MDMT_BLOCK * MDMT_BLOCK;
            }
        }
        if (t.ahead) {
            tile_fetch(t.ahead + b * t.x_block, t.x_row, rows, columns, pixel, 0);
        }
    }
    UNROLL
    for (int v = 0; v < blocks * PARTS; v++) {
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int q = 0; q < columns; q++) {
                VSTORE(t.y + r * t.y_row + q * t.y_pixel + (v / PARTS) * t.y_out + (v % PARTS) * VL,
                       acc[(r * columns + q) * blocks * PARTS + v]);
            }
        }
    }
}

#define DEFINE_TILE(name, rows, columns, blocks, pixel)                                            \
    static void name(const mdmt_conv_tile *tile)                                                   \
    {                                                                                              \
        tile_body(tile, rows, columns, blocks, pixel);                                             \
    }

/* Pixels of a weight tile; `fetch`: brings a line of `ahead` with each. */
INLINE void weight_pixels(const mdmt_conv_weight_tile *t, VEC *acc, const int channels,
                          const int blocks, const int fetch)
{
    const float *ahead = t->ahead;
    for (int n = 0; n < t->images; n++) {
        for (int r = 0; r < t->rows; r++) {
            const float *x = t->x + n * t->x_image + r * t->x_row;
            const float *dy = t->dy + n * t->dy_image + r * t->dy_row;
            const float *const end = dy + t->columns * MDMT_BLOCK;
            for (; dy < end; dy += MDMT_BLOCK, x += t->x_pixel) {
                VEC grad[2 * PARTS];
                if (fetch) {
                    __builtin_prefetch(ahead);
                    ahead += MDMT_BLOCK;
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
                            VFMA(value, grad[v], acc[c * blocks * PARTS + v]);
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
    if (t.ahead) {
        weight_pixels(&t, acc, channels, blocks, 1);
    } else {
        weight_pixels(&t, acc, channels, blocks, 0);
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

/* `fetch`: how far ahead of itself to bring the source, floats. */
INLINE void stage_vectors(float *d, const float *s, int count, const ptrdiff_t step,
                          const float *scale, const float *shift, mdmt_act act,
                          const ptrdiff_t fetch)
{
    if (!scale) {
        for (int i = 0; i < count; i++, s += step, d += MDMT_BLOCK) {
            if (fetch) {
                __builtin_prefetch(s + fetch);
            }
            VSTORE(d, VLOAD(s));
        }
        return;
    }
    const VEC a = VLOAD(scale), b = VLOAD(shift), zero = VZERO();
    for (int i = 0; i < count; i++, s += step, d += MDMT_BLOCK) {
        if (fetch) {
            __builtin_prefetch(s + fetch);
        }
        VEC value = VFMA(a, VLOAD(s), b);
        /* The order keeps a NaN. */
        VSTORE(d, act == MDMT_ACT_RELU ? VMAX(zero, value) : value);
    }
}

static void stage_pixels(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                         const float *scale, const float *shift, mdmt_act act)
{
    for (int p = 0; p < MDMT_BLOCK; p += VL) {
        const float *a = scale ? scale + p : NULL, *b = scale ? shift + p : NULL;
        if (step == MDMT_BLOCK) {
            stage_vectors(dst + p, src + p, count, MDMT_BLOCK, a, b, act, fetch);
        } else {
            stage_vectors(dst + p, src + p, count, step, a, b, act, fetch);
        }
    }
}

static void stats_pixels(const float *y, int count, const float *pivot, float *sums, float *squares)
{
    for (int p = 0; p < PARTS; p++) {
        const VEC centre = VLOAD(pivot + p * VL);
        VEC sum[4] = {VZERO(), VZERO(), VZERO(), VZERO()};
        VEC square[4] = {VZERO(), VZERO(), VZERO(), VZERO()};
        const float *at = y + p * VL;
        int i = 0;
        for (; i + 4 <= count; i += 4, at += 4 * MDMT_BLOCK) {
            UNROLL
            for (int k = 0; k < 4; k++) {
                VEC d = VSUB(VLOAD(at + k * MDMT_BLOCK), centre);
                sum[k] = VADD(sum[k], d);
                square[k] = VFMA(d, d, square[k]);
            }
        }
        for (; i < count; i++, at += MDMT_BLOCK) {
            VEC d = VSUB(VLOAD(at), centre);
            sum[0] = VADD(sum[0], d);
            square[0] = VFMA(d, d, square[0]);
        }
        VEC s = VADD(VADD(sum[0], sum[1]), VADD(sum[2], sum[3]));
        VEC q = VADD(VADD(square[0], square[1]), VADD(square[2], square[3]));
        VSTORE(sums + p * VL, VADD(VLOAD(sums + p * VL), s));
        VSTORE(squares + p * VL, VADD(VLOAD(squares + p * VL), q));
    }
}

static void accumulate_floats(float *dst, const float *src, size_t count)
{
    for (size_t i = 0; i < count; i += VL) {
        VSTORE(dst + i, VADD(VLOAD(dst + i), VLOAD(src + i)));
    }
}
