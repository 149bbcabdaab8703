/* Activations and their derivatives on registers and on lanes, as mdmt_activate and
 * mdmt_activate_slope of access.h define them. `act` must be a constant where these
 * are inlined: see LANES_EACH_ACT. NaN stays NaN; infinities give the limits, except
 * that silu(-inf) is NaN, like the product that it is.
 *
 * Errors (except where the result is below 1e-36): exp 1 ulp, sigmoid, silu and the
 * slope of silu 3 ulp, the others 2 ulp; the slopes where they cross zero: of 1. */
#ifndef MDMT_CPU_LANES_ACT_H
#define MDMT_CPU_LANES_ACT_H

#include "lanes.h"

/* One loop for each activation: `run(act)` with a constant. */
#define LANES_EACH_ACT(act, run)                                                                   \
    do {                                                                                           \
        switch (act) {                                                                             \
        case MDMT_ACT_RELU:                                                                        \
            run(MDMT_ACT_RELU);                                                                    \
            break;                                                                                 \
        case MDMT_ACT_RELU6:                                                                       \
            run(MDMT_ACT_RELU6);                                                                   \
            break;                                                                                 \
        case MDMT_ACT_SILU:                                                                        \
            run(MDMT_ACT_SILU);                                                                    \
            break;                                                                                 \
        case MDMT_ACT_SIGMOID:                                                                     \
            run(MDMT_ACT_SIGMOID);                                                                 \
            break;                                                                                 \
        case MDMT_ACT_HARDSWISH:                                                                   \
            run(MDMT_ACT_HARDSWISH);                                                               \
            break;                                                                                 \
        case MDMT_ACT_HARDSIGMOID:                                                                 \
            run(MDMT_ACT_HARDSIGMOID);                                                             \
            break;                                                                                 \
        default:                                                                                   \
            run(MDMT_ACT_NONE);                                                                    \
            break;                                                                                 \
        }                                                                                          \
    } while (0)

/* Whether padding lanes, which hold zeros, must be kept from becoming act(0). */
static inline int lanes_act_lifts(mdmt_act act)
{
    return act == MDMT_ACT_SIGMOID || act == MDMT_ACT_HARDSIGMOID;
}

/* ---- one register: all that differs between the instruction sets ---- */

#if defined(__AVX512F__)

typedef __m512 reg;
enum { REG_FLOATS = 16 };

MDMT_INLINE reg reg_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
MDMT_INLINE void reg_store(float *p, reg v)
{
    _mm512_storeu_ps(p, v);
}

MDMT_INLINE reg reg_set(float v)
{
    return _mm512_set1_ps(v);
}
MDMT_INLINE reg reg_add(reg a, reg b)
{
    return _mm512_add_ps(a, b);
}
MDMT_INLINE reg reg_sub(reg a, reg b)
{
    return _mm512_sub_ps(a, b);
}
MDMT_INLINE reg reg_mul(reg a, reg b)
{
    return _mm512_mul_ps(a, b);
}
MDMT_INLINE reg reg_div(reg a, reg b)
{
    return _mm512_div_ps(a, b);
}
MDMT_INLINE reg reg_fma(reg a, reg b, reg c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* c - a * b */
MDMT_INLINE reg reg_fnma(reg a, reg b, reg c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* The larger, the smaller of both; b where one is a NaN. */
MDMT_INLINE reg reg_max(reg a, reg b)
{
    return _mm512_max_ps(a, b);
}
MDMT_INLINE reg reg_min(reg a, reg b)
{
    return _mm512_min_ps(a, b);
}
/* v where low < x < high, else 0. */
MDMT_INLINE reg reg_where_between(reg x, reg low, reg high, reg v)
{
    __mmask16 above = _mm512_cmp_ps_mask(x, low, _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, x, high, _CMP_LT_OQ), v);
}
/* v where x > low, else 0. */
MDMT_INLINE reg reg_where_above(reg x, reg low, reg v)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_GT_OQ), v);
}
/* v where x <= high is false, else 0. */
MDMT_INLINE reg reg_unless_below(reg x, reg high, reg v)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, high, _CMP_NLE_UQ), v);
}
/* v where x >= low, else w. */
MDMT_INLINE reg reg_choose_from(reg x, reg low, reg v, reg w)
{
    return _mm512_mask_mov_ps(w, _mm512_cmp_ps_mask(x, low, _CMP_GE_OQ), v);
}
/* p 2^n for whole n, n = counted - REG_COUNT as exactly rounded floats. */
MDMT_INLINE reg reg_scale(reg p, reg n, reg counted)
{
    (void)counted;
    return _mm512_scalef_ps(p, n);
}
MDMT_INLINE reg reg_scale_far(reg p, reg n, reg counted)
{
    return reg_scale(p, n, counted);
}

