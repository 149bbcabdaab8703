/* Allocation: every block the engine owns comes from here, so that a test can
 * count allocations (none may happen after a program is compiled) and make any
 * one of them fail. */
#ifndef MDMT_BASE_MEMORY_H
#define MDMT_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define MDMT_ALIGN 64 /* one cache line = one AVX-512 vector, bytes */

/* Small blocks (descriptors, tables): zeroed; NULL on failure with the
 * sentence set. Freed with mdmt_release. */
void *mdmt_acquire(size_t count, size_t size);
/* Grows a block obtained from mdmt_acquire; the new tail is zeroed. On failure
 * returns NULL and leaves the old block untouched. */
void *mdmt_regrow(void *block, size_t old_count, size_t new_count, size_t size);
void mdmt_release(void *block);

/* Large slabs (parameters, activations, workspace): 2 MiB aligned, on huge
 * pages where the kernel grants them, zeroed. */
typedef struct {
    void *data;
    size_t bytes;
} mdmt_slab;
mdmt_status mdmt_slab_open(mdmt_slab *slab, size_t bytes, const char *what);
/* As mdmt_slab_open, but also writes every page once so that no step pays for
 * first touches. */
mdmt_status mdmt_slab_open_touched(mdmt_slab *slab, size_t bytes, const char *what);
void mdmt_slab_close(mdmt_slab *slab);

/* Bytes that this process can still take: of the host, or of its cgroup (v2, v1)
 * where that is less; -1 where the system does not say. */
long long mdmt_available_bytes(void);
/* Number of allocations (blocks and slabs) since the process started. */
uint64_t mdmt_allocation_count(void);
/* Bytes now held in slabs. */
uint64_t mdmt_slab_bytes(void);
/* Test hook: let `n` further allocations succeed and the next one fail; a
 * negative n switches the hook off. */
void mdmt_fail_allocation_after(int64_t n);

static inline size_t mdmt_round_up(size_t value, size_t unit)
{
    return (value + unit - 1) / unit * unit;
}

#endif
