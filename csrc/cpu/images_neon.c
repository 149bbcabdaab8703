/* Bilinear sampling of four pixels at once. No fused multiply-adds, so the bits are the reference's. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "images.h"
#include "kernels.h"

static inline float32x4_t mirror(float32x4_t x, float32x4_t last)
{
    x = vabsq_f32(x);
    const float32x4_t folded = vsubq_f32(vaddq_f32(last, last), x);
    x = vbslq_f32(vcgtq_f32(x, last), folded, x);
    return vmaxq_f32(x, vdupq_n_f32(0.0f));
}

/* The bytes at four places. */
static inline int32x4_t bytes_at(const uint8_t *source, const int32_t *offset)
{
    const int32_t byte[4] = {source[offset[0]], source[offset[1]], source[offset[2]],
                             source[offset[3]]};
    return vld1q_s32(byte);
}

/* source[at] + fx (source[at + right] - source[at]), right being 0 or 1. */
static inline float32x4_t row_value(const uint8_t *source, int32x4_t at, int32x4_t right,
                                    float32x4_t fx)
{
    int32_t here[4], next[4];
    vst1q_s32(here, at);
    vst1q_s32(next, vaddq_s32(at, right));
    const int32x4_t a = bytes_at(source, here), b = bytes_at(source, next);
    return vaddq_f32(vcvtq_f32_s32(a), vmulq_f32(fx, vcvtq_f32_s32(vsubq_s32(b, a))));
}

static void sample_row(const uint8_t *source, int sh, int sw, const float *x, const float *y,
                       float *out, int count)
{
    int i = 0;
    if ((int64_t)sh * sw < INT32_MAX) {
        const float32x4_t last_x = vdupq_n_f32((float)(sw - 1));
        const float32x4_t last_y = vdupq_n_f32((float)(sh - 1));
        const int32x4_t width = vdupq_n_s32(sw), height = vdupq_n_s32(sh), one = vdupq_n_s32(1);
        for (; i + 4 <= count; i += 4) {
            const float32x4_t px = mirror(vld1q_f32(x + i), last_x);
            const float32x4_t py = mirror(vld1q_f32(y + i), last_y);
            const int32x4_t x0 = vcvtq_s32_f32(px), y0 = vcvtq_s32_f32(py);
            const float32x4_t fx = vsubq_f32(px, vcvtq_f32_s32(x0));
            const float32x4_t fy = vsubq_f32(py, vcvtq_f32_s32(y0));
            const int32x4_t right = vreinterpretq_s32_u32(
                vandq_u32(vcgtq_s32(width, vaddq_s32(x0, one)), vreinterpretq_u32_s32(one)));
            const int32x4_t down = vreinterpretq_s32_u32(vandq_u32(
                vcgtq_s32(height, vaddq_s32(y0, one)), vreinterpretq_u32_s32(width)));
            const int32x4_t at = vmlaq_s32(x0, y0, width);
            const float32x4_t top = row_value(source, at, right, fx);
            const float32x4_t bottom = row_value(source, vaddq_s32(at, down), right, fx);
            vst1q_f32(out + i, vaddq_f32(top, vmulq_f32(fy, vsubq_f32(bottom, top))));
        }
    }
    mdmt_sample_row__ref(source, sh, sw, x + i, y + i, out + i, count - i);
}

static mdmt_status run(const mdmt_site *site, const mdmt_call *call)
{
    return mdmt_images_run(site, call, sample_row);
}

const mdmt_cpu_impl mdmt_f32_images__neon = {
    .name = "mdmt_f32_images__neon", .isa = MDMT_ISA_NEON, .needs = mdmt_images_needs, .run = run};
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
