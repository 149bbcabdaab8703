/* Plain (direct) convolution: the interface between the drivers, which cut the
 * work and know nothing of vectors, and the inner kernels of an instruction set.
 *
 * All passes reduce to two inner kernels. `tile` computes a few output pixels
 * times one or two output blocks over a list of kernel taps and all input
 * channels: forward, and the data gradient as a convolution of dy with turned
 * weights. `weight` sums x times dy over pixels for a few input channels, one
 * tap and one or two output blocks. Both read pixels at unit distance: inputs
 * that need padding, batch norm + activation or a column stride are first
 * brought into a scratch that stays in the second-level cache ("staged").
 *
 * In bfloat16 words of 32 bits hold two values whose products with another word's are
 * both added to a float: of two channels for `tile`, as they lie in a map that is
 * stored in bfloat16, and of two neighbouring pixels for `weight`, as they are staged.
 * Distances count words, which are as long as floats. */
#ifndef MDMT_CPU_CONV_DIRECT_H
#define MDMT_CPU_CONV_DIRECT_H

#include "cpu.h"

enum {
    MDMT_CONV_TAPS = 256,    /* kh * kw at most                          */
    MDMT_CONV_COLUMNS = 14,  /* pixels of a tile in a row, at most       */
    MDMT_CONV_CHANNELS = 16, /* input channels of a weight tile, at most */
    MDMT_CONV_PHASES = 16    /* phases of a strided data gradient        */
};

typedef enum { MDMT_INIT_ZERO, MDMT_INIT_BIAS, MDMT_INIT_LOAD } mdmt_conv_init;

/* One tile of rows x columns pixels and one or two output blocks. Distances in
 * floats. A block of input channels has 16 channels next to each other (stem:
 * one channel, pixels at distance 1). */
typedef struct {
    const float *x;    /* the tile's first pixel, taps not yet added    */
    ptrdiff_t x_row;   /* from one of the tile's rows to the next       */
    ptrdiff_t x_block; /* from one input block to the next              */
    const int *tap;    /* (taps) offsets into x                         */
    int taps;
    const float *w; /* [output block][input block][tap][16 in][16 out]; stem: no [16 in];
                       pairs: [8 pairs of in] */
    ptrdiff_t w_block, w_out;
    int blocks; /* input blocks                                  */
    int last;   /* words of the last one                         */
    mdmt_conv_init start;
    const float *init; /* BIAS: (16 per block); LOAD: strides of y      */
    float *y;
    ptrdiff_t y_row, y_pixel, y_out;
    int past;     /* y is stored past the caches; not where init is y     */
    float *stats; /* rows of the part's statistics for the first block, or NULL: SUM and
                     SQUARE are added to, PIVOT is read                   */
    ptrdiff_t stats_row;
    int stats_start;    /* the part's first tile: its first pixel becomes the pivot */
    const float *ahead; /* pixels that will be needed, to be fetched; or NULL */
    ptrdiff_t ahead_row, ahead_block;
    int ahead_first, ahead_step; /* of which input blocks: first, first + step, ... */
} mdmt_conv_tile;

typedef void (*mdmt_conv_tile_fn)(const mdmt_conv_tile *tile);

/* dw += sum over pixels of x * dy, for `channels` input channels next to
 * each other, one tap, one or two output blocks. */
typedef struct {
    const float *x;
    ptrdiff_t x_pixel, x_row, x_image;
    const float *dy; /* pixels (pairs: words of two pixels) at distance 16 */
    ptrdiff_t dy_row, dy_image, dy_out;
    float *dw; /* [channels][16 out] */
    ptrdiff_t dw_out;
    const float *ahead; /* to be fetched from the second-level cache, a line a pixel; or NULL */
    const float *far;   /* to be fetched from memory, far_step floats a pixel: slowly, so that
                           other loads find room; or NULL */
    ptrdiff_t far_step;
    int images, rows, columns; /* pairs: columns counts words */
} mdmt_conv_weight_tile;

