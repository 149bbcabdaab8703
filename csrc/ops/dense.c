/* What a network with an output per pixel needs beside convolution: up-sampling by two, and the
 * sums over the pixels of which the loss of a mask is made. */
#include "infer.h"

static const mdmt_field upsample_fields[] = {MDMT_INT_FIELD(mdmt_upsample_attrs, mode, 1),
                                             {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status check_mode(const mdmt_op *op)
{
    int mode = MDMT_ATTRS(mdmt_upsample_attrs, op)->mode;
    return mode == MDMT_UPSAMPLE_NEAREST || mode == MDMT_UPSAMPLE_BILINEAR
               ? MDMT_OK
               : mdmt_fail(MDMT_BAD_ARGUMENT, "%s has no mode %d", op->record->name, mode);
}

static mdmt_status upsample_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(check_mode(op));
    mdmt_tensor x = *mdmt_in(graph, op, 0);
    return mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, x.dim[0], x.dim[1], 2 * x.dim[2],
                       2 * x.dim[3]);
}

static mdmt_status upsample_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    return mdmt_append_gradient(graph, gradients, &mdmt_op_upsample_bwd, op.attrs, 1, &dy,
                                op.in[0]);
}

static mdmt_status upsample_bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(check_mode(op));
    mdmt_tensor dy = *mdmt_in(graph, op, 0);
    if (dy.dim[2] % 2 || dy.dim[3] % 2) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "upsample_bwd: %d x %d is not twice a size", dy.dim[2],
                         dy.dim[3]);
    }
    return mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, dy.dim[0], dy.dim[1], dy.dim[2] / 2,
                       dy.dim[3] / 2);
}

const mdmt_op_record mdmt_op_upsample = {.name = "upsample",
                                         .min_inputs = 1,
                                         .max_inputs = 1,
                                         .fields = upsample_fields,
                                         .attr_bytes = sizeof(mdmt_upsample_attrs),
                                         .infer = upsample_infer,
                                         .gradient = upsample_gradient};

const mdmt_op_record mdmt_op_upsample_bwd = {.name = "upsample_bwd",
                                             .min_inputs = 1,
                                             .max_inputs = 1,
                                             .fields = upsample_fields,
                                             .attr_bytes = sizeof(mdmt_upsample_attrs),
                                             .infer = upsample_bwd_infer};

/* Logits z (N,1,H,W) as input `at`, the mask of the same shape after it. */
static mdmt_status check_mask(const mdmt_graph *graph, const mdmt_op *op, int at)
{
    MDMT_TRY(mdmt_expect(graph, op, at, MDMT_MAP));
    MDMT_TRY(mdmt_expect(graph, op, at + 1, MDMT_IMAGE));
    MDMT_TRY(mdmt_expect_same(graph, op, at, at + 1));
    const mdmt_tensor *z = mdmt_in(graph, op, at);
    return z->dim[1] == 1
               ? MDMT_OK
               : mdmt_fail(MDMT_BAD_ARGUMENT, "%s takes logits of one channel, not of %d",
                           op->record->name, z->dim[1]);
}

static mdmt_status mask_sums_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(check_mask(graph, op, 0));
    int samples = mdmt_in(graph, op, 0)->dim[0];
    return mdmt_output(graph, op, MDMT_ROWS, MDMT_F32, 2, samples, MDMT_MASK_SUMS, 1, 1);
}

static mdmt_status mask_sums_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int in[3] = {-1, op.in[0], op.in[1]};
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &in[0]));
    return mdmt_append_gradient(graph, gradients, &mdmt_op_mask_sums_bwd, NULL, 3, in, op.in[0]);
}

static mdmt_status mask_sums_bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_ROWS));
    MDMT_TRY(check_mask(graph, op, 1));
    const mdmt_tensor *dsums = mdmt_in(graph, op, 0), *z = mdmt_in(graph, op, 1);
    if (dsums->dim[0] != z->dim[0] || dsums->dim[1] != MDMT_MASK_SUMS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "mask_sums_bwd: dsums must be (%d, %d)", z->dim[0],
                         MDMT_MASK_SUMS);
    }
    return mdmt_output_like(graph, op, op->in[1]);
}

const mdmt_op_record mdmt_op_mask_sums = {.name = "mask_sums",
                                          .min_inputs = 2,
                                          .max_inputs = 2,
                                          .infer = mask_sums_infer,
                                          .gradient = mask_sums_gradient};

const mdmt_op_record mdmt_op_mask_sums_bwd = {
    .name = "mask_sums_bwd", .min_inputs = 3, .max_inputs = 3, .infer = mask_sums_bwd_infer};
