/* What the files of the lowering share. */
#ifndef MDMT_EXEC_LOWER_STATE_H
#define MDMT_EXEC_LOWER_STATE_H

#include "lower.h"

/* What a tensor of the network has become. `stored` is its tensor in the new
 * graph once it exists as such. Before that it may be pending, namely
 *   - a batch normalisation not yet applied, act(scale * x + shift [+ residual]);
 *   - a gated tensor not yet multiplied;
 *   - a selection: channels picked from other tensors of the network. */
typedef struct {
    int stored; /* or -1 */
    int lazy;   /* the lazy tensor made for its consumers, or -1 */
    int pending;
    int x, scale, shift, residual;
    int act;
    int gated, gate; /* network tensors: what is gated and by what; or -1 */
    int select;      /* -1, or where its channels' numbers begin in `numbers`:
                        tensor of the network << 16 | channel                */
    /* Its place in a concatenation that is stored as one: the network tensor of
     * the whole and the first channel; root is -1 for a tensor that stands alone.
     * The whole itself has root = its own index. */
    int root, from;
    int mean, var; /* of a whole: VECTORs with the batch moments of its channels, or -1 */
} value;

/* A part of a whole that one op wrote. */
typedef struct {
    int root, from, channels;
    int tensor;  /* in the new graph */
    int moments; /* whether its batch moments were computed */
} piece;

typedef struct {
    const mdmt_graph *network;
    const mdmt_mode *mode;
    mdmt_graph *graph;
    value *of; /* per tensor of the network */
    int *uses; /* per tensor of the network: how many inputs read it, outputs counted too */
    int32_t *numbers;
    int number_count, number_room;
    piece *pieces; /* room for one per tensor of the network and input of a concatenation */
    int piece_count;
    int mask; /* in the new graph: the masks of the samples, where a task wants them */
} lowering;

/* lower.c */
mdmt_status mdmt_lower_append(lowering *l, const mdmt_op_record *record, const void *attrs,
                              int inputs, const int *in, int *out);
/* The stored form of a tensor of the network, computed now if it was pending. */
mdmt_status mdmt_lower_store(lowering *l, int tensor, int *out);
/* The form in which a consumer that accepts lazy tensors reads it. */
mdmt_status mdmt_lower_load(lowering *l, int tensor, int *out);

/* lower_channels.c */
/* Decides which concatenations are stored as a whole, and where their parts lie. */
void mdmt_lower_place_all(lowering *l);
/* Notes that `tensor` of the network is now stored as l->of[tensor].stored, and
 * makes it a part of its whole where it has one. */
mdmt_status mdmt_lower_stored(lowering *l, int tensor);
mdmt_status mdmt_lower_concat(lowering *l, const mdmt_op *op);
/* channel_slice, channel_shuffle, and concatenations that are only read by those. */
mdmt_status mdmt_lower_select(lowering *l, const mdmt_op *op);
/* Carries out a selection: its stored tensor. */
mdmt_status mdmt_lower_gather(lowering *l, int tensor);
int mdmt_lower_is_selection(const lowering *l, const mdmt_op *op);
/* Whether batch statistics of a tensor of the network are wanted, its own or as
 * part of a concatenation. */
int mdmt_lower_feeds_norm(const lowering *l, int tensor);
/* Batch moments of a tensor of the network that lies in a whole, as VECTORs. */
mdmt_status mdmt_lower_moments(lowering *l, int tensor, int *mean, int *var);

#endif
