/* The masked multi-task loss, equations (1) to (3) of Ruffini et al. (MICCAI
 * 2024), in one block: a batch has few samples and few logits. In double; a thread
 * takes every 128th sample, and the threads are summed in order. Conventions: ops/attrs.h, and a
 * sample without a label (task -1, or NaN among its targets, for bce in all of them) adds nothing
 * and is not counted. Weights of the samples and smoothing (cpu/loss.h) are a kernel of their own,
 * so that the one without them does nothing for their sake. */
#include "backend.cuh"

/* ---- one sample with k logits z and target t; dz = scale * d loss / d z, or NULL; with WEIGHTS,
 * w: the weight of each output ---- */

MDMT_HD double log_add(double a, double b)
{
    double high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1p(exp(low - high));
}

/* log sum exp of z (k). */
MDMT_HD double log_sum_exp(const float *z, int k)
{
    double high = z[0], sum = 0;
    for (int j = 1; j < k; j++) {
        high = (double)z[j] > high ? (double)z[j] : high;
    }
    for (int j = 0; j < k; j++) {
        sum += exp((double)z[j] - high);
    }
    return high + log(sum);
}

MDMT_HD double cross_entropy(const float *z, int k, const float *t, double scale, float *dz)
{
    int y = (int)t[0];
    double total = log_sum_exp(z, k);
    for (int j = 0; dz && j < k; j++) {
        double d = (double)z[j] - total;
        dz[j] = (float)(scale * (j == y ? expm1(d) : exp(d)));
    }
    return total - (double)z[y];
}

/* Against the target (1 - spread) onehot + spread / k. */
MDMT_HD double smoothed_entropy(const float *z, int k, const float *t, double spread, double scale,
                                float *dz)
{
    int y = (int)t[0];
    double total = log_sum_exp(z, k), all = 0, each = spread / k;
    for (int j = 0; j < k; j++) {
        double d = (double)z[j] - total;
        all -= d;
        if (dz) {
            dz[j] = (float)(scale * ((j == y ? expm1(d) + spread : exp(d)) - each));
        }
    }
    return (1 - spread) * (total - (double)z[y]) + each * all;
}

/* NaN among t: an output without a label, which has no part in the mean (dz is 0 already). */
template <bool WEIGHTS>
MDMT_HD double binary_cross_entropy(const float *z, int k, const float *t, const float *w,
                                    double scale, float *dz)
{
    double sum = 0;
    int known = 0;
    for (int j = 0; j < k; j++) {
        known += t[j] == t[j];
    }
    for (int j = 0; j < k; j++) {
        double v = z[j], target = t[j];
        if (target != target) {
            continue;
        }
        double small = exp(-fabs(v)); /* of the less likely side */
        double one = (v > 0 ? v : 0.0) - v * target + log1p(small);
        double factor = scale;
        if (WEIGHTS) {
            one *= (double)w[j];
            factor *= (double)w[j];
        }
        sum += one;
        if (dz) {
            double likely = 1 / (1 + small), probability = v >= 0 ? likely : small * likely;
            dz[j] = (float)(factor * (probability - target) / known);
        }
    }
    return sum / known;
}

template <bool WEIGHTS>
MDMT_HD double squared_error(const float *z, int k, const float *t, const float *w, double scale,
                             float *dz)
{
    double sum = 0;
    for (int j = 0; j < k; j++) {
        double error = (double)z[j] - (double)t[j], factor = scale;
        if (WEIGHTS) {
            factor *= (double)w[j];
            sum += (double)w[j] * (error * error);
        } else {
            sum += error * error;
        }
        if (dz) {
            dz[j] = (float)(factor * 2 * error / k);
        }
    }
    return sum / k;
}

/* With A_j = log sum exp of z_0 .. z_j and B_j that of z_j .. z_{k-1}:
 *   log F_j = A_j - B_0,  log(1 - F_j) = B_{j+1} - B_0,
 *   d log F_j / d z_m = [m <= j] exp(z_m - A_j) - p_m, and alike for B. */
