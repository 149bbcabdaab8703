/* Ops that pick, order and join channels. */
#include <string.h>

#include "../base/memory.h"
#include "infer.h"

static const mdmt_field gather_fields[] = {MDMT_INT_FIELD(mdmt_gather_attrs, channels, 1),
                                           MDMT_INT_FIELD(mdmt_gather_attrs, table, 1),
                                           {NULL, MDMT_FIELD_INT, 0, 0}};
static const mdmt_field channel_fields[] = {MDMT_INT_FIELD(mdmt_channel_attrs, from, 1),
                                            MDMT_INT_FIELD(mdmt_channel_attrs, count, 1),
                                            MDMT_INT_FIELD(mdmt_channel_attrs, groups, 1),
                                            {NULL, MDMT_FIELD_INT, 0, 0}};

/* MAPs that differ in their channels only. */
static mdmt_status expect_alike(const mdmt_graph *graph, const mdmt_op *op)
{
    for (int i = 0; i < op->inputs; i++) {
        MDMT_TRY(mdmt_expect(graph, op, i, MDMT_MAP));
        const mdmt_tensor *a = mdmt_in(graph, op, 0), *b = mdmt_in(graph, op, i);
        if (a->dim[0] != b->dim[0] || a->dim[2] != b->dim[2] || a->dim[3] != b->dim[3]) {
            char left[64], right[64];
            return mdmt_fail(MDMT_BAD_ARGUMENT, "%s cannot join feature maps of %s and %s",
                             op->record->name, mdmt_tensor_text(a, left),
                             mdmt_tensor_text(b, right));
        }
    }
    return MDMT_OK;
}

static mdmt_status with_channels(mdmt_graph *graph, mdmt_op *op, int channels)
{
    mdmt_tensor x = *mdmt_in(graph, op, 0);
    return mdmt_output(graph, op, MDMT_MAP, MDMT_F32, 4, x.dim[0], channels, x.dim[2], x.dim[3]);
}

static mdmt_status gather_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_gather_attrs *a = MDMT_ATTRS(mdmt_gather_attrs, op);
    MDMT_TRY(expect_alike(graph, op));
    if (a->channels < 1 || a->table < 0 || a->table + a->channels > graph->numbers) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "channel_gather: the graph has no table of %d numbers "
                         "at %d",
                         a->channels, a->table);
    }
    for (int k = 0; k < a->channels; k++) {
        int32_t number = graph->number[a->table + k];
        if (number >= 0 && ((number >> 16) >= op->inputs ||
                            (number & 0xffff) >= mdmt_in(graph, op, number >> 16)->dim[1])) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "channel_gather: input %d has no channel %d",
                             number >> 16, number & 0xffff);
        }
    }
    return with_channels(graph, op, a->channels);
}

/* Of one input: the gather that brings back, for the `turn`-th use of each of
 * its channels, the gradient of that use. Whether there was any in *found. */
static mdmt_status return_channels(mdmt_graph *graph, const mdmt_op *op, int dy, int input,
                                   int turn, int32_t *table, int *uses, int *out)
{
    mdmt_gather_attrs a = *MDMT_ATTRS(mdmt_gather_attrs, op);
    int channels = mdmt_in(graph, op, input)->dim[1], found = 0;
    memset(uses, 0, (size_t)channels * sizeof *uses);
    for (int c = 0; c < channels; c++) {
        table[c] = -1;
    }
    for (int k = 0; k < a.channels; k++) {
        int32_t number = graph->number[a.table + k];
        if (number >= 0 && number >> 16 == input && uses[number & 0xffff]++ == turn) {
            table[number & 0xffff] = k;
            found = 1;
        }
    }
    *out = -1;
    if (!found) {
        return MDMT_OK;
    }
    mdmt_gather_attrs back = {.channels = channels};
    MDMT_TRY(mdmt_graph_numbers(graph, table, channels, &back.table));
    return mdmt_append(graph, &mdmt_op_channel_gather, &back, 1, &dy, out);
}

static mdmt_status return_all(mdmt_graph *graph, const mdmt_op *op, mdmt_gradients *gradients,
                              int dy, int input, int32_t *table, int *uses)
{
    for (int turn = 0;; turn++) {
        int back;
        MDMT_TRY(return_channels(graph, op, dy, input, turn, table, uses, &back));
        if (back < 0) {
            return MDMT_OK;
        }
        MDMT_TRY(mdmt_gradient_put(graph, gradients, op->in[input], back));
    }
}

static mdmt_status gather_gradient(mdmt_graph *graph, int index, mdmt_gradients *gradients)
{
    mdmt_op op = graph->op[index];
    int dy;
    MDMT_TRY(mdmt_gradient_get(graph, gradients, op.out[0], &dy));
    for (int i = 0; i < op.inputs; i++) {
        size_t channels = (size_t)mdmt_in(graph, &op, i)->dim[1];
        int32_t *table = mdmt_acquire(channels, sizeof *table);
        int *uses = mdmt_acquire(channels, sizeof *uses);
        mdmt_status status = MDMT_NO_MEMORY;
        if (table && uses) {
            status = return_all(graph, &op, gradients, dy, i, table, uses);
        }
        mdmt_release(table);
        mdmt_release(uses);
        MDMT_TRY(status);
    }
    return MDMT_OK;
}

