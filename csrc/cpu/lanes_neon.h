/* The lanes of lanes.h for NEON: four registers of four floats. Each operation does to every lane
 * what it does on x86-64. For lanes.h only. */
#ifndef MDMT_CPU_LANES_NEON_H
#define MDMT_CPU_LANES_NEON_H

#include <arm_neon.h>

#define MDMT_LANES_ISA   neon
#define MDMT_LANES_LEVEL MDMT_ISA_NEON
#define MDMT_REGISTERS   32

typedef struct {
    float32x4_t a, b, c, d;
} lanes;
typedef struct {
    uint32x4_t a, b, c, d;
} lanes_mask;
typedef uint8x16_t lane_bytes; /* one byte a lane */

#define MDMT_EACH(expression_a, expression_b, expression_c, expression_d)                          \
    {                                                                                              \
        (expression_a), (expression_b), (expression_c), (expression_d)                             \
    }
#define MDMT_EACH_1(f, x) MDMT_EACH(f((x).a), f((x).b), f((x).c), f((x).d))
#define MDMT_EACH_2(f, x, y)                                                                       \
    MDMT_EACH(f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d))
#define MDMT_EACH_3(f, x, y, z)                                                                    \
    MDMT_EACH(f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c),              \
              f((x).d, (y).d, (z).d))

MDMT_INLINE lanes lanes_load_float(const float *p)
{
    return (lanes)MDMT_EACH(vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12));
}
MDMT_INLINE void lanes_store_float(float *p, lanes v)
{
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}
/* Whole lines, one after the other: the processor notices by itself that they are not read. */
MDMT_INLINE void lanes_stream_float(float *p, lanes v)
{
    lanes_store_float(p, v);
}
MDMT_INLINE lanes lanes_set(float v)
{
    const float32x4_t all = vdupq_n_f32(v);
    return (lanes){all, all, all, all};
}
MDMT_INLINE lanes lanes_zero(void)
{
    return lanes_set(0.0f);
}
MDMT_INLINE lanes lanes_add(lanes x, lanes y)
{
    return (lanes)MDMT_EACH_2(vaddq_f32, x, y);
}
MDMT_INLINE lanes lanes_sub(lanes x, lanes y)
{
    return (lanes)MDMT_EACH_2(vsubq_f32, x, y);
}
MDMT_INLINE lanes lanes_mul(lanes x, lanes y)
{
    return (lanes)MDMT_EACH_2(vmulq_f32, x, y);
}
MDMT_INLINE lanes lanes_div(lanes x, lanes y)
{
    return (lanes)MDMT_EACH_2(vdivq_f32, x, y);
}
MDMT_INLINE lanes lanes_sqrt(lanes x)
{
    return (lanes)MDMT_EACH_1(vsqrtq_f32, x);
}
/* x * y + z, rounded once. */
MDMT_INLINE lanes lanes_fma(lanes x, lanes y, lanes z)
{
    return (lanes)MDMT_EACH_3(vfmaq_f32, z, x, y);
}
/* z - x * y, rounded once. */
MDMT_INLINE lanes lanes_fnma(lanes x, lanes y, lanes z)
{
    return (lanes)MDMT_EACH_3(vfmsq_f32, z, x, y);
}
/* max(0, v); a NaN stays a NaN. */
MDMT_INLINE lanes lanes_relu(lanes v)
{
    return (lanes)MDMT_EACH_2(vmaxq_f32, lanes_zero(), v);
}
/* v where the mask is set, else 0. */
MDMT_INLINE float32x4_t neon_only(uint32x4_t mask, float32x4_t v)
{
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(v)));
}
/* v where y > 0, else 0. */
MDMT_INLINE lanes lanes_where_positive(lanes y, lanes v)
{
    const lanes_mask positive = MDMT_EACH_1(vcgtzq_f32, y);
    return (lanes)MDMT_EACH_2(neon_only, positive, v);
}
MDMT_INLINE uint32x4_t neon_above(float32x4_t x, float32x4_t y)
{
    return vornq_u32(vcgtq_f32(x, y), vceqq_f32(x, x));
}
/* Where x > y or x is a NaN. */
MDMT_INLINE lanes_mask lanes_above(lanes x, lanes y)
{
    return (lanes_mask)MDMT_EACH_2(neon_above, x, y);
}
/* x where the mask is set, else y. */
MDMT_INLINE lanes lanes_select(lanes_mask mask, lanes x, lanes y)
{
    return (lanes)MDMT_EACH_3(vbslq_f32, mask, x, y);
}
MDMT_INLINE lane_bytes lane_bytes_set(int v)
{
    return vdupq_n_u8((uint8_t)v);
}
MDMT_INLINE lane_bytes lane_bytes_add(lane_bytes x, int v)
{
    return vaddq_u8(x, vdupq_n_u8((uint8_t)v));
}
/* A mask's lanes as bytes. */
MDMT_INLINE uint8x16_t neon_narrow(lanes_mask m)
{
    uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(m.a), vreinterpretq_u16_u32(m.b));
    uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(m.c), vreinterpretq_u16_u32(m.d));
    return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}
