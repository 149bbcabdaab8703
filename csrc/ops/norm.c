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

static mdmt_status moments_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_STATS));
    int channels = mdmt_in(graph, op, 0)->dim[2];
    MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, channels, 1, 1, 1));
    return mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, channels, 1, 1, 1);
}

/* Batch statistics of channels that several batch norms read: computed once. */
const mdmt_op_record mdmt_op_stats_moments = {
    .name = "stats_moments", .min_inputs = 1, .max_inputs = 1, .infer = moments_infer};

static mdmt_status fold_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_norm_attrs *a = MDMT_ATTRS(mdmt_norm_attrs, op);
    int channels = mdmt_in(graph, op, 1)->dim[0];
    MDMT_TRY(expect_vectors(graph, op, 1, 4, channels));
    MDMT_TRY(expect_vectors(graph, op, 5, 6, channels));
    if (a->training) {
        const mdmt_tensor *stats = mdmt_in(graph, op, 0);
        int given = stats ? stats->kind == MDMT_STATS && stats->dim[2] == channels
                          : op->in[5] >= 0 && op->in[6] >= 0;
        if (!given || a->count < 1) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "bn_fold in training needs the statistics of %d "
                             "channels and their count",
                             channels);
        }
    }
    for (int i = 0; i < 4; i++) {
        MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, channels, 1, 1, 1));
    }
    return MDMT_OK;
}

/* bn_bwd for z = act(scale x + shift [+ residual]) [gated, pooled]; `in` holds
 * what is known of dz, z, gate and pooled, `residual` is -1 when there is none. */
static mdmt_status append_bn_bwd(mdmt_graph *graph, mdmt_gradients *gradients, int fold, int x,
                                 int residual, int act, int *in)
{
    mdmt_op bn = graph->op[fold];
    int residual_wanted = residual >= 0 && mdmt_gradient_wanted(graph, gradients, residual);
    mdmt_act_attrs a = {.act = act, .training = MDMT_ATTRS(mdmt_norm_attrs, &bn)->training};
    a.want_dpre = residual_wanted && act != MDMT_ACT_NONE;
    in[MDMT_BN_X] = x;
    for (int i = 0; i < 4; i++) {
        in[MDMT_BN_SCALE + i] = bn.out[i];
    }
    MDMT_TRY(mdmt_gradient_take(graph, gradients, x, &in[MDMT_BN_ADDEND]));
    int op;
    MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_bn_bwd, &a, MDMT_BN_INPUTS, in, &op));
    mdmt_op back = graph->op[op];
    MDMT_TRY(mdmt_gradient_put(graph, gradients, x, back.out[0]));
    MDMT_TRY(mdmt_gradient_put(graph, gradients, bn.in[1], back.out[1]));
    MDMT_TRY(mdmt_gradient_put(graph, gradients, bn.in[2], back.out[2]));
    if (residual_wanted) {
        MDMT_TRY(mdmt_gradient_put(graph, gradients, residual,
                                   a.want_dpre ? back.out[3] : in[MDMT_BN_DZ]));
    }
    return MDMT_OK;
}

/* The lazy tensors that stand on this fold have their gradients by now: all
 * their consumers come later in the list. What flows through a gate and what
 * flows through a pooling go into one pass. */
static mdmt_status fold_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    int scale = graph->op[index].out[0], pooled = -1, last = -1;
    for (int t = 0; t < gradients->room; t++) {
        if (graph->tensor[t].lazy_scale == scale && gradients->pooled[t] >= 0) {
            pooled = gradients->pooled[t];
            last = t;
        }
    }
    for (int t = 0; t < gradients->room; t++) {
        mdmt_tensor lazy = graph->tensor[t];
        if (lazy.lazy_scale == scale && gradients->of[t] >= 0) {
            int in[MDMT_BN_INPUTS] = {gradients->of[t]};
            in[MDMT_BN_Z] = -1;
            in[MDMT_BN_GATE] = lazy.lazy_gate;
            in[MDMT_BN_POOLED] = pooled;
            MDMT_TRY(append_bn_bwd(graph, gradients, index, lazy.lazy_source, -1,
                                   (int)lazy.lazy_act, in));
            pooled = -1;
        }
    }
    if (pooled >= 0) {
        int in[MDMT_BN_INPUTS] = {-1};
        in[MDMT_BN_Z] = in[MDMT_BN_GATE] = -1;
        in[MDMT_BN_POOLED] = pooled;
        MDMT_TRY(append_bn_bwd(graph, gradients, index, graph->tensor[last].lazy_source, -1,
                               (int)graph->tensor[last].lazy_act, in));
    }
    return MDMT_OK;
}

