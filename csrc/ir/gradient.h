/* Reverse-mode differentiation of a graph: appends the ops that compute the
 * gradients. Each op's record knows its own rule; this file keeps the books. */
#ifndef MDMT_IR_GRADIENT_H
#define MDMT_IR_GRADIENT_H

#include "record.h"

struct mdmt_gradients {
    int *of;   /* of[t]: tensor holding d loss / d t so far, or -1 */
    int room;  /* tensors of the graph when the walk began         */
    const mdmt_op_record *add; /* sums two gradients of one tensor */
};

/* Appends the gradients of all parameters that `loss_gradients` reach.
 * seeds: pairs (tensor, its gradient tensor), count of them. Only ops with
 * index below `ops` are differentiated. Parameters' gradients get the role
 * GRADIENT, the twin set, and the parameter's name. */
mdmt_status mdmt_differentiate(mdmt_graph *graph, const mdmt_op_record *add, int ops,
                               const int (*seeds)[2], int count);

/* For the rules in ops/. */

/* Gradient of a tensor, or -1 when nothing flows into it. */
int mdmt_gradient_get(const mdmt_gradients *gradients, int tensor);
/* Takes the gradient so far away (-1 if none): the caller adds to it itself,
 * as conv2d_bwd_data's addend, and gives the sum back with mdmt_gradient_put. */
int mdmt_gradient_take(mdmt_gradients *gradients, int tensor);
/* Adds `gradient` to what `tensor` has. For a parameter it becomes (or must be
 * the only) gradient. */
mdmt_status mdmt_gradient_put(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                              int gradient);
/* Whether anybody wants d loss / d tensor: a parameter, or a value that depends
 * on one. */
int mdmt_gradient_wanted(const mdmt_graph *graph, const mdmt_gradients *gradients, int tensor);

#endif
