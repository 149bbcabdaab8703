/* Up-sampling by two, sixteen channels at a time; upsample_ref.c says which pixel takes what.
 * Included once by dense_avx2.c and once by dense_avx512.c, and by dense_bf16.c for maps of
 * bfloat16. */
#include "access.h"
#include "lanes.h"

typedef struct {
    int blocks, h, w; /* of the small map */
    const map_float *from;
    map_float *to;
    ptrdiff_t from_sample, to_sample; /* elements from a sample to the next */
    int rows;                         /* of the small map, per task */
    int bilinear;
} upsample_job;

/* A task: `rows` rows of the small map in one channel block of one sample. */
typedef struct {
    const map_float *from;
    map_float *to;
    int first, end;
} upsample_band;

static upsample_job upsample_job_of(const mdmt_site *site, const mdmt_call *call,
                                    const mdmt_tensor *small)
{
    upsample_job job = {.blocks = mdmt_blocks(small->dim[1]),
                        .h = small->dim[2],
                        .w = small->dim[3],
                        .from = call->in[0].data,
                        .to = call->out[0],
                        .from_sample = (ptrdiff_t)mdmt_map_sample(site->in[0]),
                        .to_sample = (ptrdiff_t)mdmt_map_sample(site->out[0])};
    job.bilinear = MDMT_ATTRS(mdmt_upsample_attrs, site->op)->mode == MDMT_UPSAMPLE_BILINEAR;
    job.rows = job.w < 512 ? 512 / job.w : 1; /* 32 KiB */
    return job;
}

static int upsample_bands(const upsample_job *job)
{
    return (job->h + job->rows - 1) / job->rows;
}

static upsample_band upsample_band_of(const upsample_job *job, int task, int from_area, int to_area)
{
    int bands = upsample_bands(job), band = task % bands, plane = task / bands;
    ptrdiff_t n = plane / job->blocks, block = plane % job->blocks;
    upsample_band b = {job->from + n * job->from_sample + block * from_area * MDMT_BLOCK,
                       job->to + n * job->to_sample + block * to_area * MDMT_BLOCK,
                       band * job->rows, band * job->rows + job->rows};
    b.end = b.end < job->h ? b.end : job->h;
    return b;
}

/* 3/4 near + 1/4 far */
MDMT_INLINE lanes upsample_blend(lanes near, lanes far)
{
    return lanes_fma(far, lanes_set(0.25f), lanes_mul(near, lanes_set(0.75f)));
}

/* An output row from the input rows `near` and `far`. */
MDMT_INLINE void upsample_row(const map_float *near, const map_float *far, map_float *to, int width)
{
    lanes here = upsample_blend(lanes_load(near), lanes_load(far)), left = here;
    for (int j = 0; j < width; j++) {
        ptrdiff_t next = (ptrdiff_t)(j + 1 < width ? j + 1 : j) * MDMT_BLOCK;
        lanes right = upsample_blend(lanes_load(near + next), lanes_load(far + next));
        lanes_store(to, upsample_blend(here, left));
        lanes_store(to + MDMT_BLOCK, upsample_blend(here, right));
        to += 2 * MDMT_BLOCK;
        left = here;
        here = right;
    }
}

static void upsample_copy_row(const map_float *from, map_float *to, int width)
{
    ptrdiff_t row = (ptrdiff_t)2 * width * MDMT_BLOCK;
    for (int j = 0; j < width; j++, from += MDMT_BLOCK, to += 2 * MDMT_BLOCK) {
        lanes v = lanes_load(from);
        lanes_store(to, v);
        lanes_store(to + MDMT_BLOCK, v);
        lanes_store(to + row, v);
        lanes_store(to + row + MDMT_BLOCK, v);
    }
}

static void upsample_task(void *context, int task, int thread)
{
    const upsample_job *job = context;
    upsample_band band = upsample_band_of(job, task, job->h * job->w, 4 * job->h * job->w);
    ptrdiff_t row = (ptrdiff_t)job->w * MDMT_BLOCK;
    (void)thread;
    for (int i = band.first; i < band.end; i++) {
        const map_float *here = band.from + i * row;
        map_float *to = band.to + 4 * i * row;
        if (!job->bilinear) {
            upsample_copy_row(here, to, job->w);
            continue;
        }
        upsample_row(here, i ? here - row : here, to, job->w);
        upsample_row(here, i + 1 < job->h ? here + row : here, to + 2 * row, job->w);
    }
}

