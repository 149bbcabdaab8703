/* Activations and sums of equal shapes. */
#include "infer.h"

static const mdmt_field act_fields[] = {MDMT_INT_FIELD(mdmt_act_attrs, act, 1),
                                        {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status like_first(mdmt_graph *graph, mdmt_op *op)
{
    if (op->inputs > 1) {
        MDMT_TRY(mdmt_expect_same(graph, op, 0, 1));
    }
    return mdmt_output_like(graph, op, op->in[0]);
}

static mdmt_status act_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int in[2] = {mdmt_gradient_get(gradients, op.out[0]), op.out[0]};
    return mdmt_append_gradient(graph, gradients, &mdmt_op_act_bwd, op.attrs, 2, in, op.in[0]);
}

const mdmt_op_record mdmt_op_act = {.name = "act",
                                    .min_inputs = 1,
                                    .max_inputs = 1,
                                    .inplace_inputs = 1u << 0,
                                    .fields = act_fields,
                                    .attr_bytes = sizeof(mdmt_act_attrs),
                                    .infer = like_first,
                                    .gradient = act_gradient};

const mdmt_op_record mdmt_op_act_bwd = {.name = "act_bwd",
                                        .min_inputs = 2,
                                        .max_inputs = 2,
                                        .inplace_inputs = 1u << 0,
                                        .fields = act_fields,
                                        .attr_bytes = sizeof(mdmt_act_attrs),
                                        .infer = like_first};

static mdmt_status add_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int dy = mdmt_gradient_get(gradients, op.out[0]);
    MDMT_TRY(mdmt_gradient_put(graph, gradients, op.in[0], dy));
    return mdmt_gradient_put(graph, gradients, op.in[1], dy);
}

const mdmt_op_record mdmt_op_add = {.name = "add",
                                    .min_inputs = 2,
                                    .max_inputs = 2,
                                    .inplace_inputs = 1u << 0 | 1u << 1,
                                    .infer = like_first,
                                    .gradient = add_gradient};
