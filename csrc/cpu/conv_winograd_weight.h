/* Winograd bwd_weight: dw = G^T [ sum over tiles (A dY A^T) . (B^T X B) ] G. */
#ifndef MDMT_CPU_CONV_WINOGRAD_WEIGHT_H
#define MDMT_CPU_CONV_WINOGRAD_WEIGHT_H

#include "conv_winograd_gemm.h"
#include "conv_winograd_transform.h"

typedef struct {
    mdmt_wino_plan plan;
    const mdmt_value *x;
    const map_float *dy;
    float *dw, *shared, *sums, *scratch;
    size_t thread_floats, part_floats;
    int group;
} weight_work;

/* Sums of one point over the tiles of the set for `ins` input blocks, v being
 * the first one's of point 0, and output blocks [k0, k0 + blocks):
 * s[input block][s_blocks][16 in][16 out]. */
static void point_sums(const mdmt_wino_plan *p, const mdmt_wino_tiles *tiles, int point,
                       const float *v, int ins, const float *d, int k0, int blocks, float *s,
                       int s_blocks, int more)
{
    size_t block = (size_t)p->set_tiles * 16;
    int lo = 0, hi = tiles->total;
    mdmt_wino_range(p, tiles, point / p->points, point % p->points, &lo, &hi);
    const float *vp = v + point * p->v_point + (size_t)lo * 16;
    const float *dp = d + point * p->d_point + k0 * block + (size_t)lo * 16;
    for (int in = 0; in < ins && lo >= hi && !more; in++) {
        memset(s + (size_t)in * s_blocks * 256, 0, (size_t)blocks * 256 * sizeof(float));
    }
    for (int k = 0; k < blocks && lo < hi; k += 2) {
        int pair = blocks - k < 2 ? 1 : 2;
        for (int in = 0; in < ins; in++) {
            sum_product(hi - lo, pair, vp + in * block, dp + k * block, block,
                        vp + (in + 1) * block, s + ((size_t)in * s_blocks + k) * 256, 256, more);
        }
    }
}

/* dw of one block from its sums, s_point floats from point to point. */
static void block_taps(const mdmt_wino_plan *p, const float *s, float *dw, int more)
{
    if (p->points == 6) {
        weight_block_taps(6, s, p->u_point, 0, dw, more);
    } else {
        weight_block_taps(4, s, p->u_point, 0, dw, more);
    }
}

/* dw of one part. */
static void part_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    int rows = p->n * p->rows, row0 = mdmt_wino_cut(rows, p->chunks, task);
    int row1 = mdmt_wino_cut(rows, p->chunks, task + 1);
    float *v = work->scratch + thread * work->thread_floats, *d = v + p->v;
    float *s = p->part_sums ? work->sums + task * p->u : d + p->d;
    size_t block = (size_t)p->set_tiles * 16;
    int steps = (row1 - row0 + p->row_step - 1) / p->row_step;
    for (int step = 0; step < steps; step++) {
        mdmt_wino_tiles tiles =
            mdmt_wino_tiles_of(p, row0 + mdmt_wino_cut(row1 - row0, steps, step),
                               row0 + mdmt_wino_cut(row1 - row0, steps, step + 1));
        for (int row = tiles.row0; row < tiles.row1; row++) {
            for (int in = 0; in < p->cb; in++) {
                transform_input(p, &tiles, row, work->x, in, v + in * block);
            }
            for (int out = 0; out < p->kb; out++) {
                transform_gradient(p, &tiles, row, work->dy, out, d + out * block);
            }
        }
        for (int point = 0; point < p->points * p->points; point++) {
            point_sums(p, &tiles, point, v, p->cb, d, 0, p->kb, s + point * p->u_point, p->kb,
                       step > 0);
        }
    }
    float *dw = p->chunks > 1 ? work->shared + task * work->part_floats : work->dw;
    for (int out = 0; out < p->kb; out++) {
        for (int in = 0; in < p->cb; in++) {
            block_taps(p, s + ((size_t)in * p->kb + out) * 256,
                       dw + ((size_t)out * p->cb + in) * 9 * 256, 0);
        }
    }
}

/* Adds up one block of all parts, in order. */
static void merge_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    (void)thread;
    for (int at = task * 9 * 256; at < (task + 1) * 9 * 256; at += VW) {
        vec sum = load(work->shared + at);
        for (int part = 1; part < work->plan.chunks; part++) {
            sum = add(sum, load(work->shared + part * work->part_floats + at));
        }
        store(work->dw + at, sum);
    }
}

/* Tiles of the group at work. */
static mdmt_wino_tiles sum_tiles(const weight_work *work)
{
    const mdmt_wino_plan *p = &work->plan;
    return mdmt_wino_tiles_of(p, mdmt_wino_cut(p->n, p->groups, work->group) * p->rows,
                              mdmt_wino_cut(p->n, p->groups, work->group + 1) * p->rows);
}

