/* Depthwise convolution: forward, and the data gradient, which is a convolution of dy, too:
 * with stride 1 by the turned weights, with stride 2 by the even and the odd taps. */
#ifndef MDMT_CPU_CONV_DEPTH_FORWARD_H
#define MDMT_CPU_CONV_DEPTH_FORWARD_H

#include "conv_depth_tile.h"

/* From the source map (x; dy) to the result (y; dx). */
typedef struct {
    depth_cut cut;
    depth_stage stage;
    depth_map source, result;
    int channels, width;    /* of the result                                          */
    int taps, stride;       /* stride: of the source                                  */
    int top;                /* padding: result row i reads source rows i * stride - top .. */
    int pairs;              /* the data gradient of stride 2                          */
    int turned;             /* the data gradient of stride 1                          */
    int tiled_width;        /* pixels (or pairs) that the tiles make of a row         */
    int skip;               /* pixels of a line before those of the row (pairs)       */
    int rows;               /* result rows of a tile                                  */
    depth_rows_fn fn, last; /* `last` makes one row                                   */
    size_t line;            /* floats of a result row in the scratch                  */
    size_t thread_floats;
} depth_plan;

typedef struct {
    depth_plan plan;
    mdmt_value source;
    const float *w, *bias;
    const map_float *addend;
    map_float *result;
    float *stats;
    int stream;  /* the result goes past the caches */
    int in_line; /* rows are made in the scratch and then moved */
    float *scratch;
} depth_job;

static const float depth_zeros[MDMT_BLOCK];

/* ---- plans ---- */

static int depth_supports_weight(const mdmt_site *site, const mdmt_tensor *w)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    return w->kind == MDMT_W_DEPTH && (g.kh == 3 || g.kh == 5) && g.kw == g.kh && g.sh == g.sw &&
           g.sh <= 2 && g.dh == 1 && g.dw == 1;
}

static int depth_supports(const mdmt_site *site)
{
    return depth_supports_weight(site, site->in[1]);
}

static void depth_plan_tiles(depth_plan *p, const depth_tiles *tiles, int width)
{
    const depth_tiles *tile = depth_tile_for(tiles, width, p->pairs), *one = tile;
    int k = p->taps / 2 - 1, s = p->pairs ? 0 : p->stride - 1;
    while (one->rows > 1 || (!p->pairs && one->pixels > width)) {
        one++;
    }
    p->rows = tile->rows;
    p->fn = tile->fn[k][s];
    p->last = one->fn[k][s];
    p->tiled_width = p->pairs ? depth_up(width, tile->pixels) * tile->pixels : width;
}

static void depth_plan_sizes(depth_plan *p, int n, int rows)
{
    int pixels = rows * p->width;
    p->stage.pitch = (size_t)p->stage.columns * MDMT_BLOCK;
    p->line = (size_t)p->tiled_width * (size_t)(1 + p->pairs) * MDMT_BLOCK;
    p->cut = depth_cut_of(n, p->channels, rows, p->width, p->rows, DEPTH_FEW / pixels);
    p->thread_floats = depth_ring_floats(&p->stage) + p->line * (size_t)p->rows;
    if (p->turned) {
        p->thread_floats += (size_t)p->taps * (size_t)p->taps * MDMT_BLOCK;
    }
    p->thread_floats = mdmt_round_up(p->thread_floats, 1024);
}

static depth_plan depth_plan_forward(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    depth_plan p = {.source = depth_map_of(site->in[0]),
                    .result = depth_map_of(site->out[0]),
                    .channels = g.c,
                    .width = g.ow,
                    .taps = g.kh,
                    .stride = g.sh,
                    .top = g.pt};
    depth_plan_tiles(&p, depth_row_tiles, g.ow);
    p.stage = (depth_stage){
        .columns = (g.ow - 1) * g.sw + g.kw, .lead = g.pl, .slots = g.kh + (p.rows - 1) * g.sh};
    depth_plan_sizes(&p, g.n, g.oh);
    return p;
}