#elif defined(__AVX2__)

typedef __m256 reg;
enum { REG_FLOATS = 8 };

MDMT_INLINE reg reg_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
MDMT_INLINE void reg_store(float *p, reg v)
{
    _mm256_storeu_ps(p, v);
}

MDMT_INLINE reg reg_set(float v)
{
    return _mm256_set1_ps(v);
}
MDMT_INLINE reg reg_add(reg a, reg b)
{
    return _mm256_add_ps(a, b);
}
MDMT_INLINE reg reg_sub(reg a, reg b)
{
    return _mm256_sub_ps(a, b);
}
MDMT_INLINE reg reg_mul(reg a, reg b)
{
    return _mm256_mul_ps(a, b);
}
MDMT_INLINE reg reg_div(reg a, reg b)
{
    return _mm256_div_ps(a, b);
}
MDMT_INLINE reg reg_fma(reg a, reg b, reg c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* c - a * b */
MDMT_INLINE reg reg_fnma(reg a, reg b, reg c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
/* The larger, the smaller of both; b where one is a NaN. */
MDMT_INLINE reg reg_max(reg a, reg b)
{
    return _mm256_max_ps(a, b);
}
MDMT_INLINE reg reg_min(reg a, reg b)
{
    return _mm256_min_ps(a, b);
}
/* v where low < x < high, else 0. */
MDMT_INLINE reg reg_where_between(reg x, reg low, reg high, reg v)
{
    reg inside =
        _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_GT_OQ), _mm256_cmp_ps(x, high, _CMP_LT_OQ));
    return _mm256_and_ps(inside, v);
}
/* v where x > low, else 0. */
MDMT_INLINE reg reg_where_above(reg x, reg low, reg v)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_GT_OQ), v);
}
/* v where x <= high is false, else 0. */
MDMT_INLINE reg reg_unless_below(reg x, reg high, reg v)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, high, _CMP_NLE_UQ), v);
}
/* v where x >= low, else w. */
MDMT_INLINE reg reg_choose_from(reg x, reg low, reg v, reg w)
{
    return _mm256_blendv_ps(w, v, _mm256_cmp_ps(x, low, _CMP_GE_OQ));
}
/* p 2^n for whole n, -126 <= n <= 128: `counted` holds n in its last bits. The
 * exponent 255 of 2^128 is that of infinity. */
