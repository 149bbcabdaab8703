/* Memory planning: which bytes of one slab each stored value takes, so that
 * values whose lives do not overlap share them. Integers only. */
#ifndef MDMT_IR_PLAN_H
#define MDMT_IR_PLAN_H

#include "record.h"

enum { MDMT_NOT_PLANNED = -1 };

typedef struct {
    int64_t *offset;     /* per tensor: bytes into the slab, or MDMT_NOT_PLANNED       */
    int64_t *workspace;  /* per op: bytes into the slab, or MDMT_NOT_PLANNED           */
    int64_t total;       /* bytes of the slab                                          */
    int64_t activations; /* bytes that values alone would take at their peak          */
    int in_place;        /* outputs that took over the storage of an input             */
} mdmt_plan;

/* tensor_bytes[t] for every tensor and view_bytes[t], for a view, its distance
 * from its root; workspace_bytes[op] and inplace[op] (as in mdmt_kernel) for
 * every op, and until[op], the last op beside which it may still run (itself
 * where ops follow each other; its outputs are not planned then). Plans tensors of the roles VALUE and INPUT that are stored. Inputs
 * and outputs of the graph live from beginning to end; a root lives from the
 * first op that writes a view of it to the last that reads one. */
mdmt_status mdmt_plan_make(const mdmt_graph *graph, const size_t *tensor_bytes,
                           const size_t *view_bytes, const size_t *workspace_bytes,
                           const uint32_t *inplace, const int *until, mdmt_plan *plan);
void mdmt_plan_free(mdmt_plan *plan);

#endif
