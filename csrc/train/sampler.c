#include "sampler.h"

#include <math.h>

#include "../base/memory.h"
#include "../base/philox.h"

/* A random order of `size` samples that is shuffled anew for each pass. Mode
 * union has one (of the concatenated data sets), the others one per data set. */
typedef struct {
    int64_t size;
    int64_t *order;      /* that of `epoch` and `pass`         */
    int64_t epoch, pass; /* -1: none made yet                  */
    int64_t taken;       /* in this epoch before the next step */
} stream;

struct mdmt_sampler {
    mdmt_sampler_config config;
    int streams;
    stream stream[MDMT_MAX_SETS];
    double share[MDMT_MAX_SETS]; /* of a batch, per stream; sum 1 */
    int lead;                    /* the stream that ends the epoch, or -1 */
    int64_t steps;
    int64_t last;      /* samples of the last batch */
    int64_t last_lead; /* those of the lead in it */
    int64_t next_step; /* that `taken` stands before */
};

static mdmt_status check(const mdmt_sampler_config *c)
{
    if (c->sets < 1 || c->sets > MDMT_MAX_SETS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a sampler mixes 1 to %d data sets, not %d",
                         MDMT_MAX_SETS, c->sets);
    }
    for (int k = 0; k < c->sets; k++) {
        if (c->size[k] == 0) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "data set %d has no samples: leave it out, or check its table and "
                             "its split",
                             k);
        }
        if (c->size[k] < 1 || c->size[k] > INT32_MAX / MDMT_MAX_SETS) {
            return mdmt_fail(MDMT_BAD_ARGUMENT, "data set %d cannot have %lld samples", k,
                             (long long)c->size[k]);
        }
        if (c->mode == MDMT_SAMPLE_RATIO && !(c->ratio[k] > 0 && c->ratio[k] < INFINITY)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the ratio of data set %d is %g, but each must be a positive number",
                             k, c->ratio[k]);
        }
    }
    if (c->batch < 1 || c->batch > INT32_MAX) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the batch size must be at least 1 and below 2^31, "
                         "not %lld",
                         (long long)c->batch);
    }
    if (c->epoch == MDMT_EPOCH_STEPS && (c->steps < 1 || c->steps > INT32_MAX)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "an epoch must have at least 1 step and below 2^31, "
                         "not %lld",
                         (long long)c->steps);
    }
    return MDMT_OK;
}

/* How many samples each stream gives to a batch of `size` samples that follows
 * `given` samples: its share rounded down, then one more for those that are
 * furthest behind their share of all samples so far. */
static void quotas(const mdmt_sampler *s, int64_t given, int64_t size, int64_t *quota)
{
    double behind[MDMT_MAX_SETS];
    int64_t left = size;
    for (int k = 0; k < s->streams; k++) {
        quota[k] = (int64_t)floor(s->share[k] * (double)size + 1e-9);
        left -= quota[k];
        behind[k] = s->share[k] * (double)(given + size) - (double)(s->stream[k].taken + quota[k]);
    }
    for (; left > 0; left--) {
        int most = 0;
        for (int k = 1; k < s->streams; k++) {
            most = behind[k] > behind[most] + 1e-9 ? k : most;
        }
        quota[most]++;
        behind[most] -= 1;
    }
}

/* As quotas, for batch number `step`: the last one ends the lead's pass. */
static void step_quotas(const mdmt_sampler *s, int64_t step, int64_t *quota)
{
    if (step < s->steps - 1 || s->last_lead < 0) {
        quotas(s, step * s->config.batch, step < s->steps - 1 ? s->config.batch : s->last, quota);
        return;
    }
    /* What the lead leaves is shared by the others in the same manner. */
    double others = 1 - s->share[s->lead], behind[MDMT_MAX_SETS] = {0};
    int64_t left = s->last - s->last_lead;
    for (int k = 0; k < s->streams; k++) {
        quota[k] = k == s->lead ? s->last_lead : 0;
        behind[k] = k == s->lead
                        ? -INFINITY
                        : s->share[k] * (double)(step * s->config.batch) -
                              (double)s->stream[k].taken + s->share[k] / others * (double)left;
    }
    for (; left > 0; left--) {
        int most = s->lead == 0 ? 1 : 0;
        for (int k = 0; k < s->streams; k++) {
            most = behind[k] > behind[most] + 1e-9 ? k : most;
        }
        quota[most]++;
        behind[most] -= 1;
    }
}