MDMT_INLINE reg reg_scale(reg p, reg n, reg counted)
{
    (void)n;
    __m256i power = _mm256_slli_epi32(_mm256_castps_si256(counted), 23);
    return _mm256_mul_ps(
        p, _mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_set1_epi32(127 << 23))));
}
/* p 2^n for whole n, -252 <= n <= 254, in two steps. */
MDMT_INLINE reg reg_scale_far(reg p, reg n, reg counted)
{
    (void)counted;
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(p,
                         _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

#elif defined(__aarch64__)
#include "reg_neon.h"
#endif

/* Of a MAP; one of bfloat16 has as many lanes as a block. */
MDMT_INLINE reg reg_load_map(const map_float *p)
{
#ifdef MDMT_BF16_MAPS
    return lanes_load(p);
#else
    return reg_load(p);
#endif
}
MDMT_INLINE void reg_store_map(map_float *p, reg v)
{
#ifdef MDMT_BF16_MAPS
    lanes_store(p, v);
#else
    reg_store(p, v);
#endif
}

/* ---- written once ---- */

/* A float of this size has its last bit at 1: adding it rounds to whole numbers. */
#define REG_COUNT 12582912.0f /* 1.5 2^23 */

/* e^x = p 2^n with |r| <= log(2) / 2: p is a polynomial in r = x - n log 2, the best
 * one of degree 6 in relative error (4e-9). |x| < 2^20. */
MDMT_INLINE reg reg_exp_parts(reg x, reg *n, reg *counted)
{
    *counted = reg_fma(x, reg_set(1.44269504f), reg_set(REG_COUNT));
    *n = reg_sub(*counted, reg_set(REG_COUNT));
    reg r = reg_fnma(*n, reg_set(0.693147182f), x);
    r = reg_fnma(*n, reg_set(-1.90465421e-09f), r);
    reg p = reg_fma(r, reg_set(0x1.6a23d0p-10f), reg_set(0x1.123a20p-7f));
    p = reg_fma(p, r, reg_set(0x1.5558f2p-5f));
    p = reg_fma(p, r, reg_set(0x1.555492p-3f));
    p = reg_fma(p, r, reg_set(0x1.fffffcp-2f));
    p = reg_fma(p, r, reg_set(1.0f));
    return reg_fma(p, r, reg_set(1.0f));
}

/* e^x */
MDMT_INLINE reg reg_exp(reg x)
{
    reg n, counted, p;
    x = reg_max(reg_set(-104.0f), reg_min(reg_set(89.0f), x));
    p = reg_exp_parts(x, &n, &counted);
    return reg_scale_far(p, n, counted);
}

/* 1 + e^-x: 1 for large x, infinity below -88.4. */
MDMT_INLINE reg reg_sigmoid_divisor(reg x)
{
    reg n, counted, p;
    x = reg_max(reg_set(-87.0f), reg_min(reg_set(89.0f), reg_sub(reg_set(0.0f), x)));
    p = reg_exp_parts(x, &n, &counted);
    return reg_add(reg_set(1.0f), reg_scale(p, n, counted));
}

MDMT_INLINE reg reg_sigmoid(reg x)
{
    return reg_div(reg_set(1.0f), reg_sigmoid_divisor(x));
}

/* s (1 + x (1 - s)) with s = 1 / (1 + e) and 1 - s = s e; constant beyond +-87. */
MDMT_INLINE reg reg_silu_slope(reg x)
{
    const reg one = reg_set(1.0f);
    reg n, counted, e, s;
    x = reg_max(reg_set(-87.0f), reg_min(reg_set(87.0f), x));
    e = reg_exp_parts(reg_sub(reg_set(0.0f), x), &n, &counted);
    e = reg_scale(e, n, counted);
    s = reg_div(one, reg_add(one, e));
    return reg_mul(s, reg_fma(x, reg_mul(s, e), one));
}

MDMT_INLINE reg reg_activate(mdmt_act act, reg x)
{
    const reg zero = reg_set(0.0f), three = reg_set(3.0f), six = reg_set(6.0f);
    const reg sixth = reg_set(1.0f / 6.0f);
    reg v;
    switch (act) {
    case MDMT_ACT_RELU:
        return reg_max(zero, x);
    case MDMT_ACT_RELU6:
        return reg_min(six, reg_max(zero, x));
    case MDMT_ACT_SILU:
        return reg_div(x, reg_sigmoid_divisor(x));
    case MDMT_ACT_SIGMOID:
        return reg_sigmoid(x);
    case MDMT_ACT_HARDSWISH:
        v = reg_max(reg_set(-3.0f), x);
        return reg_mul(v, reg_mul(reg_min(six, reg_add(v, three)), sixth));
    case MDMT_ACT_HARDSIGMOID:
        return reg_mul(reg_min(six, reg_max(zero, reg_add(x, three))), sixth);
    default:
        return x;
    }
}

/* act'(x) from v = x where mdmt_act_needs_input(act), else from v = act(x). */
MDMT_INLINE reg reg_slope(mdmt_act act, reg v)
{
    const reg zero = reg_set(0.0f), one = reg_set(1.0f), three = reg_set(3.0f);
    reg s;
    switch (act) {
    case MDMT_ACT_RELU:
        return reg_where_above(v, zero, one);
    case MDMT_ACT_RELU6:
        return reg_where_between(v, zero, reg_set(6.0f), one);
    case MDMT_ACT_SILU:
        return reg_silu_slope(v);
    case MDMT_ACT_SIGMOID:
        return reg_fnma(v, v, v);
    case MDMT_ACT_HARDSWISH:
        s = reg_fma(v, reg_set(1.0f / 3.0f), reg_set(0.5f));
        return reg_unless_below(v, reg_sub(zero, three), reg_choose_from(v, three, one, s));
    case MDMT_ACT_HARDSIGMOID:
        return reg_where_between(v, zero, one, reg_set(1.0f / 6.0f));
    default:
        return one;
    }
}

/* g act'(x), with v as above: 0 where the slope is 0 beyond a kink, whatever g is. */
MDMT_INLINE reg reg_gradient(mdmt_act act, reg g, reg v)
{
    switch (act) {
    case MDMT_ACT_NONE:
        return g;
    case MDMT_ACT_RELU:
        return reg_where_above(v, reg_set(0.0f), g);
    case MDMT_ACT_RELU6:
        return reg_where_between(v, reg_set(0.0f), reg_set(6.0f), g);
    default:
        return reg_mul(g, reg_slope(act, v));
    }
}

/* The same from x itself, whatever the activation. */
MDMT_INLINE reg reg_gradient_at(mdmt_act act, reg g, reg x)
{
    /* ReLU and ReLU6 have the same x and act(x) wherever their slope is not 0. */
    int output = act == MDMT_ACT_SIGMOID || act == MDMT_ACT_HARDSIGMOID;
    return reg_gradient(act, g, output ? reg_activate(act, x) : x);
}

/* ---- the same on lanes ---- */

#if defined(__AVX512F__)
#define LANES_OF(call, x)              call(x)
#define LANES_ACT_OF(call, act, x)     call(act, x)
#define LANES_ACT_OF2(call, act, x, y) call(act, x, y)

/* The first n lanes, 0 <= n <= 16. */
MDMT_INLINE lanes_mask lanes_first(int n)
{
    return (lanes_mask)((1u << n) - 1u);
}
/* v in the lanes of the mask, 0 in the others. */
MDMT_INLINE lanes lanes_only(lanes_mask mask, lanes v)
{
    return _mm512_maskz_mov_ps(mask, v);
}
/* The first n floats at p and zeros: touches no more than those. */
MDMT_INLINE lanes lanes_load_first(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(lanes_first(n), p);
}
MDMT_INLINE void lanes_store_first(float *p, int n, lanes v)
{
    _mm512_mask_storeu_ps(p, lanes_first(n), v);
}

#elif defined(__AVX2__)
#define LANES_OF(call, x)              MDMT_EACH(call((x).a), call((x).b))
#define LANES_ACT_OF(call, act, x)     MDMT_EACH(call(act, (x).a), call(act, (x).b))
#define LANES_ACT_OF2(call, act, x, y) MDMT_EACH(call(act, (x).a, (y).a), call(act, (x).b, (y).b))

/* The first n lanes, 0 <= n <= 16. */
MDMT_INLINE lanes_mask lanes_first(int n)
{
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32(n);
    const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    return MDMT_EACH(_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low)),
                     _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, high)));
}
/* v in the lanes of the mask, 0 in the others. */
MDMT_INLINE lanes lanes_only(lanes_mask mask, lanes v)
{
    return MDMT_EACH(_mm256_and_ps(mask.a, v.a), _mm256_and_ps(mask.b, v.b));
}
/* The first n floats at p and zeros: touches no more than those. */
MDMT_INLINE lanes lanes_load_first(const float *p, int n)
{
    lanes_mask mask = lanes_first(n);
    return MDMT_EACH(_mm256_maskload_ps(p, _mm256_castps_si256(mask.a)),
                     _mm256_maskload_ps(p + 8, _mm256_castps_si256(mask.b)));
}
MDMT_INLINE void lanes_store_first(float *p, int n, lanes v)
{
    lanes_mask mask = lanes_first(n);
    _mm256_maskstore_ps(p, _mm256_castps_si256(mask.a), v.a);
    _mm256_maskstore_ps(p + 8, _mm256_castps_si256(mask.b), v.b);
}