static void group_maps_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    int slice = task % p->slices, in = task / p->slices;
    mdmt_wino_tiles tiles = sum_tiles(work);
    size_t block = (size_t)p->set_tiles * 16;
    int row0 = tiles.row0 + mdmt_wino_cut(tiles.row1 - tiles.row0, p->slices, slice);
    int row1 = tiles.row0 + mdmt_wino_cut(tiles.row1 - tiles.row0, p->slices, slice + 1);
    for (int row = row0; row < row1; row++) {
        if (in < p->cb) {
            transform_input(p, &tiles, row, work->x, in, work->shared + in * block);
        } else {
            int out = in - p->cb;
            transform_gradient(p, &tiles, row, work->dy, out, work->shared + p->v + out * block);
        }
    }
}

/* By points: all sums of a point for a range of output blocks. */
static void point_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    mdmt_wino_tiles tiles = sum_tiles(work);
    int point = task / p->cuts, pairs = (p->kb + 1) / 2;
    int k0 = 2 * mdmt_wino_cut(pairs, p->cuts, task % p->cuts);
    int k1 = 2 * mdmt_wino_cut(pairs, p->cuts, task % p->cuts + 1);
    k1 = k1 > p->kb ? p->kb : k1;
    point_sums(p, &tiles, point, work->shared, p->cb, work->shared + p->v, k0, k1 - k0,
               work->sums + point * p->u_point + (size_t)k0 * 256, p->kb, work->group > 0);
}

/* By points: dw of an output block and a range of input blocks. */
static void taps_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    int out = task / p->in_cuts, ahead = p->kb * 256;
    int in1 = mdmt_wino_cut(p->cb, p->in_cuts, task % p->in_cuts + 1);
    for (int in = mdmt_wino_cut(p->cb, p->in_cuts, task % p->in_cuts); in < in1; in++) {
        const float *s = work->sums + ((size_t)in * p->kb + out) * 256;
        float *dw = work->dw + ((size_t)out * p->cb + in) * 9 * 256;
        if (p->points == 6) {
            weight_block_taps(6, s, p->u_point, ahead, dw, 0);
        } else {
            weight_block_taps(4, s, p->u_point, ahead, dw, 0);
        }
    }
}

/* A pair of output blocks and a range of input blocks. */
static void pair_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    mdmt_wino_tiles tiles = sum_tiles(work);
    float *s = work->scratch + thread * work->thread_floats;
    int ranges = (p->cb + p->range - 1) / p->range;
    int k = task / ranges * MDMT_WINO_PAIR, in0 = task % ranges * p->range;
    int blocks = p->kb - k < MDMT_WINO_PAIR ? p->kb - k : MDMT_WINO_PAIR;
    int ins = p->cb - in0 < p->range ? p->cb - in0 : p->range;
    const float *v = work->shared + (size_t)in0 * p->set_tiles * 16;
    for (int point = 0; point < p->points * p->points; point++) {
        point_sums(p, &tiles, point, v, ins, work->shared + p->v, k, blocks, s + point * p->u_point,
                   MDMT_WINO_PAIR, 0);
    }
    for (int in = 0; in < ins; in++) {
        for (int b = 0; b < blocks; b++) {
            block_taps(p, s + ((size_t)in * MDMT_WINO_PAIR + b) * 256,
                       work->dw + ((size_t)(k + b) * p->cb + in0 + in) * 9 * 256, work->group > 0);
        }
    }
}

static void run_groups(mdmt_pool *pool, weight_work *work)
{
    const mdmt_wino_plan *p = &work->plan;
    work->sums = work->scratch = work->shared + p->v + p->d;
    work->thread_floats = p->u;
    int pairs = (p->kb + MDMT_WINO_PAIR - 1) / MDMT_WINO_PAIR;
    for (work->group = 0; work->group < p->groups; work->group++) {
        mdmt_parallel(pool, (p->cb + p->kb) * p->slices, group_maps_task, work);
        if (p->by_points) {
            mdmt_parallel(pool, p->points * p->points * p->cuts, point_task, work);
        } else {
            mdmt_parallel(pool, pairs * ((p->cb + p->range - 1) / p->range), pair_task, work);
        }
    }
    if (p->by_points) {
        mdmt_parallel(pool, p->kb * p->in_cuts, taps_task, work);
    }
}

static mdmt_status run_weight(const mdmt_site *site, const mdmt_call *call, int points)
{
    weight_work work = {.x = &call->in[0], .dy = call->in[1].data, .dw = call->out[0]};
    mdmt_wino_plan *p = &work.plan;
    mdmt_wino_plan_make(site, MDMT_WINO_WEIGHT, points, p);
    work.shared = call->workspace;
    if (p->by_output) {
        run_groups(site->pool, &work);
        return MDMT_OK;
    }
    work.part_floats = (size_t)p->cb * p->kb * 9 * 256;
    work.sums = work.shared + work.part_floats * p->chunks;
    work.scratch = work.sums + (p->part_sums ? p->u * p->chunks : 0);
    work.thread_floats = p->v + p->d + (p->part_sums ? 0 : p->u);
    mdmt_parallel(site->pool, p->chunks, part_task, &work);
    if (p->chunks > 1) {
        mdmt_parallel(site->pool, p->cb * p->kb, merge_task, &work);
    }
    return MDMT_OK;
}

#endif
