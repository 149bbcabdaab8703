#include "gradient.h"

#include <string.h>

#include "../base/memory.h"

/* The tensor whose entry holds the gradient of `tensor`. */
static int entry_of(const mdmt_graph *graph, int tensor)
{
    return graph->tensor[tensor].view_of < 0 ? tensor : graph->tensor[tensor].view_of;
}

static mdmt_status append(mdmt_graph *graph, const mdmt_op_record *record, int inputs,
                          const int *in, int *out)
{
    int op;
    MDMT_TRY(mdmt_graph_op(graph, record, NULL, inputs, in, &op));
    *out = graph->op[op].out[0];
    return MDMT_OK;
}

/* The part of a root's gradient that belongs to one of the root's views. */
static mdmt_status part_of(mdmt_graph *graph, const mdmt_gradients *gradients, int view, int *part)
{
    mdmt_tensor v = graph->tensor[view];
    return mdmt_graph_view(graph, gradients->of[v.view_of], v.view_from, v.dim[1], part);
}

mdmt_status mdmt_gradient_get(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                              int *gradient)
{
    *gradient = -1;
    if (tensor < 0 || tensor >= gradients->room) {
        return MDMT_OK;
    }
    int entry = entry_of(graph, tensor);
    if (entry != tensor && gradients->of[entry] >= 0) {
        return part_of(graph, gradients, tensor, gradient);
    }
    *gradient = gradients->of[entry];
    return MDMT_OK;
}

/* Whether the gradient of a root may be written into: it is nobody else's, and
 * not part of another tensor. */
static int is_owned(const mdmt_graph *graph, const mdmt_gradients *gradients, int root)
{
    int g = gradients->of[root];
    if (graph->tensor[g].view_of >= 0 || graph->tensor[g].role != MDMT_ROLE_VALUE) {
        return 0;
    }
    for (int t = 0; t < gradients->room; t++) {
        if (t != root && gradients->of[t] == g) {
            return 0;
        }
    }
    return 1;
}

/* Makes the gradient of a root one that can be added to part by part. */
static mdmt_status open_root(mdmt_graph *graph, mdmt_gradients *gradients, int root)
{
    int *of = &gradients->of[root];
    if (*of >= 0 && is_owned(graph, gradients, root)) {
        return MDMT_OK;
    }
    int in[2], so_far = *of;
    MDMT_TRY(append(graph, gradients->rules.zeros, 1, &root, of));
    if (so_far < 0) {
        return MDMT_OK;
    }
    in[0] = *of;
    in[1] = so_far;
    return append(graph, gradients->rules.add, 2, in, of);
}

mdmt_status mdmt_gradient_take(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                               int *gradient)
{
    int entry = entry_of(graph, tensor);
    *gradient = gradients->of[entry];
    if (*gradient < 0) {
        return MDMT_OK;
    }
    if (entry == tensor) {
        gradients->of[tensor] = -1;
        return MDMT_OK;
    }
    MDMT_TRY(open_root(graph, gradients, entry));
    gradients->taken = tensor;
    return part_of(graph, gradients, tensor, gradient);
}

/* Into the part of a root's gradient that belongs to `view`. */
static mdmt_status put_part(mdmt_graph *graph, mdmt_gradients *gradients, int view, int gradient)
{
    mdmt_tensor v = graph->tensor[view];
    if (gradients->taken != view) {
        int in[2] = {-1, gradient};
        MDMT_TRY(open_root(graph, gradients, v.view_of));
        MDMT_TRY(part_of(graph, gradients, view, &in[0]));
        MDMT_TRY(append(graph, gradients->rules.add, 2, in, &gradient));
    }
    gradients->taken = -1;
    return mdmt_graph_place(graph, gradient, gradients->of[v.view_of], v.view_from);
}

/* The sum of two gradients: one op that makes both at once where their record
 * knows one, else an addition. */
static mdmt_status sum_of(mdmt_graph *graph, const mdmt_gradients *gradients, int a, int b,
                          int *sum)
{
    const mdmt_tensor *x = &graph->tensor[a], *y = &graph->tensor[b];
    *sum = -1;
    if (x->producer >= 0 && y->producer >= 0) {
        const mdmt_op_record *record = graph->op[x->producer].record;
        if (record == graph->op[y->producer].record && record->merge) {
            MDMT_TRY(record->merge(graph, x->producer, y->producer, sum));
        }
    }
    int in[2] = {a, b};
    return *sum >= 0 ? MDMT_OK : append(graph, gradients->rules.add, 2, in, sum);
}

mdmt_status mdmt_gradient_put(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                              int gradient)
{
    if (graph->tensor[tensor].view_of >= 0) {
        return put_part(graph, gradients, tensor, gradient);
    }
    int *slot = &gradients->of[tensor];
    if (*slot >= 0) {
        MDMT_TRY(sum_of(graph, gradients, *slot, gradient, &gradient));
    }
    *slot = gradient;
    return MDMT_OK;
}

mdmt_status mdmt_gradient_put_pooled(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                                     int rows)
{
    int *slot = &gradients->pooled[tensor];
    int in[2] = {*slot, rows};
    if (*slot >= 0) {
        return append(graph, gradients->rules.add, 2, in, slot);
    }
    *slot = rows;
    return MDMT_OK;
}

