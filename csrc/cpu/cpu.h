/* The CPU backend's own interface: layouts, and kernels as records.
 *
 * Layouts (float32 unless the tensor says otherwise; B = 16 channels):
 *   MAP      nChw16c: [N][ceil(C/B)][H][W][B]; lanes beyond C hold zeros, always.
 *            A view lies in its root: from block view_from / B, samples as far apart as
 *            the root's; always take the distances from mdmt_map_sample, mdmt_map_block
 *   IMAGE    [N][C][H][W]
 *   ROWS     [N][F]          VECTOR  [ceil(C/B) * B], zero padded
 *   MATRIX   [O][I]          SCALAR  [n]
 *   W_DENSE  [ceil(O/B)][ceil(I/B)][kh][kw][B in][B out], zero padded
 *   W_STEM   [ceil(O/B)][I][kh][kw][B out], zero padded
 *   W_DEPTH  [ceil(O/B)][kh][kw][B], zero padded
 *   W_GROUPED [O][I/groups][kh][kw]
 *   STATS    [parts][MDMT_STATS_ROWS][ceil(C/B) * B]
 * The argmax of max_pool (MAP, U8) has the layout of a MAP, one byte a lane.
 * The layout is one for all instruction sets, so that a plan is, too. */
#ifndef MDMT_CPU_CPU_H
#define MDMT_CPU_CPU_H

#include "../backend.h"
#include "../base/cpuid.h"
#include "../base/pool.h"

enum { MDMT_BLOCK = 16 };

static inline int mdmt_blocks(int channels)
{
    return (channels + MDMT_BLOCK - 1) / MDMT_BLOCK;
}

/* Floats from a sample of a MAP to the next, and from a channel block to the next. */
static inline size_t mdmt_map_sample(const mdmt_tensor *map)
{
    return (size_t)mdmt_blocks(map->pitch ? map->pitch : map->dim[1]) * MDMT_BLOCK *
           (size_t)map->dim[2] * (size_t)map->dim[3];
}

static inline size_t mdmt_map_block(const mdmt_tensor *map)
{
    return (size_t)MDMT_BLOCK * (size_t)map->dim[2] * (size_t)map->dim[3];
}

/* Whether the samples of a MAP follow one another without a gap. */
static inline int mdmt_map_is_dense(const mdmt_tensor *map)
{
    return !map->pitch || mdmt_blocks(map->pitch) == mdmt_blocks(map->dim[1]);
}

/* Where an op stands: all that is known when the kernel is chosen. */
typedef struct {
    const mdmt_op *op;
    const mdmt_tensor *in[MDMT_MAX_IN];   /* NULL: absent */
    const mdmt_tensor *out[MDMT_MAX_OUT]; /* NULL: absent */
    const int32_t *number;                /* the graph's tables of integers */
    mdmt_pool *pool;
    int threads;  /* of the pool: per-thread scratch; never to cut the work by */
    mdmt_isa isa; /* the best that may be used */
    int winograd; /* 0: only plain convolution, 1: F(2x2,3x3), 2: also F(4x4,3x3) */
    int bf16;     /* 1: its MAPs of floats are stored in bfloat16 */
} mdmt_site;

/* What a kernel needs for a site. */
typedef struct {
    size_t workspace_bytes;
    int stat_parts;          /* conv2d, channel_stats: parts of the STATS output */
    uint32_t inplace_inputs; /* output 0 may share the storage of these inputs   */
} mdmt_needs;

/* A call: mdmt_value in[i].data is NULL where absent, scale is set where lazy. */
typedef struct {
    const mdmt_value *in;
    void *const *out;
    void *workspace; /* 64-byte aligned, contents undefined */
    const mdmt_step *step;
} mdmt_call;

/* What a kernel can deal with beyond plain MAPs and ReLU. */
typedef enum {
    MDMT_ACCEPTS_VIEWS = 1, /* samples with gaps between them        */
    MDMT_ACCEPTS_GATES = 2, /* lazy inputs with a gate               */
    MDMT_ACCEPTS_ACTS = 4   /* lazy inputs of every activation       */
} mdmt_accepts;

/* One kernel for one op. For each op, cpu/select.c lists them; among those that
 * support a site the cheapest by `cost` wins, ties and missing costs going to
 * the first in the list. The reference comes last, supports everything, and has
 * the cost INFINITY. Costs are estimated cycles of one core and depend on the
 * shape and the ISA only, never on the machine or the number of threads. */
typedef struct mdmt_cpu_impl {
    const char *name; /* "mdmt_f32_conv2d_forward_direct__avx512" */
    mdmt_isa isa;     /* needed */
    int bf16;         /* 1: takes MAPs of floats that are stored in bfloat16; 0: floats */
    int (*supports)(const mdmt_site *site);                  /* NULL: everything */
    void (*needs)(const mdmt_site *site, mdmt_needs *needs); /* NULL: nothing    */
    double (*cost)(const mdmt_site *site);                   /* NULL: 0          */
    mdmt_status (*run)(const mdmt_site *site, const mdmt_call *call);
    int accepts; /* mdmt_accepts, of its MAPs; a reference accepts everything */
} mdmt_cpu_impl;

/* Geometry of a convolution or pooling, read off a site once. */
typedef struct {
    int n, c, h, w;     /* x (N, C, H, W)  */
    int k, oh, ow;      /* y (N, K, OH, OW) */
    int kh, kw, sh, sw; /* kernel, stride */
    int pt, pl, pb, pr; /* padding        */
    int dh, dw;         /* dilation       */
    int groups;
    int plain; /* x is an IMAGE */
} mdmt_geometry;

/* For conv2d, conv2d_bwd_data and conv2d_bwd_weight alike. */
mdmt_geometry mdmt_conv_geometry(const mdmt_site *site);
/* For max_pool, avg_pool and their _bwd. */
mdmt_geometry mdmt_pool_geometry(const mdmt_site *site);

/* The ordered kernel lists, one per file that owns them; each ends with NULL.
 * A file of another ISA than this build's compiles to an empty list. */
typedef struct {
    const mdmt_op_record *record;
    const mdmt_cpu_impl *const *impls;
} mdmt_cpu_list;

/* How the backend computes; the environment (MDMT_CPU, MDMT_WINOGRAD) may lower it. */
typedef struct {
    mdmt_isa isa;
    int winograd; /* as in mdmt_site */
    int bf16;     /* 1: MAPs of floats are stored in bfloat16 */
} mdmt_cpu_options;

/* select.c */
mdmt_status mdmt_cpu_open(mdmt_backend **backend, mdmt_pool *pool, mdmt_cpu_options options);
/* Whether this build and this processor have the kernels for bfloat16. */
int mdmt_cpu_has_bf16(void);

#endif
