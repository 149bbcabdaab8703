/* Lowering: from the description of a network (batch of one, semantic ops) to a
 * graph that runs: batch size and image size set, batch normalisation fused with
 * what follows it, statistics moved into convolutions, loss and gradients added. */
#ifndef MDMT_EXEC_LOWER_H
#define MDMT_EXEC_LOWER_H

#include "../backend.h"

typedef struct {
    int batch, height, width;
    int training;       /* batch statistics, dropout                                 */
    int want_gradients; /* loss and gradients                                        */
    char learns[32];    /* with it: of parameters whose names begin so; "": of all   */
    int from_store;     /* the image comes from the step's sources, not from outside */
    int augment;        /* with from_store                                           */
    int colour;         /* with from_store: some data sets have a plane for each channel    */
    float mean[4], std[4];
    mdmt_loss_attrs loss; /* with want_gradients: all but want_gradient                */
    int target_width;     /* columns of the target, with those of weights              */
    /* with want_gradients: the output of the network that holds each task's logits */
    const char *logits[MDMT_MAX_TASKS];
} mdmt_mode;

/* Names of the tensors that a lowered graph has beside the network's own. */
#define MDMT_NAME_IMAGE    "image"
#define MDMT_NAME_TASK     "task"
#define MDMT_NAME_TARGET   "target"
#define MDMT_NAME_MASK     "mask"
#define MDMT_NAME_LOSS     "loss"
#define MDMT_NAME_PER_TASK "per_task"

/* A new graph in *lowered; the caller closes it. */
mdmt_status mdmt_lower(const mdmt_graph *network, const mdmt_mode *mode, mdmt_graph **lowered);

#endif
