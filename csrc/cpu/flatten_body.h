/* Maps to sums of their channels and to rows. Included once by rows_avx2.c and once by
 * rows_avx512.c, and by rows_bf16.c for maps of bfloat16. */
#include <string.h>

#include "access.h"
#include "lanes.h"

enum { SUM_RUN = 64 /* pixels summed in float */ };

/* ---- channel_sum of a MAP: one task per sample and block, then the samples'
 * sums are merged in order. ---- */

typedef struct {
    const map_float *x;
    double *part; /* [N][padded C] */
    float *sum;
    int n, blocks;
    size_t pixels; /* H W */
    size_t sample; /* elements from sample to sample */
} sum_job;

static void sum_part_task(void *context, int task, int thread)
{
    const sum_job *job = context;
    (void)thread;
    const map_float *x = job->x + (size_t)(task / job->blocks) * job->sample +
                         (size_t)(task % job->blocks) * job->pixels * MDMT_BLOCK;
    double *total = job->part + (size_t)task * MDMT_BLOCK;
    memset(total, 0, MDMT_BLOCK * sizeof *total);
    for (size_t p = 0; p < job->pixels;) {
        const size_t to = p + SUM_RUN < job->pixels ? p + SUM_RUN : job->pixels;
        lanes run[4]; /* four chains hide the latency of the additions */
        for (int u = 0; u < 4; u++) {
            run[u] = lanes_zero();
        }
        for (; p + 4 <= to; p += 4) {
            for (size_t u = 0; u < 4; u++) {
                run[u] = lanes_add(run[u], lanes_load(x + (p + u) * MDMT_BLOCK));
            }
        }
        for (; p < to; p++) {
            run[0] = lanes_add(run[0], lanes_load(x + p * MDMT_BLOCK));
        }
        lanes_accumulate(total, lanes_add(lanes_add(run[0], run[1]), lanes_add(run[2], run[3])));
    }
}

static mdmt_status channel_sum_map(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_tensor *x = site->in[0];
    sum_job job = {.x = call->in[0].data,
                   .part = call->workspace,
                   .sum = call->out[0],
                   .n = x->dim[0],
                   .blocks = mdmt_blocks(x->dim[1]),
                   .pixels = (size_t)x->dim[2] * (size_t)x->dim[3],
                   .sample = mdmt_map_sample(x)};
    mdmt_parallel(site->pool, job.n * job.blocks, sum_part_task, &job);
    size_t channels = (size_t)job.blocks * MDMT_BLOCK;
    for (size_t c = 0; c < channels; c++) {
        double total = 0;
        for (int n = 0; n < job.n; n++) {
            total += job.part[(size_t)n * channels + c];
        }
        job.sum[c] = (float)total;
    }
    return MDMT_OK;
}

/* ---- channel_sum of ROWS: columns next to each other, samples in order. ---- */
static mdmt_status channel_sum_rows(const mdmt_site *site, const mdmt_call *call)
{
    const float *x = call->in[0].data;
    float *sum = call->out[0];
    int rows = site->in[0]->dim[0], columns = site->in[0]->dim[1];
    for (int from = 0; from < mdmt_blocks(columns) * MDMT_BLOCK; from += MDMT_BLOCK) {
        int used = mdmt_lanes(columns, from / MDMT_BLOCK);
        double total[MDMT_BLOCK] = {0};
        for (int n = 0; n < rows; n++) {
            const float *row = x + (size_t)n * (size_t)columns + (size_t)from;
            for (int lane = 0; lane < used; lane++) {
                total[lane] += (double)row[lane];
            }
        }
        for (int lane = 0; lane < MDMT_BLOCK; lane++) {
            sum[from + lane] = (float)total[lane];
        }
    }
    return MDMT_OK;
}

/* ROWS are floats always: a kernel for MAPs of bfloat16 never gets them. */
static int sum_of_rows(const mdmt_site *site)
{
    return !MDMT_MAPS_BF16 && site->in[0]->kind == MDMT_ROWS;
}

static mdmt_status channel_sum(const mdmt_site *site, const mdmt_call *call)
{
    return sum_of_rows(site) ? channel_sum_rows(site, call) : channel_sum_map(site, call);
}

static void channel_sum_needs(const mdmt_site *site, mdmt_needs *needs)
{
    const mdmt_tensor *x = site->in[0];
    needs->workspace_bytes =
        sum_of_rows(site)
            ? 0
            : (size_t)x->dim[0] * (size_t)mdmt_blocks(x->dim[1]) * MDMT_BLOCK * sizeof(double);
}

/* ---- flatten: [pixel][16] <-> [16][pixel], 16 pixels at a time ---- */

typedef struct {
    map_float *map;
    float *rows;
    int channels, back;
    size_t pixels;
} flat_job;

/* Task: one block of 16 channels of one sample. */
static void flatten_task(void *context, int task, int thread)
{
    const flat_job *job = context;
    (void)thread;
    int blocks = mdmt_blocks(job->channels), n = task / blocks, block = task % blocks;
    const size_t used = (size_t)mdmt_lanes(job->channels, block), pixels = job->pixels;
    map_float *map = job->map + (size_t)task * pixels * MDMT_BLOCK;
    float *rows =
        job->rows + ((size_t)n * (size_t)job->channels + (size_t)block * MDMT_BLOCK) * pixels;
    float tile[MDMT_BLOCK][MDMT_BLOCK] = {{0}}; /* [pixel][lane] */
    for (size_t from = 0; from < pixels; from += MDMT_BLOCK) {
        const size_t count = from + MDMT_BLOCK < pixels ? MDMT_BLOCK : pixels - from;
        for (size_t p = 0; !job->back && p < count; p++) {
            lanes_store(tile[p], lanes_load(map + (from + p) * MDMT_BLOCK));
        }
        for (size_t lane = 0; lane < used; lane++) {
            float *row = rows + lane * pixels + from;
            for (size_t p = 0; p < count; p++) {
                if (job->back) {
                    tile[p][lane] = row[p];
                } else {
                    row[p] = tile[p][lane];
                }
            }
        }
        for (size_t p = 0; job->back && p < count; p++) {
            lanes_store(map + (from + p) * MDMT_BLOCK, lanes_load(tile[p]));
        }
    }
}

static mdmt_status flatten_go(const mdmt_site *site, flat_job *job, const mdmt_tensor *map)
{
    job->channels = map->dim[1];
    job->pixels = (size_t)map->dim[2] * (size_t)map->dim[3];
    mdmt_parallel(site->pool, map->dim[0] * mdmt_blocks(job->channels), flatten_task, job);
    return MDMT_OK;
}

static mdmt_status flatten_forward(const mdmt_site *site, const mdmt_call *call)
{
    flat_job job = {.map = call->in[0].data, .rows = call->out[0]};
    return flatten_go(site, &job, site->in[0]);
}

static mdmt_status flatten_bwd(const mdmt_site *site, const mdmt_call *call)
{
    flat_job job = {.rows = call->in[0].data, .map = call->out[0], .back = 1};
    return flatten_go(site, &job, site->out[0]);
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(channel_sum) = {
    .name = MDMT_MAP_KERNEL_TEXT(channel_sum),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .needs = channel_sum_needs,
    .run = channel_sum,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
const mdmt_cpu_impl MDMT_MAP_KERNEL(flatten_forward) = {
    .name = MDMT_MAP_KERNEL_TEXT(flatten_forward),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .run = flatten_forward,
};
const mdmt_cpu_impl MDMT_MAP_KERNEL(flatten_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(flatten_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .run = flatten_bwd,
};
