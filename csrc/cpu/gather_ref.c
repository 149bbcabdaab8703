/* Channels picked from several feature maps. */
#include "access.h"
#include "kernels.h"

typedef struct {
    const mdmt_call *call;
    const int32_t *table;
    mdmt_view x[MDMT_MAX_IN], y;
} gather_job;

/* Task: one block of 16 channels of one sample. */
static void gather_task(void *context, int task, int thread)
{
    const gather_job *job = context;
    (void)thread;
    int blocks = mdmt_blocks(job->y.c), n = task / blocks, cb = task % blocks;
    int lanes = mdmt_lanes(job->y.c, cb);
    double value[MDMT_BLOCK];
    for (int h = 0; h < job->y.h; h++) {
        for (int w = 0; w < job->y.w; w++) {
            for (int lane = 0; lane < lanes; lane++) {
                int32_t number = job->table[cb * MDMT_BLOCK + lane];
                int i = number >> 16, c = number & 0xffff;
                value[lane] =
                    number < 0 ? 0.0
                               : mdmt_load(&job->call->in[i], mdmt_at(&job->x[i], n, c, h, w), c);
            }
            mdmt_store_block(&job->y, job->call->out[0], n, cb, h, w, value, lanes);
        }
    }
}

static mdmt_status channel_gather(const mdmt_site *site, const mdmt_call *call)
{
    gather_job job = {.call = call,
                      .table = site->number + MDMT_ATTRS(mdmt_gather_attrs, site->op)->table,
                      .y = mdmt_view_of(site->out[0])};
    for (int i = 0; i < site->op->inputs; i++) {
        job.x[i] = mdmt_view_of(site->in[i]);
    }
    mdmt_parallel(site->pool, job.y.n * mdmt_blocks(job.y.c), gather_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl mdmt_f32_channel_gather__ref = {
    .name = "mdmt_f32_channel_gather__ref", .cost = mdmt_ref_cost, .run = channel_gather};
