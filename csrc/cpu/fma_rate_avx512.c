#include "fma_rate.h"

#if defined(__AVX512F__)
#include <immintrin.h>

enum { ACCUMULATORS = 12, LANES = 16 };

/* Twelve chains: enough for two units of latency four, few enough for 16 registers. */
double mdmt_fma_loop__avx512(int rounds, float *sink)
{
    const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.5f);
    __m512 sum[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++) {
        sum[i] = _mm512_set1_ps(1.0f + (float)i);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            sum[i] = _mm512_fmadd_ps(sum[i], factor, term);
        }
    }
    float lane[LANES];
    for (int i = 0; i < ACCUMULATORS; i++) {
        _mm512_storeu_ps(lane, sum[i]);
        *sink += lane[0];
    }
    return 2.0 * LANES * ACCUMULATORS * rounds;
}
#endif
