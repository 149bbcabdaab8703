/* References of mask_sums and mask_sums_bwd; task: a sample. */
#include "access.h"
#include "kernels.h"
#include "mask.h"

typedef struct {
    mdmt_view z;
    const float *logits, *mask, *dsums;
    float *out; /* sums or dz */
} mask_job;

static void sums_task(void *context, int n, int thread)
{
    const mask_job *job = context;
    double sums[MDMT_MASK_SUMS] = {0}, pixels = (double)job->z.h * job->z.w;
    (void)thread;
    for (int h = 0; h < job->z.h; h++) {
        for (int w = 0; w < job->z.w; w++) {
            double t = job->mask[((size_t)n * (size_t)job->z.h + (size_t)h) * (size_t)job->z.w +
                                 (size_t)w];
            mask_pixel at = mask_pixel_of(job->logits[mdmt_at(&job->z, n, 0, h, w)], t);
            sums[MDMT_MASK_ENTROPY] += at.entropy;
            sums[MDMT_MASK_BOTH] += at.p * t;
            sums[MDMT_MASK_GUESSED] += at.p;
            sums[MDMT_MASK_TRUE] += t;
        }
    }
    sums[MDMT_MASK_ENTROPY] /= pixels;
    for (int i = 0; i < MDMT_MASK_SUMS; i++) {
        job->out[(size_t)n * MDMT_MASK_SUMS + (size_t)i] = (float)sums[i];
    }
}

static mdmt_status sums(const mdmt_site *site, const mdmt_call *call)
{
    mask_job job = {.z = mdmt_view_of(site->in[0]),
                    .logits = call->in[0].data,
                    .mask = call->in[1].data,
                    .out = call->out[0]};
    mdmt_parallel(site->pool, job.z.n, sums_task, &job);
    return MDMT_OK;
}

static void sums_bwd_task(void *context, int n, int thread)
{
    const mask_job *job = context;
    const float *dsums = job->dsums + (size_t)n * MDMT_MASK_SUMS;
    double pixels = (double)job->z.h * job->z.w;
    (void)thread;
    for (int h = 0; h < job->z.h; h++) {
        for (int w = 0; w < job->z.w; w++) {
            double t = job->mask[((size_t)n * (size_t)job->z.h + (size_t)h) * (size_t)job->z.w +
                                 (size_t)w];
            double z = job->logits[mdmt_at(&job->z, n, 0, h, w)];
            double value = mask_gradient(dsums, pixels, z, t);
            mdmt_store_block(&job->z, job->out, n, 0, h, w, &value, 1);
        }
    }
}

static mdmt_status sums_bwd(const mdmt_site *site, const mdmt_call *call)
{
    mask_job job = {.z = mdmt_view_of(site->in[1]),
                    .dsums = call->in[0].data,
                    .logits = call->in[1].data,
                    .mask = call->in[2].data,
                    .out = call->out[0]};
    mdmt_parallel(site->pool, job.z.n, sums_bwd_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl mdmt_f32_mask_sums__ref = {
    .name = "mdmt_f32_mask_sums__ref", .cost = mdmt_ref_cost, .run = sums};
const mdmt_cpu_impl mdmt_f32_mask_sums_bwd__ref = {
    .name = "mdmt_f32_mask_sums_bwd__ref", .cost = mdmt_ref_cost, .run = sums_bwd};
