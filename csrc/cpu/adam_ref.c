/* Adam (Kingma & Ba 2015) in the order of operations of torch.optim.Adam and,
 * decoupled, torch.optim.AdamW (Loshchilov & Hutter 2019). */
#include <math.h>

#include "kernels.h"

enum { CHUNK = 16384 }; /* elements of a task */

typedef struct {
    const float *gradients;
    float *weights, *first, *second;
    int64_t count;
    float decay_factor, l2, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps,
        step_size;
} adam_job;

static void adam_task(void *context, int task, int thread)
{
    const adam_job *job = context;
    (void)thread;
    int64_t from = (int64_t)task * CHUNK;
    int64_t to = from + CHUNK < job->count ? from + CHUNK : job->count;
    for (int64_t i = from; i < to; i++) {
        float w = job->weights[i] * job->decay_factor;
        float g = job->gradients[i] + job->l2 * w;
        float m = job->first[i] + job->one_minus_beta1 * (g - job->first[i]);
        float v = job->second[i] * job->beta2 + job->one_minus_beta2 * g * g;
        float denominator = sqrtf(v) / job->root_correction + job->eps;
        job->first[i] = m;
        job->second[i] = v;
        job->weights[i] = w - job->step_size * m / denominator;
    }
}

static void adam_run(mdmt_pool *pool, const mdmt_adam *adam, float *weights, const float *gradients,
                     float *first, float *second, int64_t count)
{
    double correction1 = 1 - pow(adam->beta1, (double)adam->step);
    double correction2 = 1 - pow(adam->beta2, (double)adam->step);
    adam_job job = {.gradients = gradients,
                    .weights = weights,
                    .first = first,
                    .second = second,
                    .count = count,
                    .decay_factor =
                        adam->decoupled ? (float)(1 - adam->lr * adam->weight_decay) : 1.0f,
                    .l2 = adam->decoupled ? 0.0f : (float)adam->weight_decay,
                    .one_minus_beta1 = (float)(1 - adam->beta1),
                    .beta2 = (float)adam->beta2,
                    .one_minus_beta2 = (float)(1 - adam->beta2),
                    .root_correction = (float)sqrt(correction2),
                    .eps = (float)adam->eps,
                    .step_size = (float)(adam->lr / correction1)};
    mdmt_parallel(pool, (int)((count + CHUNK - 1) / CHUNK), adam_task, &job);
}

const mdmt_adam_impl mdmt_f32_adam__ref = {
    .name = "mdmt_f32_adam__ref", .isa = MDMT_ISA_REF, .run = adam_run};