static mdmt_status upsample_run(const mdmt_site *site, const mdmt_call *call)
{
    upsample_job job = upsample_job_of(site, call, site->in[0]);
    int planes = site->in[0]->dim[0] * job.blocks;
    mdmt_parallel(site->pool, planes * upsample_bands(&job), upsample_task, &job);
    return MDMT_OK;
}

/* What an input row (or column) gets from the four output ones around it; a border takes all of
 * its own, and the one beyond counts nothing. */
typedef struct {
    float before, own[2], after;
} upsample_shares;

static upsample_shares upsample_shares_of(int at, int size)
{
    return (upsample_shares){
        at ? 0.25f : 0, {at ? 0.75f : 1, at + 1 < size ? 0.75f : 1}, at + 1 < size ? 0.25f : 0};
}

/* Rows 2i - 1 .. 2i + 2 of dy, added up by their shares. */
typedef struct {
    const map_float *row[4];
    lanes share[4];
} upsample_rows;

static upsample_rows upsample_rows_of(const map_float *dy, int i, int size, ptrdiff_t row)
{
    upsample_shares s = upsample_shares_of(i, size);
    const map_float *own = dy + 2 * i * row;
    return (upsample_rows){
        {i ? own - row : own, own, own + row, i + 1 < size ? own + 2 * row : own},
        {lanes_set(s.before), lanes_set(s.own[0]), lanes_set(s.own[1]), lanes_set(s.after)}};
}

MDMT_INLINE lanes upsample_down(const upsample_rows *r, ptrdiff_t column)
{
    ptrdiff_t at = column * MDMT_BLOCK;
    lanes sum = lanes_mul(r->share[1], lanes_load(r->row[1] + at));
    sum = lanes_fma(r->share[2], lanes_load(r->row[2] + at), sum);
    lanes rim = lanes_mul(r->share[0], lanes_load(r->row[0] + at));
    rim = lanes_fma(r->share[3], lanes_load(r->row[3] + at), rim);
    return lanes_add(sum, rim);
}

static void upsample_bwd_row(const upsample_rows *r, map_float *to, int width)
{
    lanes before = lanes_zero(), own = upsample_down(r, 0);
    for (int j = 0; j < width; j++, to += MDMT_BLOCK) {
        upsample_shares s = upsample_shares_of(j, width);
        lanes other = upsample_down(r, 2 * j + 1);
        lanes after = j + 1 < width ? upsample_down(r, 2 * j + 2) : lanes_zero();
        lanes sum = lanes_mul(lanes_set(s.own[0]), own);
        sum = lanes_fma(lanes_set(s.own[1]), other, sum);
        lanes rim = lanes_mul(lanes_set(s.before), before);
        rim = lanes_fma(lanes_set(s.after), after, rim);
        lanes_store(to, lanes_add(sum, rim));
        before = other;
        own = after;
    }
}

static void upsample_sum_row(const map_float *dy, map_float *to, int width)
{
    ptrdiff_t row = (ptrdiff_t)2 * width * MDMT_BLOCK;
    for (int j = 0; j < width; j++, dy += 2 * MDMT_BLOCK, to += MDMT_BLOCK) {
        lanes top = lanes_add(lanes_load(dy), lanes_load(dy + MDMT_BLOCK));
        lanes bottom = lanes_add(lanes_load(dy + row), lanes_load(dy + row + MDMT_BLOCK));
        lanes_store(to, lanes_add(top, bottom));
    }
}

static void upsample_bwd_task(void *context, int task, int thread)
{
    const upsample_job *job = context;
    upsample_band band = upsample_band_of(job, task, 4 * job->h * job->w, job->h * job->w);
    ptrdiff_t row = (ptrdiff_t)2 * job->w * MDMT_BLOCK;
    (void)thread;
    for (int i = band.first; i < band.end; i++) {
        map_float *to = band.to + (ptrdiff_t)i * job->w * MDMT_BLOCK;
        if (job->bilinear) {
            upsample_rows rows = upsample_rows_of(band.from, i, job->h, row);
            upsample_bwd_row(&rows, to, job->w);
        } else {
            upsample_sum_row(band.from + 2 * i * row, to, job->w);
        }
    }
}

static mdmt_status upsample_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    upsample_job job = upsample_job_of(site, call, site->out[0]);
    int planes = site->out[0]->dim[0] * job.blocks;
    mdmt_parallel(site->pool, planes * upsample_bands(&job), upsample_bwd_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(upsample_forward) = {
    .name = MDMT_MAP_KERNEL_TEXT(upsample_forward),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .run = upsample_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
const mdmt_cpu_impl MDMT_MAP_KERNEL(upsample_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(upsample_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .run = upsample_bwd_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
