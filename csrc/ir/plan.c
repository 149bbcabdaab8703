#include "plan.h"

#include <stdlib.h>
#include <string.h>

#include "../base/memory.h"

/* A block of storage: one tensor, or several that follow one another in place,
 * or the workspace of one op. Alive from op `first` to op `last`, both in. */
typedef struct {
    int64_t bytes, offset;
    int first, last;
    int id;
} block;

typedef struct {
    const mdmt_graph *graph;
    const size_t *bytes, *view_bytes;
    const int *until; /* per op: the last op beside which it may still run              */
    int *last_use; /* per tensor: index of the last op beside which it may be read, or its producer */
    int *owner;    /* per tensor: its block, or -1                                    */
    int *beside;   /* per tensor: the last op beside which one before it may read it, or -1 */
    block *blocks;
    int count;
} planner;

static int is_planned(const mdmt_tensor *tensor)
{
    return tensor->lazy_source < 0 && tensor->view_of < 0 &&
           (tensor->role == MDMT_ROLE_VALUE || tensor->role == MDMT_ROLE_INPUT);
}

static void note_use(planner *p, int tensor, int op)
{
    const mdmt_tensor *t = &p->graph->tensor[tensor];
    int until = p->until[op];
    if (t->lazy_source >= 0) {
        note_use(p, t->lazy_source, op);
        note_use(p, t->lazy_scale, op);
        note_use(p, t->lazy_shift, op);
        if (t->lazy_gate >= 0) {
            note_use(p, t->lazy_gate, op);
        }
    }
    if (t->view_of >= 0) {
        note_use(p, t->view_of, op);
    }
    if (until > p->last_use[tensor]) {
        p->last_use[tensor] = until;
    }
    if (until > op && until > p->beside[tensor]) {
        p->beside[tensor] = until;
    }
}

static void find_last_uses(planner *p)
{
    const mdmt_graph *graph = p->graph;
    for (int t = 0; t < graph->tensors; t++) {
        const mdmt_tensor *tensor = &graph->tensor[t];
        p->last_use[t] = tensor->producer;
        p->beside[t] = -1;
        if (tensor->is_output || tensor->role == MDMT_ROLE_INPUT) {
            p->last_use[t] = graph->ops;
        }
    }
    for (int op = 0; op < graph->ops; op++) {
        for (int i = 0; i < graph->op[op].inputs; i++) {
            if (graph->op[op].in[i] >= 0) {
                note_use(p, graph->op[op].in[i], op);
            }
        }
        for (int i = 0; i < graph->op[op].outputs; i++) {
            if (graph->op[op].out[i] >= 0) {
                note_use(p, graph->op[op].out[i], op);
            }
        }
    }
}

/* Whether input i of the op is read through another input too. */
static int read_twice(const planner *p, const mdmt_op *op, int i)
{
    for (int j = 0; j < op->inputs; j++) {
        int t = op->in[j];
        if (j != i && t >= 0 && (t == op->in[i] || p->graph->tensor[t].lazy_source == op->in[i])) {
            return 1;
        }
    }
    return 0;
}

/* The input whose storage the op's in-place output takes, or -1. */
static int inplace_source(const planner *p, int index, uint32_t allowed, int *output)
{
    const mdmt_op *op = &p->graph->op[index];
    *output = op->record->inplace_output ? op->record->inplace_output(op) : 0;
    int out = op->out[*output];
    if (out < 0 || !is_planned(&p->graph->tensor[out])) {
        return -1;
    }
    allowed &= op->record->inplace_inputs;
    for (int i = 0; i < op->inputs; i++) {
        int in = op->in[i];
        if (!(allowed >> i & 1) || in < 0 || p->owner[in] < 0) {
            continue;
        }
        const mdmt_tensor *tensor = &p->graph->tensor[in];
        if (is_planned(tensor) && tensor->role == MDMT_ROLE_VALUE && !tensor->is_output &&
            p->last_use[in] == index && p->beside[in] < index && p->bytes[in] == p->bytes[out] &&
            p->blocks[p->owner[in]].last == index && !read_twice(p, op, i)) {
            return in;
        }
    }
    return -1;
}

static int new_block(planner *p, size_t bytes, int first, int last)
{
    p->blocks[p->count] =
        (block){(int64_t)mdmt_round_up(bytes, MDMT_ALIGN), 0, first, last, p->count};
    return p->count++;
}

static void make_blocks(planner *p, const size_t *workspace_bytes, const uint32_t *inplace,
                        mdmt_plan *plan, int *workspace_owner)
{
    const mdmt_graph *graph = p->graph;
    for (int t = 0; t < graph->tensors; t++) {
        p->owner[t] = -1;
        if (graph->tensor[t].role == MDMT_ROLE_INPUT) {
            p->owner[t] = new_block(p, p->bytes[t], -1, graph->ops);
        }
    }
    for (int index = 0; index < graph->ops; index++) {
        const mdmt_op *op = &graph->op[index];
        int output, source = inplace_source(p, index, inplace[index], &output);
        for (int i = 0; i < op->outputs; i++) {
            int t = op->out[i];
            if (t >= 0 && graph->tensor[t].view_of >= 0) {
                t = graph->tensor[t].view_of;
                if (p->owner[t] >= 0) { /* another view was made before */
                    continue;
                }
            }
            if (t < 0 || !is_planned(&graph->tensor[t])) {
                continue;
            }
            int last = p->last_use[t] < index ? index : p->last_use[t];
            if (source >= 0 && i == output) {
                p->owner[t] = p->owner[source];
                p->blocks[p->owner[t]].last = last;
                plan->in_place++;
            } else {
                p->owner[t] = new_block(p, p->bytes[t], index, last);
            }
        }
        workspace_owner[index] =
            workspace_bytes[index] ? new_block(p, workspace_bytes[index], index, p->until[index])
                                   : -1;
    }
}