const mdmt_op_record mdmt_op_bn_fold = {.name = "bn_fold",
                                        .min_inputs = 5,
                                        .max_inputs = 7,
                                        .optional_inputs = 1u << 0 | 1u << 5 | 1u << 6,
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
    int in[MDMT_BN_INPUTS];
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &in[MDMT_BN_DZ]));
    in[MDMT_BN_Z] = residual >= 0 && act != MDMT_ACT_NONE ? op.out[0] : -1;
    in[MDMT_BN_GATE] = in[MDMT_BN_POOLED] = -1;
    return append_bn_bwd(graph, gradients, graph->tensor[op.in[1]].producer, op.in[0], residual,
                         act, in);
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
    static const int maps[] = {MDMT_BN_DZ, MDMT_BN_Z, MDMT_BN_ADDEND};
    static const int rows[] = {MDMT_BN_GATE, MDMT_BN_POOLED};
    const mdmt_act_attrs *a = MDMT_ATTRS(mdmt_act_attrs, op);
    MDMT_TRY(mdmt_expect(graph, op, MDMT_BN_X, MDMT_MAP));
    mdmt_tensor x = *mdmt_in(graph, op, MDMT_BN_X);
    for (int i = 0; i < 3; i++) {
        MDMT_TRY(mdmt_expect(graph, op, maps[i], MDMT_MAP));
        MDMT_TRY(mdmt_expect_same(graph, op, MDMT_BN_X, maps[i]));
    }
    for (int i = 0; i < 2; i++) {
        const mdmt_tensor *row = mdmt_in(graph, op, rows[i]);
        if (row && (row->kind != MDMT_ROWS || row->dim[0] != x.dim[0] || row->dim[1] != x.dim[1])) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "bn_bwd: input %d must be rows of shape (%d, %d)",
                             rows[i], x.dim[0], x.dim[1]);
        }
    }
    if (op->in[MDMT_BN_DZ] < 0 && op->in[MDMT_BN_POOLED] < 0) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "bn_bwd needs dz, or the gradient of the mean");
    }
    if (op->in[MDMT_BN_Z] >= 0 && mdmt_act_needs_input((mdmt_act)a->act)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "bn_bwd cannot tell this activation's slope from z");
    }
    MDMT_TRY(expect_vectors(graph, op, MDMT_BN_SCALE, MDMT_BN_INVSTD, x.dim[1]));
    MDMT_TRY(mdmt_output_like(graph, op, op->in[MDMT_BN_X]));
    MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, x.dim[1], 1, 1, 1));
    MDMT_TRY(mdmt_output(graph, op, MDMT_VECTOR, MDMT_F32, 1, x.dim[1], 1, 1, 1));
    if (a->want_dpre) {
        MDMT_TRY(mdmt_output_like(graph, op, op->in[MDMT_BN_X]));
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
                                       .min_inputs = MDMT_BN_INVSTD + 1,
                                       .max_inputs = MDMT_BN_INPUTS,
                                       .optional_inputs =
                                           1u << MDMT_BN_DZ | 1u << MDMT_BN_Z | 1u << MDMT_BN_GATE |
                                           1u << MDMT_BN_POOLED | 1u << MDMT_BN_ADDEND,
                                       .inplace_inputs = 1u << MDMT_BN_DZ | 1u << MDMT_BN_ADDEND,
                                       .inplace_output = bwd_inplace_output,
                                       .fields = act_fields,
                                       .attr_bytes = sizeof(mdmt_act_attrs),
                                       .infer = bwd_infer};
