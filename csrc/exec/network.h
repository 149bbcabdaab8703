/* A network with its weights, gradients and optimiser state, and a program for
 * every way it is run: any batch size, training or evaluation, images from
 * outside or from resident data sets. All programs share one slab. */
#ifndef MDMT_EXEC_NETWORK_H
#define MDMT_EXEC_NETWORK_H

#include "lower.h"
#include "program.h"

typedef struct mdmt_network mdmt_network;

typedef enum {
    MDMT_HOLDS_WEIGHTS,  /* parameters and buffers          */
    MDMT_HOLDS_GRADIENT, /* of the last backward pass       */
    MDMT_HOLDS_FIRST,    /* Adam's first moment             */
    MDMT_HOLDS_SECOND    /* Adam's second moment            */
} mdmt_holding;

typedef struct {
    int64_t parameters, gradients, optimizer, activations, workspace; /* bytes */
} mdmt_memory;

/* Takes over the graph (also on failure) and borrows the backend. */
mdmt_status mdmt_network_open(mdmt_network **network, mdmt_graph *graph, mdmt_backend *backend,
                              uint64_t seed);
void mdmt_network_close(mdmt_network *network);

/* Goes on with another backend of the same layouts (another number of threads);
 * programs are compiled again when they are next used. */
void mdmt_network_rebase(mdmt_network *network, mdmt_backend *backend);

/* Changes whenever a program was asked for or all were dropped: one that was got before is then to
 * be asked for again. */
uint64_t mdmt_network_uses(const mdmt_network *network);
/* While it is closed, no program can be had. */
void mdmt_network_close_to_others(mdmt_network *network, int closed);

/* How many batches are recorded now: of each program those that end a step, and others. */
int mdmt_network_recordings(const mdmt_network *network);

const mdmt_graph *mdmt_network_graph(const mdmt_network *network);

/* Plain arrays in and out, by the tensor's name. */
mdmt_status mdmt_network_get(mdmt_network *network, mdmt_holding what, const char *name,
                             void *host);
mdmt_status mdmt_network_set(mdmt_network *network, mdmt_holding what, const char *name,
                             const void *host);

/* The program for this mode, compiled when it is the first time. It is bound
 * and stays valid until the next call. */
mdmt_status mdmt_network_program(mdmt_network *network, const mdmt_mode *mode,
                                 mdmt_program **program);

/* Groups of parameters from now on: number[t] is that of the graph's tensor t, in group (count).
 * count 0: none, all factors are 1. The arrays stay the caller's. */
mdmt_status mdmt_network_set_groups(mdmt_network *network, const mdmt_group *group, int count,
                                    const uint8_t *number);

/* Adam, with the gradients of the last run, on the parameters that learn in its mode. With
 * adam->clip *norm is the gradient's before it is clipped; MDMT_NOT_FINITE, and nothing updated,
 * where it is not finite. */
mdmt_status mdmt_network_adam(mdmt_network *network, const mdmt_mode *mode, const mdmt_adam *adam,
                              double *norm);

/* Room for the sums of the gradients of what learns in this mode, from its first float on. */
mdmt_status mdmt_network_sums(mdmt_network *network, const mdmt_mode *mode, float **sums);

/* Adds the gradients of the last run to those of the step's earlier parts (backend.h). */
mdmt_status mdmt_network_accumulate(mdmt_network *network, const mdmt_mode *mode, int part,
                                    int parts, float scale);

/* The sentence for a gradient to be clipped whose norm is not finite. */
mdmt_status mdmt_gradient_not_finite(uint64_t step);

/* What Adam works on in this mode: the parameters that learn, which must be the network's last. */
mdmt_status mdmt_network_update(mdmt_network *network, const mdmt_mode *mode, mdmt_update *update);

/* A program for this mode that is only looked at: it has no memory and cannot run. The caller
 * closes it. */
mdmt_status mdmt_network_look(mdmt_network *network, const mdmt_mode *mode, mdmt_program **program);

/* What this mode needs, as planned, without taking it. */
mdmt_status mdmt_network_memory(mdmt_network *network, const mdmt_mode *mode, mdmt_memory *memory);

#endif