MDMT_HD double ranked_score(const float *z, int k, const float *t, double scale, float *dz,
                            double *below, double *above)
{
    int y = (int)t[0];
    below[0] = z[0];
    above[k - 1] = z[k - 1];
    for (int j = 1; j < k; j++) {
        below[j] = log_add(below[j - 1], z[j]);
        above[k - 1 - j] = log_add(above[k - j], z[k - 1 - j]);
    }
    double total = above[0], loss = 0;
    for (int j = 0; j < k - 1; j++) {
        loss += total - (y <= j ? below[j] : above[j + 1]);
    }
    for (int m = 0; dz && m < k; m++) {
        double v = z[m], sum = (k - 1) * exp(v - total);
        for (int j = y > m ? y : m; j < k - 1; j++) {
            sum -= exp(v - below[j]);
        }
        for (int j = 0; j < y && j < m; j++) {
            sum -= exp(v - above[j + 1]);
        }
        dz[m] = (float)(scale * sum);
    }
    return loss;
}

/* From the sums of a mask in place of logits. */
MDMT_HD double dice_and_entropy(const float *z, double scale, float *dz)
{
    double both = 2 * (double)z[MDMT_MASK_BOTH] + 1;
    double all = (double)z[MDMT_MASK_GUESSED] + (double)z[MDMT_MASK_TRUE] + 1;
    if (dz) {
        dz[MDMT_MASK_ENTROPY] = (float)scale;
        dz[MDMT_MASK_BOTH] = (float)(scale * -2 / all);
        dz[MDMT_MASK_GUESSED] = dz[MDMT_MASK_TRUE] = (float)(scale * both / (all * all));
    }
    return (double)z[MDMT_MASK_ENTROPY] + 1 - both / all;
}