#endif

MDMT_INLINE lanes lanes_exp(lanes x)
{
    return LANES_OF(reg_exp, x);
}
MDMT_INLINE lanes lanes_sigmoid(lanes x)
{
    return LANES_OF(reg_sigmoid, x);
}
MDMT_INLINE lanes lanes_activate(mdmt_act act, lanes x)
{
    return LANES_ACT_OF(reg_activate, act, x);
}
/* act'(x) from v = x where mdmt_act_needs_input(act), else from v = act(x). */
MDMT_INLINE lanes lanes_slope(mdmt_act act, lanes v)
{
    return LANES_ACT_OF(reg_slope, act, v);
}
/* g act'(x), with v as above. */
MDMT_INLINE lanes lanes_gradient(mdmt_act act, lanes g, lanes v)
{
    return LANES_ACT_OF2(reg_gradient, act, g, v);
}
/* g act'(x) from x itself, whatever the activation. */
MDMT_INLINE lanes lanes_gradient_at(mdmt_act act, lanes g, lanes x)
{
    return LANES_ACT_OF2(reg_gradient_at, act, g, x);
}

/* Lanes of a block that are channels. */
static inline int lanes_used(int channels, int block)
{
    int left = channels - block * MDMT_BLOCK;
    return left < MDMT_BLOCK ? left : MDMT_BLOCK;
}

