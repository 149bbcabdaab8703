
#include <stdio.h>
#include <string.h>

#include "../ir/gradient.h"
#include "lower_state.h"

mdmt_status mdmt_lower_append(lowering *l, const mdmt_op_record *record, const void *attrs,
                              int inputs, const int *in, int *out)
{
    int op;
    MDMT_TRY(mdmt_graph_op(l->graph, record, attrs, inputs, in, &op));
    *out = l->graph->op[op].out[0];
    return MDMT_OK;
}

static mdmt_status apply_norm(lowering *l, value *v)
{
    mdmt_act_attrs attrs = {.act = v->act};
    int in[4] = {v->x, v->scale, v->shift, v->residual};
    return mdmt_lower_append(l, &mdmt_op_norm_act, &attrs, v->residual < 0 ? 3 : 4, in, &v->stored);
}

static mdmt_status apply_gate(lowering *l, value *v)
{
    int in[2];
    MDMT_TRY(mdmt_lower_load(l, v->gated, &in[0]));
    MDMT_TRY(mdmt_lower_store(l, v->gate, &in[1]));
    return mdmt_lower_append(l, &mdmt_op_gate, NULL, 2, in, &v->stored);
}

mdmt_status mdmt_lower_store(lowering *l, int tensor, int *out)
{
    value *v = &l->of[tensor];
    if (v->stored < 0) {
        MDMT_TRY(v->select >= 0  ? mdmt_lower_gather(l, tensor)
                 : v->gated >= 0 ? apply_gate(l, v)
                                 : apply_norm(l, v));
        MDMT_TRY(mdmt_lower_stored(l, tensor));
    }
    *out = v->stored;
    return MDMT_OK;
}

/* Whether a squeeze-excite reads a tensor and nothing else: its pooling and its
 * gate apply the normalisation themselves. */
static int is_excited(const lowering *l, int tensor)
{
    int pools = 0, gates = 0;
    for (int i = 0; i < l->network->ops; i++) {
        const mdmt_op *op = &l->network->op[i];
        for (int j = 0; j < op->inputs; j++) {
            pools += op->in[j] == tensor && op->record == &mdmt_op_global_avg_pool;
            gates += op->in[j] == tensor && op->record == &mdmt_op_gate;
        }
    }
    return pools == 1 && gates == 1 && l->uses[tensor] == 2;
}

/* Lazy when one consumer reads it, so that no other pays for applying it again. */
mdmt_status mdmt_lower_load(lowering *l, int tensor, int *out)
{
    value *v = &l->of[tensor];
    int free = v->root < 0 && (l->uses[tensor] == 1 || is_excited(l, tensor));
    if (v->stored < 0 && v->pending && v->residual < 0 && free) {
        if (v->lazy < 0) {
            MDMT_TRY(mdmt_graph_lazy(l->graph, v->x, v->scale, v->shift, (mdmt_act)v->act, -1,
                                     &v->lazy));
        }
        *out = v->lazy;
        return MDMT_OK;
    }
    return mdmt_lower_store(l, tensor, out);
}

/* As mdmt_lower_load, for a convolution, which also multiplies by a gate itself. */
static mdmt_status load_gated(lowering *l, int tensor, int *out)
{
    const value *y = &l->of[tensor];
    if (y->stored >= 0 || y->gated < 0 || l->uses[tensor] != 1 || y->root >= 0) {
        return mdmt_lower_load(l, tensor, out);
    }
    int plain, gate;
    MDMT_TRY(mdmt_lower_load(l, y->gated, &plain));
    if (l->graph->tensor[plain].lazy_source < 0) {
        return mdmt_lower_store(l, tensor, out);
    }
    MDMT_TRY(mdmt_lower_store(l, y->gate, &gate));
    mdmt_tensor lazy = l->graph->tensor[plain];
    return mdmt_graph_lazy(l->graph, lazy.lazy_source, lazy.lazy_scale, lazy.lazy_shift,
                           lazy.lazy_act, gate, out);
}

/* Where bn_fold finds the batch statistics of a tensor of the network: inputs 0
 * or 5 and 6. */
static mdmt_status norm_statistics(lowering *l, int tensor, int *in)
{
    if (l->of[tensor].root >= 0) {
        return mdmt_lower_moments(l, tensor, &in[5], &in[6]);
    }
    int x = l->of[tensor].stored, producer = l->graph->tensor[x].producer;
    if (producer >= 0 && l->graph->op[producer].record == &mdmt_op_conv2d &&
        l->graph->op[producer].out[1] >= 0) {
        in[0] = l->graph->op[producer].out[1];
        return MDMT_OK;
    }
    return mdmt_lower_append(l, &mdmt_op_channel_stats, NULL, 1, &x, &in[0]);
}

