#include "schedule.h"

#include <math.h>

static const double smallest_change = 1e-8; /* ReduceLROnPlateau's eps */
static const double pi = 3.14159265358979323846;

static double length_of(const mdmt_schedule_config *c)
{
    return c->length > 0 ? c->length : c->max_epochs;
}

/* Of the rules that depend on the epoch alone, and of every one's warm-up. */
static double rate_at(const mdmt_schedule_config *c, double epoch)
{
    if (epoch < c->lr_warmup) {
        return c->lr * ((epoch + 1) / (c->lr_warmup + 1));
    }
    double done = fmin((epoch - c->lr_warmup) / (length_of(c) - c->lr_warmup), 1);
    if (c->kind == MDMT_RATE_COSINE) {
        return c->min_lr + (c->lr - c->min_lr) * (1 + cos(pi * done)) / 2;
    }
    return c->kind == MDMT_RATE_LINEAR ? c->lr + (c->min_lr - c->lr) * done : c->lr;
}

/* What min_lr, lr_warmup and length must be to each other. */
static mdmt_status check_rate(const mdmt_schedule_config *c)
{
    if (!(c->kind >= 0 && c->kind < MDMT_RATE_KINDS && c->kind == floor(c->kind))) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "there is no learning-rate rule number %g", c->kind);
    }
    if ((c->kind == MDMT_RATE_COSINE || c->kind == MDMT_RATE_LINEAR) && c->min_lr > c->lr) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the learning rate cannot fall from %g to %g: min_lr must be at most lr",
                         c->lr, c->min_lr);
    }
    if (c->lr_warmup > 0 && !(c->lr_warmup < length_of(c))) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "lr_warmup must be below the %g epochs of the training, not %g",
                         length_of(c), c->lr_warmup);
    }
    return MDMT_OK;
}

mdmt_status mdmt_schedule_start(const mdmt_schedule_config *c, mdmt_schedule_state *state)
{
    if (!(c->lr > 0 && c->lr < INFINITY)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the learning rate must be positive, not %g", c->lr);
    }
    if (!(c->factor > 0 && c->factor < 1)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the factor of the learning rate must be above 0 and below 1, not %g",
                         c->factor);
    }
    if (!(c->threshold >= 0 && c->threshold < 1)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the threshold of the plateau must be at least 0 and below 1, not %g",
                         c->threshold);
    }
    const double least[] = {c->patience,  c->min_lr, c->cooldown,      c->warmup,
                            c->lr_warmup, c->length, c->stop_patience, c->max_epochs};
    const char *const names[] = {"patience",  "min_lr", "cooldown",      "warmup",
                                 "lr_warmup", "length", "stop_patience", "max_epochs"};
    for (int i = 0; i < 8; i++) {
        double low = i < 6 ? 0 : 1;
        if (!(least[i] >= low)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "%s must be at least %g, not %g", names[i], low,
                             least[i]);
        }
    }
    MDMT_TRY(check_rate(c));
    *state = (mdmt_schedule_state){
        .lr = rate_at(c, 0), .plateau_best = INFINITY, .best_loss = INFINITY, .best_epoch = -1};
    return MDMT_OK;
}

static void follow_plateau(const mdmt_schedule_config *c, mdmt_schedule_state *s, double loss)
{
    if (loss < s->plateau_best * (1 - c->threshold)) {
        s->plateau_best = loss;
        s->plateau_bad = 0;
    } else {
        s->plateau_bad += 1;
    }
    if (s->cooldown_left > 0) {
        s->cooldown_left -= 1;
        s->plateau_bad = 0;
    }
    if (s->plateau_bad > c->patience) {
        double lower = fmax(s->lr * c->factor, c->min_lr);
        if (s->lr - lower > smallest_change) {
            s->lr = lower;
        }
        s->cooldown_left = c->cooldown;
        s->plateau_bad = 0;
    }
}

mdmt_status mdmt_schedule_update(const mdmt_schedule_config *c, mdmt_schedule_state *s,
                                 double epoch, double loss, int *is_best, int *stop)
{
    if (epoch != s->epochs) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the schedule expects the validation loss of epoch %.0f, not of epoch "
                         "%.0f",
                         s->epochs, epoch);
    }
    s->epochs += 1;
    if (c->kind != MDMT_RATE_PLATEAU || epoch < c->lr_warmup) {
        s->lr = rate_at(c, s->epochs);
    } else {
        follow_plateau(c, s, loss);
    }
    int last = s->epochs >= c->max_epochs;
    *is_best = 0;
    if (epoch >= c->warmup || (last && s->best_epoch < 0)) {
        *is_best = loss < s->best_loss;
        s->best_loss = *is_best ? loss : s->best_loss;
        s->best_epoch = *is_best ? epoch : s->best_epoch;
        s->stale = *is_best ? 0 : s->stale + 1;
    }
    *stop = last || s->stale >= c->stop_patience;
    return MDMT_OK;
}