int mdmt_gradient_wanted(const mdmt_graph *graph, const mdmt_gradients *gradients, int tensor)
{
    (void)gradients;
    if (tensor < 0) {
        return 0;
    }
    const mdmt_tensor *t = &graph->tensor[tensor];
    if (t->role == MDMT_ROLE_PARAM) {
        return 1;
    }
    /* Values reached only from inputs need no gradient: the stem's image. Every
     * other value lies behind a parameter in the networks described here. */
    return t->role == MDMT_ROLE_VALUE && t->kind != MDMT_IMAGE;
}

/* Whether a gradient has reached an output of the op, or a lazy tensor that
 * stands on one (the scale and shift of bn_fold). */
static int reached(const mdmt_graph *graph, const mdmt_gradients *gradients, int op)
{
    for (int i = 0; i < graph->op[op].outputs; i++) {
        int out = graph->op[op].out[i];
        if (out < 0) {
            continue;
        }
        if (gradients->of[entry_of(graph, out)] >= 0) {
            return 1;
        }
        for (int t = 0; graph->tensor[out].kind == MDMT_VECTOR && t < gradients->room; t++) {
            if (graph->tensor[t].lazy_scale == out &&
                (gradients->of[t] >= 0 || gradients->pooled[t] >= 0)) {
                return 1;
            }
        }
    }
    return 0;
}

/* The gradients of gates that this op makes: the consumers of a gated lazy
 * tensor come after it, so the gradient of that tensor is complete. */
static mdmt_status differentiate_gates(mdmt_graph *graph, mdmt_gradients *gradients, int op)
{
    int gate = graph->op[op].outputs ? graph->op[op].out[0] : -1;
    if (gate < 0 || graph->tensor[gate].kind != MDMT_ROWS) {
        return MDMT_OK;
    }
    for (int t = 0; t < gradients->room; t++) {
        mdmt_tensor lazy = graph->tensor[t];
        if (lazy.lazy_gate != gate || gradients->of[t] < 0) {
            continue;
        }
        int in[2] = {gradients->of[t], -1}, ds;
        MDMT_TRY(mdmt_graph_lazy(graph, lazy.lazy_source, lazy.lazy_scale, lazy.lazy_shift,
                                 lazy.lazy_act, -1, &in[1]));
        MDMT_TRY(append(graph, gradients->rules.gate_bwd, 2, in, &ds));
        MDMT_TRY(mdmt_gradient_put(graph, gradients, gate, ds));
    }
    return MDMT_OK;
}

/* Gives the gradient of each parameter that learns its role, twin and name. */
static mdmt_status claim_parameters(mdmt_graph *graph, const mdmt_gradients *gradients)
{
    for (int t = 0; t < gradients->room; t++) {
        int g = gradients->of[t];
        const char *learns = gradients->rules.learns;
        if (graph->tensor[t].role != MDMT_ROLE_PARAM || g < 0 ||
            strncmp(graph->tensor[t].name, learns, strlen(learns)) != 0) {
            continue;
        }
        mdmt_tensor *gradient = &graph->tensor[g];
        if (gradient->role != MDMT_ROLE_VALUE || gradient->twin >= 0) {
            return mdmt_fail(MDMT_INTERNAL, "the gradient of %s is not a value of its own",
                             graph->tensor[t].name);
        }
        gradient->role = MDMT_ROLE_GRADIENT;
        gradient->twin = t;
        gradient->kind = graph->tensor[t].kind;
        memcpy(gradient->name, graph->tensor[t].name, sizeof gradient->name);
    }
    return MDMT_OK;
}

static mdmt_status walk(mdmt_graph *graph, mdmt_gradients *gradients, int ops,
                        const int (*seeds)[2], int count)
{
    for (int t = 0; t < gradients->room; t++) {
        gradients->of[t] = gradients->pooled[t] = -1;
    }
    for (int i = 0; i < count; i++) {
        MDMT_TRY(mdmt_gradient_put(graph, gradients, seeds[i][0], seeds[i][1]));
    }
    for (int op = ops - 1; op >= 0; op--) {
        const mdmt_op_record *record = graph->op[op].record;
        MDMT_TRY(differentiate_gates(graph, gradients, op));
        if (record->gradient && reached(graph, gradients, op)) {
            MDMT_TRY(record->gradient(graph, op, gradients));
        }
    }
    return claim_parameters(graph, gradients);
}

mdmt_status mdmt_differentiate(mdmt_graph *graph, const mdmt_gradient_rules *rules, int ops,
                               const int (*seeds)[2], int count)
{
    mdmt_gradients gradients = {.room = graph->tensors, .taken = -1, .rules = *rules};
    gradients.of = mdmt_acquire((size_t)graph->tensors, sizeof *gradients.of);
    gradients.pooled = mdmt_acquire((size_t)graph->tensors, sizeof *gradients.pooled);
    mdmt_status status = MDMT_NO_MEMORY;
    if (gradients.of && gradients.pooled) {
        status = walk(graph, &gradients, ops, seeds, count);
    }
    mdmt_release(gradients.of);
    mdmt_release(gradients.pooled);
    return status;
}
