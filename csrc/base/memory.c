#define _GNU_SOURCE
#include "memory.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <mach/mach.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)

static atomic_uint_fast64_t allocation_count;
static atomic_uint_fast64_t slab_bytes;
static atomic_int_fast64_t fail_after = -1;

/* True when the test hook wants this allocation to fail. */
static int hook_refuses(void)
{
    atomic_fetch_add(&allocation_count, 1);
    if (atomic_load(&fail_after) < 0) {
        return 0;
    }
    return atomic_fetch_sub(&fail_after, 1) == 0;
}

void *mdmt_acquire(size_t count, size_t size)
{
    void *block = hook_refuses() ? NULL : calloc(count ? count : 1, size ? size : 1);
    if (!block) {
        mdmt_fail(MDMT_NO_MEMORY, "out of memory: %zu bytes could not be allocated", count * size);
    }
    return block;
}

void *mdmt_regrow(void *block, size_t old_count, size_t new_count, size_t size)
{
    char *grown = NULL;
    if (!hook_refuses() && new_count <= SIZE_MAX / (size ? size : 1)) {
        grown = realloc(block, new_count * size);
    }
    if (!grown) {
        mdmt_fail(MDMT_NO_MEMORY, "out of memory: %zu bytes could not be allocated",
                  new_count * size);
        return NULL;
    }
    if (new_count > old_count) {
        memset(grown + old_count * size, 0, (new_count - old_count) * size);
    }
    return grown;
}

void mdmt_release(void *block)
{
    free(block);
}

#if defined(__APPLE__)
/* What is neither wired nor holds compressed pages: macOS compresses and swaps
 * other programs' pages to make room and ends no process for want of it, so
 * that only what is larger than this cannot be worked with. */
long long mdmt_available_bytes(void)
{
    mach_port_t host = mach_host_self();
    vm_statistics64_data_t pages;
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    vm_size_t page = 0;
    int known = host_page_size(host, &page) == KERN_SUCCESS &&
                host_statistics64(host, HOST_VM_INFO64, (host_info64_t)&pages, &count) ==
                    KERN_SUCCESS;
    mach_port_deallocate(mach_task_self(), host);
    if (!known) {
        return -1;
    }
    /* speculative pages are among the free ones */
    long long usable = (long long)pages.free_count + pages.active_count + pages.inactive_count;
    return usable * (long long)page;
}
#else
/* A number from a small text file of the system, or -1. */
static long long read_number(const char *path, const char *format)
{
    char line[128];
    long long number = -1;
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, format, &number) == 1) {
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return number;
}

/* The smaller of what was known (-1: nothing) and what a cgroup leaves. */
static long long within_group(long long known, const char *limit_path, const char *used_path)
{
    long long limit = read_number(limit_path, "%lld");
    long long used = read_number(used_path, "%lld");
    if (limit < 0 || used < 0 || (known >= 0 && limit - used >= known)) {
        return known;
    }
    return limit > used ? limit - used : 0;
}

long long mdmt_available_bytes(void)
{
    long long kib = read_number("/proc/meminfo", "MemAvailable: %lld kB");
    long long bytes = kib < 0 ? -1 : kib * 1024;
    bytes = within_group(bytes, "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
    return within_group(bytes, "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                        "/sys/fs/cgroup/memory/memory.usage_in_bytes");
}
#endif

/* The system promises more than it has, and kills or crawls later: ask first. */
static mdmt_status check_available(size_t bytes, const char *what)
{
    if (bytes < (size_t)64 << 20) {
        return MDMT_OK;
    }
    long long available = mdmt_available_bytes();
    if (available >= 0 && (long long)bytes > available) {
        return mdmt_fail(MDMT_NO_MEMORY,
                         "out of memory: the %s needs %.2f GiB, but only %.2f GiB are available; "
                         "use a smaller batch or smaller images",
                         what, (double)bytes / (1 << 30), (double)available / (1 << 30));
    }
    return MDMT_OK;
}

mdmt_status mdmt_slab_open(mdmt_slab *slab, size_t bytes, const char *what)
{
    slab->data = NULL;
    slab->bytes = 0;
    if (bytes == 0) {
        return MDMT_OK;
    }
    MDMT_TRY(check_available(bytes, what));
    size_t size = mdmt_round_up(bytes, bytes >= HUGE_PAGE ? HUGE_PAGE : 4096);
    /* One huge page more than needed, so that the start can be aligned. */
    size_t span = size + (bytes >= HUGE_PAGE ? HUGE_PAGE : 0);
    void *raw = MAP_FAILED;
    if (!hook_refuses()) {
        raw = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (raw == MAP_FAILED) {
        return mdmt_fail(MDMT_NO_MEMORY, "out of memory: the %s needs %zu bytes (%.2f GiB)", what,
                         bytes, (double)bytes / (1 << 30));
    }
    char *start = raw;
    if (bytes >= HUGE_PAGE) {
        char *aligned = (char *)mdmt_round_up((size_t)start, HUGE_PAGE);
        if (aligned > start) {
            munmap(start, (size_t)(aligned - start));
        }
        char *end = aligned + size;
        if (start + span > end) {
            munmap(end, (size_t)(start + span - end));
        }
        start = aligned;
#ifdef MADV_HUGEPAGE
        madvise(start, size, MADV_HUGEPAGE); /* a refusal only costs speed */
#endif
    }
    slab->data = start;
    slab->bytes = size;
    atomic_fetch_add(&slab_bytes, size);
    return MDMT_OK;
}

mdmt_status mdmt_slab_open_touched(mdmt_slab *slab, size_t bytes, const char *what)
{
    MDMT_TRY(mdmt_slab_open(slab, bytes, what));
    for (size_t at = 0; at < slab->bytes; at += 4096) {
        ((volatile char *)slab->data)[at] = 0;
    }
    return MDMT_OK;
}

void mdmt_slab_close(mdmt_slab *slab)
{
    if (slab->data) {
        munmap(slab->data, slab->bytes);
        atomic_fetch_sub(&slab_bytes, slab->bytes);
    }
    slab->data = NULL;
    slab->bytes = 0;
}

uint64_t mdmt_allocation_count(void)
{
    return atomic_load(&allocation_count);
}

uint64_t mdmt_slab_bytes(void)
{
    return atomic_load(&slab_bytes);
}

void mdmt_fail_allocation_after(int64_t n)
{
    atomic_store(&fail_after, n);
}