/* The 16 values of a block of channels of a row of ROWS (N, C); zeros beyond C. */
MDMT_INLINE lanes lanes_load_row(const float *row, int channels, int block)
{
    return lanes_load_first(row + (ptrdiff_t)block * MDMT_BLOCK, lanes_used(channels, block));
}

/* One loop for each way to load a value: `run(load)` with LANES_STORED, or the
 * activation of a lazy one, as a constant. */
enum { LANES_STORED = MDMT_ACTS };
#define LANES_EACH_LOAD(value, run)                                                                \
    do {                                                                                           \
        if (!(value)->scale) {                                                                     \
            run(LANES_STORED);                                                                     \
        } else {                                                                                   \
            LANES_EACH_ACT((value)->act, run);                                                     \
        }                                                                                          \
    } while (0)

/* The affine map of a lazy value's block, or none. */
MDMT_INLINE lanes_affine lanes_affine_of(const mdmt_value *value, int block)
{
    return value->scale ? lanes_affine_load(value->scale, value->shift, block)
                        : (lanes_affine){lanes_zero(), lanes_zero()};
}

/* A value at p, without its gate; `load` is a constant. The padding lanes of a lazy
 * one become act(0). */
MDMT_INLINE lanes lanes_take(const map_float *p, lanes_affine affine, int load)
{
    lanes v = lanes_load(p);
    return load == LANES_STORED ? v : lanes_activate((mdmt_act)load, lanes_apply(affine, v));
}

#endif
