/* The graph: tensors and the ops that make them, in the order of execution.
 *
 * Append-only: an op's inputs exist before it, so the order of the list is a
 * valid order of execution. A network is described once for a batch of one;
 * exec/lower.c copies it for a batch size and a mode, fuses, adds the loss and
 * the gradients (ir/gradient.h) and plans the memory (ir/plan.h). The graph
 * knows shapes, never data, layouts in memory or backends. */
#ifndef MDMT_IR_GRAPH_H
#define MDMT_IR_GRAPH_H

#include <stddef.h>
#include <stdint.h>

#include "../base/status.h"

enum { MDMT_NAME_BYTES = 112, MDMT_MAX_IN = 24, MDMT_MAX_OUT = 24, MDMT_ATTR_BYTES = 256 };
enum { MDMT_VIEW_ALIGN = 16 }; /* channels */

typedef enum { MDMT_F32, MDMT_I32, MDMT_U8 } mdmt_dtype;

/* What a tensor is; a backend chooses its layout in memory by this alone. */
typedef enum {
    MDMT_IMAGE,     /* (N, C, H, W) network input, few channels               */
    MDMT_MAP,       /* (N, C, H, W) feature map                               */
    MDMT_ROWS,      /* (N, F) one row per sample: pooled features, logits     */
    MDMT_VECTOR,    /* (C) per channel: gamma, beta, bias, scale, mean, ...   */
    MDMT_MATRIX,    /* (O, I) weight of a linear layer                        */
    MDMT_W_DENSE,   /* (O, I, kh, kw) convolution of a MAP, groups = 1        */
    MDMT_W_STEM,    /* (O, I, kh, kw) convolution of an IMAGE, groups = 1     */
    MDMT_W_DEPTH,   /* (O, 1, kh, kw) depthwise: groups = I = O               */
    MDMT_W_GROUPED, /* (O, I / groups, kh, kw) any other grouped convolution  */
    MDMT_STATS,     /* partial batch statistics; see MDMT_STATS_ROWS          */
    MDMT_SCALAR     /* (n) a few numbers: losses, counts                      */
} mdmt_kind;

/* Partial statistics of a MAP, (parts, MDMT_STATS_ROWS, C padded): for each part
 * and channel the number of elements, a pivot p near their values, the sum of
 * (x - p) and the sum of (x - p)^2. The pivot keeps float sums exact where the
 * mean is large against the deviation; parts are merged in double, in order. */
enum { MDMT_STATS_COUNT, MDMT_STATS_PIVOT, MDMT_STATS_SUM, MDMT_STATS_SQUARE, MDMT_STATS_ROWS };

typedef enum {
    MDMT_ROLE_VALUE,   /* made by an op; its storage is planned              */
    MDMT_ROLE_INPUT,   /* written from outside before a run                  */
    MDMT_ROLE_PARAM,   /* trained; lives in the parameter slab               */
    MDMT_ROLE_BUFFER,  /* running statistics; lives in the buffer slab       */
    MDMT_ROLE_GRADIENT /* gradient of a parameter; lives in the gradient slab */
} mdmt_role;

typedef enum {
    MDMT_ACT_NONE,
    MDMT_ACT_RELU,
    MDMT_ACT_RELU6,       /* min(max(x, 0), 6)                                  */
    MDMT_ACT_SILU,        /* x sigmoid(x)                                       */
    MDMT_ACT_SIGMOID,     /* 1 / (1 + exp(-x))                                  */
    MDMT_ACT_HARDSWISH,   /* x min(max(x + 3, 0), 6) / 6                        */
    MDMT_ACT_HARDSIGMOID, /* min(max(x + 3, 0), 6) / 6                          */
    MDMT_ACTS
} mdmt_act;

/* Whether act'(x) cannot be had from act(x), only from x itself. */
static inline int mdmt_act_needs_input(mdmt_act act)
{
    return act == MDMT_ACT_SILU || act == MDMT_ACT_HARDSWISH;
}

