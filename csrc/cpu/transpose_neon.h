/* Blocks of 16 x 16 floats, transposed by NEON. */
#ifndef MDMT_CPU_TRANSPOSE_NEON_H
#define MDMT_CPU_TRANSPOSE_NEON_H

#include <arm_neon.h>

/* 4 x 4 floats of rows of 16. */
static inline void neon_transpose_4x4(float *to, const float *from)
{
    const float32x4_t a = vld1q_f32(from), b = vld1q_f32(from + 16);
    const float32x4_t c = vld1q_f32(from + 32), d = vld1q_f32(from + 48);
    const float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
    const float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    const float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
    const float64x2_t cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    vst1q_f32(to, vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even)));
    vst1q_f32(to + 16, vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)));
    vst1q_f32(to + 32, vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even)));
    vst1q_f32(to + 48, vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)));
}

/* `to` and `from` must not overlap. */
static inline void neon_transpose_block(float *to, const float *from)
{
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 16; j += 4) {
            neon_transpose_4x4(to + j * 16 + i, from + i * 16 + j);
        }
    }
}

#endif
