/* Max and average pooling, as PyTorch defines them: in ceil mode the last
 * window must start inside the input or its leading padding; the divisor of
 * the average counts padding if count_include_pad, but nothing beyond it. */
#include "infer.h"

static const mdmt_field pool_fields[] = {MDMT_INT_FIELD(mdmt_pool_attrs, kernel, 2),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, stride, 2),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, pad, 4),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, dilation, 2),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, ceil_mode, 1),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, count_include_pad, 1),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, size, 2),
                                         MDMT_INT_FIELD(mdmt_pool_attrs, want_argmax, 1),
                                         {NULL, MDMT_FIELD_INT, 0, 0}};
static const mdmt_pool_attrs pool_defaults = {
    .kernel = {1, 1}, .stride = {1, 1}, .dilation = {1, 1}, .count_include_pad = 1};

enum { MOST_TAPS = 255 }; /* of a window: the place of its maximum is kept in a byte */

static int out_length(const mdmt_pool_attrs *a, int d, int in)
{
    int64_t reach = a->dilation[d] * (a->kernel[d] - 1) + 1;
    int64_t span = (int64_t)in + a->pad[d] + a->pad[2 + d] - reach;
    span += a->ceil_mode ? a->stride[d] - 1 : 0; /* the first window may be partial, too */
    if (span < 0) {
        return 0;
    }
    int64_t out = span / a->stride[d] + 1;
    if (a->ceil_mode && (out - 1) * a->stride[d] >= (int64_t)in + a->pad[d]) {
        out--;
    }
    return out > INT32_MAX ? 0 : (int)out;
}

static mdmt_status check_attrs(const mdmt_op *op)
{
    const mdmt_pool_attrs *a = MDMT_ATTRS(mdmt_pool_attrs, op);
    if ((int64_t)a->kernel[0] * a->kernel[1] > MOST_TAPS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s: a window of %d x %d has more than %d elements",
                         op->record->name, a->kernel[0], a->kernel[1], MOST_TAPS);
    }
    for (int d = 0; d < 2; d++) {
        if (a->kernel[d] < 1 || a->stride[d] < 1 || a->dilation[d] < 1 || a->pad[d] < 0 ||
            a->pad[2 + d] < 0) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "%s needs a kernel, stride and dilation of at least 1 and a padding "
                             "of at least 0",
                             op->record->name);
        }
        if (a->stride[d] > MDMT_MOST_STEP || a->dilation[d] > MDMT_MOST_STEP) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "%s needs a stride and a dilation of at most %d, not %d and %d",
                             op->record->name, MDMT_MOST_STEP, a->stride[d], a->dilation[d]);
        }
        if (a->pad[d] > a->kernel[d] / 2 || a->pad[2 + d] > a->kernel[d] / 2) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "%s: the padding may be at most half the kernel, %d is not for %d",
                             op->record->name, a->pad[d], a->kernel[d]);
        }
    }
    return MDMT_OK;
}

static mdmt_status pool_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_pool_attrs *a = MDMT_ATTRS(mdmt_pool_attrs, op);
    MDMT_TRY(check_attrs(op));
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    mdmt_tensor x = *mdmt_in(graph, op, 0);
    int oh = out_length(a, 0, x.dim[2]), ow = out_length(a, 1, x.dim[3]);
    if (oh < 1 || ow < 1) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "a feature map of %d x %d is too small for %s of %d x %d; use larger "
                         "images",
                         x.dim[2], x.dim[3], op->record->name, a->kernel[0], a->kernel[1]);
    }
    MDMT_TRY(mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, x.dim[0], x.dim[1], oh, ow));
    if (a->want_argmax) {
        MDMT_TRY(mdmt_output(graph, op, MDMT_MAP, MDMT_U8, 4, x.dim[0], x.dim[1], oh, ow));
    }
    return MDMT_OK;
}

static mdmt_status pool_bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_pool_attrs *a = MDMT_ATTRS(mdmt_pool_attrs, op);
    MDMT_TRY(check_attrs(op));
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    if (op->inputs > 1) {
        MDMT_TRY(mdmt_expect_same(graph, op, 0, 1));
    }
    mdmt_tensor dy = *mdmt_in(graph, op, 0);
    if (out_length(a, 0, a->size[0]) != dy.dim[2] || out_length(a, 1, a->size[1]) != dy.dim[3]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "%s: dy of %d x %d does not belong to an input of "
                         "%d x %d",
                         op->record->name, dy.dim[2], dy.dim[3], a->size[0], a->size[1]);
    }
    return mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, dy.dim[0], dy.dim[1], a->size[0],
                       a->size[1]);
}

static mdmt_status pool_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    mdmt_pool_attrs a = *MDMT_ATTRS(mdmt_pool_attrs, &op);
    a.size[0] = graph->tensor[op.in[0]].dim[2];
    a.size[1] = graph->tensor[op.in[0]].dim[3];
    int is_max = op.record == &mdmt_op_max_pool;
    if (is_max && !a.want_argmax) {
        return mdmt_fail(MDMT_INTERNAL, "max_pool kept no argmax for its gradient");
    }
    int in[2] = {-1, op.out[1]};
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &in[0]));
    return mdmt_append_gradient(graph, gradients,
                                is_max ? &mdmt_op_max_pool_bwd : &mdmt_op_avg_pool_bwd, &a,
                                is_max ? 2 : 1, in, op.in[0]);
}

