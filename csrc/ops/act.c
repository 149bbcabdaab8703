/* Activations, sums of equal shapes, gates (squeeze-excite: Hu et al. 2018). */
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
    mdmt_act act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, &op)->act;
    int in[2] = {-1, mdmt_act_needs_input(act) ? op.in[0] : op.out[0]};
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &in[0]));
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
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    MDMT_TRY(mdmt_gradient_put(graph, gradients, op.in[0], dy));
    return mdmt_gradient_put(graph, gradients, op.in[1], dy);
}

const mdmt_op_record mdmt_op_add = {.name = "add",
                                    .min_inputs = 2,
                                    .max_inputs = 2,
                                    .inplace_inputs = 1u << 0 | 1u << 1,
                                    .infer = like_first,
                                    .gradient = add_gradient};

static mdmt_status expect_gate(const mdmt_graph *graph, const mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_ROWS));
    const mdmt_tensor *x = mdmt_in(graph, op, 0), *s = mdmt_in(graph, op, 1);
    char xs[64], ss[64];
    if (x->dim[0] != s->dim[0] || x->dim[1] != s->dim[1]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a gate of shape %s does not fit %s",
                         mdmt_tensor_text(s, ss), mdmt_tensor_text(x, xs));
    }
    return MDMT_OK;
}

static mdmt_status gate_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(expect_gate(graph, op));
    return mdmt_output_like(graph, op, op->in[0]);
}

static mdmt_status gate_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    int gate_in[2] = {dy, op.in[0]}, data_in[2] = {dy, op.in[1]};
    MDMT_TRY(mdmt_append_gradient(graph, gradients, &mdmt_op_gate_bwd, NULL, 2, gate_in, op.in[1]));
    return mdmt_append_gradient(graph, gradients, &mdmt_op_gate, NULL, 2, data_in, op.in[0]);
}

const mdmt_op_record mdmt_op_gate = {.name = "gate",
                                     .min_inputs = 2,
                                     .max_inputs = 2,
                                     .lazy_inputs = 1u << 0,
                                     .inplace_inputs = 1u << 0,
                                     .infer = gate_infer,
                                     .gradient = gate_gradient};

static mdmt_status gate_bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_MAP));
    MDMT_TRY(mdmt_expect_same(graph, op, 0, 1));
    mdmt_tensor x = *mdmt_in(graph, op, 1);
    return mdmt_output(graph, op, MDMT_ROWS, MDMT_F32, 2, x.dim[0], x.dim[1], 1, 1);
}

const mdmt_op_record mdmt_op_gate_bwd = {.name = "gate_bwd",
                                         .min_inputs = 2,
                                         .max_inputs = 2,
                                         .lazy_inputs = 1u << 1,
                                         .infer = gate_bwd_infer};