/* RECIPE: with weights of the samples or smoothing. */
template <bool RECIPE> struct masked_loss {
    enum { THREADS = 128, PHASES = 6, NO_SAMPLE = 0x7fffffff };
    struct shared_type {
        double sum[THREADS][MDMT_MAX_TASKS];
        int count[THREADS][MDMT_MAX_TASKS], refused[THREADS];
        double scale[MDMT_MAX_TASKS], total[MDMT_MAX_TASKS];
        int labels[MDMT_MAX_TASKS];
    };
    mdmt_loss_attrs attrs;
    const int32_t *task;
    const float *target, *logits[MDMT_MAX_TASKS];
    float *dlogits[MDMT_MAX_TASKS], *loss, *per_task;
    int width[MDMT_MAX_TASKS];
    int samples, target_width, widest;
    double *scratch; /* (samples, 2 widest): room of a sample */
    mdmt_gpu_fault *fault;

    MDMT_HD int columns(int k) const
    {
        return attrs.loss[k] == MDMT_LOSS_BCE || attrs.loss[k] == MDMT_LOSS_MSE ? width[k] : 1;
    }
    MDMT_HD int labelled(int i) const
    {
        if (task[i] < 0 || task[i] >= attrs.tasks) {
            return 0;
        }
        int all = columns(task[i]), known = 0;
        for (int j = 0; j < all; j++) {
            float v = target[(size_t)i * (size_t)target_width + (size_t)j];
            known += v == v;
        }
        return attrs.loss[task[i]] == MDMT_LOSS_BCE ? known > 0 : known == all;
    }
    /* The weights of sample i's targets, or NULL. */
    MDMT_HD const float *weights(int i) const
    {
        size_t half = (size_t)target_width / 2;
        return RECIPE && attrs.weighted ? target + (size_t)i * (size_t)target_width + half : NULL;
    }
    /* MDMT_FAULT_NONE, or why sample i cannot be taken; its target or weight in *value. */
    MDMT_HD int refused(int i, float *value) const
    {
        int k = task[i];
        if (k < -1 || k >= attrs.tasks) {
            return MDMT_FAULT_TASK;
        }
        for (int j = 0; labelled(i) && j < columns(k); j++) {
            float v = target[(size_t)i * (size_t)target_width + (size_t)j];
            *value = v;
            if (attrs.loss[k] == MDMT_LOSS_BCE && v == v && !(v >= 0 && v <= 1)) {
                return MDMT_FAULT_BCE;
            }
            if (attrs.loss[k] == MDMT_LOSS_MSE && (v == INFINITY || v == -INFINITY)) {
                return MDMT_FAULT_MSE;
            }
            if ((attrs.loss[k] == MDMT_LOSS_CE || attrs.loss[k] == MDMT_LOSS_ORDINAL) &&
                !(v >= 0 && v <= (float)(width[k] - 1) && v == floorf(v))) {
                return MDMT_FAULT_CLASS;
            }
        }
        const float *w = weights(i);
        for (int j = 0; RECIPE && w && labelled(i) && j < columns(k); j++) {
            float v = target[(size_t)i * (size_t)target_width + (size_t)j];
            if (v == v && !(w[j] >= 0 && w[j] < INFINITY)) {
                *value = w[j];
                return MDMT_FAULT_WEIGHT;
            }
        }
        return MDMT_FAULT_NONE;
    }
    /* Counts a thread's labels, and notes its first sample that is refused. */
    MDMT_HD void count_own(int thread, shared_type &shared) const
    {
        shared.refused[thread] = NO_SAMPLE;
        for (int k = 0; k < attrs.tasks; k++) {
            shared.count[thread][k] = 0;
            shared.sum[thread][k] = 0;
        }
        for (int i = thread; i < samples; i += THREADS) {
            float value;
            if (refused(i, &value) != MDMT_FAULT_NONE) {
                shared.refused[thread] = i < shared.refused[thread] ? i : shared.refused[thread];
            } else if (labelled(i)) {
                shared.count[thread][task[i]]++;
            }
        }
    }
    /* The first of all, unless an earlier step left one; one thread. */
    MDMT_HD void report(const shared_type &shared) const
    {
        int first = NO_SAMPLE;
        for (int t = 0; t < THREADS; t++) {
            first = shared.refused[t] < first ? shared.refused[t] : first;
        }
        if (first == NO_SAMPLE || fault->kind != MDMT_FAULT_NONE) {
            return;
        }
        float value = 0;
        int kind = refused(first, &value);
        fault->kind = kind;
        fault->sample = first;
        fault->task = task[first];
        fault->value = value;
        fault->classes = kind == MDMT_FAULT_CLASS ? width[task[first]] : attrs.tasks;
    }
    /* The factor of task k. */
    MDMT_HD double factor(int k, const shared_type &shared) const
    {
        int over = 1;
        if (attrs.reduction == MDMT_REDUCE_PER_TASK_MEAN) {
            over = shared.labels[k];
        } else if (attrs.reduction == MDMT_REDUCE_MEAN) {
            over = 0;
            for (int j = 0; j < attrs.tasks; j++) {
                over += shared.labels[j];
            }
        }
        return over > 0 ? (double)attrs.weight[k] / over : 0;
    }
    MDMT_HD void clear(int thread) const
    {
        for (int k = 0; k < attrs.tasks; k++) {
            for (int i = thread; dlogits[k] && i < samples * width[k]; i += THREADS) {
                dlogits[k][i] = 0.0f;
            }
        }
    }
    /* As `one` for samples that may have weights, and classes that may be smoothed. */
    MDMT_HD double with_recipe(int i, double scale, const float *z, const float *t, float *dz,
                               double *room) const
    {
        int k = task[i], n = width[k];
        const float *w = weights(i);
        double weight = w ? (double)w[0] : 1, spread = (double)attrs.smoothing[k];
        switch (attrs.loss[k]) {
        case MDMT_LOSS_BCE:
            return w ? binary_cross_entropy<true>(z, n, t, w, scale, dz)
                     : binary_cross_entropy<false>(z, n, t, NULL, scale, dz);
        case MDMT_LOSS_MSE:
            return w ? squared_error<true>(z, n, t, w, scale, dz)
                     : squared_error<false>(z, n, t, NULL, scale, dz);
        case MDMT_LOSS_ORDINAL:
            return weight * ranked_score(z, n, t, weight * scale, dz, room, room + n);
        case MDMT_LOSS_DICE_CE:
            return weight * dice_and_entropy(z, weight * scale, dz);
        default:
            return weight * (spread > 0 ? smoothed_entropy(z, n, t, spread, weight * scale, dz)
                                        : cross_entropy(z, n, t, weight * scale, dz));
        }
    }
    MDMT_HD double one(int i, const shared_type &shared) const
    {
        double scale = shared.scale[task[i]];
        int k = task[i], n = width[k];
        const float *z = logits[k] + (size_t)i * (size_t)n;
        const float *t = target + (size_t)i * (size_t)target_width;
        float *dz = dlogits[k] ? dlogits[k] + (size_t)i * (size_t)n : NULL;
        double *free_room = scratch + (size_t)i * (size_t)(2 * widest);
        if (RECIPE) {
            return with_recipe(i, scale, z, t, dz, free_room);
        }
        switch (attrs.loss[k]) {
        case MDMT_LOSS_BCE:
            return binary_cross_entropy<false>(z, n, t, NULL, scale, dz);
        case MDMT_LOSS_MSE:
            return squared_error<false>(z, n, t, NULL, scale, dz);
        case MDMT_LOSS_ORDINAL:
            return ranked_score(z, n, t, scale, dz, free_room, free_room + n);
        case MDMT_LOSS_DICE_CE:
            return dice_and_entropy(z, scale, dz);
        default:
            return cross_entropy(z, n, t, scale, dz);
        }
    }
    MDMT_HD void sum_task(int k, shared_type &shared) const
    {
        double sum = 0;
        for (int t = 0; t < THREADS; t++) {
            sum += shared.sum[t][k];
        }
        shared.total[k] = shared.labels[k] > 0 ? shared.scale[k] * sum : 0.0;
        per_task[2 * k] = (float)sum;
        per_task[2 * k + 1] = (float)shared.labels[k];
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)block;
        float ignored;
        if (phase == 0) {
            clear(thread);
            count_own(thread, shared);
        } else if (phase == 1 && thread < attrs.tasks) {
            shared.labels[thread] = 0;
            for (int t = 0; t < THREADS; t++) {
                shared.labels[thread] += shared.count[t][thread];
            }
        } else if (phase == 1 && thread == THREADS - 1) {
            report(shared);
        } else if (phase == 2 && thread < attrs.tasks) {
            shared.scale[thread] = factor(thread, shared);
        } else if (phase == 3) {
            for (int i = thread; i < samples; i += THREADS) {
                if (labelled(i) && refused(i, &ignored) == MDMT_FAULT_NONE) {
                    shared.sum[thread][task[i]] += one(i, shared);
                }
            }
        } else if (phase == 4 && thread < attrs.tasks) {
            sum_task(thread, shared);
        } else if (phase == 5 && thread == 0) {
            double all = 0;
            for (int k = 0; k < attrs.tasks; k++) {
                all += shared.total[k];
            }
            loss[0] = (float)all;
        }
    }
};

