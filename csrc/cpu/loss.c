#include "loss.h"

#include <math.h>
#include <string.h>

/* log(exp(a) + exp(b)); a may be -infinity. */
static double log_add(double a, double b)
{
    double high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1p(exp(low - high));
}

/* log sum exp of z (k). */
static double log_sum_exp(const float *z, int k)
{
    double high = z[0], sum = 0;
    for (int j = 1; j < k; j++) {
        high = z[j] > high ? z[j] : high;
    }
    for (int j = 0; j < k; j++) {
        sum += exp(z[j] - high);
    }
    return high + log(sum);
}

/* Each function below: the loss of one sample with k logits z and target t; if
 * dz is not NULL, dz (k) = scale * d loss / d z. w: the weight of each output, or
 * NULL for ones. */

static double cross_entropy(const float *z, int k, const float *t, double scale, float *dz)
{
    int y = (int)t[0];
    double total = log_sum_exp(z, k);
    for (int j = 0; dz && j < k; j++) {
        dz[j] = (float)(scale * (j == y ? expm1(z[j] - total) : exp(z[j] - total)));
    }
    return total - z[y];
}

/* Against the target (1 - spread) onehot + spread / k. */
static double smoothed_entropy(const float *z, int k, const float *t, double spread, double scale,
                               float *dz)
{
    int y = (int)t[0];
    double total = log_sum_exp(z, k), sum = 0, each = spread / k;
    for (int j = 0; j < k; j++) {
        sum += total - z[j];
        if (dz) {
            double d = j == y ? expm1(z[j] - total) + spread : exp(z[j] - total);
            dz[j] = (float)(scale * (d - each));
        }
    }
    return (1 - spread) * (total - z[y]) + each * sum;
}

/* NaN among t: an output without a label, which has no part in the mean. */
static double binary_cross_entropy(const float *z, int k, const float *t, const float *w,
                                   double scale, float *dz)
{
    double sum = 0;
    int known = 0;
    for (int j = 0; j < k; j++) {
        known += !isnan(t[j]);
    }
    for (int j = 0; j < k; j++) {
        if (isnan(t[j])) {
            continue; /* dz is 0 already */
        }
        double small = exp(-fabs((double)z[j])); /* of the less likely side */
        double one = (z[j] > 0 ? z[j] : 0.0) - (double)z[j] * t[j] + log1p(small);
        double weight = w ? (double)w[j] : 1;
        sum += weight * one;
        if (dz) {
            double likely = 1 / (1 + small);
            double probability = z[j] >= 0 ? likely : small * likely;
            dz[j] = (float)(weight * scale * (probability - t[j]) / known);
        }
    }
    return sum / known;
}

static double squared_error(const float *z, int k, const float *t, const float *w, double scale,
                            float *dz)
{
    double sum = 0;
    for (int j = 0; j < k; j++) {
        double error = (double)z[j] - t[j], weight = w ? (double)w[j] : 1;
        sum += weight * (error * error);
        if (dz) {
            dz[j] = (float)(weight * scale * 2 * error / k);
        }
    }
    return sum / k;
}

/* With A_j = log sum exp of z_0 .. z_j and B_j that of z_j .. z_{k-1}:
 *   log F_j = A_j - B_0,  log(1 - F_j) = B_{j+1} - B_0,
 *   d log F_j / d z_m = [m <= j] exp(z_m - A_j) - p_m, and alike for B. */
static double ranked_score(const float *z, int k, const float *t, double scale, float *dz,
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
        double sum = (k - 1) * exp(z[m] - total);
        for (int j = y > m ? y : m; j < k - 1; j++) {
            sum -= exp(z[m] - below[j]);
        }
        for (int j = 0; j < y && j < m; j++) {
            sum -= exp(z[m] - above[j + 1]);
        }
        dz[m] = (float)(scale * sum);
    }
    return loss;
}

