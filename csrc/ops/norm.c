/* Batch normalisation (Ioffe & Szegedy 2015), in the pieces that fuse well:
 * statistics -> fold (scale = gamma / sqrt(var + eps), shift = beta - mean scale)
 * -> act(scale x + shift [+ residual]), and one backward for all of it. */
#include "infer.h"

static const mdmt_field norm_fields[] = {MDMT_FLOAT_FIELD(mdmt_norm_attrs, eps, 1),
                                         MDMT_FLOAT_FIELD(mdmt_norm_attrs, momentum, 1),
                                         MDMT_INT_FIELD(mdmt_norm_attrs, training, 1),
                                         MDMT_INT_FIELD(mdmt_norm_attrs, count, 1),
                                         {NULL, MDMT_FIELD_INT, 0, 0}};
static const mdmt_norm_attrs norm_defaults = {.eps = 1e-5f, .momentum = 0.1f};

static const mdmt_field act_fields[] = {MDMT_INT_FIELD(mdmt_act_attrs, act, 1),
                                        MDMT_INT_FIELD(mdmt_act_attrs, training, 1),
                                        MDMT_INT_FIELD(mdmt_act_attrs, want_dpre, 1),
                                        {NULL, MDMT_FIELD_INT, 0, 0}};

static mdmt_status expect_vectors(const mdmt_graph *graph, const mdmt_op *op, int from, int to,
                                  int n)
{
    for (int i = from; i <= to; i++) {
        MDMT_TRY(mdmt_expect_vector(graph, op, i, n));
    }
    return MDMT_OK;
}

static mdmt_status batch_norm_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(expect_vectors(graph, op, 1, 4, mdmt_in(graph, op, 0)->dim[1]));
    return mdmt_output_like(graph, op, op->in[0]);
}

/* Only a description: exec/lower.c replaces it before a graph runs. */
const mdmt_op_record mdmt_op_batch_norm = {.name = "batch_norm",
                                           .min_inputs = 5,
                                           .max_inputs = 5,
                                           .fields = norm_fields,
                                           .defaults = &norm_defaults,
                                           .attr_bytes = sizeof(mdmt_norm_attrs),
                                           .infer = batch_norm_infer};

static mdmt_status stats_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    return mdmt_output(graph, op, MDMT_STATS, MDMT_F32, 3, 1, MDMT_STATS_ROWS,
                       mdmt_in(graph, op, 0)->dim[1], 1);
}

const mdmt_op_record mdmt_op_channel_stats = {
    .name = "channel_stats", .min_inputs = 1, .max_inputs = 1, .infer = stats_infer};

static mdmt_status fold_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_norm_attrs *a = MDMT_ATTRS(mdmt_norm_attrs, op);
    int channels = mdmt_in(graph, op, 1)->dim[0];
    MDMT_TRY(expect_vectors(graph, op, 1, 4, channels));
    if (a->training) {
        const mdmt_tensor *stats = mdmt_in(graph, op, 0);
        if (!stats || stats->kind != MDMT_STATS || stats->dim[2] != channels || a->count < 1) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "bn_fold in training needs the statistics of %d "
                             "channels and their count", channels);
        }
    }
    for (int i = 0; i < 4; i++) {
        MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, channels, 1, 1, 1));
    }
    return MDMT_OK;
}

/* bn_bwd for z = act(scale x + shift [+ residual]). `z` is -1 when the mask can
 * be had from x, `residual` -1 when there is none. */
static mdmt_status append_bn_bwd(mdmt_graph *graph, mdmt_gradients *gradients, int fold, int dz,
                                 int x, int z, int residual, int act)
{
    mdmt_op bn = graph->op[fold];
    int residual_wanted = residual >= 0 && mdmt_gradient_wanted(graph, gradients, residual);
    mdmt_act_attrs a = {.act = act, .training = MDMT_ATTRS(mdmt_norm_attrs, &bn)->training};
    a.want_dpre = residual_wanted && act != MDMT_ACT_NONE;
    int in[7] = {dz, x, bn.out[0], bn.out[1], bn.out[2], bn.out[3], z};
    int op;
    MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_bn_bwd, &a, z < 0 ? 6 : 7, in, &op));
    mdmt_op back = graph->op[op];
    MDMT_TRY(mdmt_gradient_put(graph, gradients, x, back.out[0]));
    MDMT_TRY(mdmt_gradient_put(graph, gradients, bn.in[1], back.out[1]));
    MDMT_TRY(mdmt_gradient_put(graph, gradients, bn.in[2], back.out[2]));
    if (residual_wanted) {
        MDMT_TRY(mdmt_gradient_put(graph, gradients, residual, a.want_dpre ? back.out[3] : dz));
    }
    return MDMT_OK;
}