/* Two gathers whose channels do not meet are one gather from the inputs of both. */
static mdmt_status gather_merge(mdmt_graph *graph, int a, int b, int *sum)
{
    mdmt_op x = graph->op[a], y = graph->op[b];
    mdmt_gather_attrs of_x = *MDMT_ATTRS(mdmt_gather_attrs, &x);
    mdmt_gather_attrs of_y = *MDMT_ATTRS(mdmt_gather_attrs, &y);
    int in[MDMT_MAX_IN], inputs = x.inputs, place[MDMT_MAX_IN];
    memcpy(in, x.in, sizeof in);
    for (int i = 0; i < y.inputs; i++) {
        place[i] = 0;
        while (place[i] < inputs && in[place[i]] != y.in[i]) {
            place[i]++;
        }
        if (place[i] == MDMT_MAX_IN) {
            return MDMT_OK;
        }
        in[place[i]] = y.in[i];
        inputs = place[i] == inputs ? inputs + 1 : inputs;
    }
    for (int k = 0; k < of_x.channels; k++) {
        if (graph->number[of_x.table + k] >= 0 && graph->number[of_y.table + k] >= 0) {
            return MDMT_OK;
        }
    }
    mdmt_gather_attrs both = {.channels = of_x.channels, .table = graph->numbers};
    for (int k = 0; k < of_x.channels; k++) {
        int32_t number = graph->number[of_x.table + k], other = graph->number[of_y.table + k];
        if (other >= 0) {
            number = (int32_t)(place[other >> 16] << 16 | (other & 0xffff));
        }
        int at;
        MDMT_TRY(mdmt_graph_numbers(graph, &number, 1, &at));
    }
    return mdmt_append(graph, &mdmt_op_channel_gather, &both, inputs, in, sum);
}

const mdmt_op_record mdmt_op_channel_gather = {.name = "channel_gather",
                                               .min_inputs = 1,
                                               .max_inputs = MDMT_MAX_IN,
                                               .lazy_inputs = (1u << MDMT_MAX_IN) - 1,
                                               .fields = gather_fields,
                                               .attr_bytes = sizeof(mdmt_gather_attrs),
                                               .infer = gather_infer,
                                               .gradient = gather_gradient,
                                               .merge = gather_merge};

static mdmt_status zeros_infer(mdmt_graph *graph, mdmt_op *op)
{
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    return mdmt_output_like(graph, op, op->in[0]);
}

const mdmt_op_record mdmt_op_zeros = {
    .name = "zeros", .min_inputs = 1, .max_inputs = 1, .infer = zeros_infer};

static mdmt_status concat_infer(mdmt_graph *graph, mdmt_op *op)
{
    int channels = 0;
    MDMT_TRY(expect_alike(graph, op));
    for (int i = 0; i < op->inputs; i++) {
        channels += mdmt_in(graph, op, i)->dim[1];
    }
    return with_channels(graph, op, channels);
}

static mdmt_status slice_infer(mdmt_graph *graph, mdmt_op *op)
{
    const mdmt_channel_attrs *a = MDMT_ATTRS(mdmt_channel_attrs, op);
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    if (a->from < 0 || a->count < 1 || a->from + a->count > mdmt_in(graph, op, 0)->dim[1]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "channels %d to %d are not in a map of %d", a->from,
                         a->from + a->count, mdmt_in(graph, op, 0)->dim[1]);
    }
    return with_channels(graph, op, a->count);
}

static mdmt_status shuffle_infer(mdmt_graph *graph, mdmt_op *op)
{
    int groups = MDMT_ATTRS(mdmt_channel_attrs, op)->groups;
    MDMT_TRY(mdmt_expect(graph, op, 0, MDMT_MAP));
    if (groups < 1 || mdmt_in(graph, op, 0)->dim[1] % groups) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%d channels cannot be shuffled in %d groups",
                         mdmt_in(graph, op, 0)->dim[1], groups);
    }
    return mdmt_output_like(graph, op, op->in[0]);
}

/* Only descriptions: exec/lower.c turns them into views and gathers. */
const mdmt_op_record mdmt_op_concat = {
    .name = "concat", .min_inputs = 1, .max_inputs = MDMT_MAX_IN, .infer = concat_infer};
const mdmt_op_record mdmt_op_channel_slice = {.name = "channel_slice",
                                              .min_inputs = 1,
                                              .max_inputs = 1,
                                              .fields = channel_fields,
                                              .attr_bytes = sizeof(mdmt_channel_attrs),
                                              .infer = slice_infer};
const mdmt_op_record mdmt_op_channel_shuffle = {.name = "channel_shuffle",
                                                .min_inputs = 1,
                                                .max_inputs = 1,
                                                .fields = channel_fields,
                                                .attr_bytes = sizeof(mdmt_channel_attrs),
                                                .infer = shuffle_infer};
