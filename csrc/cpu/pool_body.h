/* Pooling on maps: sixteen channels at a time. Included once by pool_avx2.c and
 * once by pool_avx512.c, and by pool_bf16.c for maps of bfloat16. */
#include "access.h"
#include "lanes.h"

/* Pooled rows (or, backwards, input rows) of a task: about 64 KiB of them. */
static int pool_rows_per_task(int width)
{
    int rows = 1024 / width;
    return rows < 1 ? 1 : rows;
}

/* A task of `rows` consecutive rows of one channel block of one sample. */
typedef struct {
    int n, block, first, end;
} pool_band;

static int pool_bands(int height, int rows)
{
    return (height + rows - 1) / rows;
}

static pool_band pool_band_of(int task, int blocks, int height, int rows)
{
    int bands = pool_bands(height, rows), band = task % bands, plane = task / bands;
    pool_band b = {.n = plane / blocks, .block = plane % blocks, .first = band * rows};
    b.end = b.first + rows < height ? b.first + rows : height;
    return b;
}

/* Taps of window `at` that fall on 0 .. size - 1: [first, end). */
MDMT_INLINE void pool_taps(int at, int stride, int pad, int dilation, int taps, int size,
                           int *first, int *end)
{
    int low = at * stride - pad;
    *first = low < 0 ? (-low + dilation - 1) / dilation : 0;
    int most = (size - 1 - low) / dilation + 1;
    *end = low >= size ? *first : most < taps ? most : taps;
}

/* ---- max_pool: y (N, C, OH, OW), argmax: tap row * kw + column of the first
 *      maximum; NaN counts as larger than all ---- */

typedef struct {
    mdmt_geometry g;
    mdmt_value x;
    map_float *y;
    uint8_t *argmax;
    const map_float *dy; /* backwards: dy, argmax -> dx */
    const uint8_t *from;
    map_float *dx;
    ptrdiff_t x_sample, y_sample; /* from sample to sample of x or dx, of y or dy */
    int rows, stream;             /* stream: y or dx goes past the caches */
    char *lines;                  /* per thread: MAX_LINES of line_bytes(ow) */
} pool_job;

/* Where the plane of a band lies in y and argmax; the latter is never a view. */
typedef struct {
    map_float *y;
    uint8_t *argmax;
} pool_to;

static pool_to pool_to_of(const pool_job *job, pool_band band)
{
    const mdmt_geometry *g = &job->g;
    ptrdiff_t plane = (ptrdiff_t)g->oh * g->ow * MDMT_BLOCK;
    ptrdiff_t dense = ((ptrdiff_t)band.n * mdmt_blocks(g->c) + band.block) * plane;
    return (pool_to){job->y + band.n * job->y_sample + band.block * plane,
                     job->argmax ? job->argmax + dense : NULL};
}

typedef enum { LOAD_PLAIN, LOAD_AFFINE, LOAD_RELU } load_kind;

MDMT_INLINE lanes pool_load(const map_float *p, lanes_affine affine, load_kind load)
{
    lanes v = lanes_load(p);
    if (load == LOAD_PLAIN) {
        return v;
    }
    v = lanes_apply(affine, v);
    return load == LOAD_RELU ? lanes_relu(v) : v;
}

/* The window whose tap (0, 0) lies at `x`, taps [r0, r1) x [s0, s1) of it. Strides
 * of a tap row and a tap column in elements. */
MDMT_INLINE void max_window(const map_float *x, ptrdiff_t row, ptrdiff_t column, int r0, int r1,
                            int s0, int s1, int kw, lanes_affine affine, load_kind load,
                            map_float *y, uint8_t *argmax)
{
    const int any = r0 < r1 && s0 < s1; /* dilated taps may all fall beside the map */
    lanes best = any ? pool_load(x + r0 * row + s0 * column, affine, load) : lanes_set(-INFINITY);
    lane_bytes index = lane_bytes_set(any ? r0 * kw + s0 : 255);
    for (int r = r0; r < r1; r++) {
        for (int s = s0; s < s1; s++) {
            lanes v = pool_load(x + r * row + s * column, affine, load);
            lanes_mask above = lanes_above(v, best);
            best = lanes_select(above, v, best);
            index = lane_bytes_select(above, lane_bytes_set(r * kw + s), index);
        }
    }
    lanes_store(y, best);
    if (argmax) {
        lane_bytes_store(argmax, index);
    }
}

