/* Winograd forward and bwd_data: output transform and the way through the work. */
#ifndef MDMT_CPU_CONV_WINOGRAD_RUN_H
#define MDMT_CPU_CONV_WINOGRAD_RUN_H

#include "conv_winograd_gemm.h"
#include "conv_winograd_transform.h"

/* What happens to an output before it is stored; pointers of one block. */
typedef struct {
    const float *bias;       /* or NULL */
    const map_float *addend; /* plane like y's, or NULL; may be y's own */
    float *stats;            /* this part's rows for the block, or NULL */
    size_t stats_row;        /* from row to row */
    int past;                /* store past the caches */
} finish;

INLINE void finish_tile(vec (*y)[4], int rows, int columns, map_float *to, size_t pitch,
                        const finish *f, int first, int lane)
{
    if (f->bias) {
        vec b = load(f->bias + lane);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
            for (int j = 0; j < columns; j++) {
                y[i][j] = add(y[i][j], b);
            }
        }
    }
    if (f->addend) {
        const map_float *from = f->addend + lane;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
            for (int j = 0; j < columns; j++) {
                y[i][j] = add(y[i][j], load_map(from + i * pitch + j * 16));
            }
        }
    }
    if (f->stats) {
        float *s = f->stats + lane;
        vec pivot = first ? y[0][0] : load(s + MDMT_STATS_PIVOT * f->stats_row);
        vec sum = first ? zero() : load(s + MDMT_STATS_SUM * f->stats_row);
        vec square = first ? zero() : load(s + MDMT_STATS_SQUARE * f->stats_row);
        vec count = first ? zero() : load(s + MDMT_STATS_COUNT * f->stats_row);
        vec tile_sum = zero(), tile_square = zero();
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
            for (int j = 0; j < columns; j++) {
                vec e = sub(y[i][j], pivot);
                tile_sum = add(tile_sum, e);
                tile_square = madd(e, e, tile_square);
            }
        }
        store(s + MDMT_STATS_PIVOT * f->stats_row, pivot);
        store(s + MDMT_STATS_SUM * f->stats_row, add(sum, tile_sum));
        store(s + MDMT_STATS_SQUARE * f->stats_row, add(square, tile_square));
        store(s + MDMT_STATS_COUNT * f->stats_row, add(count, set1((float)(rows * columns))));
    }
    if (f->past) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            store_map(to + i * pitch + lane, y[i], columns, 1);
        }
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            store_map(to + i * pitch + lane, y[i], columns, 0);
        }
    }
}

/* A^T m A of a tile of high x wide outputs. */
INLINE void output_tile(int points, int high, int wide, const narrow_points *c, const float *m,
                        size_t m_point, vec (*y)[4])
{
    vec half[4][6];
#pragma GCC unroll 16
    for (int j = 0; j < wide + 2; j++) {
        vec d[6], r[4];
#pragma GCC unroll 16
        for (int i = 0; i < high + 2; i++) {
            int place = place_of(points, high, i) * points + place_of(points, wide, j);
            d[i] = load(m + (size_t)place * m_point);
        }
        output_of(high, c, d, r);
#pragma GCC unroll 16
        for (int i = 0; i < high; i++) {
            half[i][j] = r[i];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < high; i++) {
        output_of(wide, c, half[i], y[i]);
    }
}

/* A tile cut by the border: rows x columns of it are inside. */
static void finish_cut(vec (*y)[4], int rows, int columns, map_float *to, size_t pitch,
                       const finish *f, int first, int lane)
{
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++, first = 0) {
            vec one[1][4] = {{y[i][j]}};
            finish g = *f;
            size_t at = i * pitch + (size_t)j * 16;
            g.addend = f->addend ? f->addend + at : NULL;
            finish_tile(one, 1, 1, to + at, pitch, &g, first, lane);
        }
    }
}

/* Output transform and end of a tile of high x wide outputs, rows x columns of
 * which are inside. */
