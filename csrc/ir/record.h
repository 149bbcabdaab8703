/* The record of an op: all that the graph, the gradient builder, the planner
 * and the bindings know of it. One per op, in ops/; listed in ops/table.c. */
#ifndef MDMT_IR_RECORD_H
#define MDMT_IR_RECORD_H

#include "graph.h"

typedef enum { MDMT_FIELD_INT, MDMT_FIELD_FLOAT } mdmt_field_type;

/* A field of an op's attribute struct, so that a binding can set it by name. */
typedef struct {
    const char *name;
    mdmt_field_type type;
    int offset; /* bytes into the struct */
    int count;  /* 1, or the length of an array */
} mdmt_field;

#define MDMT_INT_FIELD(type, member, n)                                                            \
    {                                                                                              \
#member, MDMT_FIELD_INT, (int)offsetof(type, member), n                                    \
    }
#define MDMT_FLOAT_FIELD(type, member, n)                                                          \
    {                                                                                              \
#member, MDMT_FIELD_FLOAT, (int)offsetof(type, member), n                                  \
    }

typedef struct {
    double macs;  /* multiply-adds of convolutions and linear layers */
    double bytes; /* stored tensors read and written, once each, unpadded */
} mdmt_cost;

/* Gradients while they are built: gradient_of[t] is the index of the tensor
 * that holds d(loss)/d(t), or -1. See gradient.h. */
typedef struct mdmt_gradients mdmt_gradients;

typedef struct mdmt_op_record {
    const char *name;
    int min_inputs, max_inputs;
    uint32_t optional_inputs; /* bit i: input i may be -1                              */
    uint32_t lazy_inputs;     /* bit i: input i may be a lazy tensor                   */
    uint32_t inplace_inputs;  /* bit i: output `inplace_output(op)` (NULL: output 0) may take
                                 the storage of input i, if the backend's kernel allows it
                                 and nobody reads that input later                      */
    int (*inplace_output)(const mdmt_op *op);
    /* 1: has effects beyond its outputs (running statistics), so it is never dropped */
    int has_effects;
    const mdmt_field *fields; /* of the attribute struct; ends with a NULL name         */
    const void *defaults;     /* an attribute struct with default values, or NULL: zeros */
    size_t attr_bytes;
    /* Checks inputs and attributes, makes the outputs (op->outputs, op->out).
     * `op` is not yet in the list and has its inputs and attributes set. */
    mdmt_status (*infer)(mdmt_graph *graph, mdmt_op *op);
    /* Appends the ops that turn the gradients of the outputs into those of the
     * inputs. NULL: the op has no gradient. */
    mdmt_status (*gradient)(mdmt_graph *graph, int op, mdmt_gradients *gradients);
    /* One op that makes the sum of the first outputs of ops a and b of this record: appends
     * it and sets *sum, or leaves it -1 where there is none. NULL: never. */
    mdmt_status (*merge)(mdmt_graph *graph, int a, int b, int *sum);
    /* Multiply-adds; NULL: none worth counting. */
    double (*macs)(const mdmt_graph *graph, const mdmt_op *op);
} mdmt_op_record;

/* ops/table.c: all records, ending with NULL. */
extern const mdmt_op_record *const mdmt_op_table[];
/* By name, or NULL. */
const mdmt_op_record *mdmt_op_find(const char *name);
mdmt_cost mdmt_op_cost(const mdmt_graph *graph, const mdmt_op *op);

#endif
