/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011). A number depends on its key and its
 * counter only, so any position of any stream can be drawn at once, on any
 * thread, after any interruption. */
#ifndef MDMT_BASE_PHILOX_H
#define MDMT_BASE_PHILOX_H

#include <stdint.h>

/* Drawn on the processor and inside kernels of a GPU alike. */
#ifdef __CUDACC__
#define MDMT_DRAW static __host__ __device__ inline
#else
#define MDMT_DRAW static inline
#endif

/* Streams keep independent uses of one seed apart. */
enum mdmt_stream {
    MDMT_STREAM_SAMPLER = 1,  /* counter: epoch, data set, position          */
    MDMT_STREAM_AUGMENT = 2,  /* counter: epoch, sample (data set, index)    */
    MDMT_STREAM_DROPOUT = 3,  /* counter: step, operation, element           */
    MDMT_STREAM_INIT = 4,     /* counter: parameter, element                 */
    MDMT_STREAM_ELASTIC = 5,  /* counter: epoch, sample, grid node           */
    MDMT_STREAM_NOISE = 6     /* counter: epoch, sample; pixel               */
};

typedef struct {
    uint32_t v[4];
} mdmt_philox4;

MDMT_DRAW mdmt_philox4 mdmt_philox(uint64_t key, uint64_t counter_low, uint64_t counter_high)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    mdmt_philox4 drawn = {{c0, c1, c2, c3}};
    return drawn;
}

/* Key of a stream of a seed: one Philox block, so that nearby seeds and
 * streams give unrelated keys. */
MDMT_DRAW uint64_t mdmt_stream_key(uint64_t seed, uint32_t stream)
{
    mdmt_philox4 r = mdmt_philox(seed, stream, 0x6D646D74u);
    return (uint64_t)r.v[0] | (uint64_t)r.v[1] << 32;
}

/* Uniform in [0, 1) with 24 bits: exact in float. */
MDMT_DRAW float mdmt_uniform(uint32_t bits)
{
    return (float)(bits >> 8) * (1.0f / 16777216.0f);
}

#endif
