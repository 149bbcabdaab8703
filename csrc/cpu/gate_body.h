/* A map times one number for each sample and channel, and the gradient of those
 * numbers. Included once by act_avx2.c and once by act_avx512.c, and by act_bf16.c. */
#include "map_walk.h"

/* A task is up to GATE_BLOCKS channel blocks of one sample. */
enum { GATE_BLOCKS = 4, GATE_RUN = 128 /* pixels summed in float */ };

typedef struct {
    mdmt_value x; /* what is at `map` */
    map_at map, dy, y;
    const float *s;
    float *ds;
    int64_t area;
    int channels, blocks, groups;
} gate_job;

typedef void (*gate_fn)(const gate_job *job, int n, int block);

static void gate_blocks(const gate_job *job, int task, gate_fn one)
{
    int n = task / job->groups, first = task % job->groups * GATE_BLOCKS;
    int end = first + GATE_BLOCKS < job->blocks ? first + GATE_BLOCKS : job->blocks;
    for (int block = first; block < end; block++) {
        one(job, n, block);
    }
}

static map_run gate_run_of(const gate_job *job, int n, int block)
{
    return (map_run){
        .pixels = job->area, .sample = n, .inside = (int64_t)block * job->area * MDMT_BLOCK};
}

/* Padding lanes of s are 0, and so are those of y. */
MDMT_INLINE void gate_pixels(const map_float *x, map_float *y, int64_t pixels, lanes_affine affine,
                             lanes s, int load)
{
    for (int64_t i = 0; i < pixels * MDMT_BLOCK; i += MDMT_BLOCK) {
        lanes_fetch(x + i + MAP_AHEAD);
        lanes_store(y + i, lanes_mul(lanes_take(x + i, affine, load), s));
    }
}

#define GATE_PIXELS(load) gate_pixels(x, y, job->area, affine, s, load)

static void gate_block(const gate_job *job, int n, int block)
{
    map_run run = gate_run_of(job, n, block);
    const map_float *x = map_point(job->map, &run);
    map_float *y = map_point(job->y, &run);
    lanes_affine affine = lanes_affine_of(&job->x, block);
    lanes s = lanes_load_row(job->s + (int64_t)n * job->channels, job->channels, block);
    LANES_EACH_LOAD(&job->x, GATE_PIXELS);
}

static void gate_task(void *context, int task, int thread)
{
    (void)thread;
    gate_blocks(context, task, gate_block);
}

MDMT_INLINE void gate_bwd_pixels(const map_float *dy, const map_float *x, int64_t pixels,
                                 lanes_affine affine, double *sums, int load)
{
    for (int64_t first = 0; first < pixels; first += GATE_RUN) {
        int64_t i = first, end = first + GATE_RUN < pixels ? first + GATE_RUN : pixels;
        lanes even = lanes_zero(), odd = lanes_zero();
        for (; i + 2 <= end; i += 2) {
            const map_float *at = x + i * MDMT_BLOCK, *by = dy + i * MDMT_BLOCK;
            even = lanes_fma(lanes_load(by), lanes_take(at, affine, load), even);
            odd = lanes_fma(lanes_load(by + MDMT_BLOCK), lanes_take(at + MDMT_BLOCK, affine, load),
                            odd);
            lanes_fetch(at + MAP_AHEAD);
            lanes_fetch(by + MAP_AHEAD);
            lanes_fetch(at + MAP_AHEAD + MDMT_BLOCK);
            lanes_fetch(by + MAP_AHEAD + MDMT_BLOCK);
        }
        if (i < end) {
            even = lanes_fma(lanes_load(dy + i * MDMT_BLOCK),
                             lanes_take(x + i * MDMT_BLOCK, affine, load), even);
        }
        lanes_accumulate(sums, lanes_add(even, odd));
    }
}

#define GATE_BWD_PIXELS(load) gate_bwd_pixels(dy, x, job->area, affine, sums, load)

static void gate_bwd_block(const gate_job *job, int n, int block)
{
    map_run run = gate_run_of(job, n, block);
    const map_float *x = map_point(job->map, &run), *dy = map_point(job->dy, &run);
    lanes_affine affine = lanes_affine_of(&job->x, block);
    double sums[MDMT_BLOCK] = {0};
    LANES_EACH_LOAD(&job->x, GATE_BWD_PIXELS);
    float *ds = job->ds + (int64_t)n * job->channels + (int64_t)block * MDMT_BLOCK;
    for (int lane = 0; lane < lanes_used(job->channels, block); lane++) {
        ds[lane] = (float)sums[lane];
    }
}

static void gate_bwd_task(void *context, int task, int thread)
{
    (void)thread;
    gate_blocks(context, task, gate_bwd_block);
}

static mdmt_status gate_go(const mdmt_site *site, gate_job *job, const mdmt_tensor *map,
                           mdmt_task_fn task)
{
    job->area = (int64_t)map->dim[2] * map->dim[3];
    job->channels = map->dim[1];
    job->blocks = mdmt_blocks(map->dim[1]);
    job->groups = (job->blocks + GATE_BLOCKS - 1) / GATE_BLOCKS;
    mdmt_parallel(site->pool, map->dim[0] * job->groups, task, job);
    return MDMT_OK;
}

static mdmt_status gate_run(const mdmt_site *site, const mdmt_call *call)
{
    gate_job job = {.x = call->in[0],
                    .map = map_at_of(site->in[0], call->in[0].data),
                    .s = call->in[1].data,
                    .y = map_at_of(site->out[0], call->out[0])};
    return gate_go(site, &job, site->in[0], gate_task);
}

static mdmt_status gate_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    gate_job job = {.x = call->in[1],
                    .map = map_at_of(site->in[1], call->in[1].data),
                    .dy = map_at_of(site->in[0], call->in[0].data),
                    .ds = call->out[0]};
    return gate_go(site, &job, site->in[1], gate_bwd_task);
}

static void gate_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->inplace_inputs = site->in[0]->lazy_source < 0 ? 1u : 0u;
}

static int gate_supports(const mdmt_site *site)
{
    return lanes_is_map(site->in[0]);
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(gate) = {
    .name = MDMT_MAP_KERNEL_TEXT(gate),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = gate_supports,
    .needs = gate_needs,
    .run = gate_run,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_ACTS,
};

const mdmt_cpu_impl MDMT_MAP_KERNEL(gate_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(gate_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = gate_supports,
    .run = gate_bwd_run,
    .accepts = MDMT_ACCEPTS_VIEWS | MDMT_ACCEPTS_ACTS,
};
