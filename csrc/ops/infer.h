/* Small helpers for the records of ops/: checks and new outputs. */
#ifndef MDMT_OPS_INFER_H
#define MDMT_OPS_INFER_H

#include "../ir/gradient.h"
#include "attrs.h"

/* Strides, paddings and dilations, in pixels: no product of two leaves an int in any kernel. */
enum { MDMT_MOST_STEP = 1 << 15 };

static inline const mdmt_tensor *mdmt_in(const mdmt_graph *graph, const mdmt_op *op, int i)
{
    return op->in[i] < 0 ? NULL : &graph->tensor[op->in[i]];
}

/* Fails unless input i has the kind; absent optional inputs pass. */
static inline mdmt_status mdmt_expect(const mdmt_graph *graph, const mdmt_op *op, int i,
                                      mdmt_kind kind)
{
    const mdmt_tensor *tensor = mdmt_in(graph, op, i);
    if (tensor && tensor->kind != kind) {
        char text[64];
        return mdmt_fail(MDMT_BAD_ARGUMENT, "input %d of %s has the wrong kind; its shape is %s", i,
                         op->record->name, mdmt_tensor_text(tensor, text));
    }
    return MDMT_OK;
}

/* Fails unless inputs i and j have one shape. */
static inline mdmt_status mdmt_expect_same(const mdmt_graph *graph, const mdmt_op *op, int i, int j)
{
    const mdmt_tensor *a = mdmt_in(graph, op, i), *b = mdmt_in(graph, op, j);
    if (!a || !b) {
        return MDMT_OK;
    }
    for (int d = 0; d < 4; d++) {
        if (a->dims != b->dims || a->dim[d] != b->dim[d]) {
            char left[64], right[64];
            return mdmt_fail(MDMT_BAD_ARGUMENT, "inputs %d and %d of %s differ in shape: %s, %s", i,
                             j, op->record->name, mdmt_tensor_text(a, left),
                             mdmt_tensor_text(b, right));
        }
    }
    return MDMT_OK;
}

/* Fails unless input i is a vector of n numbers. */
static inline mdmt_status mdmt_expect_vector(const mdmt_graph *graph, const mdmt_op *op, int i,
                                             int n)
{
    const mdmt_tensor *tensor = mdmt_in(graph, op, i);
    if (tensor && (tensor->kind != MDMT_VECTOR || tensor->dim[0] != n)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "input %d of %s must be a vector of %d numbers", i,
                         op->record->name, n);
    }
    return MDMT_OK;
}

/* The op's next output, a VALUE. */
static inline mdmt_status mdmt_output(mdmt_graph *graph, mdmt_op *op, mdmt_kind kind,
                                      mdmt_dtype dtype, int dims, int d0, int d1, int d2, int d3)
{
    int dim[4] = {d0, d1, d2, d3};
    MDMT_TRY(mdmt_graph_tensor(graph, NULL, kind, dtype, MDMT_ROLE_VALUE, dims, dim,
                               &op->out[op->outputs]));
    op->outputs++;
    return MDMT_OK;
}

static inline mdmt_status mdmt_output_like(mdmt_graph *graph, mdmt_op *op, int tensor)
{
    mdmt_tensor t = graph->tensor[tensor];
    return mdmt_output(graph, op, t.kind, t.dtype, t.dims, t.dim[0], t.dim[1], t.dim[2], t.dim[3]);
}

/* Appends an op and gives the tensor of its first output. */
static inline mdmt_status mdmt_append(mdmt_graph *graph, const mdmt_op_record *record,
                                      const void *attrs, int inputs, const int *in, int *out)
{
    int op;
    MDMT_TRY(mdmt_graph_op(graph, record, attrs, inputs, in, &op));
    *out = graph->op[op].out[0];
    return MDMT_OK;
}

/* Appends an op of the gradient and adds its first output to the gradient of
 * `tensor`. */
static inline mdmt_status mdmt_append_gradient(mdmt_graph *graph, mdmt_gradients *gradients,
                                               const mdmt_op_record *record, const void *attrs,
                                               int inputs, const int *in, int tensor)
{
    int out;
    MDMT_TRY(mdmt_append(graph, record, attrs, inputs, in, &out));
    return mdmt_gradient_put(graph, gradients, tensor, out);
}

#endif