static depth_plan depth_plan_data(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    depth_plan p = {.source = depth_map_of(site->in[0]),
                    .result = depth_map_of(site->out[0]),
                    .channels = g.c,
                    .width = g.w,
                    .taps = g.kh,
                    .stride = g.sh};
    if (g.sh == 1) {
        p.turned = 1;
        p.top = g.kh - 1 - g.pt;
        depth_plan_tiles(&p, depth_row_tiles, g.w);
        p.stage = (depth_stage){
            .columns = g.w - 1 + g.kw, .lead = g.kw - 1 - g.pl, .slots = g.kh + p.rows - 1};
    } else { /* pair m holds the result columns 2 m - pl, 2 m + 1 - pl; from m = pl / 2 on */
        p.pairs = 1;
        p.top = g.pt;
        p.skip = g.pl % 2;
        depth_plan_tiles(&p, depth_pair_tiles, depth_up(g.w + p.skip, 2));
        p.stage = (depth_stage){.columns = p.tiled_width + g.kw / 2,
                                .lead = g.kw / 2 - g.pl / 2,
                                .slots = g.kh / 2 + 1};
    }
    depth_plan_sizes(&p, g.n, g.h);
    return p;
}

/* ---- statistics of rows as they are made ---- */

typedef struct {
    lanes pivot, sum, square;
    int pixels, has_pivot;
    double total[2][MDMT_BLOCK];
} depth_stats;

static void depth_stats_flush(depth_stats *stats)
{
    lanes_accumulate(stats->total[0], stats->sum);
    lanes_accumulate(stats->total[1], stats->square);
    stats->sum = stats->square = lanes_zero();
    stats->pixels = 0;
}

/* At most DEPTH_RUN pixels of a row. */
static void depth_stats_row(depth_stats *stats, const float *row, int pixels)
{
    if (!stats->has_pivot) {
        stats->pivot = lanes_load(row);
        stats->has_pivot = 1;
    }
    const lanes pivot = stats->pivot;
    lanes sum[2] = {stats->sum, lanes_zero()}, square[2] = {stats->square, lanes_zero()};
    int i = 0;
    for (; i + 2 <= pixels; i += 2) {
        for (int u = 0; u < 2; u++) {
            lanes d = lanes_sub(lanes_load(row + (ptrdiff_t)(i + u) * MDMT_BLOCK), pivot);
            sum[u] = lanes_add(sum[u], d);
            square[u] = lanes_fma(d, d, square[u]);
        }
    }
    for (; i < pixels; i++) {
        lanes d = lanes_sub(lanes_load(row + (ptrdiff_t)i * MDMT_BLOCK), pivot);
        sum[0] = lanes_add(sum[0], d);
        square[0] = lanes_fma(d, d, square[0]);
    }
    stats->sum = lanes_add(sum[0], sum[1]);
    stats->square = lanes_add(square[0], square[1]);
    stats->pixels += pixels;
    if (stats->pixels >= DEPTH_RUN) {
        depth_stats_flush(stats);
    }
}

static void depth_stats_store(depth_stats *stats, const depth_plan *p, const depth_task *t,
                              float *to)
{
    size_t row = (size_t)p->cut.blocks * MDMT_BLOCK;
    int64_t count = (int64_t)(t->end_n - t->first_n) * (t->end - t->first) * p->width;
    depth_stats_flush(stats);
    to += (size_t)t->part * MDMT_STATS_ROWS * row + (size_t)t->block * MDMT_BLOCK;
    lanes_store(to + MDMT_STATS_COUNT * row, lanes_set((float)count));
    lanes_store(to + MDMT_STATS_PIVOT * row, stats->pivot);
    for (int lane = 0; lane < MDMT_BLOCK; lane++) {
        to[MDMT_STATS_SUM * row + (size_t)lane] = (float)stats->total[0][lane];
        to[MDMT_STATS_SQUARE * row + (size_t)lane] = (float)stats->total[1][lane];
    }
}

/* ---- the passes ---- */

MDMT_INLINE void depth_move(const float *line, const map_float *add, map_float *to, int pixels,
                            int stream)
{
    for (ptrdiff_t i = 0; i < (ptrdiff_t)pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes v = lanes_load(line + i);
        lanes_put(to + i, add ? lanes_add(v, lanes_load(add + i)) : v, stream);
    }
}

