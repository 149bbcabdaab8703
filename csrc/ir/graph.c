#include "graph.h"

#include <stdio.h>
#include <string.h>

#include "../base/memory.h"
#include "record.h"

static const int64_t most_elements = (int64_t)1 << 40;

mdmt_status mdmt_graph_open(mdmt_graph **graph)
{
    *graph = mdmt_acquire(1, sizeof **graph);
    return *graph ? MDMT_OK : MDMT_NO_MEMORY;
}

void mdmt_graph_close(mdmt_graph *graph)
{
    if (graph) {
        mdmt_release(graph->tensor);
        mdmt_release(graph->op);
        mdmt_release(graph->number);
        mdmt_release(graph);
    }
}

mdmt_status mdmt_graph_copy(const mdmt_graph *graph, mdmt_graph **copy)
{
    MDMT_TRY(mdmt_graph_open(copy));
    mdmt_graph *to = *copy;
    to->tensor = mdmt_acquire((size_t)graph->tensors, sizeof *to->tensor);
    to->op = mdmt_acquire((size_t)graph->ops, sizeof *to->op);
    to->number = mdmt_acquire((size_t)graph->numbers, sizeof *to->number);
    if (!to->tensor || !to->op || !to->number) {
        mdmt_graph_close(to);
        return MDMT_NO_MEMORY;
    }
    to->tensors = to->tensor_room = graph->tensors;
    to->ops = to->op_room = graph->ops;
    to->numbers = to->number_room = graph->numbers;
    if (graph->numbers) {
        memcpy(to->number, graph->number, (size_t)graph->numbers * sizeof *to->number);
    }
    if (graph->tensors) {
        memcpy(to->tensor, graph->tensor, (size_t)graph->tensors * sizeof *to->tensor);
    }
    if (graph->ops) {
        memcpy(to->op, graph->op, (size_t)graph->ops * sizeof *to->op);
    }
    return MDMT_OK;
}

mdmt_status mdmt_graph_tensor(mdmt_graph *graph, const char *name, mdmt_kind kind, mdmt_dtype dtype,
                              mdmt_role role, int dims, const int *dim, int *index)
{
    if (dims < 1 || dims > 4) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "tensor %s has %d dimensions; it must have 1 to 4",
                         name ? name : "", dims);
    }
    int64_t elements = 1;
    for (int i = 0; i < dims; i++) {
        if (dim[i] < 1) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "dimension %d of tensor %s is %d; it must be at least 1", i,
                             name ? name : "", dim[i]);
        }
        if (dim[i] > most_elements / elements) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "tensor %s is too large", name ? name : "");
        }
        elements *= dim[i];
    }
    if (name && strlen(name) >= MDMT_NAME_BYTES) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the name %s is longer than %d bytes", name,
                         MDMT_NAME_BYTES - 1);
    }
    if (graph->tensors == graph->tensor_room) {
        int room = graph->tensor_room ? 2 * graph->tensor_room : 64;
        mdmt_tensor *grown =
            mdmt_regrow(graph->tensor, (size_t)graph->tensor_room, (size_t)room, sizeof *grown);
        if (!grown) {
            return MDMT_NO_MEMORY;
        }
        graph->tensor = grown;
        graph->tensor_room = room;
    }
    mdmt_tensor *tensor = &graph->tensor[graph->tensors];
    memset(tensor, 0, sizeof *tensor);
    snprintf(tensor->name, sizeof tensor->name, "%s", name ? name : "");
    tensor->kind = kind;
    tensor->dtype = dtype;
    tensor->role = role;
    tensor->dims = dims;
    for (int i = 0; i < 4; i++) {
        tensor->dim[i] = i < dims ? dim[i] : 1;
    }
    tensor->producer = tensor->twin = -1;
    tensor->lazy_source = tensor->lazy_scale = tensor->lazy_shift = tensor->lazy_gate = -1;
    tensor->view_of = -1;
    *index = graph->tensors++;
    return MDMT_OK;
}

static mdmt_status check_inputs(const mdmt_graph *graph, const mdmt_op_record *record, int inputs,
                                const int *in)
{
    if (inputs < record->min_inputs || inputs > record->max_inputs) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s takes %d to %d inputs, not %d", record->name,
                         record->min_inputs, record->max_inputs, inputs);
    }
    for (int i = 0; i < inputs; i++) {
        uint32_t bit = (uint32_t)1 << i;
        if (in[i] < 0 && (record->optional_inputs & bit)) {
            continue;
        }
        if (in[i] < 0 || in[i] >= graph->tensors) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "input %d of %s is missing", i, record->name);
        }
        if (graph->tensor[in[i]].lazy_source >= 0 && !(record->lazy_inputs & bit)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "input %d of %s may not be lazy", i, record->name);
        }
    }
    return MDMT_OK;
}

