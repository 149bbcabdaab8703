/* The masked multi-task loss, equations (1) to (3) of Ruffini et al. (MICCAI
 * 2024), on plain arrays: the arithmetic of the op masked_loss and of the NumPy
 * function of that name.
 *
 * A batch mixes the samples of several data sets; sample i carries a label for
 * one task t(i) and has logits from every head. Its loss l_i is that of task
 * t(i) alone:
 *
 *   ce       -log softmax(z)_y                      y = target column 0, a class index
 *   bce      mean over the k logits of -[t log s(z) + (1 - t) log s(-z)]; those whose t is NaN have
 *            no label and no part in it
 *   mse      mean over the k outputs of (z - t)^2
 *   ordinal  logarithmic ranked score: with p = softmax(z) and the cumulative
 *            probabilities F_j = p_0 + .. + p_j,
 *            -sum_{j < k-1} [y <= j] log F_j + [y > j] log(1 - F_j)
 *   dice_ce  the loss of a mask, from what mask_sums gives of it in place of logits (k = 4):
 *            the mean over the pixels of the binary cross-entropy, plus 1 - D with the soft Dice
 *            coefficient D = (2 sum p t + 1) / (sum p + sum t + 1) (Milletari et al. 2016, without
 *            squares; the ones make an empty mask count, too)
 *
 * With attrs->weighted the target has a second half of columns, the weight of each of the first
 * half, and l_i becomes weight 0 times it (ce, ordinal, dice_ce), or the mean over the same outputs
 * of weight j times what output j adds (bce: those with a label; mse: all). With
 * attrs->smoothing[k] = e the target of a ce task is (1 - e) onehot(y) + e / k (Szegedy et al.
 * 2016, as label_smoothing of torch.nn.CrossEntropyLoss).
 *
 * The loss of the batch is, with w_k the weight of task k,
 *
 *   mean            sum_i w_t(i) l_i / N        N = labelled samples of the batch
 *   per_task_mean   sum_k w_k (sum_{i of k} l_i) / N_k     N_k = those of task k
 *   sum             sum_i w_t(i) l_i
 *
 * A sample without a label (task -1, or NaN among the target columns of its
 * task, for bce in all of them) adds nothing to the loss, has zero gradient and
 * is counted neither in N nor in N_k. A task without a sample has loss zero and a
 * gradient of exact zeros; so has a batch without any label.
 *
 * N and N_k count samples, whatever their weights, also those of weight 0: the sum is not divided
 * by the sum of the weights, as PyTorch's `weight` with reduction "mean" does. So the gradient of a
 * batch is an unbiased estimate of that of all data, and a task of which the batch has one sample
 * counts it with its weight instead of dividing it out again.
 *
 * All values are computed from the logits by log-sum-exp in double precision and
 * summed in double in the order of the samples; gradients are rounded to float
 * once. A NaN or infinity among a labelled sample's logits makes its loss NaN or
 * infinite: the caller sees it. */
#ifndef MDMT_CPU_LOSS_H
#define MDMT_CPU_LOSS_H

#include "../base/status.h"
#include "../ops/attrs.h"

typedef struct {
    const mdmt_loss_attrs *attrs;
    int samples;                         /* n of the batch */
    const int32_t *task;                 /* (n) head of each sample, -1: none  */
    const float *target;                 /* (n, target_width)                  */
    int target_width;                    /* columns, with those of weights; task k
                                            reads the first ones (of both halves) */
    const float *logits[MDMT_MAX_TASKS]; /* (n, width[k])                      */
    int width[MDMT_MAX_TASKS];
    float *dlogits[MDMT_MAX_TASKS]; /* (n, width[k]) d loss / d logits, or NULL */
} mdmt_loss_problem;

/* Doubles of scratch that mdmt_masked_loss needs. */
int mdmt_loss_scratch(const mdmt_loss_problem *problem);

/* Loss of the batch, and (tasks, 2) pairs of [sum of the losses l_i, samples] per
 * task, without w_k. Fails on a task number, target or weight outside its range,
 * naming sample and value; the gradients are then undefined. */
mdmt_status mdmt_masked_loss(const mdmt_loss_problem *problem, double *scratch, double *loss,
                             double *per_task);

#endif