typedef void (*mdmt_conv_weight_fn)(const mdmt_conv_weight_tile *tile);

/* What happens to 16 channels while they are loaded: act(scale x + shift) gate. */
typedef struct {
    const float *scale, *shift; /* (16), or NULL: nothing */
    const float *gate;          /* (16), or NULL: 1       */
    mdmt_act act;
} mdmt_conv_load;

/* The inner kernels of an instruction set. */
typedef struct {
    int floats_per_cycle; /* multiply-adds of a core with two units, for cost      */
    int pixel;            /* words of a pixel's block, stored or staged: 16; pairs: 8 */
    int columns;          /* of a tile of one row                             */
    int pair_columns;     /* of a tile of two rows ...                        */
    int pair_widest;      /* ... which serve outputs this wide at most        */
    int quad_columns;     /* of a tile of four rows                           */
    int quad_widest;
    int channels[2];   /* of a weight tile with 1, 2 output blocks         */
    int weight_blocks; /* output blocks of a weight tile: 1 or 2           */
    int tile_blocks;   /* output blocks of a tile: 1 or 2                  */
    /* [output blocks - 1][columns]; index 0 is unused */
    mdmt_conv_tile_fn tile[2][MDMT_CONV_COLUMNS + 1];
    mdmt_conv_tile_fn pair[2][8], quad[2][4];
    mdmt_conv_tile_fn stem[2][MDMT_CONV_COLUMNS + 1];
    mdmt_conv_weight_fn weight[2][MDMT_CONV_CHANNELS + 1];
    /* (count) pixels of 16 channels from src (pixels at distance `step`) to dst
     * (distance 16), act(scale x + shift) where scale is set. Brings src + fetch
     * of each unless that is 0. */
    void (*stage)(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                  const float *scale, const float *shift, mdmt_act act);
    /* The same for every activation, and with a gate. */
    void (*stage_any)(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                      const mdmt_conv_load *load);
    /* Ends the stores past the caches. */
    void (*fence)(void);
    /* A tap's weights for the data gradient: (16 in, 16 out) to its transpose, as words. */
    void (*transpose)(float *dst, const float *src);
    /* Pairs only. A tap's weights for forward: (16 in, 16 out) floats to (8 pairs of in, 16 out).
     */
    void (*pack)(float *dst, const float *src);
    /* Pairs only. `count` words of 16 channels at distance 16: word i holds the pixels i * every
     * and i * every + 1 of src (at distance `step`), loaded as by stage_any. The first `left`
     * pixels and those from `right` on do not exist: zeros. */
    void (*stage_pairs)(float *dst, const float *src, int count, int every, int left, int right,
                        ptrdiff_t step, ptrdiff_t fetch, const mdmt_conv_load *load);
    /* dst += src, (count) floats, a multiple of 16. */
    void (*accumulate)(float *dst, const float *src, size_t count);
} mdmt_conv_micro;

/* A staged row: [column phase][position][16], where position p of phase f holds
 * input column column_min + f + p * step, or zeros where that lies outside. */
typedef struct {
    int columns;    /* positions of a phase                               */
    int column_min; /* input column of the first                          */
    int step;       /* the column stride: so many phases                  */
    int width;      /* of the input row                                   */
    ptrdiff_t next; /* words to the next row that is read, where columns are left out */
    uint32_t read;  /* bit f: phase f is read by some tap (phases >= 32 always are) */
} mdmt_conv_row;

/* Words from a sample of a MAP to the next. */
static inline size_t mdmt_conv_words(const mdmt_tensor *map, const mdmt_conv_micro *micro)
{
    return mdmt_map_sample(map) / MDMT_BLOCK * (size_t)micro->pixel;
}

/* Whether maps are stored in bfloat16 and multiplied in pairs. */
static inline int mdmt_conv_is_paired(const mdmt_conv_micro *micro)
{
    return micro->pixel < MDMT_BLOCK;
}

/* conv_stage.c: one input row of 16 channels. */
void mdmt_conv_stage_row(const mdmt_conv_micro *micro, const mdmt_conv_row *row, float *dst,
                         const float *src, const mdmt_conv_load *load);
