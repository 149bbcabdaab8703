/* How the passes walk a MAP. The pixels of one channel block are counted through
 * the batch: pixel q is pixel q % (H W) of sample q / (H W). They are cut into
 * parts of MAP_PART pixels, which depend on the shape alone; sums of a part are
 * taken in float over runs of at most MAP_RUN pixels, those in double. */
#ifndef MDMT_CPU_MAP_WALK_H
#define MDMT_CPU_MAP_WALK_H

#include "lanes_act.h"

enum {
    MAP_PART = 2048, /* 128 KiB of a tensor */
    MAP_RUN = 512,
    MAP_AHEAD = (MDMT_MAPS_BF16 ? 48 : 24) * MDMT_BLOCK, /* elements that a long run fetches ahead */
    /* Independent accumulators: enough to hide the latency of an addition, few
     * enough for two such sums to stay in registers. */
    LANES_SUMS = MDMT_LANES_LEVEL == MDMT_ISA_AVX512 ? 4 : 2
};

typedef struct {
    int64_t area, pixels; /* H W, N H W */
    int channels, blocks, parts;
} map_shape;

/* A MAP's elements, and those from one sample to the next: the maps of one op have
 * the same shape, but each its own distance where it is a view. */
typedef struct {
    map_float *data;
    int64_t sample;
} map_at;

/* Consecutive pixels of a block within one sample. */
typedef struct {
    int64_t at, pixels;     /* first pixel of the block, number (0: no more) */
    int64_t sample, inside; /* its sample; of its first float in the sample  */
    int brief;              /* ends before the hardware has noticed it       */
} map_run;

static inline map_at map_at_of(const mdmt_tensor *tensor, void *data)
{
    return (map_at){data, tensor ? (int64_t)mdmt_map_sample(tensor) : 0};
}

/* The first float of the run in a map. */
static inline map_float *map_point(map_at map, const map_run *run)
{
    return map.data + run->sample * map.sample + run->inside;
}

/* From a float to the one to fetch meanwhile: that of the next sample for a brief run. */
static inline int64_t map_ahead(map_at map, const map_run *run)
{
    return run->brief ? map.sample : MAP_AHEAD;
}

/* The accumulators of one sum, added up pairwise. */
MDMT_INLINE lanes lanes_sum(const lanes *v)
{
    lanes sum = lanes_add(v[0], v[1]);
    return LANES_SUMS == 4 ? lanes_add(sum, lanes_add(v[2 % LANES_SUMS], v[3 % LANES_SUMS])) : sum;
}

static inline int lanes_is_map(const mdmt_tensor *tensor)
{
    return tensor->kind == MDMT_MAP && tensor->dtype == MDMT_F32;
}

static inline map_shape map_shape_of(const mdmt_tensor *tensor)
{
    map_shape shape = {.area = (int64_t)tensor->dim[2] * tensor->dim[3],
                       .channels = tensor->dim[1],
                       .blocks = mdmt_blocks(tensor->dim[1])};
    shape.pixels = shape.area * tensor->dim[0];
    shape.parts = (int)((shape.pixels + MAP_PART - 1) / MAP_PART);
    return shape;
}

static inline int64_t map_part_begin(const map_shape *shape, int part)
{
    (void)shape;
    return (int64_t)part * MAP_PART;
}

static inline int64_t map_part_end(const map_shape *shape, int part)
{
    int64_t end = ((int64_t)part + 1) * MAP_PART;
    return end < shape->pixels ? end : shape->pixels;
}

/* The run of a block that starts at pixel `at` of those before `end`. */
static inline map_run map_run_at(const map_shape *shape, int block, int64_t at, int64_t end)
{
    map_run run = {.at = at};
    if (at >= end) {
        return run;
    }
    int64_t pixel = at % shape->area;
    run.sample = at / shape->area;
    run.pixels = shape->area - pixel;
    run.pixels = run.pixels < end - at ? run.pixels : end - at;
    run.inside = (block * shape->area + pixel) * MDMT_BLOCK;
    run.brief = run.pixels < MAP_RUN / 2;
    run.pixels = run.pixels < MAP_RUN ? run.pixels : MAP_RUN;
    return run;
}

static inline map_run map_first_run(const map_shape *shape, int block, int part)
{
    return map_run_at(shape, block, map_part_begin(shape, part), map_part_end(shape, part));
}

static inline void map_next_run(const map_shape *shape, int block, int64_t end, map_run *run)
{
    *run = map_run_at(shape, block, run->at + run->pixels, end);
}

#endif
