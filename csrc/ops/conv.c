/* Convolution (cross-correlation, as in all frameworks) and its gradients.
 *   y[n,k,p,q] = bias[k] + sum_{c,r,s} w[k,c,r,s] x[n,c, p sh + r dh - pt, q sw + s dw - pl] */
#include "infer.h"

static const mdmt_field conv_fields[] = {
    MDMT_INT_FIELD(mdmt_conv_attrs, stride, 2),   MDMT_INT_FIELD(mdmt_conv_attrs, pad, 4),
    MDMT_INT_FIELD(mdmt_conv_attrs, dilation, 2), MDMT_INT_FIELD(mdmt_conv_attrs, groups, 1),
    MDMT_INT_FIELD(mdmt_conv_attrs, kernel, 2),   MDMT_INT_FIELD(mdmt_conv_attrs, size, 2),
    MDMT_INT_FIELD(mdmt_conv_attrs, plain, 1),    MDMT_INT_FIELD(mdmt_conv_attrs, want_stats, 1),
    MDMT_INT_FIELD(mdmt_conv_attrs, same, 1),     {NULL, MDMT_FIELD_INT, 0, 0}};
static const mdmt_conv_attrs conv_defaults = {.stride = {1, 1}, .dilation = {1, 1}, .groups = 1};

static mdmt_status check_attrs(const mdmt_op *op)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, op);
    for (int d = 0; d < 2; d++) {
        if (a->stride[d] < 1 || a->dilation[d] < 1 || a->stride[d] > MDMT_MOST_STEP ||
            a->dilation[d] > MDMT_MOST_STEP) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "%s needs a stride and a dilation of 1 to %d, not %d and %d",
                             op->record->name, MDMT_MOST_STEP, a->stride[d], a->dilation[d]);
        }
    }
    for (int d = 0; d < 4; d++) {
        if (a->pad[d] < 0 || a->pad[d] > MDMT_MOST_STEP) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "%s cannot pad by %d", op->record->name, a->pad[d]);
        }
    }
    if (a->groups < 1) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s needs at least 1 group, not %d", op->record->name,
                         a->groups);
    }
    return MDMT_OK;
}

/* Output length along one side, or 0 when the kernel does not fit. */
static int out_length(int in, int before, int after, int kernel, int dilation, int stride)
{
    int64_t span = (int64_t)in + before + after - (int64_t)dilation * ((int64_t)kernel - 1) - 1;
    int64_t out = span < 0 ? 0 : span / stride + 1;
    return out > INT32_MAX ? 0 : (int)out;
}

static mdmt_kind weight_kind(const mdmt_tensor *x, int out_channels, int groups)
{
    if (groups > 1) {
        return groups == x->dim[1] && groups == out_channels ? MDMT_W_DEPTH : MDMT_W_GROUPED;
    }
    return x->kind == MDMT_IMAGE ? MDMT_W_STEM : MDMT_W_DENSE;
}

static mdmt_status check_weight(const mdmt_op *op, const mdmt_tensor *x, const mdmt_tensor *w)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, op);
    char xs[64], ws[64];
    if (w->dims != 4 || x->dims != 4 || x->dim[1] != w->dim[1] * a->groups ||
        w->dim[0] % a->groups) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s: a weight of shape %s does not fit %s in %d groups",
                         op->record->name, mdmt_tensor_text(w, ws), mdmt_tensor_text(x, xs),
                         a->groups);
    }
    if (w->kind != weight_kind(x, w->dim[0], a->groups)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s: the weight %s has the wrong kind for its use",
                         op->record->name, w->name);
    }
    if (x->kind == MDMT_IMAGE && a->groups > 1) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s: an image takes no grouped convolution",
                         op->record->name);
    }
    return MDMT_OK;
}

/* Padding by TensorFlow's rule "SAME": whatever ceil(size / stride) outputs need,
 * the larger half after. */
static void pad_same(mdmt_op *op, const mdmt_tensor *x, const mdmt_tensor *w)
{
    mdmt_conv_attrs *a = (mdmt_conv_attrs *)(void *)op->attrs;
    for (int d = 0; d < 2; d++) {
        int size = x->dim[2 + d], outputs = (size + a->stride[d] - 1) / a->stride[d];
        int span = (outputs - 1) * a->stride[d] + a->dilation[d] * (w->dim[2 + d] - 1) + 1;
        int all = span > size ? span - size : 0;
        a->pad[d] = all / 2;
        a->pad[2 + d] = all - all / 2;
    }
}