static void max_row(const pool_job *job, const map_float *plane, int oh, lanes_affine affine,
                    load_kind load, map_float *y, uint8_t *argmax)
{
    const mdmt_geometry *g = &job->g;
    ptrdiff_t row = (ptrdiff_t)g->dh * g->w * MDMT_BLOCK, column = (ptrdiff_t)g->dw * MDMT_BLOCK;
    int r0, r1;
    pool_taps(oh, g->sh, g->pt, g->dh, g->kh, g->h, &r0, &r1);
    const map_float *top = plane + (ptrdiff_t)(oh * g->sh - g->pt) * g->w * MDMT_BLOCK;
    for (int ow = 0; ow < g->ow; ow++) {
        int s0, s1;
        pool_taps(ow, g->sw, g->pl, g->dw, g->kw, g->w, &s0, &s1);
        const map_float *x = top + (ptrdiff_t)(ow * g->sw - g->pl) * MDMT_BLOCK;
        uint8_t *index = argmax ? argmax + (ptrdiff_t)ow * MDMT_BLOCK : NULL;
        max_window(x, row, column, r0, r1, s0, s1, g->kw, affine, load,
                   y + (ptrdiff_t)ow * MDMT_BLOCK, index);
    }
}

/* 3x3 with stride 2, the pooling of most networks: first the maxima of three
 * neighbours in a row (a line, with the number of the column's tap), which two
 * rows of windows share, then those of three lines. The order of the comparisons
 * keeps the first maximum of the window's scan. */
typedef struct {
    float *value;
    uint8_t *tap;
} max_line;

enum { MAX_LINES = 3 };

static size_t line_bytes(int width)
{
    size_t lanes_in_line = (size_t)width * MDMT_BLOCK;
    return mdmt_round_up(lanes_in_line * (sizeof(float) + 1), MDMT_ALIGN);
}

static max_line line_of(char *lines, int width, int row)
{
    char *at = lines + (size_t)((row + MAX_LINES) % MAX_LINES) * line_bytes(width);
    return (max_line){(float *)(void *)at,
                      (uint8_t *)at + (size_t)width * MDMT_BLOCK * sizeof(float)};
}

MDMT_INLINE void max_better(lanes v, int tap, lanes *best, lane_bytes *index)
{
    lanes_mask above = lanes_above(v, *best);
    *best = lanes_select(above, v, *best);
    *index = lane_bytes_select(above, lane_bytes_set(tap), *index);
}

/* Row `row` (of g.w pixels) -> its line of g.ow. Where a window's first or last
 * column falls on the padding its neighbour stands in, which cannot win. */
MDMT_INLINE void max_line_make(const pool_job *job, const map_float *row, lanes_affine affine,
                               load_kind load, max_line line)
{
    const mdmt_geometry *g = &job->g;
    lanes first = pool_load(row, affine, load);
    lane_bytes tap = lane_bytes_set(g->pl);
    for (int ow = 0; ow < g->ow; ow++) {
        int middle = 2 * ow - g->pl + 1;
        const map_float *later = row + (ptrdiff_t)(2 * ow + 2 * g->w) * MDMT_BLOCK;
        lanes_fetch(later);
        lanes_fetch(later + MDMT_BLOCK);
        lanes best = first;
        lane_bytes index = tap;
        if (middle < g->w) {
            max_better(pool_load(row + (ptrdiff_t)middle * MDMT_BLOCK, affine, load), 1, &best,
                       &index);
        }
        if (middle + 1 < g->w) {
            first = pool_load(row + (ptrdiff_t)(middle + 1) * MDMT_BLOCK, affine, load);
            max_better(first, 2, &best, &index);
        }
        tap = lane_bytes_set(0);
        lanes_store(line.value + (ptrdiff_t)ow * MDMT_BLOCK, best);
        lane_bytes_store(line.tap + (ptrdiff_t)ow * MDMT_BLOCK, index);
    }
}