static mdmt_status lower_norm(lowering *l, const mdmt_op *op)
{
    mdmt_norm_attrs attrs = *MDMT_ATTRS(mdmt_norm_attrs, op);
    int x;
    MDMT_TRY(mdmt_lower_store(l, op->in[0], &x));
    const mdmt_tensor *map = &l->graph->tensor[x];
    attrs.training = l->mode->training;
    int64_t count = (int64_t)map->dim[0] * map->dim[2] * map->dim[3];
    if (count > INT32_MAX) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "a batch of %d with %d x %d pixels in a feature map is beyond the 2^31 "
                         "values per channel that can be normalised; use a smaller batch",
                         map->dim[0], map->dim[2], map->dim[3]);
    }
    attrs.count = (int)count;
    if (attrs.training && attrs.count == 1) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "batch normalisation in training needs more than one value per channel, "
                         "but a batch of 1 has shrunk to 1 x 1 pixels; use a larger batch or "
                         "larger images");
    }
    int in[7] = {-1, -1, -1, -1, -1, -1, -1};
    if (attrs.training) {
        MDMT_TRY(norm_statistics(l, op->in[0], in));
    }
    for (int i = 1; i < 5; i++) {
        in[i] = l->of[op->in[i]].stored;
    }
    value *y = &l->of[op->out[0]];
    y->pending = 1;
    y->x = x;
    y->act = MDMT_ACT_NONE;
    MDMT_TRY(mdmt_lower_append(l, &mdmt_op_bn_fold, &attrs, in[5] < 0 ? 5 : 7, in, &y->scale));
    y->shift = l->graph->op[l->graph->ops - 1].out[1];
    return MDMT_OK;
}

/* A pending normalisation goes on as another tensor, which has a place of its own. */
static void inherit(value *to, const value *from)
{
    int root = to->root, at = to->from;
    *to = *from;
    to->root = root;
    to->from = at;
}

/* Whether a value is a normalisation to which more may still be attached. */
static int is_open(const lowering *l, int tensor)
{
    const value *v = &l->of[tensor];
    return v->pending && v->stored < 0 && v->lazy < 0 && v->act == MDMT_ACT_NONE && v->root < 0 &&
           l->uses[tensor] == 1;
}

static mdmt_status lower_add(lowering *l, const mdmt_op *op)
{
    int main = op->in[0], other = op->in[1];
    if (!is_open(l, main) || l->of[main].residual >= 0) {
        main = op->in[1];
        other = op->in[0];
    }
    if (!is_open(l, main) || l->of[main].residual >= 0 || main == other) {
        int in[2];
        MDMT_TRY(mdmt_lower_store(l, op->in[0], &in[0]));
        MDMT_TRY(mdmt_lower_store(l, op->in[1], &in[1]));
        MDMT_TRY(mdmt_lower_append(l, &mdmt_op_add, NULL, 2, in, &l->of[op->out[0]].stored));
        return mdmt_lower_stored(l, op->out[0]);
    }
    value *y = &l->of[op->out[0]];
    inherit(y, &l->of[main]);
    return mdmt_lower_load(l, other, &y->residual);
}

/* The attributes an op gets in this mode, into `attrs`. */
static void mode_attrs(const lowering *l, const mdmt_op *op, unsigned char *attrs)
{
    memcpy(attrs, op->attrs, MDMT_ATTR_BYTES);
    if (op->record == &mdmt_op_conv2d) {
        mdmt_conv_attrs conv;
        memcpy(&conv, op->attrs, sizeof conv);
        conv.want_stats = l->mode->training && mdmt_lower_feeds_norm(l, op->out[0]);
        memcpy(attrs, &conv, sizeof conv);
    } else if (op->record == &mdmt_op_max_pool) {
        mdmt_pool_attrs pool;
        memcpy(&pool, op->attrs, sizeof pool);
        pool.want_argmax = l->mode->want_gradients;
        memcpy(attrs, &pool, sizeof pool);
    }
}

/* An op that stays what it is. */
static mdmt_status lower_plain(lowering *l, const mdmt_op *op)
{
    int in[MDMT_MAX_IN];
    for (int i = 0; i < op->inputs; i++) {
        in[i] = -1;
        if (op->in[i] >= 0) {
            MDMT_TRY(!(op->record->lazy_inputs >> i & 1) ? mdmt_lower_store(l, op->in[i], &in[i])
                     : op->record == &mdmt_op_conv2d     ? load_gated(l, op->in[i], &in[i])
                                                         : mdmt_lower_load(l, op->in[i], &in[i]));
        }
    }
    _Alignas(8) unsigned char attrs[MDMT_ATTR_BYTES];
    mode_attrs(l, op, attrs);
    MDMT_TRY(mdmt_lower_append(l, op->record, attrs, op->inputs, in, &l->of[op->out[0]].stored));
    return mdmt_lower_stored(l, op->out[0]);
}

