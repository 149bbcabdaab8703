/* Adam in the order of operations of torch.optim.Adam and AdamW, with its numbers in the GPU's
 * memory, and what happens to gradients before it. */
#include "adam.cuh"
#include "fours.cuh"

/* The numbers of a group in this step, in its `own`. */
struct group_rates {
    const mdmt_gpu_state *state;
    mdmt_group *groups;

    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        mdmt_adam a = state->adam_first;
        a.lr *= groups[i].lr;
        a.weight_decay *= groups[i].weight_decay;
        const mdmt_gpu_adam n = mdmt_gpu_adam_numbers(a, a.step + state->update);
        groups[i].own[0] = n.decay_factor;
        groups[i].own[1] = n.l2;
        groups[i].own[2] = n.step_size;
    }
};

template <bool GROUPS, bool CLIPS> struct adam_update {
    const mdmt_gpu_state *state;
    const float *gradients;
    float *weights, *first, *second;
    mdmt_bf16 *mirror; /* of the weights, or NULL */
    const mdmt_group *groups;
    const uint8_t *group;

    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        if (state->halted) {
            return;
        }
        const mdmt_gpu_adam n = state->adam;
        float decay_factor = n.decay_factor, l2 = n.l2, step_size = n.step_size;
        if constexpr (GROUPS) {
            const float *own = groups[group[i / (MDMT_GROUP_FLOATS / MDMT_FOUR)]].own;
            decay_factor = own[0];
            l2 = own[1];
            step_size = own[2];
        }
        mdmt_four_floats w = ((const mdmt_four_floats *)(const void *)weights)[i];
        mdmt_four_floats g = ((const mdmt_four_floats *)(const void *)gradients)[i];
        mdmt_four_floats m = ((const mdmt_four_floats *)(const void *)first)[i];
        mdmt_four_floats v = ((const mdmt_four_floats *)(const void *)second)[i];
        if constexpr (CLIPS) {
            for (int k = 0; k < MDMT_FOUR; k++) {
                g.v[k] *= state->clip_scale;
            }
        }
        for (int k = 0; k < MDMT_FOUR; k++) {
            float weight = w.v[k] * decay_factor;
            float gradient = g.v[k] + l2 * weight;
            m.v[k] = m.v[k] + n.one_minus_beta1 * (gradient - m.v[k]);
            v.v[k] = v.v[k] * n.beta2 + n.one_minus_beta2 * gradient * gradient;
            float denominator = sqrtf(v.v[k]) / n.root_correction + n.eps;
            w.v[k] = weight - step_size * m.v[k] / denominator;
        }
        ((mdmt_four_floats *)(void *)first)[i] = m;
        ((mdmt_four_floats *)(void *)second)[i] = v;
        ((mdmt_four_floats *)(void *)weights)[i] = w;
        if (mirror) {
            ((mdmt_four_rounded *)(void *)mirror)[i] = mdmt_rounded(w);
        }
    }
};

/* ---- the norm of the gradient, and what it is multiplied by ---- */

static const size_t SQUARE_PARTS = 1024;

/* A sum over 256 threads, in an order of its own: phases `first` and the next, after each thread
 * has put its part into sum. In the second one, thread 0 has the total. */
MDMT_HD double sum_threads(int phase, int first, int thread, double *sum)
{
    double total = 0;
    if (phase == first && thread < 16) {
        for (int i = 0; i < 16; i++) {
            total += sum[thread + 16 * i];
        }
        sum[thread] = total;
    } else if (phase == first + 1 && thread == 0) {
        for (int i = 0; i < 16; i++) {
            total += sum[i];
        }
    }
    return total;
}

struct square_sums {
    enum { THREADS = 256, PHASES = 3 };
    struct shared_type {
        double sum[THREADS];
    };
    const float *gradients;
    size_t packs, parts;
    double *squares; /* (parts) */

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        if (phase == 0) {
            double sum = 0;
            for (size_t i = block * THREADS + (size_t)thread; i < packs; i += parts * THREADS) {
                mdmt_four_floats g = ((const mdmt_four_floats *)(const void *)gradients)[i];
                for (int k = 0; k < MDMT_FOUR; k++) {
                    sum += (double)g.v[k] * (double)g.v[k];
                }
            }
            shared.sum[thread] = sum;
            return;
        }
        double total = sum_threads(phase, 1, thread, shared.sum);
        if (phase == 2 && thread == 0) {
            squares[block] = total;
        }
    }
};

/* One block. A step whose gradient is not finite must not update anything, nor any after it. */
struct clip_gradient {
    enum { THREADS = 256, PHASES = 3 };
    typedef square_sums::shared_type shared_type;
    mdmt_gpu_state *state;
    const double *squares; /* (parts) */
    size_t parts;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)block;
        if (phase == 0) {
            double sum = 0;
            for (size_t i = (size_t)thread; i < parts; i += THREADS) {
                sum += squares[i];
            }
            shared.sum[thread] = sum;
            return;
        }
        double total = sum_threads(phase, 1, thread, shared.sum);
        if (phase == 2 && thread == 0) {
            double norm = sqrt(total), scale = state->adam_first.clip / (norm + 1e-6);
            state->norm = norm;
            state->clip_scale = scale < 1 ? (float)scale : 1.0f;
            if (state->norms) {
                state->norms[state->update] = norm;
            }
            if (!(norm - norm == 0) && !state->halted) {
                state->halted = state->current + 1;
            }
        }
    }
};

