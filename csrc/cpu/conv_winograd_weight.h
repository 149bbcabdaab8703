/* Winograd bwd_weight: dw = G^T [ sum over tiles (A dY A^T) . (B^T X B) ] G. */
#ifndef MDMT_CPU_CONV_WINOGRAD_WEIGHT_H
#define MDMT_CPU_CONV_WINOGRAD_WEIGHT_H

#include "conv_winograd_gemm.h"
#include "conv_winograd_transform.h"

typedef struct {
    mdmt_wino_plan plan;
    const mdmt_value *x;
    const float *dy;
    float *dw, *shared, *scratch;
    size_t thread_floats;
    int group;
} weight_work;

/* Sums over the tiles of the set for `ins` input blocks, v being the first
 * one's, and output blocks [k0, k0 + blocks):
 * s[point][input block][s_blocks][16 in][16 out]. */
static void sums_of(const mdmt_wino_plan *p, const mdmt_wino_tiles *tiles, const float *v, int ins,
                    const float *d, int k0, int blocks, float *s, int s_blocks, int more)
{
    size_t block = (size_t)p->set_tiles * 16;
    for (int i = 0; i < p->points; i++) {
        for (int j = 0; j < p->points; j++) {
            int point = i * p->points + j, lo = 0, hi = tiles->total;
            mdmt_wino_range(p, tiles, i, j, &lo, &hi);
            const float *vp = v + point * p->v_point + (size_t)lo * 16;
            const float *dp = d + point * p->d_point + k0 * block + (size_t)lo * 16;
            float *sp = s + point * p->u_point;
            if (lo >= hi && !more) {
                memset(sp, 0, (size_t)ins * s_blocks * 256 * sizeof(float));
            }
            for (int k = 0; k < blocks && lo < hi; k += 2) {
                int pair = blocks - k < 2 ? 1 : 2;
                for (int in = 0; in < ins; in++) {
                    sum_product(hi - lo, pair, vp + in * block, dp + k * block, block,
                                vp + (in + 1) * block, sp + ((size_t)in * s_blocks + k) * 256, 256,
                                more);
                }
            }
        }
    }
}

/* Adds up the sums of one part. */
static void part_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    int rows = p->n * p->rows, row0 = mdmt_wino_cut(rows, p->chunks, task);
    int row1 = mdmt_wino_cut(rows, p->chunks, task + 1);
    float *v = work->scratch + thread * work->thread_floats, *d = v + p->v;
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
        sums_of(p, &tiles, v, p->cb, d, 0, p->kb, work->shared + task * p->u, p->kb, step > 0);
    }
}

/* Merges the parts of one output block, in order, and transforms back. */
static void merge_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    for (int in = 0; in < p->cb; in++) {
        float *s = work->shared + ((size_t)in * p->kb + task) * 256;
        for (int part = 1; part < p->chunks; part++) {
            for (int point = 0; point < p->points * p->points; point++) {
                float *to = s + point * p->u_point;
                const float *from = to + part * p->u;
                for (int at = 0; at < 256; at += VW) {
                    store(to + at, add(load(to + at), load(from + at)));
                }
            }
        }
        float *dw = work->dw + ((size_t)task * p->cb + in) * 9 * 256;
        if (p->points == 6) {
            weight_block_taps(6, s, p->u_point, dw, 0);
        } else {
            weight_block_taps(4, s, p->u_point, dw, 0);
        }
    }
}

static void group_maps_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    int image0 = mdmt_wino_cut(p->n, p->groups, work->group);
    int image1 = mdmt_wino_cut(p->n, p->groups, work->group + 1);
    mdmt_wino_tiles tiles = mdmt_wino_tiles_of(p, image0 * p->rows, image1 * p->rows);
    size_t block = (size_t)p->set_tiles * 16;
    for (int row = tiles.row0; row < tiles.row1; row++) {
        if (task < p->cb) {
            transform_input(p, &tiles, row, work->x, task, work->shared + task * block);
        } else {
            int out = task - p->cb;
            transform_gradient(p, &tiles, row, work->dy, out, work->shared + p->v + out * block);
        }
    }
}

static void sums_task(void *context, int task, int thread)
{
    const weight_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    int image0 = mdmt_wino_cut(p->n, p->groups, work->group);
    int image1 = mdmt_wino_cut(p->n, p->groups, work->group + 1);
    mdmt_wino_tiles tiles = mdmt_wino_tiles_of(p, image0 * p->rows, image1 * p->rows);
    float *s = work->scratch + thread * work->thread_floats;
    int k = task * MDMT_WINO_PAIR;
    int blocks = p->kb - k < MDMT_WINO_PAIR ? p->kb - k : MDMT_WINO_PAIR;
    for (int in0 = 0; in0 < p->cb; in0 += p->range) {
        int in1 = in0 + p->range < p->cb ? in0 + p->range : p->cb;
        sums_of(p, &tiles, work->shared + (size_t)in0 * p->set_tiles * 16, in1 - in0,
                work->shared + p->v, k, blocks, s, MDMT_WINO_PAIR, 0);
        for (int in = in0; in < in1; in++) {
            for (int b = 0; b < blocks; b++) {
                const float *from = s + ((size_t)(in - in0) * MDMT_WINO_PAIR + b) * 256;
                float *dw = work->dw + ((size_t)(k + b) * p->cb + in) * 9 * 256;
                if (p->points == 6) {
                    weight_block_taps(6, from, p->u_point, dw, work->group > 0);
                } else {
                    weight_block_taps(4, from, p->u_point, dw, work->group > 0);
                }
            }
        }
    }
}

static mdmt_status run_weight(const mdmt_site *site, const mdmt_call *call, int points)
{
    weight_work work = {.x = &call->in[0], .dy = call->in[1].data, .dw = call->out[0]};
    mdmt_wino_plan *p = &work.plan;
    mdmt_wino_plan_make(site, MDMT_WINO_WEIGHT, points, p);
    work.shared = call->workspace;
    if (p->by_output) {
        work.scratch = work.shared + p->v + p->d;
        work.thread_floats = p->u;
        for (work.group = 0; work.group < p->groups; work.group++) {
            mdmt_parallel(site->pool, p->cb + p->kb, group_maps_task, &work);
            mdmt_parallel(site->pool, (p->kb + 1) / MDMT_WINO_PAIR, sums_task, &work);
        }
    } else {
        work.scratch = work.shared + p->u * p->chunks;
        work.thread_floats = p->v + p->d;
        mdmt_parallel(site->pool, p->chunks, part_task, &work);
        mdmt_parallel(site->pool, p->kb, merge_task, &work);
    }
    return MDMT_OK;
}

#endif
