#include "fma_rate.h"

#if defined(__AVX2__)
#include <immintrin.h>

enum { ACCUMULATORS = 12, LANES = 8 };

/* Twelve chains: enough for two units of latency four, few enough for 16 registers. */
double mdmt_fma_loop__avx2(int rounds, float *sink)
{
    const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.5f);
    __m256 sum[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++) {
        sum[i] = _mm256_set1_ps(1.0f + (float)i);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            sum[i] = _mm256_fmadd_ps(sum[i], factor, term);
        }
    }
    float lane[LANES];
    for (int i = 0; i < ACCUMULATORS; i++) {
        _mm256_storeu_ps(lane, sum[i]);
        *sink += lane[0];
    }
    return 2.0 * LANES * ACCUMULATORS * rounds;
}
#endif
