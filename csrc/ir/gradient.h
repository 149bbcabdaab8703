/* Reverse-mode differentiation of a graph: appends the ops that compute the
 * gradients. Each op's record knows its own rule; this file keeps the books. */
#ifndef MDMT_IR_GRADIENT_H
#define MDMT_IR_GRADIENT_H

#include "record.h"

/* Ops that the walk itself appends. */
typedef struct {
    const mdmt_op_record *add;      /* sums two gradients of one tensor                 */
    const mdmt_op_record *zeros;    /* a gradient of which only some channels are given */
    const mdmt_op_record *gate_bwd; /* the gradient of a lazy tensor's gate             */
    const char *learns;             /* parameters whose names begin so; "": all         */
} mdmt_gradient_rules;

struct mdmt_gradients {
    int *of; /* of[t]: tensor holding d loss / d t so far, or -1; of a view: see its root */
    /* pooled[t], of a lazy MAP: ROWS holding d loss / d (mean of t over its pixels), a
     * part of the gradient that is not spread out over the map; or -1 */
    int *pooled;
    int room;  /* tensors of the graph when the walk began */
    int taken; /* the view whose gradient was taken and is to come back, or -1 */
    mdmt_gradient_rules rules;
};

/* Appends the gradients of all parameters that `loss_gradients` reach.
 * seeds: pairs (tensor, its gradient tensor), count of them. Only ops with
 * index below `ops` are differentiated. Gradients of parameters that learn get
 * the role GRADIENT, the twin set, and the parameter's name; what makes others
 * alone is for mdmt_graph_prune. */
mdmt_status mdmt_differentiate(mdmt_graph *graph, const mdmt_gradient_rules *rules, int ops,
                               const int (*seeds)[2], int count);

/* For the rules in ops/. */

/* Gradient of a tensor in *gradient, or -1 when nothing flows into it. Of a view
 * it is a view of its root's gradient. */
mdmt_status mdmt_gradient_get(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                              int *gradient);
/* Takes the gradient so far away (-1 if none): the caller adds to it itself, as
 * conv2d_bwd_data's addend, and gives the sum back with mdmt_gradient_put at
 * once. Of a view the sum is written over it, in its root's gradient. */
mdmt_status mdmt_gradient_take(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                               int *gradient);
/* Adds `gradient` to what `tensor` has. For a parameter it becomes (or must be
 * the only) gradient. */
mdmt_status mdmt_gradient_put(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                              int gradient);
/* Adds ROWS to the gradient of the mean over the pixels of a lazy tensor. */
mdmt_status mdmt_gradient_put_pooled(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                                     int rows);
/* Whether anybody wants d loss / d tensor: a parameter, or a value that depends
 * on one. */
int mdmt_gradient_wanted(const mdmt_graph *graph, const mdmt_gradients *gradients, int tensor);

#endif