/* Largest first; among equals the earliest, so that the order is total. */
static int by_size(const void *a, const void *b)
{
    const block *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes < y->bytes ? 1 : -1;
    }
    return x->id - y->id;
}

static int by_offset(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Gives each block the lowest offset at which it disturbs no block already
 * placed ("greedy by size"). `spans` has room for 2 * count numbers. */
static int64_t place(block *blocks, int count, int64_t *spans)
{
    int64_t total = 0;
    qsort(blocks, (size_t)count, sizeof *blocks, by_size);
    for (int i = 0; i < count; i++) {
        int used = 0;
        for (int j = 0; j < i; j++) {
            if (blocks[j].first <= blocks[i].last && blocks[i].first <= blocks[j].last) {
                spans[2 * used] = blocks[j].offset;
                spans[2 * used + 1] = blocks[j].offset + blocks[j].bytes;
                used++;
            }
        }
        qsort(spans, (size_t)used, 2 * sizeof *spans, by_offset);
        int64_t at = 0;
        for (int j = 0; j < used && spans[2 * j] < at + blocks[i].bytes; j++) {
            at = spans[2 * j + 1] > at ? spans[2 * j + 1] : at;
        }
        blocks[i].offset = at;
        total = at + blocks[i].bytes > total ? at + blocks[i].bytes : total;
    }
    return total;
}

/* Most bytes alive at once, workspaces left out: the least any plan can take. */
static int64_t peak_of_values(const planner *p, const int *workspace_owner)
{
    int64_t peak = 0;
    for (int index = 0; index < p->graph->ops; index++) {
        int64_t alive = 0;
        for (int b = 0; b < p->count; b++) {
            if (b != workspace_owner[index] && p->blocks[b].first <= index &&
                index <= p->blocks[b].last) {
                alive += p->blocks[b].bytes;
            }
        }
        peak = alive > peak ? alive : peak;
    }
    return peak;
}

static mdmt_status fill(planner *p, const size_t *workspace_bytes, const uint32_t *inplace,
                        mdmt_plan *plan, int *workspace_owner, int64_t *spans)
{
    const mdmt_graph *graph = p->graph;
    find_last_uses(p);
    make_blocks(p, workspace_bytes, inplace, plan, workspace_owner);
    plan->activations = peak_of_values(p, workspace_owner);
    plan->total = place(p->blocks, p->count, spans);
    int64_t *offset_of = spans; /* spans are no longer needed: offsets by block id */
    for (int b = 0; b < p->count; b++) {
        offset_of[p->blocks[b].id] = p->blocks[b].offset;
    }
    for (int t = 0; t < graph->tensors; t++) {
        int view_of = graph->tensor[t].view_of, stored = view_of < 0 ? t : view_of;
        plan->offset[t] = p->owner[stored] < 0 ? MDMT_NOT_PLANNED : offset_of[p->owner[stored]];
        if (view_of >= 0 && plan->offset[t] >= 0) {
            plan->offset[t] += (int64_t)p->view_bytes[t];
        }
    }
    for (int op = 0; op < graph->ops; op++) {
        int owner = workspace_owner[op];
        plan->workspace[op] = owner < 0 ? MDMT_NOT_PLANNED : offset_of[owner];
    }
    return MDMT_OK;
}

mdmt_status mdmt_plan_make(const mdmt_graph *graph, const size_t *tensor_bytes,
                           const size_t *view_bytes, const size_t *workspace_bytes,
                           const uint32_t *inplace, const int *until, mdmt_plan *plan)
{
    size_t tensors = (size_t)graph->tensors, ops = (size_t)graph->ops;
    memset(plan, 0, sizeof *plan);
    planner p = {
        .graph = graph, .bytes = tensor_bytes, .view_bytes = view_bytes, .until = until};
    plan->offset = mdmt_acquire(tensors, sizeof *plan->offset);
    plan->workspace = mdmt_acquire(ops, sizeof *plan->workspace);
    p.last_use = mdmt_acquire(tensors, sizeof *p.last_use);
    p.owner = mdmt_acquire(tensors, sizeof *p.owner);
    p.beside = mdmt_acquire(tensors, sizeof *p.beside);
    p.blocks = mdmt_acquire(tensors + ops, sizeof *p.blocks);
    int *workspace_owner = mdmt_acquire(ops, sizeof *workspace_owner);
    int64_t *spans = mdmt_acquire(2 * (tensors + ops), sizeof *spans);
    mdmt_status status = MDMT_NO_MEMORY;
    if (plan->offset && plan->workspace && p.last_use && p.owner && p.beside && p.blocks &&
        workspace_owner && spans) {
        status = fill(&p, workspace_bytes, inplace, plan, workspace_owner, spans);
    }
    mdmt_release(p.last_use);
    mdmt_release(p.owner);
    mdmt_release(p.beside);
    mdmt_release(p.blocks);
    mdmt_release(workspace_owner);
    mdmt_release(spans);
    if (status != MDMT_OK) {
        mdmt_plan_free(plan);
    }
    return status;
}

void mdmt_plan_free(mdmt_plan *plan)
{
    mdmt_release(plan->offset);
    mdmt_release(plan->workspace);
    memset(plan, 0, sizeof *plan);
}