/* Before anything is recorded. */
mdmt_status mdmt_gpu_clip_room(mdmt_gpu *gpu)
{
    void *data;
    if (!gpu->squares) {
        MDMT_TRY(mdmt_device_alloc(&data, SQUARE_PARTS * sizeof *gpu->squares,
                                   "the norm of the gradient"));
        gpu->squares = (double *)data;
    }
    return MDMT_OK;
}

static mdmt_status launch_clip(mdmt_gpu *gpu, const mdmt_update *u)
{
    size_t packs = (size_t)u->count / MDMT_FOUR, wanted = mdmt_ceil_div(packs, 8 * 256);
    size_t parts = wanted < SQUARE_PARTS ? wanted : SQUARE_PARTS;
    square_sums sums = {u->gradients, packs, parts, gpu->squares};
    clip_gradient clip = {gpu->state, gpu->squares, parts};
    MDMT_TRY(mdmt_launch(gpu->stream, parts, sums));
    return mdmt_launch(gpu->stream, 1, clip);
}

template <bool GROUPS, bool CLIPS>
static mdmt_status launch_adam(mdmt_gpu *gpu, const mdmt_update *u)
{
    adam_update<GROUPS, CLIPS> f = {gpu->state, u->gradients, u->weights,
                                    u->first,   u->second,    mdmt_gpu_mirrored(gpu, u->weights),
                                    u->groups,  u->group};
    return mdmt_count_over(gpu->stream, mdmt_ceil_div((size_t)u->count, MDMT_FOUR), f);
}

mdmt_status mdmt_gpu_update(mdmt_gpu *gpu, const mdmt_update *u, int clips)
{
    group_rates rates = {gpu->state, u->groups};
    MDMT_TRY(clips ? launch_clip(gpu, u) : MDMT_OK);
    if (u->group) {
        MDMT_TRY(mdmt_count_over(gpu->stream, (size_t)u->group_count, rates));
        return clips ? launch_adam<true, true>(gpu, u) : launch_adam<true, false>(gpu, u);
    }
    return clips ? launch_adam<false, true>(gpu, u) : launch_adam<false, false>(gpu, u);
}

mdmt_status mdmt_gpu_check_adam(const mdmt_adam *adam)
{
    /* 0 / 0 would put NaN into the padding. */
    return (float)adam->eps > 0 ? MDMT_OK
                                : mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                                                  "eps of Adam must be above 0, not %g", adam->eps);
}

/* Sets the numbers of one update outside a series. */
struct set_adam {
    mdmt_gpu_state *state;
    mdmt_adam adam;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)i;
        (void)unused;
        state->adam = mdmt_gpu_adam_numbers(adam, adam.step);
        state->adam_first = adam;
        state->current = 0;
        state->update = 0;
        state->norms = NULL;
        state->halted = 0;
    }
};

mdmt_status mdmt_gpu_adam_now(mdmt_gpu *gpu, const mdmt_adam *adam, const mdmt_update *update,
                              double *norm)
{
    set_adam f = {gpu->state, *adam};
    int clips = adam->clip > 0;
    MDMT_TRY(mdmt_gpu_check_adam(adam));
    MDMT_TRY(clips ? mdmt_gpu_clip_room(gpu) : MDMT_OK);
    MDMT_TRY(mdmt_count_over(gpu->stream, 1, f));
    MDMT_TRY(mdmt_gpu_update(gpu, update, clips));
    return clips ? mdmt_device_read(gpu->stream, norm, &gpu->state->norm, sizeof *norm) : MDMT_OK;
}

/* ---- the gradients of a step's parts ---- */

struct add_part {
    const mdmt_gpu_state *state; /* of a series; NULL: first and scale hold */
    float *gradients, *sums;
    int first, last;
    float scale;

    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        mdmt_four_floats g = ((const mdmt_four_floats *)(const void *)gradients)[i];
        if (!(state ? state->part == 0 : first)) {
            mdmt_four_floats sum = ((const mdmt_four_floats *)(const void *)sums)[i];
            for (int k = 0; k < MDMT_FOUR; k++) {
                g.v[k] = sum.v[k] + g.v[k];
            }
        }
        if (!last) {
            ((mdmt_four_floats *)(void *)sums)[i] = g;
            return;
        }
        float factor = state ? state->scales[state->update] : scale;
        for (int k = 0; k < MDMT_FOUR; k++) {
            g.v[k] = factor * g.v[k];
        }
        ((mdmt_four_floats *)(void *)gradients)[i] = g;
    }
};

static mdmt_status launch_part(mdmt_gpu *gpu, const mdmt_update *u, const add_part &f)
{
    return mdmt_count_over(gpu->stream, mdmt_ceil_div((size_t)u->count, MDMT_FOUR), f);
}

mdmt_status mdmt_gpu_add_part(mdmt_gpu *gpu, const mdmt_update *u, float *sums, int last)
{
    add_part f = {gpu->state, u->gradients, sums, 0, last, 0};
    return launch_part(gpu, u, f);
}

mdmt_status mdmt_gpu_accumulate(mdmt_gpu *gpu, const mdmt_update *u, float *sums, int part,
                                int parts, float scale)
{
    add_part f = {NULL, u->gradients, sums, part == 0, part == parts - 1, scale};
    return launch_part(gpu, u, f);
}
