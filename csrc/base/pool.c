#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "memory.h"

#define SPINS 2000 /* about 20 us: the gap between two operations of a step */

struct mdmt_pool {
    int threads; /* with the caller */
    pthread_t *ids;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    atomic_uint generation; /* changes when there is new work */
    atomic_int next;        /* first task not yet taken */
    atomic_int busy;        /* helpers still inside the current work */
    int tasks;
    mdmt_task_fn fn;
    void *context;
    int stopping;
    pthread_mutex_t caller; /* held by the thread whose work is being done */
    unsigned forks;         /* fork_count when the threads were started    */
};

/* How many forks this process is away from the first one: a forked child has
 * the pool's memory but not its threads. */
static atomic_uint fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void after_fork(void)
{
    atomic_fetch_add(&fork_count, 1);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

typedef struct {
    mdmt_pool *pool;
    int thread;
} helper_start;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_tasks(mdmt_pool *pool, int thread)
{
    int tasks = pool->tasks;
    for (;;) {
        int task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= tasks) {
            return;
        }
        pool->fn(pool->context, task, thread);
    }
}

static void *helper_main(void *argument)
{
    helper_start start = *(helper_start *)argument;
    mdmt_pool *pool = start.pool;
    mdmt_release(argument);
    unsigned seen = 0;
    for (;;) {
        int spins = SPINS;
        while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen && --spins) {
            relax();
        }
        if (!spins) {
            pthread_mutex_lock(&pool->lock);
            while (atomic_load(&pool->generation) == seen) {
                pthread_cond_wait(&pool->wake, &pool->lock);
            }
            pthread_mutex_unlock(&pool->lock);
        }
        seen = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (pool->stopping) {
            return NULL;
        }
        take_tasks(pool, start.thread);
        if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->idle);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

/* Publishes a new generation of work (or the stop) to the helpers. */
static void announce(mdmt_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

mdmt_status mdmt_pool_open(mdmt_pool **out, int threads)
{
    if (threads < 1 || threads > 1024) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the number of threads must be 1 to 1024, not %d",
                         threads);
    }
    mdmt_pool *pool = mdmt_acquire(1, sizeof *pool);
    if (!pool) {
        return MDMT_NO_MEMORY;
    }
    pthread_once(&fork_once, watch_forks);
    pool->forks = atomic_load(&fork_count);
    pthread_mutex_init(&pool->caller, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->idle, NULL);
    pool->threads = 1;
    pool->ids = mdmt_acquire((size_t)threads, sizeof *pool->ids);
    if (!pool->ids) {
        mdmt_pool_close(pool);
        return MDMT_NO_MEMORY;
    }
    for (int thread = 1; thread < threads; thread++) {
        helper_start *start = mdmt_acquire(1, sizeof *start);
        if (!start) {
            mdmt_pool_close(pool);
            return MDMT_NO_MEMORY;
        }
        *start = (helper_start){pool, thread};
        if (pthread_create(&pool->ids[thread], NULL, helper_main, start) != 0) {
            mdmt_release(start);
            mdmt_pool_close(pool);
            return mdmt_fail(MDMT_NO_MEMORY, "thread %d of %d could not be started; "
                             "ask for fewer with MDMT_NUM_THREADS", thread + 1, threads);
        }
        pool->threads = thread + 1;
    }
    *out = pool;
    return MDMT_OK;
}

void mdmt_pool_close(mdmt_pool *pool)
{
    if (!pool) {
        return;
    }
    if (pool->forks != atomic_load(&fork_count)) {
        return; /* its threads and locks belong to the parent */
    }
    if (pool->threads > 1) {
        pool->stopping = 1;
        announce(pool);
        for (int thread = 1; thread < pool->threads; thread++) {
            pthread_join(pool->ids[thread], NULL);
        }
    }
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->caller);
    mdmt_release(pool->ids);
    mdmt_release(pool);
}

int mdmt_pool_threads(const mdmt_pool *pool)
{
    return pool ? pool->threads : 1;
}

/* Waits until every helper has left the current work. */
static void wait_for_helpers(mdmt_pool *pool)
{
    for (int spins = SPINS * 4; spins && atomic_load_explicit(&pool->busy, memory_order_acquire);
         spins--) {
        relax();
    }
    if (atomic_load_explicit(&pool->busy, memory_order_acquire)) {
        pthread_mutex_lock(&pool->lock);
        while (atomic_load_explicit(&pool->busy, memory_order_acquire)) {
            pthread_cond_wait(&pool->idle, &pool->lock);
        }
        pthread_mutex_unlock(&pool->lock);
    }
}

void mdmt_parallel(mdmt_pool *pool, int tasks, mdmt_task_fn fn, void *context)
{
    int alone = !pool || pool->threads == 1 || tasks <= 1 ||
                pool->forks != atomic_load(&fork_count) ||
                pthread_mutex_trylock(&pool->caller) != 0;
    if (alone) {
        for (int task = 0; task < tasks; task++) {
            fn(context, task, 0);
        }
        return;
    }
    pool->tasks = tasks;
    pool->fn = fn;
    pool->context = context;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->busy, pool->threads - 1);
    announce(pool);
    take_tasks(pool, 0);
    wait_for_helpers(pool);
    pthread_mutex_unlock(&pool->caller);
}

/* Whole cores granted by the cgroup (v2, then v1), or 0 when unlimited. */
static int cgroup_cores(void)
{
    long long quota = -1, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file) {
        if (fscanf(file, "%lld %lld", &quota, &period) != 2) {
            quota = -1;
        }
        fclose(file);
    } else if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
        if (fscanf(file, "%lld", &quota) != 1) {
            quota = -1;
        }
        fclose(file);
        if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
            if (fscanf(file, "%lld", &period) != 1) {
                period = 0;
            }
            fclose(file);
        }
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int mdmt_usable_cores(void)
{
    int cores = 0;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        cores = CPU_COUNT(&set);
    }
    if (cores < 1) {
        cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    }
    int quota = cgroup_cores();
    if (quota && quota < cores) {
        cores = quota;
    }
    return cores < 1 ? 1 : cores;
}
