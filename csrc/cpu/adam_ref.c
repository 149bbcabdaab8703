/* Adam (Kingma & Ba 2015) in the order of operations of torch.optim.Adam and,
 * decoupled, torch.optim.AdamW (Loshchilov & Hutter 2019). */
#include <math.h>

#include "adam.h"
#include "kernels.h"

enum { CHUNK = 16384 }; /* elements of a task */

typedef struct {
    const mdmt_update *of;
    const mdmt_adam_rates *rates; /* of each group */
    float scale, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps;
} adam_job;

static void adam_task(void *context, int task, int thread)
{
    const adam_job *job = context;
    const mdmt_update *u = job->of;
    (void)thread;
    int64_t from = (int64_t)task * CHUNK;
    int64_t to = from + CHUNK < u->count ? from + CHUNK : u->count;
    for (int64_t i = from; i < to; i++) {
        const mdmt_adam_rates *rates = &job->rates[mdmt_group_at(u, i)];
        float w = u->weights[i] * rates->shrink;
        float g = u->gradients[i] * job->scale + rates->decay * w;
        float m = u->first[i] + job->one_minus_beta1 * (g - u->first[i]);
        float v = u->second[i] * job->beta2 + job->one_minus_beta2 * g * g;
        float denominator = sqrtf(v) / job->root_correction + job->eps;
        u->first[i] = m;
        u->second[i] = v;
        u->weights[i] = w - rates->step * m / denominator;
    }
}

static void adam_run(mdmt_pool *pool, const mdmt_adam *adam, const mdmt_update *update, float scale)
{
    mdmt_adam_rates rates[MDMT_MAX_GROUPS];
    adam_job job = {.of = update,
                    .rates = rates,
                    .scale = scale,
                    .one_minus_beta1 = (float)(1 - adam->beta1),
                    .beta2 = (float)adam->beta2,
                    .one_minus_beta2 = (float)(1 - adam->beta2),
                    .root_correction = (float)sqrt(1 - pow(adam->beta2, (double)adam->step)),
                    .eps = (float)adam->eps};
    mdmt_adam_rates_of(adam, update, rates);
    mdmt_parallel(pool, (int)((update->count + CHUNK - 1) / CHUNK), adam_task, &job);
}

const mdmt_adam_impl mdmt_f32_adam__ref = {
    .name = "mdmt_f32_adam__ref", .isa = MDMT_ISA_REF, .run = adam_run};
