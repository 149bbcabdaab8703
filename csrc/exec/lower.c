#include "lower.h"

#include <stdio.h>
#include <string.h>

#include "../ir/gradient.h"

/* What a tensor of the network has become. `stored` is its tensor in the new
 * graph once it exists as such. Before that it may be pending: the result of a
 * batch normalisation that is not yet applied, act(scale * x + shift [+ residual]). */
typedef struct {
    int stored; /* or -1 */
    int lazy;   /* the lazy tensor made for its consumer, or -1 */
    int pending;
    int x, scale, shift, residual;
    int act;
} value;

typedef struct {
    const mdmt_graph *network;
    const mdmt_mode *mode;
    mdmt_graph *graph;
    value *of; /* per tensor of the network */
    int *uses; /* per tensor of the network: how many inputs read it, outputs counted too */
} lowering;

static mdmt_status append(lowering *l, const mdmt_op_record *record, const void *attrs,
                          int inputs, const int *in, int *out)
{
    int op;
    MDMT_TRY(mdmt_graph_op(l->graph, record, attrs, inputs, in, &op));
    *out = l->graph->op[op].out[0];
    return MDMT_OK;
}

/* The stored form of a tensor of the network, computed now if it was pending. */
static mdmt_status store(lowering *l, int tensor, int *out)
{
    value *v = &l->of[tensor];
    if (v->stored < 0) {
        mdmt_act_attrs attrs = {.act = v->act};
        int in[4] = {v->x, v->scale, v->shift, v->residual};
        MDMT_TRY(append(l, &mdmt_op_norm_act, &attrs, v->residual < 0 ? 3 : 4, in, &v->stored));
    }
    *out = v->stored;
    return MDMT_OK;
}

/* The form in which a consumer that accepts lazy tensors reads it: lazy when it
 * is the only reader, so that no other pays for applying it again. */
static mdmt_status load(lowering *l, int tensor, int *out)
{
    value *v = &l->of[tensor];
    if (v->stored < 0 && v->residual < 0 && l->uses[tensor] == 1) {
        if (v->lazy < 0) {
            MDMT_TRY(mdmt_graph_lazy(l->graph, v->x, v->scale, v->shift, (mdmt_act)v->act,
                                     &v->lazy));
        }
        *out = v->lazy;
        return MDMT_OK;
    }
    return store(l, tensor, out);
}

static int is_norm_input(const lowering *l, int tensor)
{
    for (int i = 0; i < l->network->ops; i++) {
        if (l->network->op[i].record == &mdmt_op_batch_norm &&
            l->network->op[i].in[0] == tensor) {
            return 1;
        }
    }
    return 0;
}

static mdmt_status lower_norm(lowering *l, const mdmt_op *op)
{
    mdmt_norm_attrs attrs = *MDMT_ATTRS(mdmt_norm_attrs, op);
    int x;
    MDMT_TRY(store(l, op->in[0], &x));
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
    int in[5] = {-1};
    if (attrs.training) {
        const mdmt_op *maker = map->producer < 0 ? NULL : &l->graph->op[map->producer];
        if (maker && maker->record == &mdmt_op_conv2d && maker->out[1] >= 0) {
            in[0] = maker->out[1];
        } else {
            MDMT_TRY(append(l, &mdmt_op_channel_stats, NULL, 1, &x, &in[0]));
        }
    }
    for (int i = 1; i < 5; i++) {
        in[i] = l->of[op->in[i]].stored;
    }
    value *y = &l->of[op->out[0]];
    y->pending = 1;
    y->x = x;
    y->act = MDMT_ACT_NONE;
    MDMT_TRY(append(l, &mdmt_op_bn_fold, &attrs, 5, in, &y->scale));
    y->shift = l->graph->op[l->graph->ops - 1].out[1];
    return MDMT_OK;
}

/* Whether a value is a normalisation to which more may still be attached. */
static int is_open(const lowering *l, int tensor)
{
    const value *v = &l->of[tensor];
    return v->pending && v->stored < 0 && v->lazy < 0 && v->act == MDMT_ACT_NONE &&
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
        MDMT_TRY(store(l, op->in[0], &in[0]));
        MDMT_TRY(store(l, op->in[1], &in[1]));
        return append(l, &mdmt_op_add, NULL, 2, in, &l->of[op->out[0]].stored);
    }
    value *y = &l->of[op->out[0]];
    *y = l->of[main];
    return load(l, other, &y->residual);
}

/* The attributes an op gets in this mode, into `attrs`. */
static void mode_attrs(const lowering *l, const mdmt_op *op, unsigned char *attrs)
{
    memcpy(attrs, op->attrs, MDMT_ATTR_BYTES);
    if (op->record == &mdmt_op_conv2d) {
        mdmt_conv_attrs conv;
        memcpy(&conv, op->attrs, sizeof conv);
        conv.want_stats = l->mode->training && is_norm_input(l, op->out[0]);
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
            MDMT_TRY(op->record->lazy_inputs >> i & 1 ? load(l, op->in[i], &in[i])
                                                      : store(l, op->in[i], &in[i]));
        }
    }
    _Alignas(8) unsigned char attrs[MDMT_ATTR_BYTES];
    mode_attrs(l, op, attrs);
    return append(l, op->record, attrs, op->inputs, in, &l->of[op->out[0]].stored);
}

