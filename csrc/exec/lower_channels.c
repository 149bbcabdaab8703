/* Lowering of concatenations, slices and shuffles. A concatenation is stored as
 * one tensor into which its parts are written as views, so that nothing is copied
 * (DenseNet's blocks: Pleiss et al. 2017); slices and shuffles are numbers of
 * channels, carried out by the one pass that a consumer needs anyway. */
#include <string.h>

#include "lower_state.h"

static int channels_of(const lowering *l, int tensor)
{
    return l->network->tensor[tensor].dim[1];
}

static int is_pick(const mdmt_op *op)
{
    return op->record == &mdmt_op_channel_slice || op->record == &mdmt_op_channel_shuffle;
}

/* Whether only slices and shuffles read a tensor. */
static int only_picked(const lowering *l, int tensor)
{
    int readers = 0;
    if (l->network->tensor[tensor].is_output) {
        return 0;
    }
    for (int i = 0; i < l->network->ops; i++) {
        const mdmt_op *op = &l->network->op[i];
        for (int j = 0; j < op->inputs; j++) {
            if (op->in[j] == tensor) {
                if (!is_pick(op)) {
                    return 0;
                }
                readers++;
            }
        }
    }
    return readers > 0;
}

/* Whether a concatenation is stored as one tensor with its parts as views. If not,
 * it is a selection of channels like a slice. */
static int is_whole(const lowering *l, const mdmt_op *op)
{
    int from = 0, aligned = 1;
    for (int i = 0; i < op->inputs; i++) {
        aligned = aligned && from % MDMT_VIEW_ALIGN == 0;
        from += channels_of(l, op->in[i]);
    }
    return op->record == &mdmt_op_concat && aligned && !only_picked(l, op->out[0]);
}

int mdmt_lower_is_selection(const lowering *l, const mdmt_op *op)
{
    return is_pick(op) || (op->record == &mdmt_op_concat && !is_whole(l, op));
}

/* Whether the op that makes a tensor can write it into a whole. */
static int can_be_part(const lowering *l, int tensor)
{
    const mdmt_tensor *t = &l->network->tensor[tensor];
    if (t->producer < 0 || t->is_output || l->of[tensor].root >= 0) {
        return 0;
    }
    return l->network->op[t->producer].record != &mdmt_op_dropout;
}

/* Places the inputs of a concatenation that has a place itself. */
static void place_parts(lowering *l, const mdmt_op *op)
{
    const value *whole = &l->of[op->out[0]];
    int from = whole->from, end = channels_of(l, whole->root);
    for (int i = 0; i < op->inputs; i++) {
        int channels = channels_of(l, op->in[i]);
        int aligned = from % MDMT_VIEW_ALIGN == 0 &&
                      (channels % MDMT_VIEW_ALIGN == 0 || from + channels == end);
        if (aligned && can_be_part(l, op->in[i])) {
            l->of[op->in[i]].root = whole->root;
            l->of[op->in[i]].from = from;
        }
        from += channels;
    }
}

void mdmt_lower_place_all(lowering *l)
{
    for (int i = l->network->ops - 1; i >= 0; i--) {
        const mdmt_op *op = &l->network->op[i];
        if (!is_whole(l, op)) {
            continue;
        }
        value *y = &l->of[op->out[0]];
        if (y->root < 0) {
            y->root = op->out[0];
            y->from = 0;
        }
        place_parts(l, op);
    }
}

/* The stored tensor of a whole, made after the shape of one of its parts. */
static mdmt_status open_whole(lowering *l, int root, int part)
{
    value *whole = &l->of[root];
    if (whole->stored >= 0) {
        return MDMT_OK;
    }
    mdmt_tensor t = l->graph->tensor[part];
    int dim[4] = {t.dim[0], channels_of(l, root), t.dim[2], t.dim[3]};
    return mdmt_graph_tensor(l->graph, NULL, MDMT_MAP, t.dtype, MDMT_ROLE_VALUE, 4, dim,
                             &whole->stored);
}

