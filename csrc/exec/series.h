/* Training steps and predictions in a row on resident data sets: on a GPU the
 * host only starts them, each as one recording; elsewhere the host runs them one
 * by one. A step may come in parts: batches whose gradients are added up. */
#ifndef MDMT_EXEC_SERIES_H
#define MDMT_EXEC_SERIES_H

#include "network.h"

/* What a caller asks for. All arrays are the caller's. */
typedef struct {
    int count;       /* batches                                                           */
    mdmt_step first; /* the first step; sample_source, sample_index (count, mode->batch)  */
    /* with mode->want_gradients: the labels */
    const int32_t *task;     /* (count, mode->batch)                     */
    const float *target;     /* (count, mode->batch, mode->target_width) */
    const mdmt_adam *adam;   /* of the first step; NULL: no update       */
    mdmt_parts parts;        /* its sums are left to the network         */
    double *norms; /* with adam->clip: (steps), gradients' norms before they are clipped */
    int outputs;             /* tensors to keep of every batch           */
    const char *const *name; /* (outputs)                                */
    void *const *to;         /* (outputs): arrays (count, ...)           */
    int (*stop)(void *context); /* asked between steps; not 0: MDMT_INTERRUPTED. May be NULL */
    void *context;
} mdmt_series_call;

/* Runs the batches. *done: how many steps took effect, also on failure and when stopped: a step
 * whose loss, or whose gradient's norm, is not finite updates no weights, and no step after it
 * does. It is stopped between two steps. The mode must be from_store. With want_gradients, output 0 must be the loss and output 1 the
 * losses per task. */
mdmt_status mdmt_network_series(mdmt_network *network, const mdmt_mode *mode,
                                const mdmt_series_call *call, int *done);

/* The sentence for a loss that is not finite; per_task (2 * tasks). */
mdmt_status mdmt_loss_not_finite(const mdmt_mode *mode, const float *per_task, uint64_t step);

#endif
