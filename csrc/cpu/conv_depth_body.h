/* Depthwise convolution: how all three passes cut their work and load their source.
 *
 * A pass goes through the planes (one channel block of one sample) of its source map row by
 * row. Each row is loaded once, normalised, activated and gated where the map is lazy, and
 * staged in a ring of rows in the thread's scratch, with zeros for the padding columns; a row
 * of zeros stands for the padding rows. All arithmetic then runs on the ring, in L1.
 *
 * A task owns one channel block of some samples (small maps) or of a band of rows of one sample
 * (large maps); the cut depends on the shape alone. */
#ifndef MDMT_CPU_CONV_DEPTH_BODY_H
#define MDMT_CPU_CONV_DEPTH_BODY_H

#include <string.h>

#include "access.h"
#include "lanes_act.h"

enum {
    DEPTH_TAPS = 5,                    /* the widest kernel                                   */
    DEPTH_TASKS = 64,                  /* wanted at least, whatever the number of threads     */
    DEPTH_PIXELS = 3136,               /* of a large task                                     */
    DEPTH_FEW = 1024,                  /* of a task of several samples                        */
    DEPTH_RUN = 512,                   /* pixels after which float sums go into double ones   */
    DEPTH_AHEAD = MDMT_MAPS_BF16 ? 48 : 24, /* pixels that a row fetches ahead */
    DEPTH_RING = 24 * 1024             /* bytes of the ring that are well spent, of L1        */
};

/* A map as an argument: the distance of its samples is its own. */
typedef struct {
    int h, w;
    size_t sample, block; /* elements */
} depth_map;

/* How the planes are cut into tasks: in groups of samples or bands of result rows. */
typedef struct {
    int n, blocks;
    int rows; /* of the result */
    int group, groups, band, bands, tasks;
} depth_cut;

/* What a staged row is. Source column 0 lies at column `lead` (below 0: what lies left of it is
 * never used). */
typedef struct {
    int columns, lead, slots;
    size_t pitch; /* floats of a row */
} depth_stage;

/* The rows of one plane that are in the scratch now. */
typedef struct {
    const depth_stage *stage;
    float *rows;           /* [slots][pitch]            */
    const float *zero;     /* a row of zeros            */
    const map_float *from; /* the plane             */
    int h, w;              /* of the plane              */
    int next;              /* first row not yet staged  */
    int is_lazy;
    mdmt_act act;
    lanes_affine affine;
    lanes gate;
} depth_ring;

/* A task: block `block` of samples first_n .. end_n - 1, result rows first .. end - 1. */
typedef struct {
    int block, part;
    int first_n, end_n, first, end;
} depth_task;

static inline depth_map depth_map_of(const mdmt_tensor *t)
{
    return (depth_map){t->dim[2], t->dim[3], mdmt_map_sample(t), mdmt_map_block(t)};
}

static inline int depth_up(int value, int unit)
{
    return (value + unit - 1) / unit;
}

/* Cuts planes of `rows` x `width` result pixels; bands are multiples of `step` rows. `group`
 * samples at most are taken together. */
static depth_cut depth_cut_of(int n, int channels, int rows, int width, int step, int group)
{
    depth_cut cut = {.n = n, .blocks = mdmt_blocks(channels), .rows = rows, .group = group};
    cut.bands = depth_up(rows * width, DEPTH_PIXELS);
    cut.bands = cut.bands < rows ? cut.bands : rows;
    cut.group = cut.bands > 1 || group < 1 ? 1 : group < n ? group : n;
    while (cut.group > 1 && cut.blocks * depth_up(n, cut.group) < DEPTH_TASKS) {
        cut.group = (cut.group + 1) / 2;
    }
    cut.groups = depth_up(n, cut.group);
    while (cut.blocks * cut.groups * cut.bands < DEPTH_TASKS && rows / (cut.bands + 1) >= 8) {
        cut.bands++;
    }
    cut.band = depth_up(depth_up(rows, cut.bands), step) * step;
    cut.bands = depth_up(rows, cut.band);
    cut.tasks = cut.groups * cut.blocks * cut.bands;
    return cut;
}