static void rewind_epoch(mdmt_sampler *s)
{
    s->next_step = 0;
    for (int k = 0; k < s->streams; k++) {
        s->stream[k].taken = 0;
    }
}

/* Length of an epoch that ends with the lead's first pass: full batches until
 * the lead could end, then as many of all as fit to what it has left. */
static void length_by_lead(mdmt_sampler *s)
{
    int64_t quota[MDMT_MAX_SETS], batch = s->config.batch;
    rewind_epoch(s);
    for (s->steps = 1;; s->steps++) {
        quotas(s, (s->steps - 1) * batch, batch, quota);
        int64_t left = s->stream[s->lead].size - s->stream[s->lead].taken;
        if (quota[s->lead] >= left) {
            int64_t fit = llround((double)left / s->share[s->lead]);
            fit = fit > batch ? batch : fit;
            s->last = quota[s->lead] == left ? batch : fit < left ? left : fit;
            s->last_lead = left;
            break;
        }
        for (int k = 0; k < s->streams; k++) {
            s->stream[k].taken += quota[k];
        }
    }
    rewind_epoch(s);
}

static void length_by_samples(mdmt_sampler *s, int64_t samples)
{
    s->steps = (samples + s->config.batch - 1) / s->config.batch;
    s->last = samples - (s->steps - 1) * s->config.batch;
    s->last_lead = -1;
}

/* The data set that lasts longest (or shortest) at its share. */
static int find_lead(const mdmt_sampler *s)
{
    int lead = 0;
    for (int k = 1; k < s->streams; k++) {
        double a = (double)s->stream[k].size / s->share[k];
        double b = (double)s->stream[lead].size / s->share[lead];
        int better = s->config.epoch == MDMT_EPOCH_LONGEST ? a > b : a < b;
        lead = better ? k : lead;
    }
    return lead;
}

static mdmt_status plan(mdmt_sampler *s)
{
    const mdmt_sampler_config *c = &s->config;
    int64_t all = 0;
    for (int k = 0; k < c->sets; k++) {
        all += c->size[k];
    }
    for (int k = 0; k < s->streams; k++) {
        if (!(s->share[k] > 1e-12)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the ratio of data set %d is too small beside the others: its share "
                             "is %.3g",
                             k, s->share[k]);
        }
    }
    s->lead = -1;
    if (c->epoch == MDMT_EPOCH_STEPS) {
        s->steps = c->steps;
        s->last = c->batch;
        s->last_lead = -1;
    } else if (c->mode == MDMT_SAMPLE_UNION || c->epoch == MDMT_EPOCH_UNION || s->streams == 1) {
        length_by_samples(s, s->streams == 1 ? s->stream[0].size : all);
    } else {
        s->lead = find_lead(s);
        double batches = (double)s->stream[s->lead].size / s->share[s->lead] / (double)c->batch;
        if (batches > 1e7) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "an epoch would have %.3g batches until data set %d is through at "
                             "its share of %.3g: give it a larger ratio",
                             batches, s->lead, s->share[s->lead]);
        }
        length_by_lead(s);
    }
    if (c->drop_last && s->last < c->batch) {
        s->steps--;
        s->last = c->batch;
        s->last_lead = -1;
    }
    if (s->steps < 1) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "with drop_last an epoch of fewer than %lld samples has no batch: lower "
                         "the batch size",
                         (long long)c->batch);
    }
    return MDMT_OK;
}

mdmt_status mdmt_sampler_open(mdmt_sampler **out, const mdmt_sampler_config *config)
{
    *out = NULL;
    MDMT_TRY(check(config));
    mdmt_sampler *s = mdmt_acquire(1, sizeof *s);
    if (!s) {
        return MDMT_NO_MEMORY;
    }
    s->config = *config;
    s->streams = config->mode == MDMT_SAMPLE_UNION ? 1 : config->sets;
    double sum = 0;
    for (int k = 0; k < config->sets; k++) {
        stream *to = &s->stream[config->mode == MDMT_SAMPLE_UNION ? 0 : k];
        to->size += config->size[k];
        s->share[k] = config->mode == MDMT_SAMPLE_RATIO ? config->ratio[k] : 1;
        sum += s->share[k];
    }
    for (int k = 0; k < s->streams; k++) {
        stream *to = &s->stream[k];
        s->share[k] = s->streams == 1 ? 1 : s->share[k] / sum;
        to->epoch = to->pass = -1;
        to->order = mdmt_acquire((size_t)to->size, sizeof *to->order);
        if (!to->order) {
            mdmt_sampler_close(s);
            return MDMT_NO_MEMORY;
        }
    }
    mdmt_status status = plan(s);
    if (status != MDMT_OK) {
        mdmt_sampler_close(s);
        return status;
    }
    *out = s;
    return MDMT_OK;
}