static mdmt_status conv_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, op);
    MDMT_TRY(check_attrs(op));
    mdmt_tensor x = *mdmt_in(graph, op, 0), w = *mdmt_in(graph, op, 1);
    if (a->same && w.dims == 4 && x.dims == 4) {
        pad_same(op, &x, &w);
    }
    if (x.kind != MDMT_IMAGE) {
        MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    }
    MDMT_TRY(check_weight(op, &x, &w));
    if (op->inputs > 2) {
        MDMT_TRY(mdmt_expect_vector(graph, op, 2, w.dim[0]));
    }
    int oh = out_length(x.dim[2], a->pad[0], a->pad[2], w.dim[2], a->dilation[0], a->stride[0]);
    int ow = out_length(x.dim[3], a->pad[1], a->pad[3], w.dim[3], a->dilation[1], a->stride[1]);
    if (oh < 1 || ow < 1) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "an image or feature map of %d x %d is too small for a %d x %d "
                         "convolution here; use larger images",
                         x.dim[2], x.dim[3], w.dim[2], w.dim[3]);
    }
    MDMT_TRY(mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, x.dim[0], w.dim[0], oh, ow));
    if (a->want_stats) {
        MDMT_TRY(mdmt_output(graph, op, MDMT_STATS, MDMT_F32, 3, 1, MDMT_STATS_ROWS, w.dim[0], 1));
    }
    return MDMT_OK;
}

/* Whether what a stored tensor has of a gradient is a part of another tensor's, as the sum of two
 * maps in a concatenation leaves it: the kernels find an addend where they write dx. */
static int lies_elsewhere(const mdmt_graph *graph, const mdmt_gradients *gradients, int tensor)
{
    int so_far = gradients->of[tensor];
    return graph->tensor[tensor].view_of < 0 && so_far >= 0 && graph->tensor[so_far].view_of >= 0;
}

static mdmt_status conv_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    mdmt_conv_attrs a = *MDMT_ATTRS(mdmt_conv_attrs, &op);
    mdmt_tensor x = graph->tensor[op.in[0]], w = graph->tensor[op.in[1]];
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    if (dy < 0) {
        return MDMT_OK;
    }
    a.want_stats = 0;
    a.plain = x.kind == MDMT_IMAGE;
    for (int d = 0; d < 2; d++) {
        a.kernel[d] = w.dim[2 + d];
        a.size[d] = x.dim[2 + d];
    }
    if (op.inputs > 2 && op.in[2] >= 0) {
        MDMT_TRY(
            mdmt_append_gradient(graph, gradients, &mdmt_op_channel_sum, NULL, 1, &dy, op.in[2]));
    }
    if (mdmt_gradient_wanted(graph, gradients, op.in[1])) {
        int in[2] = {op.in[0], dy};
        MDMT_TRY(mdmt_append_gradient(graph, gradients, &mdmt_op_conv2d_bwd_weight, &a, 2, in,
                                      op.in[1]));
    }
    if (mdmt_gradient_wanted(graph, gradients, op.in[0])) {
        int in[3] = {dy, op.in[1], -1};
        if (!lies_elsewhere(graph, gradients, op.in[0])) {
            MDMT_TRY(mdmt_gradient_take(graph, gradients, op.in[0], &in[2]));
        }
        MDMT_TRY(mdmt_append_gradient(graph, gradients, &mdmt_op_conv2d_bwd_data, &a,
                                      in[2] < 0 ? 2 : 3, in, op.in[0]));
    }
    return MDMT_OK;
}

/* Multiply-adds of a convolution with outputs `y` and weight `w`. */
static double count_macs(const mdmt_tensor *y, const mdmt_tensor *w)
{
    return (double)mdmt_tensor_elements(y) * w->dim[1] * w->dim[2] * w->dim[3];
}

static double conv_macs(const mdmt_graph *graph, const mdmt_op *op)
{
    return count_macs(&graph->tensor[op->out[0]], mdmt_in(graph, op, 1));
}

const mdmt_op_record mdmt_op_conv2d = {.name = "conv2d",
                                       .min_inputs = 2,
                                       .max_inputs = 3,
                                       .optional_inputs = 1u << 2,
                                       .lazy_inputs = 1u << 0,
                                       .fields = conv_fields,
                                       .defaults = &conv_defaults,
                                       .attr_bytes = sizeof(mdmt_conv_attrs),
                                       .infer = conv_infer,
                                       .gradient = conv_gradient,
                                       .macs = conv_macs};

