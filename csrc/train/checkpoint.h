/* Checkpoints in safetensors layout, written so that the file of that name is
 * always a whole one: the old or the new.
 *
 * Layout: u64 header length, JSON header padded with spaces to a multiple of 8
 * bytes, then the arrays, little-endian, C order, without gaps, the widest
 * elements first, so that each array starts at a multiple of its element size.
 *
 * Writing: a temporary file in the same folder, `.<name>.<process>-<number>.tmp`,
 * is locked, written and flushed to disk, renamed over path, and the folder is
 * flushed to disk. Each write has a file of its own, so that of several at once
 * each is whole and the last one stays. Whatever fails is one sentence with path
 * and cause, and the temporary file is removed. A killed process leaves it behind;
 * the next write to that path removes it, since nobody holds its lock. */
#ifndef MDMT_TRAIN_CHECKPOINT_H
#define MDMT_TRAIN_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "../base/status.h"

/* UTF-8, not terminated. */
typedef struct {
    const char *data;
    size_t bytes;
} mdmt_text;

enum { MDMT_ARRAY_DIMS = 64 };

typedef struct {
    mdmt_text name;
    const char *dtype; /* "F32", "F64", "F16", "I32", "I64", "U8" or "BOOL" */
    int item_bytes;
    int dims;
    int64_t dim[MDMT_ARRAY_DIMS];
    const void *data; /* C order; the caller's */
} mdmt_array;

/* `metadata` holds 2 * pairs texts: key, value, key, value, .. */
mdmt_status mdmt_write_safetensors(const char *path, const mdmt_array *arrays, int count,
                                   const mdmt_text *metadata, int pairs);

/* Test hook: let `n` further system calls of the writer succeed and fail the next
 * one as a full disk does; a negative n switches the hook off. */
void mdmt_fail_io_after(int64_t n);

#endif
