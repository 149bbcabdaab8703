/* Average pooling on maps: windows, and over the whole map. Included after
 * pool_body.h. */
#include "lanes_act.h"

/* ---- avg_pool: mean over the window; the divisor counts the padding or not,
 *      but never what ceil_mode adds beyond it ---- */

typedef struct {
    mdmt_geometry g;
    const map_float *from;
    map_float *to;
    ptrdiff_t from_sample, to_sample;
    int include_pad, rows;
} avg_job;

/* Pixels that window `at` is divided by, in one direction. */
MDMT_INLINE int avg_extent(const avg_job *job, int at, int stride, int pad, int pad_end, int taps,
                           int size)
{
    int first = at * stride - pad, end = first + taps;
    if (job->include_pad) {
        return (end < size + pad_end ? end : size + pad_end) - first;
    }
    return (end < size ? end : size) - (first > 0 ? first : 0);
}

MDMT_INLINE float avg_divisor(const avg_job *job, int oh, int ow)
{
    const mdmt_geometry *g = &job->g;
    return (float)(avg_extent(job, oh, g->sh, g->pt, g->pb, g->kh, g->h) *
                   avg_extent(job, ow, g->sw, g->pl, g->pr, g->kw, g->w));
}

static void avg_task(void *context, int task, int thread)
{
    const avg_job *job = context;
    const mdmt_geometry *g = &job->g;
    int blocks = mdmt_blocks(g->c);
    pool_band band = pool_band_of(task, blocks, g->oh, job->rows);
    (void)thread;
    const map_float *x =
        job->from + band.n * job->from_sample + (ptrdiff_t)band.block * g->h * g->w * MDMT_BLOCK;
    map_float *to =
        job->to + band.n * job->to_sample + (ptrdiff_t)band.block * g->oh * g->ow * MDMT_BLOCK;
    for (int oh = band.first; oh < band.end; oh++) {
        int r0, r1, s0, s1;
        pool_taps(oh, g->sh, g->pt, 1, g->kh, g->h, &r0, &r1);
        map_float *y = to + (ptrdiff_t)oh * g->ow * MDMT_BLOCK;
        for (int ow = 0; ow < g->ow; ow++) {
            pool_taps(ow, g->sw, g->pl, 1, g->kw, g->w, &s0, &s1);
            lanes sum = lanes_zero();
            for (int r = r0; r < r1; r++) {
                const map_float *row =
                    x + ((ptrdiff_t)(oh * g->sh - g->pt + r) * g->w + (ow * g->sw - g->pl)) *
                            MDMT_BLOCK;
                for (int s = s0; s < s1; s++) {
                    sum = lanes_add(sum, lanes_load(row + (ptrdiff_t)s * MDMT_BLOCK));
                }
            }
            lanes mean = lanes_div(sum, lanes_set(avg_divisor(job, oh, ow)));
            lanes_store(y + (ptrdiff_t)ow * MDMT_BLOCK, mean);
        }
    }
}

static avg_job avg_job_of(const mdmt_site *site, const mdmt_call *call)
{
    return (avg_job){.g = mdmt_pool_geometry(site),
                     .from = call->in[0].data,
                     .to = call->out[0],
                     .from_sample = (ptrdiff_t)mdmt_map_sample(site->in[0]),
                     .to_sample = (ptrdiff_t)mdmt_map_sample(site->out[0]),
                     .include_pad = MDMT_ATTRS(mdmt_pool_attrs, site->op)->count_include_pad};
}