/* Whether an activation can be applied with the normalisation before it: after a
 * residual sum only where its slope can be told from its output. */
static int takes_act(const lowering *l, const mdmt_op *op)
{
    mdmt_act act = (mdmt_act)MDMT_ATTRS(mdmt_act_attrs, op)->act;
    return is_open(l, op->in[0]) && (l->of[op->in[0]].residual < 0 || !mdmt_act_needs_input(act));
}

static mdmt_status lower_op(lowering *l, const mdmt_op *op)
{
    if (op->record == &mdmt_op_batch_norm) {
        return lower_norm(l, op);
    }
    if (op->record == &mdmt_op_add) {
        return lower_add(l, op);
    }
    if (op->record == &mdmt_op_act && takes_act(l, op)) {
        value *y = &l->of[op->out[0]];
        inherit(y, &l->of[op->in[0]]);
        y->act = MDMT_ATTRS(mdmt_act_attrs, op)->act;
        return MDMT_OK;
    }
    if (op->record == &mdmt_op_gate) {
        l->of[op->out[0]].gated = op->in[0];
        l->of[op->out[0]].gate = op->in[1];
        return MDMT_OK;
    }
    if (mdmt_lower_is_selection(l, op)) {
        return mdmt_lower_select(l, op);
    }
    if (op->record == &mdmt_op_concat) {
        return mdmt_lower_concat(l, op);
    }
    if (op->record == &mdmt_op_dropout && !l->mode->training) {
        return mdmt_lower_store(l, op->in[0], &l->of[op->out[0]].stored);
    }
    return lower_plain(l, op);
}

/* Whether a task of this mode is a mask, so that every sample has one. */
static int wants_mask(const mdmt_mode *mode)
{
    for (int k = 0; mode->want_gradients && k < mode->loss.tasks; k++) {
        if (mode->loss.loss[k] == MDMT_LOSS_DICE_CE) {
            return 1;
        }
    }
    return 0;
}

/* Parameters, buffers, the image and the mask. */
static mdmt_status lower_sources(lowering *l)
{
    for (int t = 0; t < l->network->tensors; t++) {
        const mdmt_tensor *from = &l->network->tensor[t];
        value *v = &l->of[t];
        if (from->role == MDMT_ROLE_PARAM || from->role == MDMT_ROLE_BUFFER) {
            MDMT_TRY(mdmt_graph_tensor(l->graph, from->name, from->kind, from->dtype, from->role,
                                       from->dims, from->dim, &v->stored));
        } else if (from->role == MDMT_ROLE_INPUT && l->mode->from_store) {
            mdmt_images_attrs attrs = {.batch = l->mode->batch,
                                       .channels = from->dim[1],
                                       .size = {l->mode->height, l->mode->width},
                                       .augment = l->mode->augment,
                                       .want_mask = wants_mask(l->mode),
                                       .colour = l->mode->colour};
            memcpy(attrs.mean, l->mode->mean, sizeof attrs.mean);
            memcpy(attrs.std, l->mode->std, sizeof attrs.std);
            MDMT_TRY(mdmt_lower_append(l, &mdmt_op_images, &attrs, 0, NULL, &v->stored));
            l->mask = attrs.want_mask ? l->graph->op[l->graph->ops - 1].out[1] : -1;
        } else if (from->role == MDMT_ROLE_INPUT) {
            int dim[4] = {l->mode->batch, from->dim[1], l->mode->height, l->mode->width};
            MDMT_TRY(mdmt_graph_tensor(l->graph, MDMT_NAME_IMAGE, from->kind, from->dtype,
                                       MDMT_ROLE_INPUT, 4, dim, &v->stored));
            dim[1] = 1;
            MDMT_TRY(!wants_mask(l->mode)
                         ? MDMT_OK
                         : mdmt_graph_tensor(l->graph, MDMT_NAME_MASK, from->kind, MDMT_F32,
                                             MDMT_ROLE_INPUT, 4, dim, &l->mask));
        }
    }
    return MDMT_OK;
}

static mdmt_status lower_outputs(lowering *l)
{
    for (int t = 0; t < l->network->tensors; t++) {
        if (l->network->tensor[t].is_output) {
            int out;
            MDMT_TRY(mdmt_lower_store(l, t, &out));
            mdmt_tensor *tensor = &l->graph->tensor[out];
            if (tensor->is_output || tensor->role != MDMT_ROLE_VALUE) {
                return mdmt_fail(MDMT_BAD_ARGUMENT, "the outputs %s and %s are one tensor",
                                 tensor->name, l->network->tensor[t].name);
            }
            tensor->is_output = 1;
            memcpy(tensor->name, l->network->tensor[t].name, sizeof tensor->name);
        }
    }
    return MDMT_OK;
}

