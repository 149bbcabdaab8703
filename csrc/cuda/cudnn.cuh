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
    int accumulate;            /* adds to what the result holds */
};

/* The loaded library's version (91002: 9.10.2), or 0. */
int mdmt_cudnn_version(void);
/* Whether a library is loaded, and a handle could be made on this device. */
int mdmt_cudnn_ready(mdmt_gpu *gpu);
/* Has the library give its work to this stream. */
mdmt_status mdmt_cudnn_follow(mdmt_gpu *gpu, mdmt_stream_handle stream);
/* A plan for the key, made when it is first asked for; NULL when no engine does it.
 * Needs *workspace bytes. *milliseconds: its time where it was measured, else 0. Above twice the
 * `limit` (0: none) times are only measured roughly. */
void *mdmt_cudnn_plan(mdmt_gpu *gpu, const mdmt_conv_key *key, float limit, size_t *workspace,
                      float *milliseconds);
/* x, w and y (or their gradients) of the pass. */
mdmt_status mdmt_cudnn_run(mdmt_gpu *gpu, void *plan, void *x, void *w, void *y, void *workspace);
void mdmt_cudnn_close(mdmt_gpu *gpu);

/* ---- tune.cu: engines chosen by measurement ---- */

enum { MDMT_TUNE_MOST = 8 }; /* plans compared for one convolution */

/* A choice that was measured: the engine at `rank` of the heuristic `mode`. */
struct mdmt_tuned {
    mdmt_conv_key key;
    int mode, rank;
    int64_t engine;
    float milliseconds;
};

/* The choices for one kind of device, driver and library; NULL where there is no memory for it.
 * Kept until the end of the process. */
mdmt_tuning *mdmt_tuning_of(int ordinal);
int mdmt_tuning_find(const mdmt_tuning *tuning, const mdmt_conv_key *key, mdmt_tuned *found);
void mdmt_tuning_keep(mdmt_tuning *tuning, const mdmt_tuned *tuned);
/* The fastest of the plans on noise, 0 where there is no memory to measure in, -1 where none
 * runs. *milliseconds: its time, 0 where nothing was measured. */
int mdmt_tune(mdmt_gpu *gpu, const mdmt_conv_key *key, void *const *plan, const size_t *workspace,
              int count, float limit, float *milliseconds);

#endif