/* From the sums of a mask in place of logits. */
static double dice_and_entropy(const float *z, double scale, float *dz)
{
    double both = 2 * (double)z[MDMT_MASK_BOTH] + 1;
    double all = (double)z[MDMT_MASK_GUESSED] + z[MDMT_MASK_TRUE] + 1;
    if (dz) {
        dz[MDMT_MASK_ENTROPY] = (float)scale;
        dz[MDMT_MASK_BOTH] = (float)(scale * -2 / all);
        dz[MDMT_MASK_GUESSED] = dz[MDMT_MASK_TRUE] = (float)(scale * both / (all * all));
    }
    return z[MDMT_MASK_ENTROPY] + 1 - both / all;
}

/* Target columns that a task reads. */
static int columns(const mdmt_loss_problem *p, int k)
{
    int kind = p->attrs->loss[k];
    return kind == MDMT_LOSS_BCE || kind == MDMT_LOSS_MSE ? p->width[k] : 1;
}

/* Columns of the target without their weights. */
static int target_columns(const mdmt_loss_problem *p)
{
    return p->attrs->weighted ? p->target_width / 2 : p->target_width;
}

/* The weights of sample i, of its first column on, or NULL. */
static const float *weights_of(const mdmt_loss_problem *p, int i)
{
    return p->attrs->weighted ? p->target + (int64_t)i * p->target_width + target_columns(p) : NULL;
}

/* Whether sample i has a label: all the columns of its task, of a binary cross-entropy one. */
static int labelled(const mdmt_loss_problem *p, int i)
{
    if (p->task[i] < 0) {
        return 0;
    }
    const float *target = p->target + (int64_t)i * p->target_width;
    int all = columns(p, p->task[i]), known = 0;
    for (int j = 0; j < all; j++) {
        known += !isnan(target[j]);
    }
    return p->attrs->loss[p->task[i]] == MDMT_LOSS_BCE ? known > 0 : known == all;
}

/* Of the columns that have a label. */
static mdmt_status check_weights(const mdmt_loss_problem *p, int i)
{
    const float *target = p->target + (int64_t)i * p->target_width, *weight = weights_of(p, i);
    for (int j = 0; weight && j < columns(p, p->task[i]); j++) {
        if (!isnan(target[j]) && !(weight[j] >= 0 && !isinf(weight[j]))) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "sample %d has the weight %g for task %d; a weight is a finite "
                             "number, 0 or more",
                             i, (double)weight[j], p->task[i]);
        }
    }
    return MDMT_OK;
}

static mdmt_status check_target(const mdmt_loss_problem *p, int i)
{
    int k = p->task[i], kind = p->attrs->loss[k];
    const float *target = p->target + (int64_t)i * p->target_width;
    for (int j = 0; j < columns(p, k); j++) {
        float value = target[j];
        if (kind == MDMT_LOSS_BCE && !isnan(value) && !(value >= 0 && value <= 1)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "sample %d has the target %g for task %d, outside the range 0 to 1 "
                             "of a binary cross-entropy",
                             i, (double)value, k);
        }
        if (kind == MDMT_LOSS_MSE && isinf(value)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "sample %d has the infinite target %g for task %d",
                             i, (double)value, k);
        }
        if ((kind == MDMT_LOSS_CE || kind == MDMT_LOSS_ORDINAL) &&
            !(value >= 0 && value <= (float)(p->width[k] - 1) && value == floorf(value))) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "sample %d has the class %g for task %d, which has the classes 0 to "
                             "%d",
                             i, (double)value, k, p->width[k] - 1);
        }
    }
    return MDMT_OK;
}