/* Makes a tensor of the new graph the part of a whole that starts at `from`. */
static mdmt_status join(lowering *l, int root, int from, int tensor)
{
    MDMT_TRY(open_whole(l, root, tensor));
    l->pieces[l->piece_count++] = (piece){
        .root = root, .from = from, .channels = l->graph->tensor[tensor].dim[1], .tensor = tensor};
    return mdmt_graph_place(l->graph, tensor, l->of[root].stored, from);
}

mdmt_status mdmt_lower_stored(lowering *l, int tensor)
{
    const value *v = &l->of[tensor];
    return v->root < 0 || v->root == tensor ? MDMT_OK : join(l, v->root, v->from, v->stored);
}

/* All channels of a tensor, copied: for a part that could not be written in place. */
static mdmt_status copy_of(lowering *l, int tensor, int *out)
{
    int in;
    MDMT_TRY(mdmt_lower_load(l, tensor, &in));
    mdmt_gather_attrs attrs = {.channels = channels_of(l, tensor), .table = l->graph->numbers};
    for (int32_t c = 0; c < attrs.channels; c++) {
        int at;
        MDMT_TRY(mdmt_graph_numbers(l->graph, &c, 1, &at));
    }
    return mdmt_lower_append(l, &mdmt_op_channel_gather, &attrs, 1, &in, out);
}

mdmt_status mdmt_lower_concat(lowering *l, const mdmt_op *op)
{
    value *y = &l->of[op->out[0]];
    int from = y->from;
    for (int i = 0; i < op->inputs; i++) {
        const value *x = &l->of[op->in[i]];
        int tensor, placed = x->root == y->root && x->from == from;
        for (int j = 0; j < i; j++) {
            placed = placed && op->in[j] != op->in[i];
        }
        if (placed) {
            MDMT_TRY(mdmt_lower_store(l, op->in[i], &tensor));
        } else {
            MDMT_TRY(copy_of(l, op->in[i], &tensor));
            MDMT_TRY(join(l, y->root, from, tensor));
        }
        from += channels_of(l, op->in[i]);
    }
    if (y->root == op->out[0]) {
        return MDMT_OK;
    }
    return mdmt_graph_view(l->graph, l->of[y->root].stored, y->from, channels_of(l, op->out[0]),
                           &y->stored);
}

/* ---- selections ---- */

static mdmt_status more_numbers(lowering *l, int count)
{
    if (l->number_count + count > l->number_room) {
        int room = 2 * (l->number_count + count);
        int32_t *grown =
            mdmt_regrow(l->numbers, (size_t)l->number_room, (size_t)room, sizeof *grown);
        if (!grown) {
            return MDMT_NO_MEMORY;
        }
        l->numbers = grown;
        l->number_room = room;
    }
    l->number_count += count;
    return MDMT_OK;
}

/* Where channel c of a tensor comes from. */
static int32_t origin(const lowering *l, int tensor, int c)
{
    int select = l->of[tensor].select;
    return select < 0 ? (int32_t)(tensor << 16 | c) : l->numbers[select + c];
}

mdmt_status mdmt_lower_select(lowering *l, const mdmt_op *op)
{
    const mdmt_channel_attrs *a = MDMT_ATTRS(mdmt_channel_attrs, op);
    int channels = channels_of(l, op->out[0]), at = l->number_count;
    MDMT_TRY(more_numbers(l, channels));
    if (op->record == &mdmt_op_concat) {
        int to = at;
        for (int i = 0; i < op->inputs; i++) {
            for (int c = 0; c < channels_of(l, op->in[i]); c++) {
                l->numbers[to++] = origin(l, op->in[i], c);
            }
        }
    } else if (op->record == &mdmt_op_channel_slice) {
        for (int c = 0; c < channels; c++) {
            l->numbers[at + c] = origin(l, op->in[0], a->from + c);
        }
    } else {
        int each = channels / a->groups;
        for (int c = 0; c < channels; c++) {
            l->numbers[at + c % each * a->groups + c / each] = origin(l, op->in[0], c);
        }
    }
    l->of[op->out[0]].select = at;
    return MDMT_OK;
}

/* Where `wanted` stands among count numbers; count where it does not. */
static int place_of(const int *numbers, int count, int wanted)
{
    int i = 0;
    while (i < count && numbers[i] != wanted) {
        i++;
    }
    return i;
}