void mdmt_sampler_close(mdmt_sampler *s)
{
    if (!s) {
        return;
    }
    for (int k = 0; k < s->streams; k++) {
        mdmt_release(s->stream[k].order);
    }
    mdmt_release(s);
}

int64_t mdmt_sampler_steps(const mdmt_sampler *s)
{
    return s->steps;
}

int64_t mdmt_sampler_batch_size(const mdmt_sampler *s, int64_t step)
{
    return step == s->steps - 1 ? s->last : s->config.batch;
}

/* Uniform in 0 .. bound-1 < 2^31, from 64 random bits (Lemire's multiply-shift;
 * its bias of at most bound / 2^64 is nothing). */
static int64_t below(uint64_t bits, int64_t bound)
{
    uint64_t low = (bits & 0xFFFFFFFFu) * (uint64_t)bound;
    uint64_t high = (bits >> 32) * (uint64_t)bound;
    return (int64_t)((high + (low >> 32)) >> 32);
}

/* Makes the order of a pass: Fisher-Yates (Durstenfeld 1964). */
static void shuffle(mdmt_sampler *s, int k, int64_t epoch, int64_t pass)
{
    stream *to = &s->stream[k];
    uint64_t key = mdmt_stream_key(s->config.seed, MDMT_STREAM_SAMPLER);
    uint64_t high = (uint64_t)epoch << 32 | (uint64_t)(uint32_t)pass;
    for (int64_t i = 0; i < to->size; i++) {
        to->order[i] = i;
    }
    for (int64_t i = to->size - 1; i > 0; i--) {
        mdmt_philox4 r = mdmt_philox(key, (uint64_t)i << 8 | (uint64_t)k, high);
        int64_t j = below((uint64_t)r.v[0] | (uint64_t)r.v[1] << 32, i + 1);
        int64_t kept = to->order[i];
        to->order[i] = to->order[j];
        to->order[j] = kept;
    }
    to->epoch = epoch;
    to->pass = pass;
}

/* The next `count` samples of stream k of this epoch. */
static void take(mdmt_sampler *s, int k, int64_t epoch, int64_t count, int64_t *data_set,
                 int64_t *index)
{
    stream *from = &s->stream[k];
    for (int64_t i = 0; i < count; i++) {
        int64_t pass = from->taken / from->size, at = from->taken % from->size;
        if (from->epoch != epoch || from->pass != pass) {
            shuffle(s, k, epoch, pass);
        }
        int64_t sample = from->order[at];
        int set = k;
        if (s->config.mode == MDMT_SAMPLE_UNION) {
            for (set = 0; sample >= s->config.size[set]; set++) {
                sample -= s->config.size[set];
            }
        }
        data_set[i] = set;
        index[i] = sample;
        from->taken++;
    }
}

mdmt_status mdmt_sampler_batch(mdmt_sampler *s, int64_t epoch, int64_t step, int64_t *data_set,
                               int64_t *index)
{
    int64_t quota[MDMT_MAX_SETS];
    if (epoch < 0 || epoch >= (int64_t)1 << 32 || step < 0 || step >= s->steps) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "there is no batch %lld of epoch %lld: an epoch has "
                         "%lld batches",
                         (long long)step, (long long)epoch, (long long)s->steps);
    }
    if (step < s->next_step) {
        rewind_epoch(s);
    }
    for (; s->next_step < step; s->next_step++) {
        step_quotas(s, s->next_step, quota);
        for (int k = 0; k < s->streams; k++) {
            s->stream[k].taken += quota[k];
        }
    }
    step_quotas(s, step, quota);
    for (int64_t at = 0, k = 0; k < s->streams; at += quota[k++]) {
        take(s, (int)k, epoch, quota[k], data_set + at, index + at);
    }
    s->next_step = step + 1;
    return MDMT_OK;
}