INLINE void tile_case(int points, int high, int wide, const narrow_points *c, const float *m,
                      size_t m_point, int rows, int columns, map_float *y, size_t pitch,
                      const finish *f, int first)
{
    for (int lane = 0; lane < 16; lane += VW) {
        vec r[4][4];
        output_tile(points, high, wide, c, m + lane, m_point, r);
        if (rows >= high && columns >= wide) {
            finish_tile(r, high, wide, y, pitch, f, first, lane);
        } else {
            finish_cut(r, rows < high ? rows : high, columns < wide ? columns : wide, y, pitch, f,
                       first, lane);
        }
    }
}

/* Output transform of tile t from m to y, where its first pixel lies. */
static void tile_out(const mdmt_wino_plan *p, const mdmt_wino_tile *t, const float *m, map_float *y,
                     const finish *f, int first)
{
    narrow_points c = narrow_of(p->points);
    size_t pitch = (size_t)p->ow * 16;
    int rows = p->oh - t->y, columns = p->ow - t->x;
#define CASE(points, high, wide)                                                                   \
    tile_case(points, high, wide, &c, m, p->m_point, rows, columns, y, pitch, f, first)
    if (p->points == 4) {
        CASE(4, 2, 2);
        return;
    }
    switch (4 * t->high + t->wide) {
    case 4 * 4 + 4:
        CASE(6, 4, 4);
        break;
    case 4 * 4 + 3:
        CASE(6, 4, 3);
        break;
    case 4 * 4 + 2:
        CASE(6, 4, 2);
        break;
    case 4 * 3 + 4:
        CASE(6, 3, 4);
        break;
    case 4 * 3 + 3:
        CASE(6, 3, 3);
        break;
    case 4 * 3 + 2:
        CASE(6, 3, 2);
        break;
    case 4 * 2 + 4:
        CASE(6, 2, 4);
        break;
    case 4 * 2 + 3:
        CASE(6, 2, 3);
        break;
    default:
        CASE(6, 2, 2);
        break;
    }
#undef CASE
}

/* ---- the work --------------------------------------------------------- */

enum { WEIGHT_CUTS = 4 /* tasks that transform the weights of a pair */ };

typedef struct {
    mdmt_wino_plan plan;
    const mdmt_call *call;
    const float *w, *bias;
    const map_float *addend;
    map_float *y;
    float *stats, *shared, *scratch;
    float *weights; /* by output: all of them, transformed, pair by pair */
    size_t thread_floats;
    int group; /* by output: the one at work */
} conv_work;

/* The products of tiles [q0, q1) of the set with `blocks` output blocks, u being
 * the first one's, summed over `channels` input channels, v being the first
 * one's; m is that of tile 0. */
static void products_of(const mdmt_wino_plan *p, const mdmt_wino_tiles *tiles, int q0, int q1,
                        int blocks, const float *v, const float *u, size_t u_block, int channels,
                        float *m, int more)
{
    int points = p->points * p->points;
    for (int point = 0; point < points; point++) {
        int lo = q0, hi = q1, next_lo = q0, next_hi = q1, next = (point + 1) % points;
        mdmt_wino_range(p, tiles, point / p->points, point % p->points, &lo, &hi);
        mdmt_wino_range(p, tiles, next / p->points, next % p->points, &next_lo, &next_hi);
        if (lo >= hi) {
            continue;
        }
        tile_call call = {.v = v + point * p->v_point + (size_t)lo * 16,
                          .u = u + point * p->u_point,
                          .ahead_v = v + next * p->v_point + (size_t)next_lo * 16,
                          .ahead_u = u + next * p->u_point,
                          .m = m + point * p->m_point + (size_t)lo * 16,
                          .v_block = (size_t)p->set_tiles * 16,
                          .channels = channels,
                          .more = more};
        tile_product(hi - lo, blocks, u_block, p->m_block, &call);
    }
}

/* The output transform of tiles [q0, q1) of the set and output blocks
 * [k, k + blocks); the statistics are those of `part`; m is that of tile 0. */