typedef struct mdmt_tensor {
    char name[MDMT_NAME_BYTES]; /* of parameters, buffers, inputs, outputs; else "" */
    mdmt_kind kind;
    mdmt_dtype dtype;
    mdmt_role role;
    int dims;
    int dim[4];
    int producer;  /* index of the op that makes it, or -1                       */
    int twin;      /* GRADIENT: its parameter; otherwise -1                      */
    int is_output; /* read by the caller after a run: lives until its end       */
    /* A lazy tensor is never stored: its consumers load
     * act(lazy_scale[c] * source + lazy_shift[c]) [* lazy_gate[n, c]] themselves. */
    int lazy_source; /* or -1 when the tensor is stored                         */
    int lazy_scale, lazy_shift;
    int lazy_gate; /* ROWS (N, C), or -1: no gate                               */
    mdmt_act lazy_act;
    /* A view is the channels view_from .. view_from + C of another MAP or VECTOR,
     * its root, and has no storage of its own. An op that makes a view writes
     * there. view_from is a multiple of MDMT_VIEW_ALIGN. */
    int view_of; /* the root (never a view itself), or -1                       */
    int view_from;
    int pitch; /* of a view, stored or lazy: channels of its root; else 0       */
} mdmt_tensor;

struct mdmt_op_record;

typedef struct mdmt_op {
    const struct mdmt_op_record *record;
    int inputs, outputs;
    int in[MDMT_MAX_IN];   /* tensor indices; -1 where an optional one is absent */
    int out[MDMT_MAX_OUT]; /* likewise                                           */
    _Alignas(8) unsigned char attrs[MDMT_ATTR_BYTES]; /* the record's own struct */
} mdmt_op;

typedef struct mdmt_graph {
    mdmt_tensor *tensor;
    int tensors, tensor_room;
    mdmt_op *op;
    int ops, op_room;
    int32_t *number; /* tables of integers too long for attributes (channel_gather) */
    int numbers, number_room;
} mdmt_graph;

/* Attribute structs lie in the bytes of mdmt_op.attrs: reading them there must
 * not be taken for an access to another object. */
#if defined(__GNUC__)
#define MDMT_ATTRS_TYPE __attribute__((may_alias))
#else
#define MDMT_ATTRS_TYPE
#endif
#define MDMT_ATTRS(type, op) ((const type *)(const void *)(op)->attrs)

mdmt_status mdmt_graph_open(mdmt_graph **graph);
void mdmt_graph_close(mdmt_graph *graph);
mdmt_status mdmt_graph_copy(const mdmt_graph *graph, mdmt_graph **copy);

/* A new tensor; its index in *index. `name` may be NULL. `dim` has `dims`
 * entries, each at least 1. Pointers into graph->tensor move when it grows. */
mdmt_status mdmt_graph_tensor(mdmt_graph *graph, const char *name, mdmt_kind kind, mdmt_dtype dtype,
                              mdmt_role role, int dims, const int *dim, int *index);
/* A new op: checks the inputs and makes the output tensors by the record's
 * shape inference. `attrs` is the record's struct (copied) or NULL for zeros. */
mdmt_status mdmt_graph_op(mdmt_graph *graph, const struct mdmt_op_record *record, const void *attrs,
                          int inputs, const int *in, int *index);
/* A lazy tensor of the shape of `source`; gate: ROWS (N, C) or -1. */
mdmt_status mdmt_graph_lazy(mdmt_graph *graph, int source, int scale, int shift, mdmt_act act,
                            int gate, int *index);
/* Makes `tensor` (stored, not yet a view) a view of `root` from channel `from`. */
mdmt_status mdmt_graph_place(mdmt_graph *graph, int tensor, int root, int from);
/* A new view: channels from .. from + channels of `root` (or of a view's root). */
mdmt_status mdmt_graph_view(mdmt_graph *graph, int root, int from, int channels, int *index);
/* Keeps `count` integers; *at is where they begin in graph->number. */
mdmt_status mdmt_graph_numbers(mdmt_graph *graph, const int32_t *values, int count, int *at);
/* Takes out the ops that have no effect and whose outputs nobody reads. */
mdmt_status mdmt_graph_prune(mdmt_graph *graph);
/* Index of the tensor of that name, or -1. */
int mdmt_graph_find(const mdmt_graph *graph, const char *name);
/* Elements of a tensor, unpadded. */
int64_t mdmt_tensor_elements(const mdmt_tensor *tensor);
/* "(16, 64, 56, 56)" into `text` of at least 64 bytes; returns text. */
char *mdmt_tensor_text(const mdmt_tensor *tensor, char *text);

#endif
