/* Thread pool. Work is cut into tasks by the shape of the problem alone, never
 * by the number of threads; which thread takes a task is free. A task writes
 * only what is its own, and sums over tasks are taken afterwards in task order.
 * So results have the same bits for any number of threads. */
#ifndef MDMT_BASE_POOL_H
#define MDMT_BASE_POOL_H

#include "status.h"

typedef struct mdmt_pool mdmt_pool;

/* `task` runs 0 .. tasks-1; `thread` is 0 .. mdmt_pool_threads()-1 and may
 * index per-thread scratch. Tasks are taken in the order of their numbers. Must
 * not fail. */
typedef void (*mdmt_task_fn)(void *context, int task, int thread);

mdmt_status mdmt_pool_open(mdmt_pool **pool, int threads);
void mdmt_pool_close(mdmt_pool *pool);
int mdmt_pool_threads(const mdmt_pool *pool);
/* Whether it has its threads: not when it is NULL, nor when a fork has left them behind. */
int mdmt_pool_runs(const mdmt_pool *pool);
/* Runs all tasks and returns when the last has ended. The caller works too. A
 * NULL pool runs them one after the other; so does one that another thread is
 * using at the moment, or whose threads a fork has left behind. */
void mdmt_parallel(mdmt_pool *pool, int tasks, mdmt_task_fn fn, void *context);

/* Cores that this process may use (affinity and cgroup quota; of Apple Silicon
 * the performance cores), at least 1. */
int mdmt_usable_cores(void);

/* What a thread does in a loop that waits for another's store: leaves the core to its sibling. */
static inline void mdmt_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` does nothing on most cores */
#endif
}

#endif