static void outputs_of(const conv_work *work, const mdmt_wino_tiles *tiles, int q0, int q1, int k,
                       int blocks, const float *m, int part)
{
    const mdmt_wino_plan *p = &work->plan;
    size_t plane = (size_t)p->oh * p->ow * 16, channels = (size_t)p->kb * 16;
    finish f[MDMT_WINO_PAIR];
    for (int b = 0; b < blocks; b++) {
        size_t at = (size_t)(k + b) * 16;
        f[b] = (finish){.stats_row = channels, .past = p->past};
        f[b].bias = work->bias ? work->bias + at : NULL;
        f[b].stats = work->stats ? work->stats + part * MDMT_STATS_ROWS * channels + at : NULL;
    }
    for (int q = q0; q < q1; q++) {
        mdmt_wino_tile t = mdmt_wino_tile_at(p, tiles, q);
        for (int b = 0; b < blocks; b++) {
            size_t at = t.n * p->y_sample + (k + b) * plane + ((size_t)t.y * p->ow + t.x) * 16;
            f[b].addend = work->addend ? work->addend + at : NULL;
            tile_out(p, &t, m + b * p->m_block + (size_t)q * 16, work->y + at, &f[b], q == q0);
        }
    }
    if (p->past) {
        mdmt_end_streams();
    }
}

static void weights_task(void *context, int task, int thread)
{
    const conv_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    for (int in = 0; in < p->cb; in++) {
        weight_block(p, work->w, task, in, work->shared + ((size_t)task * p->cb + in) * 256);
    }
}

static void chunk_task(void *context, int task, int thread)
{
    const conv_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    int rows = p->n * p->rows;
    mdmt_wino_tiles tiles = mdmt_wino_tiles_of(p, mdmt_wino_cut(rows, p->chunks, task),
                                               mdmt_wino_cut(rows, p->chunks, task + 1));
    float *v = work->scratch + thread * work->thread_floats, *m = v + p->v;
    for (int in = 0; in < p->cb; in++) {
        for (int row = tiles.row0; row < tiles.row1; row++) {
            transform_input(p, &tiles, row, &work->call->in[0], in,
                            v + (size_t)in * p->set_tiles * 16);
        }
    }
    for (int k = 0; k < p->kb; k += MDMT_WINO_PAIR) {
        int blocks = p->kb - k < MDMT_WINO_PAIR ? p->kb - k : MDMT_WINO_PAIR;
        size_t u_block = (size_t)p->cb * 256;
        products_of(p, &tiles, 0, tiles.total, blocks, v, work->shared + k * u_block, u_block, p->c,
                    m, 0);
        outputs_of(work, &tiles, 0, tiles.total, k, blocks, m, task);
    }
}

/* Tiles of the group at work. */
static mdmt_wino_tiles group_tiles(const mdmt_wino_plan *p, int group)
{
    return mdmt_wino_tiles_of(p, mdmt_wino_cut(p->n, p->groups, group) * p->rows,
                              mdmt_wino_cut(p->n, p->groups, group + 1) * p->rows);
}

static void group_input_task(void *context, int task, int thread)
{
    const conv_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    mdmt_wino_tiles tiles = group_tiles(p, work->group);
    for (int row = tiles.row0; row < tiles.row1; row++) {
        transform_input(p, &tiles, row, &work->call->in[0], task,
                        work->shared + (size_t)task * p->set_tiles * 16);
    }
}

/* By output: the weights of a range of input blocks for a pair of output blocks. */
static void pair_weights_task(void *context, int task, int thread)
{
    const conv_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    (void)thread;
    int pair = task / WEIGHT_CUTS, cut = task % WEIGHT_CUTS, k = pair * MDMT_WINO_PAIR;
    int in1 = mdmt_wino_cut(p->cb, WEIGHT_CUTS, cut + 1);
    float *u = work->weights + pair * p->u;
    for (int b = 0; b < MDMT_WINO_PAIR && k + b < p->kb; b++) {
        for (int in = mdmt_wino_cut(p->cb, WEIGHT_CUTS, cut); in < in1; in++) {
            weight_block(p, work->w, k + b, in, u + ((size_t)b * p->range + in) * 256);
        }
    }
}

