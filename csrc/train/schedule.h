/* What a training does with the validation loss of each epoch: the learning
 * rate, which epoch's weights are the best, and when to stop.
 *
 * Learning rate of epoch t = 0, 1, ..: in the first lr_warmup = W epochs
 *   lr (t + 1) / (W + 1), torch.optim.lr_scheduler.LinearLR with the start factor
 *   1 / (W + 1); then, with u = (t - W) / (length - W), at most 1,
 *   plateau   reduced as torch.optim.lr_scheduler.ReduceLROnPlateau does it (mode
 *             min, relative threshold): after more than `patience` epochs in a row
 *             without a loss below best (1 - threshold), it is multiplied by
 *             `factor`, but not below min_lr, and not for a change of 1e-8 or
 *             less. Losses count from epoch W on
 *   cosine    min_lr + (lr - min_lr) (1 + cos(pi u)) / 2 (Loshchilov & Hutter, ICLR
 *             2017, without restarts; the closed form of CosineAnnealingLR)
 *   linear    lr + (min_lr - lr) u
 *   constant  lr
 * so that min_lr is reached at the end of the training, not in its last epoch.
 *
 * Warm-up in the paper's sense: in the first `warmup` epochs no epoch is selected
 * and early stopping does not count; the learning rate is not touched by it. From
 * then on the epoch of the lowest loss is the best one (of equal ones the first),
 * and after stop_patience epochs in a row without a new best the training ends, as
 * it does after max_epochs. If it ends inside the warm-up, the last epoch counts
 * as selected, so that there always is one. A NaN is never better than anything.
 *
 * Both structs hold doubles only: a state is written and read back as it is. */
#ifndef MDMT_TRAIN_SCHEDULE_H
#define MDMT_TRAIN_SCHEDULE_H

#include "../base/status.h"

typedef enum {
    MDMT_RATE_PLATEAU,
    MDMT_RATE_COSINE,
    MDMT_RATE_LINEAR,
    MDMT_RATE_CONSTANT,
    MDMT_RATE_KINDS
} mdmt_rate_kind;

typedef struct {
    double lr;            /* the largest one                               */
    double factor;        /* 0.65, below 1                                 */
    double patience;      /* 15 epochs                                     */
    double threshold;     /* 1e-4, relative                                */
    double min_lr;        /* 1e-8                                          */
    double cooldown;      /* 0 epochs after a reduction that do not count  */
    double warmup;        /* 40 epochs                                     */
    double stop_patience; /* 40 epochs                                     */
    double max_epochs;    /* 300                                           */
    double kind;          /* an mdmt_rate_kind                             */
    double lr_warmup;     /* 0 epochs                                      */
    double length;        /* epochs from the start to min_lr, may end inside one; 0: max_epochs */
} mdmt_schedule_config;

typedef struct {
    double lr;           /* for the next epoch                            */
    double plateau_best; /* the plateau rule's own best loss              */
    double plateau_bad;  /* epochs since                                  */
    double cooldown_left;
    double best_loss;  /* of the selected epoch; infinity: none yet     */
    double best_epoch; /* -1: none yet                                  */
    double stale;      /* epochs since, that count for early stopping   */
    double epochs;     /* seen so far                                   */
} mdmt_schedule_state;

enum {
    MDMT_SCHEDULE_CONFIG = sizeof(mdmt_schedule_config) / sizeof(double),
    MDMT_SCHEDULE_STATE = sizeof(mdmt_schedule_state) / sizeof(double)
};

/* Checks the configuration and sets the state before the first epoch. */
mdmt_status mdmt_schedule_start(const mdmt_schedule_config *config, mdmt_schedule_state *state);
/* Takes the validation loss of `epoch`, which must be the next one. *is_best: keep
 * this epoch's weights; *stop: train no further. */
mdmt_status mdmt_schedule_update(const mdmt_schedule_config *config, mdmt_schedule_state *state,
                                 double epoch, double loss, int *is_best, int *stop);

#endif