MDMT_INLINE lane_bytes lane_bytes_select(lanes_mask mask, lane_bytes x, lane_bytes y)
{
    return vbslq_u8(neon_narrow(mask), x, y);
}
MDMT_INLINE lane_bytes lane_bytes_load(const uint8_t *p)
{
    return vld1q_u8(p);
}
MDMT_INLINE void lane_bytes_store(uint8_t *p, lane_bytes v)
{
    vst1q_u8(p, v);
}
/* v where the byte equals k, else 0. */
MDMT_INLINE lanes lanes_where_equal(lane_bytes bytes, lane_bytes k, lanes v)
{
    const int8x16_t same = vreinterpretq_s8_u8(vceqq_u8(bytes, k));
    const int16x8_t low = vmovl_s8(vget_low_s8(same)), high = vmovl_high_s8(same);
    const lanes_mask mask = {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(low))),
                             vreinterpretq_u32_s32(vmovl_high_s16(low)),
                             vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(high))),
                             vreinterpretq_u32_s32(vmovl_high_s16(high))};
    return (lanes)MDMT_EACH_2(neon_only, mask, v);
}
MDMT_INLINE void neon_accumulate(double *sum, float32x4_t v)
{
    vst1q_f64(sum, vaddq_f64(vld1q_f64(sum), vcvt_f64_f32(vget_low_f32(v))));
    vst1q_f64(sum + 2, vaddq_f64(vld1q_f64(sum + 2), vcvt_high_f64_f32(v)));
}
/* sum[l] += v[l] */
MDMT_INLINE void lanes_accumulate(double *sum, lanes v)
{
    neon_accumulate(sum, v.a);
    neon_accumulate(sum + 4, v.b);
    neon_accumulate(sum + 8, v.c);
    neon_accumulate(sum + 12, v.d);
}

/* The first n of four floats at p, and zeros: touches no more than those. */
MDMT_INLINE float32x4_t neon_load_first(const float *p, int n)
{
    if (n >= 4) {
        return vld1q_f32(p);
    }
    float32x4_t v = vdupq_n_f32(0.0f);
    v = n > 0 ? vld1q_lane_f32(p, v, 0) : v;
    v = n > 1 ? vld1q_lane_f32(p + 1, v, 1) : v;
    return n > 2 ? vld1q_lane_f32(p + 2, v, 2) : v;
}
MDMT_INLINE void neon_store_first(float *p, int n, float32x4_t v)
{
    if (n >= 4) {
        vst1q_f32(p, v);
        return;
    }
    if (n > 0) {
        vst1q_lane_f32(p, v, 0);
    }
    if (n > 1) {
        vst1q_lane_f32(p + 1, v, 1);
    }
    if (n > 2) {
        vst1q_lane_f32(p + 2, v, 2);
    }
}

#endif
