/* What all kernels of Adam share: the numbers of each group, and the norm that clips. */
#ifndef MDMT_CPU_ADAM_H
#define MDMT_CPU_ADAM_H

#include "../backend.h"
#include "../base/pool.h"

typedef struct {
    float decay, shrink, step; /* L2 in the gradient; factor of the decoupled one; of m / ... */
} mdmt_adam_rates;

/* rates: of every group of the update, at least one; room for MDMT_MAX_GROUPS. */
void mdmt_adam_rates_of(const mdmt_adam *adam, const mdmt_update *update, mdmt_adam_rates *rates);

/* The L2 norm of gradients (count), in double, with the same bits for any number of threads and on
 * every instruction set. Infinity and NaN come only of elements that are: the squares of floats are
 * far below what a double holds. */
double mdmt_norm(mdmt_pool *pool, const float *gradients, int64_t count);

/* What gradients of this norm are multiplied by, at most 1. */
float mdmt_clip_scale(double clip, double norm);

/* Gradients of a step's parts, added up in place (backend.h). */
void mdmt_accumulate(mdmt_pool *pool, float *gradients, float *sums, int64_t count, int part,
                     int parts, float scale);

/* The group of the float at `i`. */
static inline int mdmt_group_at(const mdmt_update *update, int64_t i)
{
    return update->group ? update->group[i / MDMT_GROUP_FLOATS] : 0;
}

/* The end of the floats from `at` on, at most `end`, that are of one group. */
static inline int64_t mdmt_group_end(const mdmt_update *update, int64_t at, int64_t end)
{
    if (!update->group) {
        return end;
    }
    int64_t block = at / MDMT_GROUP_FLOATS;
    int64_t last = (end - 1) / MDMT_GROUP_FLOATS;
    uint8_t group = update->group[block];
    while (block < last && update->group[block + 1] == group) {
        block++;
    }
    return block == last ? end : (block + 1) * MDMT_GROUP_FLOATS;
}

#endif