static int widest_of(const mdmt_cuda_site *site)
{
    int widest = 1;
    for (int k = 0; k < MDMT_ATTRS(mdmt_loss_attrs, site->op)->tasks; k++) {
        int width = site->in[2 + k]->dim[1];
        widest = width > widest ? width : widest;
    }
    return widest;
}

static mdmt_status needs(const mdmt_cuda_site *site, mdmt_cuda_needs *n)
{
    const mdmt_loss_attrs *a = MDMT_ATTRS(mdmt_loss_attrs, site->op);
    int target_width = site->in[1]->dims > 1 ? site->in[1]->dim[1] : 1;
    target_width /= a->weighted ? 2 : 1;
    for (int k = 0; k < a->tasks; k++) {
        int wide = a->loss[k] == MDMT_LOSS_BCE || a->loss[k] == MDMT_LOSS_MSE;
        int width = site->in[2 + k]->dim[1];
        if ((wide ? width : 1) > target_width) {
            return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                                   "task %d has %d outputs, but the targets have %d columns", k,
                                   width, target_width);
        }
    }
    n->workspace_bytes =
        sizeof(double) * (size_t)site->in[0]->dim[0] * (size_t)(2 * widest_of(site));
    return MDMT_OK;
}

template <bool RECIPE>
static mdmt_status start(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    masked_loss<RECIPE> f;
    memset((void *)&f, 0, sizeof f);
    f.attrs = *MDMT_ATTRS(mdmt_loss_attrs, site->op);
    f.task = (const int32_t *)call->in[0].data;
    f.target = (const float *)call->in[1].data;
    f.samples = site->in[0]->dim[0];
    f.target_width = site->in[1]->dims > 1 ? site->in[1]->dim[1] : 1;
    f.widest = widest_of(site);
    f.scratch = (double *)(void *)call->workspace;
    f.loss = (float *)call->out[0];
    f.per_task = (float *)call->out[1];
    for (int k = 0; k < f.attrs.tasks; k++) {
        f.logits[k] = (const float *)call->in[2 + k].data;
        f.width[k] = site->in[2 + k]->dim[1];
        f.dlogits[k] = f.attrs.want_gradient ? (float *)call->output(site, 2 + k) : NULL;
    }
    f.fault = site->gpu->fault;
    site->gpu->fault_possible = 1;
    return mdmt_launch(site->stream, 1, f);
}