/* Checks shapes and all labels, and counts the labelled samples of each task. */
static mdmt_status count_labels(const mdmt_loss_problem *p, double *per_task)
{
    const mdmt_loss_attrs *attrs = p->attrs;
    if (attrs->tasks < 1 || attrs->tasks > MDMT_MAX_TASKS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a masked loss has 1 to %d tasks, not %d",
                         MDMT_MAX_TASKS, attrs->tasks);
    }
    for (int k = 0; k < attrs->tasks; k++) {
        if (attrs->loss[k] == MDMT_LOSS_DICE_CE && p->width[k] != MDMT_MASK_SUMS) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "task %d has the loss dice_ce, which takes the %d sums of a mask, not "
                             "%d outputs",
                             k, MDMT_MASK_SUMS, p->width[k]);
        }
        if (p->width[k] < 1 || columns(p, k) > target_columns(p)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "task %d has %d outputs, but the targets have %d columns", k,
                             p->width[k], target_columns(p));
        }
        per_task[2 * k] = per_task[2 * k + 1] = 0;
    }
    for (int i = 0; i < p->samples; i++) {
        int k = p->task[i];
        if (k < -1 || k >= attrs->tasks) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "sample %d has the task %d, outside 0 to %d (-1: no label)", i, k,
                             attrs->tasks - 1);
        }
        if (labelled(p, i)) {
            MDMT_TRY(check_target(p, i));
            MDMT_TRY(check_weights(p, i));
            per_task[2 * k + 1] += 1;
        }
    }
    return MDMT_OK;
}

int mdmt_loss_scratch(const mdmt_loss_problem *p)
{
    int widest = 1;
    for (int k = 0; k < p->attrs->tasks; k++) {
        widest = p->width[k] > widest ? p->width[k] : widest;
    }
    return 2 * widest;
}

static double sample_loss(const mdmt_loss_problem *p, int i, double scale, double *scratch)
{
    int k = p->task[i], width = p->width[k];
    int64_t row = (int64_t)i * width;
    const float *z = p->logits[k] + row, *t = p->target + (int64_t)i * p->target_width;
    float *dz = p->dlogits[k] ? p->dlogits[k] + row : NULL;
    const float *w = weights_of(p, i);
    double one = w ? (double)w[0] : 1, spread = p->attrs->smoothing[k];
    switch ((mdmt_loss_kind)p->attrs->loss[k]) {
    case MDMT_LOSS_BCE:
        return binary_cross_entropy(z, width, t, w, scale, dz);
    case MDMT_LOSS_MSE:
        return squared_error(z, width, t, w, scale, dz);
    case MDMT_LOSS_ORDINAL:
        return one * ranked_score(z, width, t, one * scale, dz, scratch, scratch + width);
    case MDMT_LOSS_DICE_CE:
        return one * dice_and_entropy(z, one * scale, dz);
    case MDMT_LOSS_CE:
        break;
    }
    return one * (spread > 0 ? smoothed_entropy(z, width, t, spread, one * scale, dz)
                             : cross_entropy(z, width, t, one * scale, dz));
}

mdmt_status mdmt_masked_loss(const mdmt_loss_problem *p, double *scratch, double *loss,
                             double *per_task)
{
    MDMT_TRY(count_labels(p, per_task));
    const mdmt_loss_attrs *attrs = p->attrs;
    double all = 0, scale[MDMT_MAX_TASKS];
    for (int k = 0; k < attrs->tasks; k++) {
        all += per_task[2 * k + 1];
        if (p->dlogits[k]) {
            memset(p->dlogits[k], 0, sizeof(float) * (size_t)p->samples * (size_t)p->width[k]);
        }
    }
    for (int k = 0; k < attrs->tasks; k++) {
        double over = attrs->reduction == MDMT_REDUCE_MEAN            ? all
                      : attrs->reduction == MDMT_REDUCE_PER_TASK_MEAN ? per_task[2 * k + 1]
                                                                      : 1;
        scale[k] = over > 0 ? attrs->weight[k] / over : 0;
    }
    for (int i = 0; i < p->samples; i++) {
        if (labelled(p, i)) {
            int k = p->task[i];
            per_task[2 * k] += sample_loss(p, i, scale[k], scratch);
        }
    }
    *loss = 0;
    for (int k = 0; k < attrs->tasks; k++) {
        if (per_task[2 * k + 1] > 0) {
            *loss += scale[k] * per_task[2 * k];
        }
    }
    return MDMT_OK;
}
