/* Winograd convolution, 3x3, stride 1: what is the same for every ISA.
 *
 * Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
 * with the points 0, +-1/sqrt(2), +-sqrt(2), infinity for F(4x4,3x3), which
 * halve the rounding error of 0, +-1, +-2, and 0, +-1, infinity for F(2x2,3x3):
 *   forward      Y  = A^T [ (G w G^T) . (B^T X B) ] A     summed over input channels
 *   bwd_data     the same of dY with the kernel turned by 180 degrees
 *   bwd_weight   dw = G^T [ (A dY A^T) . (B^T X B) ] G    summed over tiles and batch
 * The output is cut into tiles of 4 rows or columns; a remainder gets a narrow
 * tile of 2 with the points 0, +-1/sqrt(2), infinity, or of 3 with sqrt(2) as
 * well: subsets, which take the same transformed weights. F(2x2) has only narrow
 * tiles. */
#ifndef MDMT_CPU_CONV_WINOGRAD_PLAN_H
#define MDMT_CPU_CONV_WINOGRAD_PLAN_H

#include "cpu.h"

typedef enum { MDMT_WINO_FORWARD, MDMT_WINO_DATA, MDMT_WINO_WEIGHT } mdmt_wino_pass;

enum {
    MDMT_WINO_PAIR = 2,      /* output blocks that one GEMM makes                    */
    MDMT_WINO_SUM_TILES = 64 /* bwd_weight: products added up before they join a sum */
};

/* A convolution seen as a forward one (bwd_data: x is dy, y is dx), and how its
 * work is cut. Depends on the shape only. Sizes in floats unless said. */
typedef struct {
    mdmt_wino_pass pass;
    int points;           /* per dimension: 6 or 4                           */
    int n, c, k;          /* batch, input and output channels                */
    int cb, kb;           /* their blocks                                    */
    int ih, iw, oh, ow;   /* input and output size                           */
    int pt, pl;           /* zeros above and left of the input               */
    size_t x_sample;      /* from image to image of the input ...            */
    size_t y_sample;      /* ... and of the output (bwd_weight: of dy)       */
    int full_h, narrow_h; /* rows of 4-row and of narrow tiles of an image   */
    int full_w, narrow_w; /* columns of them                                 */
    int rest_h, rest_w;   /* rows, columns of a narrow tile: 2 or 3           */
    int rows;             /* full_h + narrow_h                               */
    int row_tiles;        /* full_w + narrow_w                               */
    /* by_output 0: a task is a chunk of tile rows: transforms its input, reads
     *   the weights that were transformed beforehand (bwd_weight: makes a dw of
     *   its own, its part; parts are added in order).
     * by_output 1: all tiles of a group of images are transformed first, then a
     *   task is a range of output channels, which transforms its own weights
     *   (bwd_weight: see by_points). */
    int by_output;
    int chunks;         /* by rows: chunks; bwd_weight: parts               */
    int groups;         /* by output: groups of images                      */
    int spans;          /* by output: ranges of tiles of a group            */
    int span_tiles;     /* the largest of them; by rows: of a chunk         */
    int set_tiles;      /* the most tiles that are transformed at once      */
    int range;          /* by output: input blocks whose weights are held at once;
                           their sums are added up in the products          */
    int shared_weights; /* by output: all weights are transformed first, and a task
                           is one span of a range of output channels        */
    size_t m_block;     /* products: from output block to output block      */
    int past;           /* the output is too large to be found in a cache later */
    /* bwd_weight by rows */
    int row_step;  /* tile rows transformed at once                */
    int part_sums; /* each part keeps its sums, else each thread   */
    /* bwd_weight by output. by_points 1: a task is a range of output blocks of a
     * point, and the sums of all points are kept until the last group is added;
     * 0: a task is a pair of output blocks and `range` input blocks, the sums of
     * a group are turned into dw. */
    int by_points;
    int cuts;    /* ranges of output blocks of a point                  */
    int in_cuts; /* by points: ranges of input blocks, for turning back */
    int slices;  /* ranges of tile rows, for transforming maps          */
    size_t v_point, u_point, m_point, d_point; /* strides from point to point   */
    size_t v, u, m, d;                         /* sizes of the buffers          */
} mdmt_wino_plan;

/* Tile rows [row0, row0 + ...) over the batch, with their tiles numbered class
 * by class, (rows, columns): narrow-full, full-full, full-narrow,
 * narrow-narrow, so that every point has its tiles in one range. */
typedef struct {
    int row0, row1;
    int full0, narrow0;  /* full and narrow tile rows of the batch before row0 */
    int first[4], total; /* first number of each class                         */
} mdmt_wino_tiles;

/* A tile: image, origin and size of its output. */
typedef struct {
    int n, y, x, high, wide;
} mdmt_wino_tile;

int mdmt_wino_supports(const mdmt_site *site, int points);
void mdmt_wino_plan_make(const mdmt_site *site, mdmt_wino_pass pass, int points,
                         mdmt_wino_plan *plan);
void mdmt_wino_needs(const mdmt_site *site, mdmt_wino_pass pass, int points, mdmt_needs *needs);
double mdmt_wino_cost(const mdmt_site *site, mdmt_wino_pass pass, int points, mdmt_isa isa);

mdmt_wino_tiles mdmt_wino_tiles_of(const mdmt_wino_plan *plan, int row0, int row1);
/* The tile of number q. */
mdmt_wino_tile mdmt_wino_tile_at(const mdmt_wino_plan *plan, const mdmt_wino_tiles *tiles, int q);
/* Range of the tiles that have point (i, j), cut to [lo, hi). */
void mdmt_wino_range(const mdmt_wino_plan *plan, const mdmt_wino_tiles *tiles, int i, int j,
                     int *lo, int *hi);

/* Images [*first, *last) of a group; tiles of a span; tile rows of a chunk. */
static inline int mdmt_wino_cut(int total, int parts, int i)
{
    return (int)((int64_t)total * i / parts);
}

#endif
