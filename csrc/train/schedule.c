#include "schedule.h"

#include <math.h>

static const double smallest_change = 1e-8; /* ReduceLROnPlateau's eps */

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
    const double least[] = {c->patience, c->min_lr,        c->cooldown,
                            c->warmup,   c->stop_patience, c->max_epochs};
    const char *const names[] = {"patience", "min_lr",        "cooldown",
                                 "warmup",   "stop_patience", "max_epochs"};
    for (int i = 0; i < 6; i++) {
        double low = i < 4 ? 0 : 1;
        if (!(least[i] >= low)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "%s must be at least %g, not %g", names[i], low,
                             least[i]);
        }
    }
    *state = (mdmt_schedule_state){
        .lr = c->lr, .plateau_best = INFINITY, .best_loss = INFINITY, .best_epoch = -1};
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
    follow_plateau(c, s, loss);
    s->epochs += 1;
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