mdmt_status mdmt_lower_gather(lowering *l, int tensor)
{
    value *v = &l->of[tensor];
    mdmt_gather_attrs attrs = {.channels = channels_of(l, tensor)};
    int base[MDMT_MAX_IN], in[MDMT_MAX_IN], bases = 0, at;
    for (int c = 0; c < attrs.channels; c++) {
        int from = l->numbers[v->select + c] >> 16;
        if (place_of(base, bases, from) < bases) {
            continue;
        }
        if (bases == MDMT_MAX_IN) {
            return mdmt_fail(MDMT_UNSUPPORTED, "a shuffle draws on more than %d feature maps",
                             MDMT_MAX_IN);
        }
        base[bases] = from;
        MDMT_TRY(mdmt_lower_load(l, from, &in[bases++]));
    }
    /* Only now, in one piece: what was loaded may have made a gather, and so a table, itself. */
    attrs.table = l->graph->numbers;
    for (int c = 0; c < attrs.channels; c++) {
        int32_t number = l->numbers[v->select + c];
        number = (int32_t)(place_of(base, bases, number >> 16) << 16 | (number & 0xffff));
        MDMT_TRY(mdmt_graph_numbers(l->graph, &number, 1, &at));
    }
    return mdmt_lower_append(l, &mdmt_op_channel_gather, &attrs, bases, in, &v->stored);
}

/* ---- batch statistics of concatenations ---- */

static int is_norm_input(const lowering *l, int tensor)
{
    for (int i = 0; i < l->network->ops; i++) {
        if (l->network->op[i].record == &mdmt_op_batch_norm && l->network->op[i].in[0] == tensor) {
            return 1;
        }
    }
    return 0;
}

int mdmt_lower_feeds_norm(const lowering *l, int tensor)
{
    if (is_norm_input(l, tensor)) {
        return 1;
    }
    const value *v = &l->of[tensor];
    for (int t = 0; v->root >= 0 && t < l->network->tensors; t++) {
        const value *other = &l->of[t];
        if (other->root == v->root && other->from <= v->from &&
            other->from + channels_of(l, t) >= v->from + channels_of(l, tensor) &&
            is_norm_input(l, t)) {
            return 1;
        }
    }
    return 0;
}

/* Computes the moments of one part into those of its whole. */
static mdmt_status moments_of(lowering *l, piece *p)
{
    const value *whole = &l->of[p->root];
    mdmt_tensor map = l->graph->tensor[p->tensor];
    const mdmt_op *maker = &l->graph->op[map.producer];
    int stats = maker->record == &mdmt_op_conv2d ? maker->out[1] : -1, mean;
    if (stats < 0) {
        MDMT_TRY(mdmt_lower_append(l, &mdmt_op_channel_stats, NULL, 1, &p->tensor, &stats));
    }
    MDMT_TRY(mdmt_lower_append(l, &mdmt_op_stats_moments, NULL, 1, &stats, &mean));
    int var = l->graph->op[l->graph->ops - 1].out[1];
    p->moments = 1;
    MDMT_TRY(mdmt_graph_place(l->graph, mean, whole->mean, p->from));
    return mdmt_graph_place(l->graph, var, whole->var, p->from);
}

mdmt_status mdmt_lower_moments(lowering *l, int tensor, int *mean, int *var)
{
    const value *v = &l->of[tensor];
    value *whole = &l->of[v->root];
    int channels = channels_of(l, tensor), all = channels_of(l, v->root);
    int *vectors[2] = {&whole->mean, &whole->var};
    for (int i = 0; i < 2 && *vectors[i] < 0; i++) {
        MDMT_TRY(mdmt_graph_tensor(l->graph, NULL, MDMT_VECTOR, MDMT_F32, MDMT_ROLE_VALUE, 1, &all,
                                   vectors[i]));
    }
    for (int i = 0; i < l->piece_count; i++) {
        piece *p = &l->pieces[i];
        if (p->root == v->root && !p->moments && p->from >= v->from &&
            p->from + p->channels <= v->from + channels) {
            MDMT_TRY(moments_of(l, p));
        }
    }
    MDMT_TRY(mdmt_graph_view(l->graph, whole->mean, v->from, channels, mean));
    return mdmt_graph_view(l->graph, whole->var, v->from, channels, var);
}