mdmt_status mdmt_graph_op(mdmt_graph *graph, const mdmt_op_record *record, const void *attrs,
                          int inputs, const int *in, int *index)
{
    if (graph->ops == graph->op_room) {
        int room = graph->op_room ? 2 * graph->op_room : 64;
        mdmt_op *grown =
            mdmt_regrow(graph->op, (size_t)graph->op_room, (size_t)room, sizeof *grown);
        if (!grown) {
            return MDMT_NO_MEMORY;
        }
        graph->op = grown;
        graph->op_room = room;
    }
    MDMT_TRY(check_inputs(graph, record, inputs, in));
    mdmt_op op;
    memset(&op, 0, sizeof op);
    op.record = record;
    op.inputs = inputs;
    for (int i = 0; i < MDMT_MAX_IN; i++) {
        op.in[i] = i < inputs ? in[i] : -1;
    }
    for (int i = 0; i < MDMT_MAX_OUT; i++) {
        op.out[i] = -1;
    }
    if (record->attr_bytes > MDMT_ATTR_BYTES) {
        return mdmt_fail(MDMT_INTERNAL, "the attributes of %s do not fit an op", record->name);
    }
    if (attrs || record->defaults) {
        memcpy(op.attrs, attrs ? attrs : record->defaults, record->attr_bytes);
    }
    int before = graph->tensors;
    mdmt_status status = record->infer(graph, &op);
    if (status != MDMT_OK) {
        graph->tensors = before;
        return status;
    }
    for (int i = 0; i < op.outputs; i++) {
        if (op.out[i] >= 0) {
            graph->tensor[op.out[i]].producer = graph->ops;
        }
    }
    graph->op[graph->ops] = op;
    *index = graph->ops++;
    return MDMT_OK;
}

mdmt_status mdmt_graph_lazy(mdmt_graph *graph, int source, int scale, int shift, mdmt_act act,
                            int gate, int *index)
{
    mdmt_tensor from = graph->tensor[source];
    if (from.lazy_source >= 0 || from.kind != MDMT_MAP) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "only a stored feature map has a lazy form");
    }
    if (gate >= 0) {
        const mdmt_tensor *g = &graph->tensor[gate];
        if (g->kind != MDMT_ROWS || g->dim[0] != from.dim[0] || g->dim[1] != from.dim[1]) {
            char text[64];
            return mdmt_fail(MDMT_BAD_ARGUMENT, "a gate of shape %s does not fit its feature map",
                             mdmt_tensor_text(g, text));
        }
    }
    MDMT_TRY(mdmt_graph_tensor(graph, NULL, from.kind, from.dtype, MDMT_ROLE_VALUE, from.dims,
                               from.dim, index));
    mdmt_tensor *tensor = &graph->tensor[*index];
    tensor->lazy_source = source;
    tensor->lazy_scale = scale;
    tensor->lazy_shift = shift;
    tensor->lazy_gate = gate;
    tensor->lazy_act = act;
    tensor->pitch = from.pitch;
    return MDMT_OK;
}

/* Which dimension of a tensor counts its channels. */
static int channel_dim(const mdmt_tensor *tensor)
{
    return tensor->kind == MDMT_MAP ? 1 : 0;
}

mdmt_status mdmt_graph_place(mdmt_graph *graph, int tensor, int root, int from)
{
    mdmt_tensor *t = &graph->tensor[tensor];
    const mdmt_tensor *r = &graph->tensor[root];
    int d = channel_dim(t), same = t->kind == r->kind && t->dims == r->dims;
    for (int i = 0; i < t->dims; i++) {
        same = same && (i == d || t->dim[i] == r->dim[i]);
    }
    char a[64], b[64];
    if (!same || (t->kind != MDMT_MAP && t->kind != MDMT_VECTOR) || t->dtype != r->dtype ||
        from < 0 || from + t->dim[d] > r->dim[d]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a tensor of shape %s has no place in %s at channel %d",
                         mdmt_tensor_text(t, a), mdmt_tensor_text(r, b), from);
    }
    int whole = from + t->dim[d] == r->dim[d];
    if (from % MDMT_VIEW_ALIGN || (!whole && t->dim[d] % MDMT_VIEW_ALIGN)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "channels %d to %d are no view: both ends must be "
                         "multiples of %d",
                         from, from + t->dim[d], MDMT_VIEW_ALIGN);
    }
    if (t->view_of >= 0 || r->view_of >= 0 || t->lazy_source >= 0 || r->lazy_source >= 0 ||
        tensor == root) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "only stored tensors can be made views of a root");
    }
    t->view_of = root;
    t->view_from = from;
    t->pitch = r->dim[d];
    return MDMT_OK;
}

mdmt_status mdmt_graph_view(mdmt_graph *graph, int root, int from, int channels, int *index)
{
    mdmt_tensor r = graph->tensor[root];
    if (r.view_of >= 0) {
        from += r.view_from;
        root = r.view_of;
        r = graph->tensor[root];
    }
    int dim[4] = {r.dim[0], r.dim[1], r.dim[2], r.dim[3]};
    dim[channel_dim(&r)] = channels;
    MDMT_TRY(mdmt_graph_tensor(graph, NULL, r.kind, r.dtype, MDMT_ROLE_VALUE, r.dims, dim, index));
    return mdmt_graph_place(graph, *index, root, from);
}

