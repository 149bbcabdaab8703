#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "cpuid.h"
#include "memory.h"

#define SPINS 2000 /* about 20 us: the gap between two operations of a step */

/* The current work is one word, tasks << 32 | next task: whoever moves `next` by
 * compare-and-swap owns that task of that work, and the work cannot end (nor
 * `fn` and `context` change) before the owner has added it to `done`. So the
 * caller waits for tasks, never for threads: a helper that the system has not
 * woken yet is not missed, and one that wakes too late finds nothing to do. */
struct mdmt_pool {
    int threads; /* with the caller */
    pthread_t *ids;
    atomic_uint_fast64_t work;
    atomic_int done;     /* tasks of the current work that have ended */
    mdmt_task_fn fn;
    void *context;
    atomic_int sleepers; /* helpers that wait for `wake`             */
    atomic_int waiting;  /* 1 while the caller waits for `idle`      */
    atomic_int stopping;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
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

static int has_work(mdmt_pool *pool)
{
    uint64_t work = atomic_load(&pool->work);
    return (uint32_t)work < (uint32_t)(work >> 32);
}

/* Signals under the lock, so that a waiter between its check and its wait is
 * not missed. */
static void signal_all(mdmt_pool *pool, pthread_cond_t *condition)
{
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(condition);
    pthread_mutex_unlock(&pool->lock);
}

static void take_tasks(mdmt_pool *pool, int thread)
{
    uint64_t work = atomic_load(&pool->work);
    while ((uint32_t)work < (uint32_t)(work >> 32)) {
        if (!atomic_compare_exchange_weak(&pool->work, &work, work + 1)) {
            continue;
        }
        int tasks = (int)(work >> 32);
        pool->fn(pool->context, (int)(uint32_t)work, thread);
        if (atomic_fetch_add(&pool->done, 1) + 1 == tasks && atomic_load(&pool->waiting)) {
            signal_all(pool, &pool->idle);
        }
        work = atomic_load(&pool->work);
    }
}

static void sleep_until_work(mdmt_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!has_work(pool) && !atomic_load(&pool->stopping)) {
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *helper_main(void *argument)
{
    helper_start start = *(helper_start *)argument;
    mdmt_pool *pool = start.pool;
    mdmt_release(argument);
    while (!atomic_load(&pool->stopping)) {
        int spins = SPINS;
        while (!has_work(pool) && !atomic_load(&pool->stopping) && --spins) {
            mdmt_relax();
        }
        if (!spins) {
            sleep_until_work(pool);
        }
        take_tasks(pool, start.thread);
    }
    return NULL;
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
    if (!mdmt_pool_runs(pool)) {
        return; /* its threads and locks belong to the parent */
    }
    if (pool->threads > 1) {
        atomic_store(&pool->stopping, 1);
        signal_all(pool, &pool->wake);
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

int mdmt_pool_runs(const mdmt_pool *pool)
{
    return pool && pool->forks == atomic_load(&fork_count);
}

/* Waits until all tasks have ended. */
static void wait_for_tasks(mdmt_pool *pool, int tasks)
{
    for (int spins = SPINS * 4; spins && atomic_load(&pool->done) < tasks; spins--) {
        mdmt_relax();
    }
    if (atomic_load(&pool->done) < tasks) {
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->waiting, 1);
        while (atomic_load(&pool->done) < tasks) {
            pthread_cond_wait(&pool->idle, &pool->lock);
        }
        atomic_store(&pool->waiting, 0);
        pthread_mutex_unlock(&pool->lock);
    }
}

void mdmt_parallel(mdmt_pool *pool, int tasks, mdmt_task_fn fn, void *context)
{
    int alone = !mdmt_pool_runs(pool) || pool->threads == 1 || tasks <= 1 ||
                pthread_mutex_trylock(&pool->caller) != 0;
    if (alone) {
        for (int task = 0; task < tasks; task++) {
            fn(context, task, 0);
        }
        return;
    }
    pool->fn = fn;
    pool->context = context;
    atomic_store(&pool->done, 0);
    atomic_store(&pool->work, (uint64_t)tasks << 32);
    if (atomic_load(&pool->sleepers)) {
        signal_all(pool, &pool->wake);
    }
    take_tasks(pool, 0);
    wait_for_tasks(pool, tasks);
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

/* Cores that the system lets this process run on; below 1 when it does not say. */
#if defined(__linux__)
static int allowed_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}
#elif defined(__APPLE__)
/* Apple Silicon: the performance cores alone (level 0; an Intel Mac has no
 * levels). Tasks go to whichever thread is free, but their cut is fixed and
 * many operations have only a few for each core: such an operation ends with
 * its last task, and one that an efficiency core took late, at a third of the
 * speed or less, is waited for by all. */
static int allowed_cores(void)
{
    return (int)mdmt_system_number("hw.perflevel0.physicalcpu");
}
#else
static int allowed_cores(void)
{
    return 0;
}
#endif

int mdmt_usable_cores(void)
{
    int cores = allowed_cores();
    if (cores < 1) {
        cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    }
    int quota = cgroup_cores();
    if (quota && quota < cores) {
        cores = quota;
    }
    return cores < 1 ? 1 : cores;
}
