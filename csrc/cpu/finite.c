#include "finite.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { PIECE = 128 << 10, ROUND = 4096 }; /* floats of a task, and between two looks at the result */

typedef struct {
    const float *values;
    size_t count;
    atomic_int bad;
} finite_job;

/* On bits, so that compilers take many at once: the exponent of a NaN or an infinity is all ones. */
static int is_bad(const float *values, size_t count)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return bad != 0;
}

static void finite_task(void *context, int task, int thread)
{
    finite_job *job = context;
    size_t at = (size_t)task * PIECE;
    const size_t end = job->count - at < PIECE ? job->count : at + PIECE;
    (void)thread;
    for (; at < end && !atomic_load_explicit(&job->bad, memory_order_relaxed); at += ROUND) {
        size_t count = end - at < ROUND ? end - at : ROUND;
        if (is_bad(job->values + at, count)) {
            atomic_store_explicit(&job->bad, 1, memory_order_relaxed);
        }
    }
}

int mdmt_all_finite(mdmt_pool *pool, const float *values, size_t count)
{
    finite_job job = {.values = values, .count = count};
    atomic_init(&job.bad, 0);
    mdmt_parallel(pool, (int)((count + PIECE - 1) / PIECE), finite_task, &job);
    return !atomic_load(&job.bad);
}
