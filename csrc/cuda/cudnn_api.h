/* What is used of cuDNN 9's graph API (its C backend), declared here so that the
 * build needs no cuDNN and one build serves every 9.x from 9.1 on: the library is
 * loaded at run time. The numbers are those of cudnn_graph.h. */
#ifndef MDMT_CUDA_CUDNN_API_H
#define MDMT_CUDA_CUDNN_API_H

#include <stddef.h>
#include <stdint.h>

enum { CUDNN_SUCCESS = 0, CUDNN_FLOAT = 0, CUDNN_BF16 = 9, CUDNN_CROSS_CORRELATION_MODE = 1 };
enum { CUDNN_HEUR_FALLBACK = 2, CUDNN_HEUR_A = 3 };
/* Types of attributes. */
enum {
    CUDNN_AS_HANDLE = 0,
    CUDNN_AS_DATA_TYPE = 1,
    CUDNN_AS_INT64 = 3,
    CUDNN_AS_FLOAT = 4,
    CUDNN_AS_POINTER = 6,
    CUDNN_AS_CONV_MODE = 7,
    CUDNN_AS_HEUR_MODE = 8,
    CUDNN_AS_NUMERICAL_NOTE = 11,
    CUDNN_AS_DESCRIPTOR = 15
};
/* Descriptors. */
enum {
    CUDNN_IS_CONVOLUTION = 1,
    CUDNN_IS_ENGINE = 2,
    CUDNN_IS_ENGINECFG = 3,
    CUDNN_IS_HEURISTIC = 4,
    CUDNN_IS_PLAN = 5,
    CUDNN_IS_CONV_FORWARD = 10,
    CUDNN_IS_CONV_WEIGHT = 11,
    CUDNN_IS_CONV_DATA = 12,
    CUDNN_IS_GRAPH = 15,
    CUDNN_IS_VARIANTS = 16,
    CUDNN_IS_TENSOR = 17
};
/* Attributes. */
enum {
    CUDNN_CONV_COMPUTE_TYPE = 100,
    CUDNN_CONV_MODE = 101,
    CUDNN_CONV_DILATIONS = 102,
    CUDNN_CONV_STRIDES = 103,
    CUDNN_CONV_POST_PADDINGS = 104,
    CUDNN_CONV_PRE_PADDINGS = 105,
    CUDNN_CONV_SPATIAL_DIMS = 106,
    CUDNN_HEUR_MODE = 200,
    CUDNN_HEUR_GRAPH = 201,
    CUDNN_HEUR_RESULTS = 202,
    CUDNN_CFG_ENGINE = 300,
    CUDNN_PLAN_HANDLE = 400,
    CUDNN_PLAN_CFG = 401,
    CUDNN_PLAN_WORKSPACE = 402,
    /* alpha, beta, conv, w, x, y; then of dx: alpha, beta, conv, w, dx, dy; then of dw:
     * alpha, beta, conv, dw, x, dy */
    CUDNN_FORWARD_FIRST = 700,
    CUDNN_DATA_FIRST = 706,
    CUDNN_WEIGHT_FIRST = 712,
    CUDNN_GRAPH_HANDLE = 800,
    CUDNN_GRAPH_OPS = 801,
    CUDNN_TENSOR_ALIGNMENT = 900,
    CUDNN_TENSOR_TYPE = 901,
    CUDNN_TENSOR_DIMENSIONS = 902,
    CUDNN_TENSOR_STRIDES = 903,
    CUDNN_TENSOR_ID = 906,
    CUDNN_VARIANT_IDS = 1000,
    CUDNN_VARIANT_POINTERS = 1001,
    CUDNN_VARIANT_WORKSPACE = 1003,
    CUDNN_ENGINE_GLOBAL_INDEX = 1301,
    CUDNN_ENGINE_NUMERICAL_NOTE = 1303
};
/* Numerical notes of an engine. */
enum {
    CUDNN_NOTE_TENSOR_CORE = 0,
    CUDNN_NOTE_DOWN_CONVERT = 1,
    CUDNN_NOTE_REDUCED_REDUCTION = 2,
    CUDNN_NOTE_FFT = 3,
    CUDNN_NOTE_NONDETERMINISTIC = 4,
    CUDNN_NOTE_WINOGRAD = 5
};

typedef struct {
    size_t (*version)(void);
    const char *(*error)(int status);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, void *stream);
    int (*make)(int kind, void **descriptor);
    int (*drop)(void *descriptor);
    int (*set)(void *descriptor, int name, int type, int64_t count, const void *values);
    int (*get)(void *descriptor, int name, int type, int64_t room, int64_t *count, void *values);
    int (*finish)(void *descriptor);
    int (*execute)(void *handle, void *plan, void *variants);
} mdmt_cudnn_api;

#endif