/* The loss on the heads' logits, then the gradients of the parameters that learn. */
static mdmt_status add_gradients(lowering *l)
{
    const mdmt_mode *mode = l->mode;
    mdmt_loss_attrs attrs = mode->loss;
    attrs.want_gradient = 1;
    int in[2 + MDMT_MAX_TASKS], seeds[MDMT_MAX_TASKS][2], op;
    int task_dim[1] = {mode->batch}, target_dim[2] = {mode->batch, mode->target_width};
    MDMT_TRY(mdmt_graph_tensor(l->graph, MDMT_NAME_TASK, MDMT_SCALAR, MDMT_I32, MDMT_ROLE_INPUT, 1,
                               task_dim, &in[0]));
    MDMT_TRY(mdmt_graph_tensor(l->graph, MDMT_NAME_TARGET, MDMT_ROWS, MDMT_F32, MDMT_ROLE_INPUT, 2,
                               target_dim, &in[1]));
    for (int k = 0; k < attrs.tasks; k++) {
        in[2 + k] = mdmt_graph_find(l->graph, mode->logits[k]);
        if (attrs.loss[k] == MDMT_LOSS_DICE_CE) {
            int pair[2] = {in[2 + k], l->mask};
            MDMT_TRY(mdmt_lower_append(l, &mdmt_op_mask_sums, NULL, 2, pair, &in[2 + k]));
        }
    }
    int forward_ops = l->graph->ops;
    MDMT_TRY(mdmt_graph_op(l->graph, &mdmt_op_masked_loss, &attrs, 2 + attrs.tasks, in, &op));
    mdmt_op loss = l->graph->op[op];
    for (int k = 0; k < 2; k++) {
        mdmt_tensor *tensor = &l->graph->tensor[loss.out[k]];
        tensor->is_output = 1;
        snprintf(tensor->name, sizeof tensor->name, "%s", k ? MDMT_NAME_PER_TASK : MDMT_NAME_LOSS);
    }
    for (int k = 0; k < attrs.tasks; k++) {
        seeds[k][0] = in[2 + k];
        seeds[k][1] = loss.out[2 + k];
    }
    const mdmt_gradient_rules rules = {.add = &mdmt_op_add,
                                       .zeros = &mdmt_op_zeros,
                                       .gate_bwd = &mdmt_op_gate_bwd,
                                       .learns = mode->learns};
    MDMT_TRY(mdmt_differentiate(l->graph, &rules, forward_ops, seeds, attrs.tasks));
    return mdmt_graph_prune(l->graph);
}

static mdmt_status lower_all(lowering *l)
{
    for (int t = 0; t < l->network->tensors; t++) {
        l->of[t] = (value){.stored = -1,
                           .lazy = -1,
                           .x = -1,
                           .scale = -1,
                           .shift = -1,
                           .residual = -1,
                           .gated = -1,
                           .gate = -1,
                           .select = -1,
                           .root = -1,
                           .mean = -1,
                           .var = -1};
        l->uses[t] = l->network->tensor[t].is_output;
    }
    for (int i = 0; i < l->network->ops; i++) {
        for (int j = 0; j < l->network->op[i].inputs; j++) {
            if (l->network->op[i].in[j] >= 0) {
                l->uses[l->network->op[i].in[j]]++;
            }
        }
    }
    mdmt_lower_place_all(l);
    MDMT_TRY(lower_sources(l));
    for (int i = 0; i < l->network->ops; i++) {
        MDMT_TRY(lower_op(l, &l->network->op[i]));
    }
    MDMT_TRY(lower_outputs(l));
    return l->mode->want_gradients ? add_gradients(l) : MDMT_OK;
}

mdmt_status mdmt_lower(const mdmt_graph *network, const mdmt_mode *mode, mdmt_graph **lowered)
{
    lowering l = {.network = network, .mode = mode};
    l.of = mdmt_acquire((size_t)network->tensors, sizeof *l.of);
    l.uses = mdmt_acquire((size_t)network->tensors, sizeof *l.uses);
    l.pieces = mdmt_acquire((size_t)network->tensors + (size_t)network->ops * MDMT_MAX_IN,
                            sizeof *l.pieces);
    mdmt_status status = MDMT_NO_MEMORY;
    if (l.of && l.uses && l.pieces && mdmt_graph_open(&l.graph) == MDMT_OK) {
        status = lower_all(&l);
    }
    mdmt_release(l.of);
    mdmt_release(l.uses);
    mdmt_release(l.numbers);
    mdmt_release(l.pieces);
    if (status != MDMT_OK) {
        mdmt_graph_close(l.graph);
        l.graph = NULL;
    }
    *lowered = l.graph;
    return status;
}