const mdmt_op_record mdmt_op_max_pool = {.name = "max_pool",
                                         .min_inputs = 1,
                                         .max_inputs = 1,
                                         .lazy_inputs = 1u << 0,
                                         .fields = pool_fields,
                                         .defaults = &pool_defaults,
                                         .attr_bytes = sizeof(mdmt_pool_attrs),
                                         .infer = pool_infer,
                                         .gradient = pool_gradient};

const mdmt_op_record mdmt_op_max_pool_bwd = {.name = "max_pool_bwd",
                                             .min_inputs = 2,
                                             .max_inputs = 2,
                                             .fields = pool_fields,
                                             .defaults = &pool_defaults,
                                             .attr_bytes = sizeof(mdmt_pool_attrs),
                                             .infer = pool_bwd_infer};

const mdmt_op_record mdmt_op_avg_pool = {.name = "avg_pool",
                                         .min_inputs = 1,
                                         .max_inputs = 1,
                                         .fields = pool_fields,
                                         .defaults = &pool_defaults,
                                         .attr_bytes = sizeof(mdmt_pool_attrs),
                                         .infer = pool_infer,
                                         .gradient = pool_gradient};

const mdmt_op_record mdmt_op_avg_pool_bwd = {.name = "avg_pool_bwd",
                                             .min_inputs = 1,
                                             .max_inputs = 1,
                                             .fields = pool_fields,
                                             .defaults = &pool_defaults,
                                             .attr_bytes = sizeof(mdmt_pool_attrs),
                                             .infer = pool_bwd_infer};

static const mdmt_field size_fields[] = {MDMT_INT_FIELD(mdmt_reshape_attrs, size, 2),
                                         MDMT_INT_FIELD(mdmt_reshape_attrs, channels, 1),
                                         {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status global_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    mdmt_tensor x = *mdmt_in(graph, op, 0);
    return mdmt_output(graph, op, MDMT_ROWS, MDMT_F32, 2, x.dim[0], x.dim[1], 1, 1);
}

static mdmt_status global_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    mdmt_tensor x = graph->tensor[op.in[0]];
    mdmt_reshape_attrs a = {.size = {x.dim[2], x.dim[3]}, .channels = x.dim[1]};
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    int is_flatten = op.record == &mdmt_op_flatten;
    if (x.lazy_source >= 0) {
        return mdmt_gradient_put_pooled(graph, gradients, op.in[0], dy);
    }
    return mdmt_append_gradient(graph, gradients,
                                is_flatten ? &mdmt_op_flatten_bwd : &mdmt_op_global_avg_pool_bwd,
                                &a, 1, &dy, op.in[0]);
}

static mdmt_status global_bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_reshape_attrs *a = MDMT_ATTRS(mdmt_reshape_attrs, op);
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_ROWS));
    mdmt_tensor dy = *mdmt_in(graph, op, 0);
    return mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, dy.dim[0], dy.dim[1], a->size[0],
                       a->size[1]);
}

const mdmt_op_record mdmt_op_global_avg_pool = {.name = "global_avg_pool",
                                                .min_inputs = 1,
                                                .max_inputs = 1,
                                                .lazy_inputs = 1u << 0,
                                                .infer = global_infer,
                                                .gradient = global_gradient};

const mdmt_op_record mdmt_op_global_avg_pool_bwd = {.name = "global_avg_pool_bwd",
                                                    .min_inputs = 1,
                                                    .max_inputs = 1,
                                                    .fields = size_fields,
                                                    .attr_bytes = sizeof(mdmt_reshape_attrs),
                                                    .infer = global_bwd_infer};

static mdmt_status flatten_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    mdmt_tensor x = *mdmt_in(graph, op, 0);
    return mdmt_output(graph, op, MDMT_ROWS, MDMT_F32, 2, x.dim[0], x.dim[1] * x.dim[2] * x.dim[3],
                       1, 1);
}

static mdmt_status flatten_bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_reshape_attrs *a = MDMT_ATTRS(mdmt_reshape_attrs, op);
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_ROWS));
    mdmt_tensor dy = *mdmt_in(graph, op, 0);
    if ((int64_t)a->channels * a->size[0] * a->size[1] != dy.dim[1]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "flatten_bwd: %d numbers are not %d x %d x %d",
                         dy.dim[1], a->channels, a->size[0], a->size[1]);
    }
    return mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, dy.dim[0], a->channels, a->size[0],
                       a->size[1]);
}

const mdmt_op_record mdmt_op_flatten = {.name = "flatten",
                                        .min_inputs = 1,
                                        .max_inputs = 1,
                                        .infer = flatten_infer,
                                        .gradient = global_gradient};

const mdmt_op_record mdmt_op_flatten_bwd = {.name = "flatten_bwd",
                                            .min_inputs = 1,
                                            .max_inputs = 1,
                                            .fields = size_fields,
                                            .attr_bytes = sizeof(mdmt_reshape_attrs),
                                            .infer = flatten_bwd_infer};