/* The same in words of two pixels, `every` pixels from one to the next; row->columns counts words.
 */
void mdmt_conv_stage_pairs(const mdmt_conv_micro *micro, const mdmt_conv_row *row, int every,
                           float *dst, const float *src, const mdmt_conv_load *load);
/* Block `block` of sample n of an input of `channels` channels; `gate` (16) is filled where the
 * input has one. */
mdmt_conv_load mdmt_conv_load_of(const mdmt_value *x, int n, int block, int channels, float *gate);
/* conv_load_<isa>.c */
void mdmt_f32_conv_load__avx2(float *dst, const float *src, int count, ptrdiff_t step,
                              ptrdiff_t fetch, const mdmt_conv_load *load);
void mdmt_f32_conv_load__avx512(float *dst, const float *src, int count, ptrdiff_t step,
                                ptrdiff_t fetch, const mdmt_conv_load *load);
void mdmt_f32_conv_load__neon(float *dst, const float *src, int count, ptrdiff_t step,
                              ptrdiff_t fetch, const mdmt_conv_load *load);
/* Whether y, written once and as a whole, is better stored past the caches: too large to be found
 * there when it is read, and made of so few products (`terms` of an element) that memory is what it
 * waits for. */
int mdmt_conv_is_past(const mdmt_tensor *y, const mdmt_conv_micro *micro, const float *data,
                      int terms);
/* Whether some tap k < kernel reads positions that are `phase` modulo s. */
int mdmt_conv_phase_is_read(int phase, int first, int kernel, int d, int s);

/* Drivers: conv_forward.c, conv_weight.c, conv_stem.c. The impl records of an
 * instruction set call them with its kernels. */
int mdmt_conv_forward_supports(const mdmt_site *site);
void mdmt_conv_forward_needs(const mdmt_site *site, const mdmt_conv_micro *micro,
                             mdmt_needs *needs);
double mdmt_conv_forward_cost(const mdmt_site *site, const mdmt_conv_micro *micro);
mdmt_status mdmt_conv_forward_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                  const mdmt_call *call);

int mdmt_conv_data_supports(const mdmt_site *site);
void mdmt_conv_data_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs);
double mdmt_conv_data_cost(const mdmt_site *site, const mdmt_conv_micro *micro);
mdmt_status mdmt_conv_data_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                               const mdmt_call *call);

int mdmt_conv_weight_supports(const mdmt_site *site);
void mdmt_conv_weight_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs);
double mdmt_conv_weight_cost(const mdmt_site *site, const mdmt_conv_micro *micro);
mdmt_status mdmt_conv_weight_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                 const mdmt_call *call);

int mdmt_conv_stem_supports(const mdmt_site *site);
void mdmt_conv_stem_needs(const mdmt_site *site, const mdmt_conv_micro *micro, mdmt_needs *needs);
double mdmt_conv_stem_cost(const mdmt_site *site, const mdmt_conv_micro *micro);
mdmt_status mdmt_conv_stem_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                               const mdmt_call *call);

int mdmt_conv_stem_weight_supports(const mdmt_site *site);
void mdmt_conv_stem_weight_needs(const mdmt_site *site, const mdmt_conv_micro *micro,
                                 mdmt_needs *needs);
double mdmt_conv_stem_weight_cost(const mdmt_site *site, const mdmt_conv_micro *micro);
mdmt_status mdmt_conv_stem_weight_run(const mdmt_site *site, const mdmt_conv_micro *micro,
                                      const mdmt_call *call);

/* dw = sum of the slices (slices, floats), in order; floats a multiple of 16. */
void mdmt_conv_merge(mdmt_pool *pool, const mdmt_conv_micro *micro, float *dw, const float *partial,
                     size_t floats, int slices);

static inline int mdmt_min(int a, int b)
{
    return a < b ? a : b;
}

static inline int mdmt_max(int a, int b)
{
    return a > b ? a : b;
}

static inline int mdmt_ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

#endif