/* The lazy tensors that stand on this fold have their gradients by now: all
 * their consumers come later in the list. */
static mdmt_status fold_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    int scale = graph->op[index].out[0];
    for (int t = 0; t < gradients->room; t++) {
        mdmt_tensor lazy = graph->tensor[t];
        int dz = mdmt_gradient_get(gradients, t);
        if (lazy.lazy_scale == scale && dz >= 0) {
            MDMT_TRY(append_bn_bwd(graph, gradients, index, dz, lazy.lazy_source, -1, -1,
                                   (int)lazy.lazy_act));
        }
    }
    return MDMT_OK;
}

const mdmt_op_record mdmt_op_bn_fold = {.name = "bn_fold",
                                        .min_inputs = 5,
                                        .max_inputs = 5,
                                        .optional_inputs = 1u << 0,
                                        .has_effects = 1,
                                        .fields = norm_fields,
                                        .defaults = &norm_defaults,
                                        .attr_bytes = sizeof(mdmt_norm_attrs),
                                        .infer = fold_infer,
                                        .gradient = fold_gradient};

static mdmt_status apply_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(expect_vectors(graph, op, 1, 2, mdmt_in(graph, op, 0)->dim[1]));
    if (op->inputs > 3) {
        MDMT_TRY(mdmt_expect(graph, op, 3, MDMT_MAP));
        MDMT_TRY(mdmt_expect_same(graph, op, 0, 3));
    }
    return mdmt_output_like(graph, op, op->in[0]);
}

static mdmt_status apply_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int act = MDMT_ATTRS(mdmt_act_attrs, &op)->act;
    int residual = op.inputs > 3 ? op.in[3] : -1;
    int z = residual >= 0 && act != MDMT_ACT_NONE ? op.out[0] : -1;
    return append_bn_bwd(graph, gradients, graph->tensor[op.in[1]].producer,
                         mdmt_gradient_get(gradients, op.out[0]), op.in[0], z, residual, act);
}

const mdmt_op_record mdmt_op_norm_act = {.name = "norm_act",
                                         .min_inputs = 3,
                                         .max_inputs = 4,
                                         .optional_inputs = 1u << 3,
                                         .lazy_inputs = 1u << 3,
                                         .inplace_inputs = 1u << 0 | 1u << 3,
                                         .fields = act_fields,
                                         .attr_bytes = sizeof(mdmt_act_attrs),
                                         .infer = apply_infer,
                                         .gradient = apply_gradient};

static mdmt_status bwd_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_act_attrs *a = MDMT_ATTRS(mdmt_act_attrs, op);
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    MDMT_TRY(mdmt_expect(graph, op, 1, MDMT_MAP));
    MDMT_TRY(mdmt_expect_same(graph, op, 0, 1));
    int channels = mdmt_in(graph, op, 1)->dim[1];
    MDMT_TRY(expect_vectors(graph, op, 2, 5, channels));
    if (op->inputs > 6) {
        MDMT_TRY(mdmt_expect(graph, op, 6, MDMT_MAP));
        MDMT_TRY(mdmt_expect_same(graph, op, 0, 6));
    }
    MDMT_TRY(mdmt_output_like(graph, op, op->in[1]));
    MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, channels, 1, 1, 1));
    MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, channels, 1, 1, 1));
    if (a->want_dpre) {
        MDMT_TRY(mdmt_output_like(graph, op, op->in[1]));
    }
    return MDMT_OK;
}

/* dpre rather than dx takes the place of dz: the masked gradient is dz itself
 * with zeros, so that the pass only has to clear, not to copy. */
static int bwd_inplace_output(const mdmt_op *op)
{
    return MDMT_ATTRS(mdmt_act_attrs, op)->want_dpre ? 3 : 0;
}

const mdmt_op_record mdmt_op_bn_bwd = {.name = "bn_bwd",
                                       .min_inputs = 6,
                                       .max_inputs = 7,
                                       .optional_inputs = 1u << 6,
                                       .inplace_inputs = 1u << 0,
                                       .inplace_output = bwd_inplace_output,
                                       .fields = act_fields,
                                       .attr_bytes = sizeof(mdmt_act_attrs),
                                       .infer = bwd_infer};
