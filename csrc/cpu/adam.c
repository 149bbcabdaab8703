#include "adam.h"

#include <math.h>
#include <string.h>

enum { PARTS = 256, SUMS = 8, CHUNK = 16384 /* floats of a task */ };

typedef struct {
    const float *gradients;
    int64_t count, part; /* floats; of a task */
    double sum[PARTS];
} norm_job;

void mdmt_adam_rates_of(const mdmt_adam *adam, const mdmt_update *update, mdmt_adam_rates *rates)
{
    static const mdmt_group one = {.lr = 1, .weight_decay = 1};
    const mdmt_group *group = update->group ? update->groups : &one;
    int count = update->group ? update->group_count : 1;
    double correction = 1 - pow(adam->beta1, (double)adam->step);
    for (int i = 0; i < count; i++) {
        double lr = adam->lr * group[i].lr, decay = adam->weight_decay * group[i].weight_decay;
        rates[i] = (mdmt_adam_rates){.decay = adam->decoupled ? 0 : (float)decay,
                                     .shrink = adam->decoupled ? (float)(1 - lr * decay) : 1,
                                     .step = (float)(lr / correction)};
    }
}

static void norm_task(void *context, int task, int thread)
{
    norm_job *job = context;
    double sum[SUMS] = {0};
    int64_t at = (int64_t)task * job->part, end = at + job->part;
    (void)thread;
    end = end < job->count ? end : job->count;
    for (; at + SUMS <= end; at += SUMS) {
        for (int i = 0; i < SUMS; i++) {
            double g = job->gradients[at + i];
            sum[i] += g * g;
        }
    }
    for (; at < end; at++) {
        double g = job->gradients[at];
        sum[0] += g * g;
    }
    for (int i = 1; i < SUMS; i++) {
        sum[0] += sum[i];
    }
    job->sum[task] = sum[0];
}

double mdmt_norm(mdmt_pool *pool, const float *gradients, int64_t count)
{
    norm_job job = {.gradients = gradients, .count = count};
    double sum = 0;
    job.part = (count / PARTS / MDMT_GROUP_FLOATS + 1) * MDMT_GROUP_FLOATS;
    int tasks = (int)((count + job.part - 1) / job.part);
    mdmt_parallel(pool, tasks, norm_task, &job);
    for (int i = 0; i < tasks; i++) {
        sum += job.sum[i];
    }
    return sqrt(sum);
}

float mdmt_clip_scale(double clip, double norm)
{
    double scale = clip / (norm + 1e-6);
    return scale < 1 ? (float)scale : 1;
}

typedef struct {
    float *gradients, *sums;
    int64_t count;
    int first, last;
    float scale;
} accumulate_job;

static void accumulate_task(void *context, int task, int thread)
{
    const accumulate_job *job = context;
    int64_t at = (int64_t)task * CHUNK, end = at + CHUNK < job->count ? at + CHUNK : job->count;
    float *restrict g = job->gradients, *restrict sum = job->sums;
    (void)thread;
    if (job->first) {
        memcpy(sum + at, g + at, sizeof(float) * (size_t)(end - at));
    } else if (job->last) {
        for (int64_t i = at; i < end; i++) {
            g[i] = job->scale * (sum[i] + g[i]);
        }
    } else {
        for (int64_t i = at; i < end; i++) {
            sum[i] += g[i];
        }
    }
}

void mdmt_accumulate(mdmt_pool *pool, float *gradients, float *sums, int64_t count, int part,
                     int parts, float scale)
{
    accumulate_job job = {.gradients = gradients,
                          .sums = sums,
                          .count = count,
                          .first = part == 0,
                          .last = part == parts - 1,
                          .scale = scale};
    mdmt_parallel(pool, (int)((count + CHUNK - 1) / CHUNK), accumulate_task, &job);
}