/* Lines r0 .. r1 - 1 of the window of row oh -> y, argmax. */
MDMT_INLINE void max_lines_join(const max_line *line, int r0, int r1, int width, map_float *y,
                                uint8_t *argmax, int stream)
{
    for (ptrdiff_t i = 0; i < (ptrdiff_t)width * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes best = lanes_load(line[r0].value + i);
        lane_bytes index = lane_bytes_add(lane_bytes_load(line[r0].tap + i), 3 * r0);
        for (int r = r0 + 1; r < r1; r++) {
            lanes v = lanes_load(line[r].value + i);
            lane_bytes tap = lane_bytes_add(lane_bytes_load(line[r].tap + i), 3 * r);
            lanes_mask above = lanes_above(v, best);
            best = lanes_select(above, v, best);
            index = lane_bytes_select(above, tap, index);
        }
        lanes_put(y + i, best, stream);
        if (argmax) {
            lane_bytes_store(argmax + i, index);
        }
    }
}

MDMT_INLINE void max_band_3x3(const pool_job *job, pool_band band, const map_float *plane,
                              lanes_affine affine, load_kind load, pool_to to, char *lines)
{
    const mdmt_geometry *g = &job->g;
    int made = 2 * band.first - g->pt; /* rows below this have their lines */
    made = made < 0 ? 0 : made;
    for (int oh = band.first; oh < band.end; oh++) {
        int top = 2 * oh - g->pt, r0, r1;
        pool_taps(oh, 2, g->pt, 1, 3, g->h, &r0, &r1);
        for (; made < top + r1; made++) {
            max_line_make(job, plane + (ptrdiff_t)made * g->w * MDMT_BLOCK, affine, load,
                          line_of(lines, g->ow, made));
        }
        max_line line[3] = {line_of(lines, g->ow, top), line_of(lines, g->ow, top + 1),
                            line_of(lines, g->ow, top + 2)};
        ptrdiff_t at = (ptrdiff_t)oh * g->ow * MDMT_BLOCK;
        uint8_t *argmax = to.argmax ? to.argmax + at : NULL;
        if (r1 - r0 < 3) {
            max_lines_join(line, r0, r1, g->ow, to.y + at, argmax, 0);
        } else if (job->stream) {
            max_lines_join(line, 0, 3, g->ow, to.y + at, argmax, 1);
        } else {
            max_lines_join(line, 0, 3, g->ow, to.y + at, argmax, 0);
        }
    }
}

static int max_is_3x3(const mdmt_geometry *g)
{
    return g->kh == 3 && g->kw == 3 && g->sh == 2 && g->sw == 2 && g->dh == 1 && g->dw == 1 &&
           g->pt <= 1 && g->pl <= 1;
}

MDMT_INLINE void max_band(const pool_job *job, pool_band band, const map_float *plane,
                          lanes_affine affine, load_kind load, pool_to to, char *lines)
{
    const mdmt_geometry *g = &job->g;
    if (max_is_3x3(g)) {
        max_band_3x3(job, band, plane, affine, load, to, lines);
        return;
    }
    for (int oh = band.first; oh < band.end; oh++) {
        ptrdiff_t at = (ptrdiff_t)oh * g->ow * MDMT_BLOCK;
        max_row(job, plane, oh, affine, load, to.y + at, to.argmax ? to.argmax + at : NULL);
    }
}

static void max_task(void *context, int task, int thread)
{
    const pool_job *job = context;
    const mdmt_geometry *g = &job->g;
    int blocks = mdmt_blocks(g->c);
    pool_band band = pool_band_of(task, blocks, g->oh, job->rows);
    const map_float *x = (const map_float *)job->x.data + band.n * job->x_sample +
                         (ptrdiff_t)band.block * g->h * g->w * MDMT_BLOCK;
    lanes_affine affine = {lanes_zero(), lanes_zero()};
    if (job->x.scale) {
        affine = lanes_affine_load(job->x.scale, job->x.shift, band.block);
    }
    pool_to to = pool_to_of(job, band);
    char *lines = job->lines + (size_t)thread * MAX_LINES * line_bytes(g->ow);
    if (!job->x.scale) {
        max_band(job, band, x, affine, LOAD_PLAIN, to, lines);
    } else if (job->x.act == MDMT_ACT_RELU) {
        max_band(job, band, x, affine, LOAD_RELU, to, lines);
    } else {
        max_band(job, band, x, affine, LOAD_AFFINE, to, lines);
    }
    mdmt_end_streams();
}

