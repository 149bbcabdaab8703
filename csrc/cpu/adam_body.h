/* Adam over flat slabs, in PyTorch's order of operations (torch.optim.Adam, one
 * tensor at a time; Kingma & Ba 2015, algorithm 1), lr and weight_decay being of
 * the parameter's group:
 *   g *= scale                    (clipping)
 *   g += weight_decay w           (or, decoupled, w *= 1 - lr weight_decay)
 *   m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g g
 *   w -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
 * Included once by adam_avx2.c and once by adam_avx512.c. */
#include <float.h>
#include <math.h>

#include "adam.h"
#include "lanes.h"

enum { ADAM_CHUNK = 16 * 1024 }; /* floats a task */

typedef struct {
    const mdmt_update *of;
    const mdmt_adam_rates *rates; /* of each group */
    float scale, rate1, beta2, rate2, root, reciprocal, eps;
} adam_job;

/* x / job->root, correctly rounded (Markstein 1990): one Newton step from the
 * rounded reciprocal, instead of a second division per element. x is a square
 * root of a float, so neither it nor the quotient is denormal. The root of a
 * second moment that has overflowed stays infinite, and its weight where it is,
 * as in PyTorch: without the bound the step would be inf - inf. */
MDMT_INLINE lanes adam_unbias(const adam_job *job, lanes x)
{
    lanes root = lanes_set(job->root), reciprocal = lanes_set(job->reciprocal);
    lanes most = lanes_set(FLT_MAX), q = lanes_mul(x, reciprocal);
    q = lanes_select(lanes_above(q, most), most, q);
    return lanes_fma(lanes_fnma(q, root, x), reciprocal, q);
}

MDMT_INLINE void adam_lanes(const adam_job *job, const mdmt_adam_rates *rates, float *w_at,
                            const float *g_at, float *m_at, float *v_at)
{
    lanes w = lanes_load(w_at), g = lanes_load(g_at), m = lanes_load(m_at), v = lanes_load(v_at);
    g = lanes_mul(g, lanes_set(job->scale));
    w = lanes_mul(w, lanes_set(rates->shrink));
    g = lanes_fma(w, lanes_set(rates->decay), g);
    m = lanes_fma(lanes_set(job->rate1), lanes_sub(g, m), m);
    v = lanes_mul(v, lanes_set(job->beta2));
    v = lanes_fma(lanes_mul(lanes_set(job->rate2), g), g, v);
    lanes_store(m_at, m);
    lanes_store(v_at, v);
    lanes denominator = lanes_add(adam_unbias(job, lanes_sqrt(v)), lanes_set(job->eps));
    w = lanes_add(w, lanes_div(lanes_mul(lanes_set(-rates->step), m), denominator));
    lanes_store(w_at, w);
}

/* Floats at .. end, of one group. */
MDMT_INLINE void adam_range(const adam_job *job, const mdmt_adam_rates *rates, int64_t at,
                            int64_t end)
{
    const mdmt_update *u = job->of;
    for (; at + MDMT_BLOCK <= end; at += MDMT_BLOCK) {
        adam_lanes(job, rates, u->weights + at, u->gradients + at, u->first + at, u->second + at);
    }
    if (at < end) { /* the last few of all */
        float w[MDMT_BLOCK] = {0}, g[MDMT_BLOCK] = {0}, m[MDMT_BLOCK] = {0}, v[MDMT_BLOCK] = {0};
        for (int64_t i = at; i < end; i++) {
            w[i - at] = u->weights[i];
            g[i - at] = u->gradients[i];
            m[i - at] = u->first[i];
            v[i - at] = u->second[i];
        }
        adam_lanes(job, rates, w, g, m, v);
        for (int64_t i = at; i < end; i++) {
            u->weights[i] = w[i - at];
            u->first[i] = m[i - at];
            u->second[i] = v[i - at];
        }
    }
}

static void adam_task(void *context, int task, int thread)
{
    const adam_job *job = context;
    int64_t at = (int64_t)task * ADAM_CHUNK, end = at + ADAM_CHUNK;
    (void)thread;
    end = end < job->of->count ? end : job->of->count;
    while (at < end) {
        int64_t to = mdmt_group_end(job->of, at, end);
        adam_range(job, &job->rates[mdmt_group_at(job->of, at)], at, to);
        at = to;
    }
}

static void adam_run(mdmt_pool *pool, const mdmt_adam *adam, const mdmt_update *update, float scale)
{
    mdmt_adam_rates rates[MDMT_MAX_GROUPS];
    adam_job job = {.of = update,
                    .rates = rates,
                    .scale = scale,
                    .rate1 = (float)(1 - adam->beta1),
                    .beta2 = (float)adam->beta2,
                    .rate2 = (float)(1 - adam->beta2),
                    .root = (float)sqrt(1 - pow(adam->beta2, (double)adam->step)),
                    .eps = (float)adam->eps};
    job.reciprocal = 1.0f / job.root;
    mdmt_adam_rates_of(adam, update, rates);
    mdmt_parallel(pool, (int)((update->count + ADAM_CHUNK - 1) / ADAM_CHUNK), adam_task, &job);
}

const mdmt_adam_impl MDMT_KERNEL(mdmt_f32_adam) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_adam),
    .isa = MDMT_LANES_LEVEL,
    .run = adam_run,
};
