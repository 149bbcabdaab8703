#include "fma_rate.h"

#if defined(__aarch64__)
#include <arm_neon.h>

enum { ACCUMULATORS = 24, LANES = 4 };

/* Twenty-four chains: enough for four units of latency four. */
double mdmt_fma_loop__neon(int rounds, float *sink)
{
    const float32x4_t factor = vdupq_n_f32(0.999f), term = vdupq_n_f32(0.5f);
    float32x4_t sum[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++) {
        sum[i] = vdupq_n_f32(1.0f + (float)i);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            /* The addend is what NEON overwrites: the chain runs through it. */
            sum[i] = vfmaq_f32(sum[i], factor, term);
        }
    }
    for (int i = 0; i < ACCUMULATORS; i++) {
        *sink += vgetq_lane_f32(sum[i], 0);
    }
    return 2.0 * LANES * ACCUMULATORS * rounds;
}
#endif
