#define _POSIX_C_SOURCE 200809L
#include "fma_rate.h"

#include <time.h>

#include "../base/memory.h"
#include "../base/pool.h"

enum { ROUNDS = 20000, ACCUMULATORS = 16 };

double mdmt_fma_loop__ref(int rounds, float *sink)
{
    float sum[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++) {
        sum[i] = 1.0f + (float)i;
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            sum[i] = sum[i] * 0.999f + 0.5f;
        }
    }
    for (int i = 0; i < ACCUMULATORS; i++) {
        *sink += sum[i];
    }
    return 2.0 * ACCUMULATORS * rounds;
}

typedef struct {
    double operations;
    float sink;
    char apart[MDMT_ALIGN]; /* one cache line per thread */
} fma_share;

typedef struct {
    double seconds;
    double (*loop)(int rounds, float *sink);
    fma_share *share;
} fma_work;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fma_task(void *context, int task, int thread)
{
    fma_work *work = context;
    fma_share *share = &work->share[task];
    (void)thread;
    double end = now() + work->seconds;
    do {
        share->operations += work->loop(ROUNDS, &share->sink);
    } while (now() < end);
}

mdmt_status mdmt_fma_rate(double seconds, int threads, mdmt_isa isa, double *rate)
{
    if (!(seconds > 0.0 && seconds <= 60.0) || threads < 1 || threads > 1024) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "fma_rate: seconds must lie in (0, 60] and threads in 1..1024, not %g and "
                         "%d",
                         seconds, threads);
    }
    fma_work work = {seconds, mdmt_fma_loop__ref, NULL};
#if defined(__x86_64__)
    if (isa == MDMT_ISA_AVX2) {
        work.loop = mdmt_fma_loop__avx2;
    } else if (isa == MDMT_ISA_AVX512) {
        work.loop = mdmt_fma_loop__avx512;
    }
#elif defined(__aarch64__)
    if (isa == MDMT_ISA_NEON) {
        work.loop = mdmt_fma_loop__neon;
    }
#else
    (void)isa;
#endif
    mdmt_pool *pool = NULL;
    mdmt_status status = MDMT_NO_MEMORY;
    work.share = mdmt_acquire((size_t)threads, sizeof *work.share);
    if (!work.share) {
        goto done;
    }
    status = mdmt_pool_open(&pool, threads);
    if (status != MDMT_OK) {
        goto done;
    }
    double start = now(), operations = 0.0;
    mdmt_parallel(pool, threads, fma_task, &work);
    double elapsed = now() - start;
    for (int i = 0; i < threads; i++) {
        operations += work.share[i].operations;
    }
    *rate = operations / elapsed;
done:
    mdmt_pool_close(pool);
    mdmt_release(work.share);
    return status;
}