static mdmt_status lower_op(lowering *l, const mdmt_op *op)
{
    if (op->record == &mdmt_op_batch_norm) {
        return lower_norm(l, op);
    }
    if (op->record == &mdmt_op_add) {
        return lower_add(l, op);
    }
    if (op->record == &mdmt_op_act && is_open(l, op->in[0])) {
        value *y = &l->of[op->out[0]];
        *y = l->of[op->in[0]];
        y->act = MDMT_ATTRS(mdmt_act_attrs, op)->act;
        return MDMT_OK;
    }
    if (op->record == &mdmt_op_dropout && !l->mode->training) {
        return store(l, op->in[0], &l->of[op->out[0]].stored);
    }
    return lower_plain(l, op);
}

/* Parameters, buffers and the image. */
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
                                       .augment = l->mode->augment};
            memcpy(attrs.mean, l->mode->mean, sizeof attrs.mean);
            memcpy(attrs.std, l->mode->std, sizeof attrs.std);
            MDMT_TRY(append(l, &mdmt_op_images, &attrs, 0, NULL, &v->stored));
        } else if (from->role == MDMT_ROLE_INPUT) {
            int dim[4] = {l->mode->batch, from->dim[1], l->mode->height, l->mode->width};
            MDMT_TRY(mdmt_graph_tensor(l->graph, MDMT_NAME_IMAGE, from->kind, from->dtype,
                                       MDMT_ROLE_INPUT, 4, dim, &v->stored));
        }
    }
    return MDMT_OK;
}

static mdmt_status lower_outputs(lowering *l)
{
    for (int t = 0; t < l->network->tensors; t++) {
        if (l->network->tensor[t].is_output) {
            int out;
            MDMT_TRY(store(l, t, &out));
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

/* The loss on the heads' logits, then the gradients of all parameters. */
static mdmt_status add_gradients(lowering *l)
{
    const mdmt_mode *mode = l->mode;
    mdmt_loss_attrs attrs = mode->loss;
    attrs.want_gradient = 1;
    int in[2 + MDMT_MAX_TASKS], seeds[MDMT_MAX_TASKS][2], op;
    int task_dim[1] = {mode->batch}, target_dim[2] = {mode->batch, mode->target_width};
    MDMT_TRY(mdmt_graph_tensor(l->graph, MDMT_NAME_TASK, MDMT_SCALAR, MDMT_I32, MDMT_ROLE_INPUT,
                               1, task_dim, &in[0]));
    MDMT_TRY(mdmt_graph_tensor(l->graph, MDMT_NAME_TARGET, MDMT_ROWS, MDMT_F32, MDMT_ROLE_INPUT,
                               2, target_dim, &in[1]));
    for (int k = 0; k < attrs.tasks; k++) {
        in[2 + k] = mdmt_graph_find(l->graph, mode->logits[k]);
    }
    int forward_ops = l->graph->ops;
    MDMT_TRY(mdmt_graph_op(l->graph, &mdmt_op_masked_loss, &attrs, 2 + attrs.tasks, in, &op));
    mdmt_op loss = l->graph->op[op];
    for (int k = 0; k < 2; k++) {
        mdmt_tensor *tensor = &l->graph->tensor[loss.out[k]];
        tensor->is_output = 1;
        snprintf(tensor->name, sizeof tensor->name, "%s",
                 k ? MDMT_NAME_PER_TASK : MDMT_NAME_LOSS);
    }
    for (int k = 0; k < attrs.tasks; k++) {
        seeds[k][0] = in[2 + k];
        seeds[k][1] = loss.out[2 + k];
    }
    return mdmt_differentiate(l->graph, &mdmt_op_add, forward_ops, seeds, attrs.tasks);
}

static mdmt_status lower_all(lowering *l)
{
    for (int t = 0; t < l->network->tensors; t++) {
        l->of[t] = (value){
            .stored = -1, .lazy = -1, .x = -1, .scale = -1, .shift = -1, .residual = -1};
        l->uses[t] = l->network->tensor[t].is_output;
    }
    for (int i = 0; i < l->network->ops; i++) {
        for (int j = 0; j < l->network->op[i].inputs; j++) {
            if (l->network->op[i].in[j] >= 0) {
                l->uses[l->network->op[i].in[j]]++;
            }
        }
    }
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
    mdmt_status status = MDMT_NO_MEMORY;
    if (l.of && l.uses && mdmt_graph_open(&l.graph) == MDMT_OK) {
        status = lower_all(&l);
    }
    mdmt_release(l.of);
    mdmt_release(l.uses);
    if (status != MDMT_OK) {
        mdmt_graph_close(l.graph);
        l.graph = NULL;
    }
    *lowered = l.graph;
    return status;
}
