/* Races among the threads of a kernel that runs on the processor, and accesses to what is neither
 * the device's memory nor its own.
 *
 * -fsanitize=thread puts a call before each access to memory; these are the functions called. Two
 * accesses to the same bytes, one of them a write, race on a GPU
 *   in memory of the device: from different blocks of a launch, or as below;
 *   in any memory: from different threads of a block within one phase.
 * For every two bytes the last write and the last reads are kept, which is enough to find a race
 * if there is one, whatever the order in which threads and blocks were walked. */
#define FAKE_RACES /* this file itself is not watched */
#include "cuda_runtime.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <pthread.h>
#include <unordered_map>

namespace
{

enum { CELL = 2, PAGE = 4096, CELLS = PAGE / CELL };
enum { READ_BY_BLOCKS = 1, READ_BY_THREADS = 2 };

/* Who: of launch (device) or block (shared) number `epoch`; 0: nobody. */
struct who {
    uint32_t epoch, block, phase, thread;
};
struct cell {
    who write, read;
    uint32_t readers; /* READ_BY_*: others than `read` of the same epoch, or of its phase, too */
};
struct page {
    cell at[CELLS];
};

std::unordered_map<uintptr_t, page *> pages;
uintptr_t last_number = ~(uintptr_t)0;
page *last_page;

int running;
const char *kernel = "";
who now;
uint32_t epochs, launch, of_block;
/* From an address to behind the last. */
struct range {
    uintptr_t from, to;

    int has(uintptr_t at, size_t bytes) const
    {
        return at >= from && at + bytes <= to;
    }
};
range shared, stack, arguments;
enum { RECENT = 4 };
range recent[RECENT]; /* blocks of the device's memory, met last */
int turn;
long long found;
char first[1024];

cell *cell_of(uintptr_t address)
{
    uintptr_t number = address / PAGE;
    if (number != last_number) {
        page *&known = pages[number];
        known = known ? known : new page();
        last_page = known;
        last_number = number;
    }
    return &last_page->at[address % PAGE / CELL];
}

/* Whether a block of the device's memory has all of it. */
int on_device(uintptr_t address, size_t bytes)
{
    for (const range &r : recent) {
        if (r.has(address, bytes)) {
            return 1;
        }
    }
    const void *from = nullptr;
    size_t size = fake_block_with((const void *)address, &from);
    range &r = recent[turn++ % RECENT];
    r = {(uintptr_t)from, (uintptr_t)from + size};
    return r.has(address, bytes);
}

void stray(uintptr_t address, size_t bytes, int writes)
{
    if (found++ == 0) {
        snprintf(first, sizeof first,
                 "%s: thread %u of block %u %s %zu bytes at %p in phase %u, which are not the "
                 "device's",
                 kernel, now.thread, now.block, writes ? "writes" : "reads", bytes, (void *)address,
                 now.phase);
    }
}

void race(const char *what, const who &other, int in_shared)
{
    if (found++ == 0) {
        snprintf(first, sizeof first,
                 "%s: in %s memory, thread %u of block %u %s what thread %u of block %u "
                 "uses at the same time (phases %u and %u)",
                 kernel, in_shared ? "shared" : "the device's", now.thread, now.block, what,
                 other.thread, other.block, now.phase, other.phase);
    }
}

/* Whether what was done by `other` (and, if `several`, by other threads of its phase) may be at the
 * same time as now. */
int meets(const who &other, int by_blocks, int by_threads, const who &me)
{
    if (other.epoch != me.epoch) {
        return 0;
    }
    return by_blocks || other.block != me.block ||
           (other.phase == me.phase && (by_threads || other.thread != me.thread));
}

void touch(uintptr_t address, size_t bytes, int writes)
{
    int in_shared = shared.has(address, bytes);
    if (!running || (!in_shared && (stack.has(address, bytes) || arguments.has(address, bytes)))) {
        return; /* of the host, a variable of the thread, or an argument */
    }
    if (!in_shared && !on_device(address, bytes)) {
        stray(address, bytes, writes);
        return;
    }
    who me = now;
    me.epoch = in_shared ? of_block : launch;
    for (uintptr_t at = address / CELL * CELL; at < address + bytes; at += CELL) {
        cell *c = cell_of(at);
        if (meets(c->write, 0, 0, me)) {
            race(writes ? "writes" : "reads", c->write, in_shared);
        }
        if (writes) {
            if (meets(c->read, c->readers & READ_BY_BLOCKS, c->readers & READ_BY_THREADS, me)) {
                race("writes", c->read, in_shared);
            }
            c->write = me;
        } else if (c->read.epoch != me.epoch) {
            c->read = me;
            c->readers = 0;
        } else if (c->read.block != me.block) {
            c->readers |= READ_BY_BLOCKS;
        } else if (c->read.phase != me.phase) {
            c->read = me;
            c->readers &= READ_BY_BLOCKS;
        } else if (c->read.thread != me.thread) {
            c->readers |= READ_BY_THREADS;
        }
    }
}

} // namespace

