/* Linear layers, bias sums and dropout: what happens after pooling. */
#include "infer.h"

static mdmt_status linear_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_ROWS));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_MATRIX));
    mdmt_tensor x = *mdmt_in(graph, op, 0), w = *mdmt_in(graph, op, 1);
    if (x.dim[1] != w.dim[1]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a linear layer of %d inputs got %d features", w.dim[1],
                         x.dim[1]);
    }
    if (op->inputs > 2) {
        MDMT_TRY(mdmt_expect_vector(graph, op, 2, w.dim[0]));
    }
    return mdmt_output(graph, op, MDMT_ROWS, MDMT_F32, 2, x.dim[0], w.dim[0], 1, 1);
}

static mdmt_status linear_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    if (op.inputs > 2 && op.in[2] >= 0) {
        MDMT_TRY(
            mdmt_append_gradient(graph, gradients, &mdmt_op_channel_sum, NULL, 1, &dy, op.in[2]));
    }
    int weight_in[2] = {op.in[0], dy}, data_in[2] = {dy, op.in[1]};
    MDMT_TRY(mdmt_append_gradient(graph, gradients, &mdmt_op_linear_bwd_weight, NULL, 2, weight_in,
                                  op.in[1]));
    if (!mdmt_gradient_wanted(graph, gradients, op.in[0])) {
        return MDMT_OK;
    }
    return mdmt_append_gradient(graph, gradients, &mdmt_op_linear_bwd_data, NULL, 2, data_in,
                                op.in[0]);
}

static double linear_macs(const mdmt_graph *graph, const mdmt_op *op)
{
    double macs = graph->tensor[op->out[0]].dim[0];
    for (int d = 0; d < 2; d++) {
        macs *= mdmt_in(graph, op, 1)->dim[d];
    }
    return macs;
}

const mdmt_op_record mdmt_op_linear = {.name = "linear",
                                       .min_inputs = 2,
                                       .max_inputs = 3,
                                       .optional_inputs = 1u << 2,
                                       .infer = linear_infer,
                                       .gradient = linear_gradient,
                                       .macs = linear_macs};

static mdmt_status linear_data_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_ROWS));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_MATRIX));
    mdmt_tensor dy = *mdmt_in(graph, op, 0), w = *mdmt_in(graph, op, 1);
    if (dy.dim[1] != w.dim[0]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "linear_bwd_data: %d outputs expected, not %d",
                         w.dim[0], dy.dim[1]);
    }
    return mdmt_output(graph, op, MDMT_ROWS, MDMT_F32, 2, dy.dim[0], w.dim[1], 1, 1);
}

const mdmt_op_record mdmt_op_linear_bwd_data = {.name = "linear_bwd_data",
                                                .min_inputs = 2,
                                                .max_inputs = 2,
                                                .infer = linear_data_infer,
                                                .macs = linear_macs};

static mdmt_status linear_weight_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_ROWS));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_ROWS));
    mdmt_tensor x = *mdmt_in(graph, op, 0), dy = *mdmt_in(graph, op, 1);
    if (x.dim[0] != dy.dim[0]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "linear_bwd_weight: %d and %d samples", x.dim[0],
                         dy.dim[0]);
    }
    return mdmt_output(graph, op, MDMT_MATRIX, MDMT_F32, 2, dy.dim[1], x.dim[1], 1, 1);
}

static double linear_weight_macs(const mdmt_graph *graph, const mdmt_op *op)
{
    return (double)mdmt_in(graph, op, 0)->dim[0] *
           (double)mdmt_tensor_elements(&graph->tensor[op->out[0]]);
}

const mdmt_op_record mdmt_op_linear_bwd_weight = {.name = "linear_bwd_weight",
                                                  .min_inputs = 2,
                                                  .max_inputs = 2,
                                                  .infer = linear_weight_infer,
                                                  .macs = linear_weight_macs};

static mdmt_status sum_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_tensor *x = mdmt_in(graph, op, 0);
    if (x->kind != MDMT_ROWS) {
        MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    }
    return mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, x->dim[1], 1, 1, 1);
}

const mdmt_op_record mdmt_op_channel_sum = {
    .name = "channel_sum", .min_inputs = 1, .max_inputs = 1, .infer = sum_infer};

static const mdmt_field dropout_fields[] = {MDMT_FLOAT_FIELD(mdmt_dropout_attrs, rate, 1),
                                            MDMT_INT_FIELD(mdmt_dropout_attrs, stream, 1),
                                            {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status dropout_infer(mdmt_graph *graph, mdmt_op *op)
{
    float rate = MDMT_ATTRS(mdmt_dropout_attrs, op)->rate;
    if (!(rate >= 0 && rate < 1)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a dropout rate must be in [0, 1), not %g",
                         (double)rate);
    }
    return mdmt_output_like(graph, op, op->in[0]);
}

/* The mask is drawn again from the same counters: the op is its own gradient. */
static mdmt_status dropout_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    return mdmt_append_gradient(graph, gradients, &mdmt_op_dropout, op.attrs, 1, &dy, op.in[0]);
}

const mdmt_op_record mdmt_op_dropout = {.name = "dropout",
                                        .min_inputs = 1,
                                        .max_inputs = 1,
                                        .inplace_inputs = 1u << 0,
                                        .fields = dropout_fields,
                                        .attr_bytes = sizeof(mdmt_dropout_attrs),
                                        .infer = dropout_infer,
                                        .gradient = dropout_gradient};