/* A row of the scratch to its place. `to` may be `add`. */
static void depth_move_row(const float *line, const map_float *add, map_float *to, int pixels,
                           int stream)
{
    if (add) {
        depth_move(line, add, to, pixels, 0);
    } else if (stream) {
        depth_move(line, NULL, to, pixels, 1);
    } else {
        depth_move(line, NULL, to, pixels, 0);
    }
}

static inline int depth_max(int a, int b)
{
    return a > b ? a : b;
}

static inline int depth_min(int a, int b)
{
    return a < b ? a : b;
}

/* Stages what `count` result rows from `row` on need, and says where it lies. */
static void depth_point(const depth_plan *p, depth_ring *ring, int row, int count, depth_rows *a)
{
    int first = row * p->stride - p->top, last = first + (count - 1) * p->stride;
    depth_ring_until(ring, last + p->taps);
    for (int i = 0; i < p->taps + (count - 1) * p->stride; i++) {
        a->row[i] = depth_ring_at(ring, first + i);
    }
    a->first = depth_min(depth_max(0, -last), p->taps);
    a->end = depth_max(depth_min(p->taps, ring->h - first), a->first);
}

/* The same for a result row of pairs: tap row r reads source row (row + top - r) / 2. */
static void depth_point_pairs(const depth_plan *p, depth_ring *ring, int row, depth_rows *a)
{
    int at = row + p->top;
    depth_ring_until(ring, at / 2 + 1);
    a->first = depth_max(at % 2, at - 2 * (ring->h - 1));
    a->end = depth_min(p->taps, at + 1);
    for (int r = a->first; r < a->end; r += 2) {
        a->row[r] = depth_ring_at(ring, (at - r) / 2);
    }
}

/* First source row that result row `row` reads. */
static int depth_first_source(const depth_plan *p, int row)
{
    return p->pairs ? (row + p->top - p->taps + 2) / 2 : row * p->stride - p->top;
}

/* Says where the tiles write the rows that begin at element `at` of the result. Rows of bfloat16
 * are made as floats, too, where statistics are taken of them. */
static void depth_aim(const depth_job *job, float *line, size_t at, depth_rows *a)
{
#ifdef MDMT_BF16_MAPS
    a->to = job->in_line || job->stats ? line : NULL;
    a->rounded = job->in_line ? NULL : job->result + at;
#else
    a->to = job->in_line ? line : job->result + at;
#endif
}

/* Rows first .. end - 1 of the plane that the ring stands on. */
static void depth_plane(const depth_job *job, const depth_task *t, depth_ring *ring, float *line,
                        size_t plane, depth_rows *a, depth_stats *stats)
{
    const depth_plan *p = &job->plan;
    for (int row = t->first; row < t->end; row += p->rows) {
        int count = t->end - row < p->rows ? 1 : p->rows;
        size_t at = plane + (size_t)row * (size_t)p->width * MDMT_BLOCK;
        if (p->pairs) {
            depth_point_pairs(p, ring, row, a);
        } else {
            depth_point(p, ring, row, count, a);
        }
        a->ahead = ring->from + (ptrdiff_t)ring->next * ring->w * MDMT_BLOCK;
        depth_aim(job, line, at, a);
        (count == p->rows ? p->fn : p->last)(a);
        for (int i = 0; i < count; i++) {
            const float *made = a->to + i * a->to_row + p->skip * MDMT_BLOCK;
            size_t to = at + (size_t)i * (size_t)p->width * MDMT_BLOCK;
            for (int from = 0; job->stats && from < p->width; from += DEPTH_RUN) {
                depth_stats_row(stats, made + (ptrdiff_t)from * MDMT_BLOCK,
                                depth_min(DEPTH_RUN, p->width - from));
            }
            if (job->in_line) {
                depth_move_row(made, job->addend ? job->addend + to : NULL, job->result + to,
                               p->width, job->stream);
            }
        }
    }
}

static void depth_turn(const float *w, float *to, int taps)
{
    for (int i = 0; i < taps; i++) {
        lanes_store(to + i * MDMT_BLOCK, lanes_load(w + (taps - 1 - i) * MDMT_BLOCK));
    }
}

