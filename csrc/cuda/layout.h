/* The backend's layouts (P = 8 channels; float32 unless said otherwise):
 *   MAP       NHWC, [N][H][W][pitch], pitch = the root's channels rounded up to P;
 *             float32 or bfloat16 by the precision; channels beyond C hold zeros. A view
 *             starts view_from channels into its root and has the root's pitch. The argmax
 *             of max_pool (MAP, U8) has one byte per element
 *   IMAGE     [N][C][H][W]
 *   ROWS      [N][F]         VECTOR  [C rounded up to P], zero padded
 *   MATRIX    [O][I]         SCALAR  [n]
 *   W_DENSE   [O up][kh][kw][I up], zero padded
 *   W_STEM    [I][kh][kw][O up], zero padded
 *   W_DEPTH   [kh][kw][O up], zero padded
 *   W_GROUPED [O][I / groups][kh][kw]
 *   STATS     [parts][MDMT_STATS_ROWS][C up] */
#ifndef MDMT_CUDA_LAYOUT_H
#define MDMT_CUDA_LAYOUT_H

#include "services.h"

#ifdef __CUDACC__
#define MDMT_HD_LAYOUT static __host__ __device__ inline
#else
#define MDMT_HD_LAYOUT static inline
#endif

/* Channels as stored. */
MDMT_HD_LAYOUT int mdmt_up(int channels)
{
    return (channels + 7) / 8 * 8;
}

static inline int mdmt_pitch(const mdmt_tensor *map)
{
    return mdmt_up(map->pitch ? map->pitch : map->dim[1]);
}

/* Bytes of an element of this tensor. */
static inline size_t mdmt_element(const mdmt_tensor *tensor, mdmt_cuda_precision precision)
{
    if (tensor->dtype == MDMT_U8) {
        return 1;
    }
    return tensor->kind == MDMT_MAP && precision == MDMT_CUDA_BF16 ? 2 : 4;
}

/* Elements that a tensor takes. A view takes those of its root. */
static inline size_t mdmt_stored_elements(const mdmt_tensor *t)
{
    const int *dim = t->dim;
    size_t count = 1;
    for (int i = 0; i < t->dims; i++) {
        count *= (size_t)dim[i];
    }
    switch (t->kind) {
    case MDMT_MAP:
        return count / (size_t)dim[1] * (size_t)mdmt_pitch(t);
    case MDMT_VECTOR:
        return (size_t)mdmt_up(dim[0]);
    case MDMT_W_DENSE:
        return (size_t)mdmt_up(dim[0]) * (size_t)mdmt_up(dim[1]) * (size_t)(dim[2] * dim[3]);
    case MDMT_W_STEM:
    case MDMT_W_DEPTH:
        return (size_t)mdmt_up(dim[0]) * (size_t)dim[1] * (size_t)(dim[2] * dim[3]);
    case MDMT_STATS:
        return (size_t)dim[0] * (size_t)dim[1] * (size_t)mdmt_up(dim[2]);
    default:
        return count;
    }
}

/* Where element `index` of the plain C-ordered array lies. */
static inline size_t mdmt_stored_at(const mdmt_tensor *t, size_t index)
{
    const int *dim = t->dim;
    size_t a, b, inner;
    switch (t->kind) {
    case MDMT_MAP:
    case MDMT_W_DENSE:
    case MDMT_W_STEM:
    case MDMT_W_DEPTH:
        inner = (size_t)dim[2] * (size_t)dim[3];
        a = index / inner / (size_t)dim[1];
        b = index / inner % (size_t)dim[1];
        index %= inner;
        if (t->kind == MDMT_MAP) {
            return (a * inner + index) * (size_t)mdmt_pitch(t) + b;
        }
        if (t->kind == MDMT_W_DENSE) {
            return (a * inner + index) * (size_t)mdmt_up(dim[1]) + b;
        }
        return (b * inner + index) * (size_t)mdmt_up(dim[0]) + a;
    case MDMT_STATS:
        inner = (size_t)dim[2];
        return index / inner * (size_t)mdmt_up(dim[2]) + index % inner;
    default:
        return index;
    }
}

#endif