static depth_task depth_task_of(const depth_cut *cut, int task)
{
    int band = task % cut->bands, group = task / cut->bands / cut->blocks;
    depth_task t = {.block = task / cut->bands % cut->blocks,
                    .part = group * cut->bands + band,
                    .first_n = group * cut->group,
                    .first = band * cut->band};
    t.end_n = t.first_n + cut->group < cut->n ? t.first_n + cut->group : cut->n;
    t.end = t.first + cut->band < cut->rows ? t.first + cut->band : cut->rows;
    return t;
}

/* Floats of a thread's ring and its row of zeros. */
static inline size_t depth_ring_floats(const depth_stage *stage)
{
    return stage->pitch * (size_t)(stage->slots + 1);
}

/* Lays the ring into the scratch; the padding columns and the row of zeros stay as they are. */
static depth_ring depth_ring_open(const depth_stage *stage, float *scratch, const depth_map *map)
{
    memset(scratch, 0, depth_ring_floats(stage) * sizeof *scratch);
    return (depth_ring){.stage = stage,
                        .rows = scratch,
                        .zero = scratch + (size_t)stage->slots * stage->pitch,
                        .h = map->h,
                        .w = map->w};
}

/* Begins with the plane of channel block `block` of sample n, from row `first` on. */
static void depth_ring_plane(depth_ring *ring, const mdmt_value *x, const depth_map *map,
                             int channels, int n, int block, int first)
{
    ring->from = (const map_float *)x->data + (size_t)n * map->sample + (size_t)block * map->block;
    ring->next = first > 0 ? first : 0;
    ring->is_lazy = x->scale || x->gate;
    if (!ring->is_lazy) {
        return;
    }
    ring->act = x->scale ? x->act : MDMT_ACT_NONE;
    ring->affine = (lanes_affine){lanes_set(1.0f), lanes_zero()};
    if (x->scale) {
        ring->affine = lanes_affine_load(x->scale, x->shift, block);
    }
    ring->gate = lanes_set(1.0f);
    if (x->gate) {
        ring->gate = lanes_load_row(x->gate + (size_t)n * (size_t)channels, channels, block);
    }
}

MDMT_INLINE void depth_load_row(const depth_ring *ring, const map_float *from, float *to,
                                int pixels, mdmt_act act)
{
    const lanes_affine affine = ring->affine;
    const lanes gate = ring->gate;
    for (ptrdiff_t i = 0; i < (ptrdiff_t)pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes v = lanes_apply(affine, lanes_load(from + i));
        lanes_fetch(from + i + DEPTH_AHEAD * MDMT_BLOCK);
        lanes_store(to + i, lanes_mul(lanes_activate(act, v), gate));
    }
}

static void depth_copy_row(const map_float *from, float *to, int pixels)
{
    for (ptrdiff_t i = 0; i < (ptrdiff_t)pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes_store(to + i, lanes_load(from + i));
        lanes_fetch(from + i + DEPTH_AHEAD * MDMT_BLOCK);
    }
}

/* Stages row ring->next. */
static void depth_ring_row(depth_ring *ring)
{
    const depth_stage *stage = ring->stage;
    int row = ring->next++, left = stage->lead > 0 ? stage->lead : 0;
    int skip = left - stage->lead, pixels = ring->w - skip; /* of the source's row */
    pixels = pixels < stage->columns - left ? pixels : stage->columns - left;
    const map_float *from = ring->from + ((ptrdiff_t)row * ring->w + skip) * MDMT_BLOCK;
    float *to = ring->rows + (size_t)(row % stage->slots) * stage->pitch;
    to += (ptrdiff_t)left * MDMT_BLOCK;
    if (!ring->is_lazy) {
        depth_copy_row(from, to, pixels);
        return;
    }
#define DEPTH_LOAD_ROW(act) depth_load_row(ring, from, to, pixels, act)
    LANES_EACH_ACT(ring->act, DEPTH_LOAD_ROW);
#undef DEPTH_LOAD_ROW
}

/* Stages all rows before `end`. */
static inline void depth_ring_until(depth_ring *ring, int end)
{
    end = end < ring->h ? end : ring->h;
    while (ring->next < end) {
        depth_ring_row(ring);
    }
}

static inline const float *depth_ring_at(const depth_ring *ring, int row)
{
    if (row < 0 || row >= ring->h) {
        return ring->zero;
    }
    return ring->rows + (size_t)(row % ring->stage->slots) * ring->stage->pitch;
}

#endif