static mdmt_status avg_run(const mdmt_site *site, const mdmt_call *call)
{
    avg_job job = avg_job_of(site, call);
    job.rows = pool_rows_per_task(job.g.ow);
    int tasks = job.g.n * mdmt_blocks(job.g.c) * pool_bands(job.g.oh, job.rows);
    mdmt_parallel(site->pool, tasks, avg_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(avg_pool_forward) = {
    .name = MDMT_MAP_KERNEL_TEXT(avg_pool_forward),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = pool_supports,
    .run = avg_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};

/* dx[p] = sum of dy / divisor over the windows that contain p. */
static void avg_bwd_task(void *context, int task, int thread)
{
    const avg_job *job = context;
    const mdmt_geometry *g = &job->g;
    int blocks = mdmt_blocks(g->c);
    pool_band band = pool_band_of(task, blocks, g->h, job->rows);
    (void)thread;
    const map_float *dy =
        job->from + band.n * job->from_sample + (ptrdiff_t)band.block * g->oh * g->ow * MDMT_BLOCK;
    map_float *to =
        job->to + band.n * job->to_sample + (ptrdiff_t)band.block * g->h * g->w * MDMT_BLOCK;
    for (int ih = band.first; ih < band.end; ih++) {
        map_float *dx = to + (ptrdiff_t)ih * g->w * MDMT_BLOCK;
        int up = ih + g->pt - g->kh + 1, oh0 = up > 0 ? (up + g->sh - 1) / g->sh : 0;
        int oh1 = (ih + g->pt) / g->sh;
        oh1 = oh1 < g->oh ? oh1 : g->oh - 1;
        for (int iw = 0; iw < g->w; iw++) {
            int left = iw + g->pl - g->kw + 1, ow0 = left > 0 ? (left + g->sw - 1) / g->sw : 0;
            int ow1 = (iw + g->pl) / g->sw;
            ow1 = ow1 < g->ow ? ow1 : g->ow - 1;
            lanes sum = lanes_zero();
            for (int oh = oh0; oh <= oh1; oh++) {
                for (int ow = ow0; ow <= ow1; ow++) {
                    lanes v = lanes_load(dy + ((ptrdiff_t)oh * g->ow + ow) * MDMT_BLOCK);
                    sum = lanes_add(sum, lanes_div(v, lanes_set(avg_divisor(job, oh, ow))));
                }
            }
            lanes_store(dx + (ptrdiff_t)iw * MDMT_BLOCK, sum);
        }
    }
}

static mdmt_status avg_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    avg_job job = avg_job_of(site, call);
    job.rows = pool_rows_per_task(job.g.w);
    int tasks = job.g.n * mdmt_blocks(job.g.c) * pool_bands(job.g.h, job.rows);
    mdmt_parallel(site->pool, tasks, avg_bwd_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(avg_pool_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(avg_pool_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = pool_supports,
    .run = avg_bwd_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};

/* ---- global_avg_pool: x (N, C, H, W) -> y (N, C), and back. A task is up to
 *      GLOBAL_BLOCKS channel blocks of one sample ---- */

enum {
    GLOBAL_BLOCKS = 4,
    GLOBAL_AHEAD = (MDMT_MAPS_BF16 ? 48 : 24) * MDMT_BLOCK /* elements fetched ahead */
};

typedef struct {
    mdmt_value x;   /* forward: what is at `map` */
    map_float *map; /* x, or dx */
    int64_t sample; /* elements from one sample of it to the next */
    float *y;       /* y, or dy */
    int channels, blocks, groups;
    int64_t area;
} global_job;

MDMT_INLINE void global_sum(const map_float *x, int64_t area, lanes_affine affine, double *sums,
                            int load)
{
    const int64_t run = 128; /* pixels summed in float */
    for (int64_t first = 0; first < area; first += run) {
        int64_t i = first, end = first + run < area ? first + run : area;
        lanes even = lanes_zero(), odd = lanes_zero();
        for (; i + 2 <= end; i += 2) {
            const map_float *at = x + i * MDMT_BLOCK;
            even = lanes_add(even, lanes_take(at, affine, load));
            odd = lanes_add(odd, lanes_take(at + MDMT_BLOCK, affine, load));
            lanes_fetch(at + GLOBAL_AHEAD);
            lanes_fetch(at + GLOBAL_AHEAD + MDMT_BLOCK);
        }
        if (i < end) {
            even = lanes_add(even, lanes_take(x + i * MDMT_BLOCK, affine, load));
        }
        lanes_accumulate(sums, lanes_add(even, odd));
    }
}

#define GLOBAL_SUM(load) global_sum(x, job->area, affine, sums, load)

static void global_task(void *context, int task, int thread)
{
    const global_job *job = context;
    int n = task / job->groups, first = task % job->groups * GLOBAL_BLOCKS;
    int end = first + GLOBAL_BLOCKS < job->blocks ? first + GLOBAL_BLOCKS : job->blocks;
    (void)thread;
    for (int block = first; block < end; block++) {
        const map_float *x = job->map + n * job->sample + block * job->area * MDMT_BLOCK;
        double sums[MDMT_BLOCK] = {0};
        lanes_affine affine = lanes_affine_of(&job->x, block);
        LANES_EACH_LOAD(&job->x, GLOBAL_SUM);
        float *y = job->y + (int64_t)n * job->channels + (int64_t)block * MDMT_BLOCK;
        for (int lane = 0; lane < lanes_used(job->channels, block); lane++) {
            y[lane] = (float)(sums[lane] / (double)job->area);
        }
    }
}

static void global_bwd_task(void *context, int task, int thread)
{
    const global_job *job = context;
    int n = task / job->groups, first = task % job->groups * GLOBAL_BLOCKS;
    int end = first + GLOBAL_BLOCKS < job->blocks ? first + GLOBAL_BLOCKS : job->blocks;
    const lanes area = lanes_set((float)job->area);
    (void)thread;
    for (int block = first; block < end; block++) {
        const float *dy = job->y + (int64_t)n * job->channels;
        map_float *dx = job->map + n * job->sample + block * job->area * MDMT_BLOCK;
        lanes v = lanes_div(lanes_load_row(dy, job->channels, block), area);
        for (int64_t i = 0; i < job->area; i++) {
            lanes_store(dx + i * MDMT_BLOCK, v);
        }
    }
}

static mdmt_status global_go(const mdmt_site *site, global_job *job, const mdmt_tensor *map,
                             mdmt_task_fn task)
{
    job->sample = (int64_t)mdmt_map_sample(map);
    job->channels = map->dim[1];
    job->blocks = mdmt_blocks(map->dim[1]);
    job->groups = (job->blocks + GLOBAL_BLOCKS - 1) / GLOBAL_BLOCKS;
    job->area = (int64_t)map->dim[2] * map->dim[3];
    mdmt_parallel(site->pool, map->dim[0] * job->groups, task, job);
    return MDMT_OK;
}

static mdmt_status global_run(const mdmt_site *site, const mdmt_call *call)
{
    global_job job = {.x = call->in[0], .map = call->in[0].data, .y = call->out[0]};
    return global_go(site, &job, site->in[0], global_task);
}

static mdmt_status global_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    global_job job = {.map = call->out[0], .y = call->in[0].data};
    return global_go(site, &job, site->out[0], global_bwd_task);
}

static int global_supports(const mdmt_site *site)
{
    return site->in[0]->kind == MDMT_MAP && site->in[0]->dtype == MDMT_F32;
}

static int global_bwd_supports(const mdmt_site *site)
{
    return site->out[0]->kind == MDMT_MAP && site->out[0]->dtype == MDMT_F32;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(global_avg_pool_forward) = {
    .name = MDMT_MAP_KERNEL_TEXT(global_avg_pool_forward),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = global_supports,
    .run = global_run,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_ACTS,
};

const mdmt_cpu_impl MDMT_MAP_KERNEL(global_avg_pool_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(global_avg_pool_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = global_bwd_supports,
    .run = global_bwd_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