static mdmt_status data_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, op);
    MDMT_TRY(check_attrs(op));
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    mdmt_tensor dy = *mdmt_in(graph, op, 0), w = *mdmt_in(graph, op, 1);
    int oh = out_length(a->size[0], a->pad[0], a->pad[2], w.dim[2], a->dilation[0], a->stride[0]);
    int ow = out_length(a->size[1], a->pad[1], a->pad[3], w.dim[3], a->dilation[1], a->stride[1]);
    char ds[64], ws[64];
    if (w.dims != 4 || dy.dim[1] != w.dim[0] || dy.dim[2] != oh || dy.dim[3] != ow) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "%s: dy of shape %s does not belong to a weight of shape %s and an input "
                         "of %d x %d",
                         op->record->name, mdmt_tensor_text(&dy, ds), mdmt_tensor_text(&w, ws),
                         a->size[0], a->size[1]);
    }
    MDMT_TRY(mdmt_output(graph, op, a->plain ? MDMT_IMAGE : MDMT_MAP, MDMT_F32, 4, dy.dim[0],
                         w.dim[1] * a->groups, a->size[0], a->size[1]));
    mdmt_tensor dx = graph->tensor[op->out[0]];
    MDMT_TRY(check_weight(op, &dx, &w));
    if (op->inputs > 2 && op->in[2] >= 0) {
        const mdmt_tensor *addend = mdmt_in(graph, op, 2);
        for (int d = 0; d < 4; d++) {
            if (addend->kind != dx.kind || addend->dim[d] != dx.dim[d]) {
                return mdmt_fail(MDMT_BAD_ARGUMENT, "%s: the addend is not of the shape of dx",
                                 op->record->name);
            }
        }
    }
    return MDMT_OK;
}

static double data_macs(const mdmt_graph *graph, const mdmt_op *op)
{
    return count_macs(mdmt_in(graph, op, 0), mdmt_in(graph, op, 1));
}

const mdmt_op_record mdmt_op_conv2d_bwd_data = {.name = "conv2d_bwd_data",
                                                .min_inputs = 2,
                                                .max_inputs = 3,
                                                .optional_inputs = 1u << 2,
                                                .inplace_inputs = 1u << 2,
                                                .fields = conv_fields,
                                                .defaults = &conv_defaults,
                                                .attr_bytes = sizeof(mdmt_conv_attrs),
                                                .infer = data_infer,
                                                .macs = data_macs};

static mdmt_status weight_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, op);
    MDMT_TRY(check_attrs(op));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_MAP));
    mdmt_tensor x = *mdmt_in(graph, op, 0), dy = *mdmt_in(graph, op, 1);
    if (x.kind != MDMT_IMAGE) {
        MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    }
    int oh = out_length(x.dim[2], a->pad[0], a->pad[2], a->kernel[0], a->dilation[0], a->stride[0]);
    int ow = out_length(x.dim[3], a->pad[1], a->pad[3], a->kernel[1], a->dilation[1], a->stride[1]);
    char xs[64], ds[64];
    if (a->kernel[0] < 1 || a->kernel[1] < 1 || dy.dim[0] != x.dim[0] || dy.dim[2] != oh ||
        dy.dim[3] != ow || x.dim[1] % a->groups || dy.dim[1] % a->groups) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "%s: x of shape %s, dy of shape %s and a %d x %d kernel in %d groups do "
                         "not belong together",
                         op->record->name, mdmt_tensor_text(&x, xs), mdmt_tensor_text(&dy, ds),
                         a->kernel[0], a->kernel[1], a->groups);
    }
    return mdmt_output(graph, op, weight_kind(&x, dy.dim[1], a->groups), MDMT_F32, 4, dy.dim[1],
                       x.dim[1] / a->groups, a->kernel[0], a->kernel[1]);
}

static double weight_macs(const mdmt_graph *graph, const mdmt_op *op)
{
    return count_macs(mdmt_in(graph, op, 1), &graph->tensor[op->out[0]]);
}

const mdmt_op_record mdmt_op_conv2d_bwd_weight = {.name = "conv2d_bwd_weight",
                                                  .min_inputs = 2,
                                                  .max_inputs = 2,
                                                  .lazy_inputs = 1u << 0,
                                                  .fields = conv_fields,
                                                  .defaults = &conv_defaults,
                                                  .attr_bytes = sizeof(mdmt_conv_attrs),
                                                  .infer = weight_infer,
                                                  .macs = weight_macs};