/* By output, all weights at hand: a span of a pair of output blocks. */
static void span_task(void *context, int task, int thread)
{
    const conv_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    mdmt_wino_tiles tiles = group_tiles(p, work->group);
    int pair = task / p->spans, span = task % p->spans, k = pair * MDMT_WINO_PAIR;
    int blocks = p->kb - k < MDMT_WINO_PAIR ? p->kb - k : MDMT_WINO_PAIR;
    int q0 = mdmt_wino_cut(tiles.total, p->spans, span);
    int q1 = mdmt_wino_cut(tiles.total, p->spans, span + 1);
    float *m = work->scratch + thread * work->thread_floats - (size_t)q0 * 16;
    products_of(p, &tiles, q0, q1, blocks, work->shared, work->weights + pair * p->u,
                (size_t)p->range * 256, p->c, m, 0);
    outputs_of(work, &tiles, q0, q1, k, blocks, m, work->group * p->spans + span);
}

static void outputs_task(void *context, int task, int thread)
{
    const conv_work *work = context;
    const mdmt_wino_plan *p = &work->plan;
    mdmt_wino_tiles tiles = group_tiles(p, work->group);
    float *u = work->scratch + thread * work->thread_floats, *m = u + p->u;
    int k = task * MDMT_WINO_PAIR;
    int blocks = p->kb - k < MDMT_WINO_PAIR ? p->kb - k : MDMT_WINO_PAIR;
    for (int in0 = 0; in0 < p->cb; in0 += p->range) {
        int in1 = in0 + p->range < p->cb ? in0 + p->range : p->cb;
        int channels = (in1 * 16 < p->c ? in1 * 16 : p->c) - in0 * 16;
        size_t u_block = (size_t)p->range * 256;
        for (int b = 0; b < blocks; b++) {
            for (int in = in0; in < in1; in++) {
                weight_block(p, work->w, k + b, in, u + b * u_block + (size_t)(in - in0) * 256);
            }
        }
        for (int span = 0; span < p->spans; span++) {
            int q0 = mdmt_wino_cut(tiles.total, p->spans, span);
            int q1 = mdmt_wino_cut(tiles.total, p->spans, span + 1);
            const float *v = work->shared + (size_t)in0 * p->set_tiles * 16;
            float *first = m - (p->range < p->cb ? 0 : (size_t)q0 * 16);
            products_of(p, &tiles, q0, q1, blocks, v, u, u_block, channels, first, in0 > 0);
            if (in1 == p->cb) {
                outputs_of(work, &tiles, q0, q1, k, blocks, first, work->group * p->spans + span);
            }
        }
    }
}

static mdmt_status run_conv(const mdmt_site *site, const mdmt_call *call, mdmt_wino_pass pass,
                            int points)
{
    conv_work work = {.call = call, .w = call->in[1].data, .y = call->out[0]};
    mdmt_wino_plan *p = &work.plan;
    mdmt_wino_plan_make(site, pass, points, p);
    if (pass == MDMT_WINO_FORWARD) {
        work.bias = call->in[2].data;
        work.stats = site->out[1] ? call->out[1] : NULL;
    } else {
        work.addend = call->in[2].data;
    }
    work.shared = call->workspace;
    if (p->by_output) {
        int pairs = (p->kb + 1) / MDMT_WINO_PAIR;
        work.scratch = work.weights = work.shared + p->v;
        work.thread_floats = p->u + p->m;
        if (p->shared_weights) {
            work.scratch += p->u * pairs;
            work.thread_floats = p->m;
            mdmt_parallel(site->pool, pairs * WEIGHT_CUTS, pair_weights_task, &work);
        }
        for (work.group = 0; work.group < p->groups; work.group++) {
            mdmt_parallel(site->pool, p->cb, group_input_task, &work);
            if (p->shared_weights) {
                mdmt_parallel(site->pool, pairs * p->spans, span_task, &work);
            } else {
                mdmt_parallel(site->pool, pairs, outputs_task, &work);
            }
        }
    } else {
        work.scratch = work.shared + p->u;
        work.thread_floats = p->v + p->m;
        mdmt_parallel(site->pool, p->kb, weights_task, &work);
        mdmt_parallel(site->pool, p->chunks, chunk_task, &work);
    }
    return MDMT_OK;
}

#endif
