#include "gradient.h"

#include <string.h>

#include "../base/memory.h"

int mdmt_gradient_get(const mdmt_gradients *gradients, int tensor)
{
    return tensor >= 0 && tensor < gradients->room ? gradients->of[tensor] : -1;
}

int mdmt_gradient_take(mdmt_gradients *gradients, int tensor)
{
    int gradient = mdmt_gradient_get(gradients, tensor);
    if (gradient >= 0) {
        gradients->of[tensor] = -1;
    }
    return gradient;
}

mdmt_status mdmt_gradient_put(mdmt_graph *graph, mdmt_gradients *gradients, int tensor,
                              int gradient)
{
    int *slot = &gradients->of[tensor];
    if (*slot >= 0) {
        int in[2] = {*slot, gradient}, op;
        MDMT_TRY(mdmt_graph_op(graph, gradients->add, NULL, 2, in, &op));
        gradient = graph->op[op].out[0];
    }
    *slot = gradient;
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
        if (mdmt_gradient_get(gradients, out) >= 0) {
            return 1;
        }
        for (int t = 0; out >= 0 && t < gradients->room; t++) {
            if (gradients->of[t] >= 0 && graph->tensor[t].lazy_scale == out) {
                return 1;
            }
        }
    }
    return 0;
}

/* Gives the gradient of each parameter its role, twin and name. */
static mdmt_status claim_parameters(mdmt_graph *graph, const mdmt_gradients *gradients)
{
    for (int t = 0; t < gradients->room; t++) {
        int g = gradients->of[t];
        if (graph->tensor[t].role != MDMT_ROLE_PARAM || g < 0) {
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

mdmt_status mdmt_differentiate(mdmt_graph *graph, const mdmt_op_record *add, int ops,
                               const int (*seeds)[2], int count)
{
    mdmt_gradients gradients = {NULL, graph->tensors, add};
    gradients.of = mdmt_acquire((size_t)graph->tensors, sizeof *gradients.of);
    if (!gradients.of) {
        return MDMT_NO_MEMORY;
    }
    for (int t = 0; t < gradients.room; t++) {
        gradients.of[t] = -1;
    }
    mdmt_status status = MDMT_OK;
    for (int i = 0; i < count && status == MDMT_OK; i++) {
        status = mdmt_gradient_put(graph, &gradients, seeds[i][0], seeds[i][1]);
    }
    for (int op = ops - 1; op >= 0 && status == MDMT_OK; op--) {
        const mdmt_op_record *record = graph->op[op].record;
        if (record->gradient && reached(graph, &gradients, op)) {
            status = record->gradient(graph, op, &gradients);
        }
    }
    if (status == MDMT_OK) {
        status = claim_parameters(graph, &gradients);
    }
    mdmt_release(gradients.of);
    return status;
}