mdmt_status mdmt_graph_numbers(mdmt_graph *graph, const int32_t *values, int count, int *at)
{
    if (graph->numbers + count > graph->number_room) {
        int room = 2 * (graph->numbers + count);
        int32_t *grown =
            mdmt_regrow(graph->number, (size_t)graph->number_room, (size_t)room, sizeof *grown);
        if (!grown) {
            return MDMT_NO_MEMORY;
        }
        graph->number = grown;
        graph->number_room = room;
    }
    memcpy(graph->number + graph->numbers, values, (size_t)count * sizeof *values);
    *at = graph->numbers;
    graph->numbers += count;
    return MDMT_OK;
}

/* Marks what reading a tensor needs: its storage, and what a lazy one is made of. */
static void mark_needed(const mdmt_graph *graph, int tensor, char *needed)
{
    const mdmt_tensor *t = &graph->tensor[tensor];
    needed[t->view_of >= 0 ? t->view_of : tensor] = 1;
    if (t->lazy_source >= 0) {
        mark_needed(graph, t->lazy_source, needed);
        mark_needed(graph, t->lazy_scale, needed);
        mark_needed(graph, t->lazy_shift, needed);
        if (t->lazy_gate >= 0) {
            mark_needed(graph, t->lazy_gate, needed);
        }
    }
}

static int is_needed(const mdmt_graph *graph, const mdmt_op *op, const char *needed)
{
    int any = op->record->has_effects;
    for (int i = 0; i < op->outputs && !any; i++) {
        const mdmt_tensor *t = op->out[i] < 0 ? NULL : &graph->tensor[op->out[i]];
        any = t && (t->is_output || t->role != MDMT_ROLE_VALUE ||
                    needed[t->view_of >= 0 ? t->view_of : op->out[i]]);
    }
    return any;
}

mdmt_status mdmt_graph_prune(mdmt_graph *graph)
{
    char *needed = mdmt_acquire((size_t)graph->tensors, 1);
    char *kept = mdmt_acquire((size_t)graph->ops, 1);
    if (!needed || !kept) {
        mdmt_release(needed);
        mdmt_release(kept);
        return MDMT_NO_MEMORY;
    }
    for (int i = graph->ops - 1; i >= 0; i--) {
        const mdmt_op *op = &graph->op[i];
        kept[i] = (char)is_needed(graph, op, needed);
        for (int j = 0; kept[i] && j < op->inputs; j++) {
            if (op->in[j] >= 0) {
                mark_needed(graph, op->in[j], needed);
            }
        }
    }
    int count = 0;
    for (int i = 0; i < graph->ops; i++) {
        for (int j = 0; j < graph->op[i].outputs; j++) {
            if (graph->op[i].out[j] >= 0) {
                graph->tensor[graph->op[i].out[j]].producer = kept[i] ? count : -1;
            }
        }
        if (kept[i]) {
            graph->op[count++] = graph->op[i];
        }
    }
    graph->ops = count;
    mdmt_release(needed);
    mdmt_release(kept);
    return MDMT_OK;
}

int mdmt_graph_find(const mdmt_graph *graph, const char *name)
{
    for (int i = 0; i < graph->tensors; i++) {
        if (strcmp(graph->tensor[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

int64_t mdmt_tensor_elements(const mdmt_tensor *tensor)
{
    int64_t elements = 1;
    for (int i = 0; i < tensor->dims; i++) {
        elements *= tensor->dim[i];
    }
    return elements;
}

char *mdmt_tensor_text(const mdmt_tensor *tensor, char *text)
{
    int used = snprintf(text, 64, "(");
    for (int i = 0; i < tensor->dims; i++) {
        used += snprintf(text + used, (size_t)(64 - used), i ? ", %d" : "%d", tensor->dim[i]);
    }
    snprintf(text + used, (size_t)(64 - used), ")");
    return text;
}

const mdmt_op_record *mdmt_op_find(const char *name)
{
    for (int i = 0; mdmt_op_table[i]; i++) {
        if (strcmp(mdmt_op_table[i]->name, name) == 0) {
            return mdmt_op_table[i];
        }
    }
    return NULL;
}

mdmt_cost mdmt_op_cost(const mdmt_graph *graph, const mdmt_op *op)
{
    mdmt_cost cost = {.macs = op->record->macs ? op->record->macs(graph, op) : 0};
    for (int i = 0; i < op->inputs + op->outputs; i++) {
        int t = i < op->inputs ? op->in[i] : op->out[i - op->inputs];
        if (t >= 0) {
            const mdmt_tensor *tensor = &graph->tensor[t];
            cost.bytes += (double)mdmt_tensor_elements(tensor) * (tensor->dtype == MDMT_U8 ? 1 : 4);
        }
    }
    return cost;
}
