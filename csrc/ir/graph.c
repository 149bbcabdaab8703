#include "graph.h"

#include <stdio.h>
#include <string.h>

#include "../base/memory.h"
#include "record.h"

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
        mdmt_release(graph);
    }
}

mdmt_status mdmt_graph_copy(const mdmt_graph *graph, mdmt_graph **copy)
{
    MDMT_TRY(mdmt_graph_open(copy));
    mdmt_graph *to = *copy;
    to->tensor = mdmt_acquire((size_t)graph->tensors, sizeof *to->tensor);
    to->op = mdmt_acquire((size_t)graph->ops, sizeof *to->op);
    if (!to->tensor || !to->op) {
        mdmt_graph_close(to);
        return MDMT_NO_MEMORY;
    }
    to->tensors = to->tensor_room = graph->tensors;
    to->ops = to->op_room = graph->ops;
    if (graph->tensors) {
        memcpy(to->tensor, graph->tensor, (size_t)graph->tensors * sizeof *to->tensor);
    }
    if (graph->ops) {
        memcpy(to->op, graph->op, (size_t)graph->ops * sizeof *to->op);
    }
    return MDMT_OK;
}

mdmt_status mdmt_graph_tensor(mdmt_graph *graph, const char *name, mdmt_kind kind,
                              mdmt_dtype dtype, mdmt_role role, int dims, const int *dim,
                              int *index)
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
        elements *= dim[i];
        if (elements > (int64_t)1 << 40) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "tensor %s is too large", name ? name : "");
        }
    }
    if (name && strlen(name) >= MDMT_NAME_BYTES) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the name %s is longer than %d bytes", name,
                         MDMT_NAME_BYTES - 1);
    }
    if (graph->tensors == graph->tensor_room) {
        int room = graph->tensor_room ? 2 * graph->tensor_room : 64;
        mdmt_tensor *grown = mdmt_regrow(graph->tensor, (size_t)graph->tensor_room, (size_t)room,
                                         sizeof *grown);
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
    tensor->lazy_source = tensor->lazy_scale = tensor->lazy_shift = -1;
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
                            int *index)
{
    mdmt_tensor from = graph->tensor[source];
    if (from.lazy_source >= 0 || from.kind != MDMT_MAP) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "only a stored feature map has a lazy form");
    }
    MDMT_TRY(mdmt_graph_tensor(graph, NULL, from.kind, from.dtype, MDMT_ROLE_VALUE, from.dims,
                               from.dim, index));
    mdmt_tensor *tensor = &graph->tensor[*index];
    tensor->lazy_source = source;
    tensor->lazy_scale = scale;
    tensor->lazy_shift = shift;
    tensor->lazy_act = act;
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