static void depth_forward_task(void *context, int task, int thread)
{
    const depth_job *job = context;
    const depth_plan *p = &job->plan;
    depth_task t = depth_task_of(&p->cut, task);
    float *scratch = job->scratch + (size_t)thread * p->thread_floats;
    float *line = scratch + depth_ring_floats(&p->stage);
    float *turned = line + p->line * (size_t)p->rows;
    depth_ring ring = depth_ring_open(&p->stage, scratch, &p->source);
    depth_stats stats = {.sum = lanes_zero(), .square = lanes_zero(), .pivot = lanes_zero()};
    int taps = p->taps * p->taps;
    depth_rows a = {.width = p->tiled_width,
                    .w = job->w + (size_t)t.block * (size_t)taps * MDMT_BLOCK,
                    .add = job->bias ? job->bias + (size_t)t.block * MDMT_BLOCK : depth_zeros};
    a.rounded_row = (ptrdiff_t)p->width * MDMT_BLOCK;
    a.to_row = MDMT_MAPS_BF16 || job->in_line ? (ptrdiff_t)p->line : a.rounded_row;
    if (p->turned) {
        depth_turn(a.w, turned, taps);
        a.w = turned;
    }
    for (int n = t.first_n; n < t.end_n; n++) {
        size_t plane = (size_t)n * p->result.sample + (size_t)t.block * p->result.block;
        depth_ring_plane(&ring, &job->source, &p->source, p->channels, n, t.block,
                         depth_first_source(p, t.first));
        depth_plane(job, &t, &ring, line, plane, &a, &stats);
    }
    if (job->stats) {
        depth_stats_store(&stats, p, &t, job->stats);
    }
    if (job->stream) {
        mdmt_end_streams();
    }
}

static void depth_forward_go(const mdmt_site *site, const mdmt_call *call, depth_job *job)
{
    const depth_plan *p = &job->plan;
    int64_t pixels = (int64_t)p->cut.n * p->cut.blocks * p->cut.rows * p->width;
    job->source = call->in[0];
    job->w = call->in[1].data;
    job->result = call->out[0];
    job->scratch = call->workspace;
    job->stream = !job->addend && lanes_streams(pixels, job->result);
    job->in_line = job->stream || job->addend || p->pairs;
    mdmt_parallel(site->pool, p->cut.tasks, depth_forward_task, job);
}

static mdmt_status depth_forward_run(const mdmt_site *site, const mdmt_call *call)
{
    depth_job job = {.plan = depth_plan_forward(site),
                     .bias = mdmt_optional_in(site, call, 2),
                     .stats = mdmt_optional_out(site, call, 1)};
    depth_forward_go(site, call, &job);
    return MDMT_OK;
}

static void depth_forward_needs(const mdmt_site *site, mdmt_needs *needs)
{
    depth_plan p = depth_plan_forward(site);
    needs->workspace_bytes = p.thread_floats * (size_t)site->threads * sizeof(float);
    needs->stat_parts = p.cut.groups * p.cut.bands;
}

static mdmt_status depth_data_run(const mdmt_site *site, const mdmt_call *call)
{
    depth_job job = {.plan = depth_plan_data(site), .addend = mdmt_optional_in(site, call, 2)};
    depth_forward_go(site, call, &job);
    return MDMT_OK;
}

static void depth_data_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->workspace_bytes =
        depth_plan_data(site).thread_floats * (size_t)site->threads * sizeof(float);
    needs->inplace_inputs = 1u << 2; /* over the addend */
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(conv2d_forward_depth) = {
    .name = MDMT_MAP_KERNEL_TEXT(conv2d_forward_depth),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = depth_supports,
    .needs = depth_forward_needs,
    .run = depth_forward_run,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_GATES | MDMT_ACCEPTS_ACTS,
};
const mdmt_cpu_impl MDMT_MAP_KERNEL(conv2d_bwd_data_depth) = {
    .name = MDMT_MAP_KERNEL_TEXT(conv2d_bwd_data_depth),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = depth_supports,
    .needs = depth_data_needs,
    .run = depth_data_run,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_GATES | MDMT_ACCEPTS_ACTS,
};

#endif