void fake_watch_launch(const char *name, const void *started, size_t size)
{
    pthread_attr_t attributes;
    void *from;
    size_t bytes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &from, &bytes);
        pthread_attr_destroy(&attributes);
        stack = {(uintptr_t)from, (uintptr_t)from + bytes};
    }
    arguments = {(uintptr_t)started, (uintptr_t)started + size};
    for (range &r : recent) {
        r = {0, 0}; /* memory may have been freed */
    }
    kernel = name;
    launch = ++epochs;
    running = 1;
}

void fake_watch_block(size_t block, const void *its, size_t bytes)
{
    now.block = (uint32_t)block;
    shared = {(uintptr_t)its, (uintptr_t)its + bytes};
    of_block = ++epochs;
}

void fake_watch_thread(int phase, int thread)
{
    now.phase = (uint32_t)phase;
    now.thread = (uint32_t)thread;
}

void fake_watch_end(void)
{
    running = 0;
}

/* Races so far; *text: a sentence on the first. */
extern "C" __attribute__((visibility("default"))) long long fake_cuda_races(const char **text);

long long fake_cuda_races(const char **text)
{
    *text = first;
    return found;
}

/* ---- what the compiler calls ---- */

#define ACCESS(bytes)                                                                              \
    extern "C" void __tsan_read##bytes(void *at);                                                  \
    extern "C" void __tsan_write##bytes(void *at);                                                 \
    extern "C" void __tsan_unaligned_read##bytes(void *at);                                        \
    extern "C" void __tsan_unaligned_write##bytes(void *at);                                       \
    void __tsan_read##bytes(void *at)                                                              \
    {                                                                                              \
        touch((uintptr_t)at, bytes, 0);                                                            \
    }                                                                                              \
    void __tsan_write##bytes(void *at)                                                             \
    {                                                                                              \
        touch((uintptr_t)at, bytes, 1);                                                            \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *at)                                                    \
    {                                                                                              \
        touch((uintptr_t)at, bytes, 0);                                                            \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *at)                                                   \
    {                                                                                              \
        touch((uintptr_t)at, bytes, 1);                                                            \
    }

ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

extern "C" {
void __tsan_read_range(void *at, size_t bytes);
void __tsan_write_range(void *at, size_t bytes);
void __tsan_init(void);
void __tsan_func_entry(void *from);
void __tsan_func_exit(void);
void __tsan_vptr_update(void *at, void *value);
void __tsan_vptr_read(void *at);
}

void __tsan_read_range(void *at, size_t bytes)
{
    touch((uintptr_t)at, bytes, 0);
}

void __tsan_write_range(void *at, size_t bytes)
{
    touch((uintptr_t)at, bytes, 1);
}

void __tsan_init(void)
{
}

void __tsan_func_entry(void *from)
{
    (void)from;
}

void __tsan_func_exit(void)
{
}

void __tsan_vptr_update(void *at, void *value)
{
    (void)at;
    (void)value;
}

void __tsan_vptr_read(void *at)
{
    (void)at;
}
