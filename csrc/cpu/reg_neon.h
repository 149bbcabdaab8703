/* One register of lanes_act.h for NEON, and its lanes. For lanes_act.h only. */
#ifndef MDMT_CPU_REG_NEON_H
#define MDMT_CPU_REG_NEON_H

#include "lanes.h"

typedef float32x4_t reg;
enum { REG_FLOATS = 4 };

MDMT_INLINE reg reg_load(const float *p)
{
    return vld1q_f32(p);
}
MDMT_INLINE void reg_store(float *p, reg v)
{
    vst1q_f32(p, v);
}
MDMT_INLINE reg reg_set(float v)
{
    return vdupq_n_f32(v);
}
MDMT_INLINE reg reg_add(reg a, reg b)
{
    return vaddq_f32(a, b);
}
MDMT_INLINE reg reg_sub(reg a, reg b)
{
    return vsubq_f32(a, b);
}
MDMT_INLINE reg reg_mul(reg a, reg b)
{
    return vmulq_f32(a, b);
}
MDMT_INLINE reg reg_div(reg a, reg b)
{
    return vdivq_f32(a, b);
}
MDMT_INLINE reg reg_fma(reg a, reg b, reg c)
{
    return vfmaq_f32(c, a, b);
}
/* c - a * b */
MDMT_INLINE reg reg_fnma(reg a, reg b, reg c)
{
    return vfmsq_f32(c, a, b);
}
/* The larger, the smaller of both; a NaN where one is a NaN. */
MDMT_INLINE reg reg_max(reg a, reg b)
{
    return vmaxq_f32(a, b);
}
MDMT_INLINE reg reg_min(reg a, reg b)
{
    return vminq_f32(a, b);
}
/* v where low < x < high, else 0. */
MDMT_INLINE reg reg_where_between(reg x, reg low, reg high, reg v)
{
    return neon_only(vandq_u32(vcgtq_f32(x, low), vcltq_f32(x, high)), v);
}
/* v where x > low, else 0. */
MDMT_INLINE reg reg_where_above(reg x, reg low, reg v)
{
    return neon_only(vcgtq_f32(x, low), v);
}
/* v where x <= high is false, else 0. */
MDMT_INLINE reg reg_unless_below(reg x, reg high, reg v)
{
    return neon_only(vmvnq_u32(vcleq_f32(x, high)), v);
}
/* v where x >= low, else w. */
MDMT_INLINE reg reg_choose_from(reg x, reg low, reg v, reg w)
{
    return vbslq_f32(vcgeq_f32(x, low), v, w);
}
/* p 2^n for whole n, -126 <= n <= 128: `counted` holds n in its last bits. The exponent 255 of
 * 2^128 is that of infinity. */
MDMT_INLINE reg reg_scale(reg p, reg n, reg counted)
{
    (void)n;
    int32x4_t power = vshlq_n_s32(vreinterpretq_s32_f32(counted), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(vaddq_s32(power, vdupq_n_s32(127 << 23))));
}
MDMT_INLINE reg neon_power(int32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
/* p 2^n for whole n, -252 <= n <= 254, in two steps. */
MDMT_INLINE reg reg_scale_far(reg p, reg n, reg counted)
{
    (void)counted;
    int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    p = vmulq_f32(p, neon_power(half));
    return vmulq_f32(p, neon_power(vsubq_s32(whole, half)));
}

/* ---- lanes ---- */

#define LANES_OF(call, x) ((lanes)MDMT_EACH_1(call, x))
#define LANES_ACT_OF(call, act, x)                                                                 \
    ((lanes)MDMT_EACH(call(act, (x).a), call(act, (x).b), call(act, (x).c), call(act, (x).d)))
#define LANES_ACT_OF2(call, act, x, y)                                                             \
    ((lanes)MDMT_EACH(call(act, (x).a, (y).a), call(act, (x).b, (y).b), call(act, (x).c, (y).c),   \
                      call(act, (x).d, (y).d)))

/* Of four lanes from `from` on, the mask of those before n. */
MDMT_INLINE uint32x4_t neon_first(int n, int from)
{
    static const int32_t lane[4] = {0, 1, 2, 3};
    return vcgtq_s32(vdupq_n_s32(n - from), vld1q_s32(lane));
}
/* The first n lanes, 0 <= n <= 16. */
MDMT_INLINE lanes_mask lanes_first(int n)
{
    return (lanes_mask)MDMT_EACH(neon_first(n, 0), neon_first(n, 4), neon_first(n, 8),
                                 neon_first(n, 12));
}
/* v in the lanes of the mask, 0 in the others. */
MDMT_INLINE lanes lanes_only(lanes_mask mask, lanes v)
{
    return (lanes)MDMT_EACH_2(neon_only, mask, v);
}
/* The first n floats at p and zeros: touches no more than those. */
MDMT_INLINE lanes lanes_load_first(const float *p, int n)
{
    if (n >= 16) {
        return lanes_load(p);
    }
    return (lanes)MDMT_EACH(neon_load_first(p, n), neon_load_first(p + 4, n - 4),
                            neon_load_first(p + 8, n - 8), neon_load_first(p + 12, n - 12));
}
MDMT_INLINE void lanes_store_first(float *p, int n, lanes v)
{
    neon_store_first(p, n, v.a);
    neon_store_first(p + 4, n - 4, v.b);
    neon_store_first(p + 8, n - 8, v.c);
    neon_store_first(p + 12, n - 12, v.d);
}

#endif