static mdmt_status max_run(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = {.g = mdmt_pool_geometry(site),
                    .x = call->in[0],
                    .y = call->out[0],
                    .argmax = mdmt_optional_out(site, call, 1),
                    .x_sample = (ptrdiff_t)mdmt_map_sample(site->in[0]),
                    .y_sample = (ptrdiff_t)mdmt_map_sample(site->out[0]),
                    .lines = call->workspace};
    int planes = job.g.n * mdmt_blocks(job.g.c);
    job.rows = pool_rows_per_task(job.g.ow);
    job.stream = lanes_streams((int64_t)planes * job.g.oh * job.g.ow, job.y);
    mdmt_parallel(site->pool, planes * pool_bands(job.g.oh, job.rows), max_task, &job);
    return MDMT_OK;
}

static void max_needs(const mdmt_site *site, mdmt_needs *needs)
{
    mdmt_geometry g = mdmt_pool_geometry(site);
    needs->workspace_bytes = (size_t)site->threads * MAX_LINES * line_bytes(g.ow);
}

static int pool_supports(const mdmt_site *site)
{
    mdmt_geometry g = mdmt_pool_geometry(site);
    return site->in[0]->kind == MDMT_MAP && site->in[0]->dtype == MDMT_F32 && g.kh * g.kw <= 256;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(max_pool_forward) = {
    .name = MDMT_MAP_KERNEL_TEXT(max_pool_forward),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = pool_supports,
    .needs = max_needs,
    .run = max_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};

/* ---- max_pool_bwd: dx[p] = sum of dy over the windows whose maximum was p.
 *      Gathered, so that every element of dx is written once ---- */

/* A plane of one channel block of one sample, backwards. */
typedef struct {
    const map_float *dy;
    const uint8_t *from;
    map_float *dx;
} max_plane;

/* dx at row ih and column iw of a plane: dy of the windows whose maximum lies there. */
MDMT_INLINE lanes max_gather(const pool_job *job, const max_plane *plane, int ih, int iw)
{
    const mdmt_geometry *g = &job->g;
    lanes sum = lanes_zero();
    for (int r = g->kh - 1; r >= 0; r--) {
        int up = ih + g->pt - r * g->dh;
        if (up < 0 || up % g->sh != 0 || up / g->sh >= g->oh) {
            continue;
        }
        for (int s = g->kw - 1; s >= 0; s--) {
            int left = iw + g->pl - s * g->dw;
            if (left < 0 || left % g->sw != 0 || left / g->sw >= g->ow) {
                continue;
            }
            ptrdiff_t at = ((ptrdiff_t)(up / g->sh) * g->ow + left / g->sw) * MDMT_BLOCK;
            lane_bytes index = lane_bytes_load(plane->from + at);
            lane_bytes tap = lane_bytes_set(r * g->kw + s);
            sum = lanes_add(sum, lanes_where_equal(index, tap, lanes_load(plane->dy + at)));
        }
    }
    return sum;
}

/* One of the (up to) two by two windows around a quad of 3x3, stride 2, pad 1. */
typedef struct {
    lane_bytes index;
    lanes dy;
} max_source;

MDMT_INLINE max_source max_source_load(const max_plane *plane, ptrdiff_t at)
{
    return (max_source){lane_bytes_load(plane->from + at), lanes_load(plane->dy + at)};
}

MDMT_INLINE lanes max_take(max_source source, int tap)
{
    return lanes_where_equal(source.index, lane_bytes_set(tap), source.dy);
}

/* Rows 2a and 2a + 1 of dx, 3x3, stride 2, pad 1. Pixels beyond the windows on
 * the right or below see only those that exist. */
MDMT_INLINE void max_pair_row(const pool_job *job, const max_plane *plane, int a, int stream)
{
    const mdmt_geometry *g = &job->g;
    const max_source none = {lane_bytes_set(255), lanes_zero()};
    int below = a + 1 < g->oh, second = 2 * a + 1 < g->h;
    ptrdiff_t down = (ptrdiff_t)g->ow * MDMT_BLOCK, at = a * down;
    map_float *dx = plane->dx + (ptrdiff_t)2 * a * g->w * MDMT_BLOCK;
    map_float *dx_below = dx + (ptrdiff_t)g->w * MDMT_BLOCK;
    max_source here = max_source_load(plane, at);
    max_source under = below ? max_source_load(plane, at + down) : none;
    for (int b = 0; b < g->ow; b++) {
        max_source right = none, corner = none;
        at += MDMT_BLOCK;
        if (b + 1 < g->ow) {
            right = max_source_load(plane, at);
            corner = below ? max_source_load(plane, at + down) : none;
        }
        ptrdiff_t to = (ptrdiff_t)2 * b * MDMT_BLOCK;
        int wide = 2 * b + 1 < g->w;
        lanes_put(dx + to, max_take(here, 4), stream);
        if (wide) {
            lanes_put(dx + to + MDMT_BLOCK, lanes_add(max_take(here, 5), max_take(right, 3)),
                      stream);
        }
        if (second) {
            lanes_put(dx_below + to, lanes_add(max_take(here, 7), max_take(under, 1)), stream);
            if (wide) {
                lanes row = lanes_add(max_take(here, 8), max_take(right, 6));
                lanes next = lanes_add(max_take(under, 2), max_take(corner, 0));
                lanes_put(dx_below + to + MDMT_BLOCK, lanes_add(row, next), stream);
            }
        }
        here = right;
        under = corner;
    }
}

/* 3x3, stride 2, pad 1 at the top and left, and windows on every pixel pair. */
static int max_is_paired(const mdmt_geometry *g)
{
    return g->kh == 3 && g->kw == 3 && g->sh == 2 && g->sw == 2 && g->pt == 1 && g->pl == 1 &&
           g->dh == 1 && g->dw == 1 && g->oh == (g->h + 1) / 2 && g->ow == (g->w + 1) / 2;
}

static void max_bwd_task(void *context, int task, int thread)
{
    const pool_job *job = context;
    const mdmt_geometry *g = &job->g;
    int blocks = mdmt_blocks(g->c), paired = max_is_paired(g);
    pool_band band = pool_band_of(task, blocks, paired ? g->oh : g->h, job->rows);
    (void)thread;
    ptrdiff_t windows = (ptrdiff_t)g->oh * g->ow * MDMT_BLOCK;
    max_plane plane = {.dy = job->dy + band.n * job->y_sample + band.block * windows,
                       .from = job->from + ((ptrdiff_t)band.n * blocks + band.block) * windows,
                       .dx = job->dx + band.n * job->x_sample +
                             (ptrdiff_t)band.block * g->h * g->w * MDMT_BLOCK};
    for (int row = band.first; row < band.end; row++) {
        if (paired && job->stream) {
            max_pair_row(job, &plane, row, 1);
            continue;
        }
        if (paired) {
            max_pair_row(job, &plane, row, 0);
            continue;
        }
        map_float *dx = plane.dx + (ptrdiff_t)row * g->w * MDMT_BLOCK;
        for (int iw = 0; iw < g->w; iw++) {
            lanes_store(dx + (ptrdiff_t)iw * MDMT_BLOCK, max_gather(job, &plane, row, iw));
        }
    }
    mdmt_end_streams();
}

static mdmt_status max_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    pool_job job = {.g = mdmt_pool_geometry(site),
                    .dy = call->in[0].data,
                    .from = call->in[1].data,
                    .dx = call->out[0],
                    .x_sample = (ptrdiff_t)mdmt_map_sample(site->out[0]),
                    .y_sample = (ptrdiff_t)mdmt_map_sample(site->in[0])};
    int height = max_is_paired(&job.g) ? job.g.oh : job.g.h;
    int planes = job.g.n * mdmt_blocks(job.g.c);
    job.rows = pool_rows_per_task(job.g.w);
    job.stream = lanes_streams((int64_t)planes * job.g.h * job.g.w, job.dx);
    mdmt_parallel(site->pool, planes * pool_bands(height, job.rows), max_bwd_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(max_pool_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(max_pool_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = pool_supports,
    .run = max_bwd_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