static mdmt_status run(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_loss_attrs *a = MDMT_ATTRS(mdmt_loss_attrs, site->op);
    int recipe = a->weighted;
    for (int k = 0; k < a->tasks; k++) {
        recipe = recipe || a->smoothing[k] > 0;
    }
    return recipe ? start<true>(site, call) : start<false>(site, call);
}

mdmt_status mdmt_gpu_check_fault(mdmt_gpu *gpu)
{
    mdmt_gpu_fault f;
    if (!gpu->fault_possible) {
        return MDMT_OK;
    }
    MDMT_TRY(mdmt_device_read(gpu->stream, &f, gpu->fault, sizeof f));
    gpu->fault_possible = 0;
    if (f.kind != MDMT_FAULT_NONE) {
        mdmt_gpu_fault none;
        memset((void *)&none, 0, sizeof none);
        MDMT_TRY(mdmt_device_write(gpu->stream, gpu->fault, &none, sizeof none));
    }
    switch (f.kind) {
    case MDMT_FAULT_TASK:
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                               "sample %d has the task %d, outside 0 to %d (-1: no label)",
                               f.sample, f.task, f.classes - 1);
    case MDMT_FAULT_BCE:
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                               "sample %d has the target %g for task %d, outside the range 0 to 1 "
                               "of a binary cross-entropy",
                               f.sample, (double)f.value, f.task);
    case MDMT_FAULT_MSE:
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                               "sample %d has the infinite target %g for task %d", f.sample,
                               (double)f.value, f.task);
    case MDMT_FAULT_CLASS:
        return mdmt_lent->fail(
            MDMT_BAD_ARGUMENT,
            "sample %d has the class %g for task %d, which has the classes 0 to %d", f.sample,
            (double)f.value, f.task, f.classes - 1);
    case MDMT_FAULT_WEIGHT:
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                               "sample %d has the weight %g for task %d; a weight is a finite "
                               "number, 0 or more",
                               f.sample, (double)f.value, f.task);
    default:
        return MDMT_OK;
    }
}

const mdmt_cuda_impl mdmt_cuda_loss[] = {{"masked_loss", "cuda_masked_loss", NULL, needs, run},
                                         {NULL, NULL, NULL, NULL, NULL}};
