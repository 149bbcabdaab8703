#include "branches.h"

#include <string.h>

#include "../base/memory.h"

/* Whether all that an op makes are gradients of parameters. */
static int only_gradients(const mdmt_graph *graph, const mdmt_op *op)
{
    int made = 0;
    for (int i = 0; i < op->outputs; i++) {
        if (op->out[i] < 0) {
            continue;
        }
        if (graph->tensor[op->out[i]].role != MDMT_ROLE_GRADIENT) {
            return 0;
        }
        made++;
    }
    return made > 0;
}

/* Whether an op reads, or writes over, what op `other` makes. */
static int meets(const mdmt_op *op, const mdmt_op *other)
{
    for (int i = 0; i < other->outputs; i++) {
        int t = other->out[i];
        for (int j = 0; t >= 0 && j < op->inputs; j++) {
            if (op->in[j] == t) {
                return 1;
            }
        }
        for (int j = 0; t >= 0 && j < op->outputs; j++) {
            if (op->out[j] == t) {
                return 1;
            }
        }
    }
    return 0;
}

mdmt_status mdmt_branches_make(const mdmt_graph *graph, const mdmt_backend *backend,
                               mdmt_branches *b)
{
    size_t ops = (size_t)graph->ops;
    b->beside = mdmt_acquire(ops, sizeof *b->beside);
    b->joins = mdmt_acquire(ops, sizeof *b->joins);
    b->until = mdmt_acquire(ops, sizeof *b->until);
    if (!b->beside || !b->joins || !b->until) {
        mdmt_branches_free(b);
        return MDMT_NO_MEMORY;
    }
    int first = -1; /* the branch's first op; -1: none is under way */
    for (int i = 0; i < graph->ops; i++) {
        const mdmt_op *op = &graph->op[i];
        b->until[i] = i;
        b->beside[i] = (char)(backend->branch_begin && only_gradients(graph, op));
        int begins = b->beside[i] && !(i > 0 && b->beside[i - 1]);
        int joins = first >= 0 && begins;
        for (int k = first; first >= 0 && k < i && !b->beside[i]; k++) {
            joins |= b->beside[k] && meets(op, &graph->op[k]);
        }
        for (int k = first; joins && k < i; k++) {
            b->until[k] = b->beside[k] ? i - 1 : k;
        }
        b->joins[i] = (char)joins;
        first = begins ? i : joins ? -1 : first;
    }
    for (int k = first; first >= 0 && k < graph->ops; k++) {
        b->until[k] = b->beside[k] ? graph->ops - 1 : k;
    }
    return MDMT_OK;
}

void mdmt_branches_free(mdmt_branches *b)
{
    mdmt_release(b->beside);
    mdmt_release(b->joins);
    mdmt_release(b->until);
    memset(b, 0, sizeof *b);
}
