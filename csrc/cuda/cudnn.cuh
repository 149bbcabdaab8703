/* Convolutions by cuDNN: the library, and a plan for each convolution. */
#ifndef MDMT_CUDA_CUDNN_CUH
#define MDMT_CUDA_CUDNN_CUH

#include "backend.cuh"

typedef enum { MDMT_CONV_FORWARD, MDMT_CONV_WEIGHT, MDMT_CONV_DATA } mdmt_conv_pass;

/* All that a plan depends on; zeroed before it is filled, compared as bytes. */
struct mdmt_conv_key {
    int pass;
    int x[4], y[4], w[4]; /* (N, C, H, W), channels as stored; (K, C, kh, kw) */
    int x_pitch, y_pitch; /* channels from a pixel to the next */
    int stride[2], dilation[2], before[2], after[2];
    int map_type, result_type; /* CUDNN_FLOAT, CUDNN_BF16; result: of dw */
    int exact;                 /* no TF32, no transforms */
    int deterministic;         /* the same bits every time */
};

/* Whether a library is loaded, and a handle could be made on this device. */
int mdmt_cudnn_ready(mdmt_gpu *gpu);
/* A plan for the key, made when it is first asked for; NULL when no engine does it.
 * Needs *workspace bytes. */
void *mdmt_cudnn_plan(mdmt_gpu *gpu, const mdmt_conv_key *key, size_t *workspace);
/* x, w and y (or their gradients) of the pass. */
mdmt_status mdmt_cudnn_run(mdmt_gpu *gpu, void *plan, void *x, void *w, void *y, void *workspace);
void mdmt_cudnn_close(mdmt_gpu *gpu);

#endif
