/* References of upsample and upsample_bwd. An output row 2i or 2i + 1 lies a quarter of an input
 * row above or below row i: bilinear, it takes 3/4 of row i and 1/4 of its neighbour on that side,
 * or of row i itself where there is none; columns alike. Nearest takes row i alone. */
#include "access.h"
#include "kernels.h"

typedef struct {
    mdmt_view x, y;
    const float *from;
    float *to;
    double far; /* share of the neighbour */
} upsample_job;

static upsample_job job_of(const mdmt_site *site, const mdmt_call *call, const mdmt_tensor *x,
                           const mdmt_tensor *y)
{
    int mode = MDMT_ATTRS(mdmt_upsample_attrs, site->op)->mode;
    return (upsample_job){mdmt_view_of(x), mdmt_view_of(y), call->in[0].data, call->out[0],
                          mode == MDMT_UPSAMPLE_BILINEAR ? 0.25 : 0.0};
}

/* The input position beside that of output position `out`: the other one it takes from. */
static int beside(int out, int size)
{
    int other = out / 2 + (out % 2 ? 1 : -1);
    return other < 0 || other >= size ? out / 2 : other;
}

/* Task: channel block b of sample n, n * blocks + b. */
static void forward_task(void *context, int task, int thread)
{
    const upsample_job *job = context;
    const mdmt_view *x = &job->x, *y = &job->y;
    int blocks = mdmt_blocks(x->c), n = task / blocks, block = task % blocks;
    int lanes = mdmt_lanes(x->c, block);
    (void)thread;
    for (int h = 0; h < y->h; h++) {
        for (int w = 0; w < y->w; w++) {
            double value[MDMT_BLOCK];
            int rows[2] = {h / 2, beside(h, x->h)}, columns[2] = {w / 2, beside(w, x->w)};
            for (int lane = 0; lane < lanes; lane++) {
                double sum = 0;
                for (int i = 0; i < 4; i++) {
                    double share =
                        (i / 2 ? job->far : 1 - job->far) * (i % 2 ? job->far : 1 - job->far);
                    size_t at =
                        mdmt_at(x, n, block * MDMT_BLOCK + lane, rows[i / 2], columns[i % 2]);
                    sum += share > 0 ? share * (double)job->from[at] : 0;
                }
                value[lane] = sum;
            }
            mdmt_store_block(y, job->to, n, block, h, w, value, lanes);
        }
    }
}

/* Share of input position `in` in output position `out`. */
static double share_of(const upsample_job *job, int in, int out, int size)
{
    return (out / 2 == in ? 1 - job->far : 0) + (beside(out, size) == in ? job->far : 0);
}

static void backward_task(void *context, int task, int thread)
{
    const upsample_job *job = context;
    const mdmt_view *x = &job->x, *y = &job->y;
    int blocks = mdmt_blocks(x->c), n = task / blocks, block = task % blocks;
    int lanes = mdmt_lanes(x->c, block);
    (void)thread;
    for (int h = 0; h < x->h; h++) {
        for (int w = 0; w < x->w; w++) {
            double value[MDMT_BLOCK] = {0};
            for (int r = 2 * h - 1; r <= 2 * h + 2; r++) {
                for (int s = 2 * w - 1; s <= 2 * w + 2; s++) {
                    if (r < 0 || r >= y->h || s < 0 || s >= y->w) {
                        continue;
                    }
                    double share = share_of(job, h, r, x->h) * share_of(job, w, s, x->w);
                    for (int lane = 0; lane < lanes && share > 0; lane++) {
                        size_t at = mdmt_at(y, n, block * MDMT_BLOCK + lane, r, s);
                        value[lane] += share * (double)job->from[at];
                    }
                }
            }
            mdmt_store_block(x, job->to, n, block, h, w, value, lanes);
        }
    }
}

static mdmt_status forward(const mdmt_site *site, const mdmt_call *call)
{
    upsample_job job = job_of(site, call, site->in[0], site->out[0]);
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), forward_task, &job);
    return MDMT_OK;
}

static mdmt_status backward(const mdmt_site *site, const mdmt_call *call)
{
    upsample_job job = job_of(site, call, site->out[0], site->in[0]);
    mdmt_parallel(site->pool, job.x.n * mdmt_blocks(job.x.c), backward_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl mdmt_f32_upsample_forward__ref = {
    .name = "mdmt_f32_upsample_forward__ref", .cost = mdmt_ref_cost, .run = forward};
const mdmt_cpu_impl mdmt_f32_upsample_bwd__ref = {
    .name = "mdmt_f32_upsample_bwd__ref", .cost = mdmt_ref_cost, .run = backward};
