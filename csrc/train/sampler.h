/* Mixed batches: which samples of which data sets make each batch of an epoch.
 *
 * Modes
 *   union     all samples of all data sets in one random order: every sample of
 *             the union is equally likely at every place, and comes exactly once
 *             per epoch (the paper's text)
 *   balanced  every batch holds the same number of samples of each data set; a
 *             remainder of K sets in a batch of B goes round
 *   ratio     every batch holds the given shares: B * share of each data set,
 *             rounded so that the sums over the batches stay as close to the
 *             shares as they can: down or up, and now and then one more where
 *             of three or more data sets one has fallen behind
 * Inside balanced and ratio each data set has its own random order; one that is
 * through before the epoch ends is shuffled anew and goes on.
 *
 * Length of an epoch
 *   union     as many samples as the union has
 *   longest   until the data set that lasts longest at its share has been seen
 *             once, each of its samples exactly once
 *   shortest  until the first data set has been seen once, likewise
 *   steps     a number of full batches
 * (In mode union the first three are the same.) All batches hold exactly `batch`
 * samples, save that the last may be smaller; drop_last leaves such a one out.
 *
 * Order: Fisher-Yates with Philox numbers keyed by the seed and counted by
 * (epoch, data set, pass, position). A batch is a function of the configuration,
 * epoch and step alone, so that a run resumes anywhere from these two numbers. */
#ifndef MDMT_TRAIN_SAMPLER_H
#define MDMT_TRAIN_SAMPLER_H

#include <stdint.h>

#include "../base/status.h"

enum { MDMT_MAX_SETS = 64 };

typedef enum { MDMT_SAMPLE_UNION, MDMT_SAMPLE_BALANCED, MDMT_SAMPLE_RATIO } mdmt_sample_mode;
typedef enum {
    MDMT_EPOCH_UNION,
    MDMT_EPOCH_LONGEST,
    MDMT_EPOCH_SHORTEST,
    MDMT_EPOCH_STEPS
} mdmt_epoch_rule;

typedef struct {
    int sets;
    int64_t size[MDMT_MAX_SETS]; /* samples of each data set               */
    int64_t batch;               /* samples of a batch                     */
    mdmt_sample_mode mode;
    double ratio[MDMT_MAX_SETS]; /* mode ratio: shares, of any sum         */
    mdmt_epoch_rule epoch;
    int64_t steps; /* rule steps                             */
    int drop_last;
    uint64_t seed;
} mdmt_sampler_config;

typedef struct mdmt_sampler mdmt_sampler;

mdmt_status mdmt_sampler_open(mdmt_sampler **sampler, const mdmt_sampler_config *config);
void mdmt_sampler_close(mdmt_sampler *sampler);
/* Batches of an epoch. */
int64_t mdmt_sampler_steps(const mdmt_sampler *sampler);
/* Samples of batch `step`: the batch size, save perhaps in the last one. */
int64_t mdmt_sampler_batch_size(const mdmt_sampler *sampler, int64_t step);
/* Batch `step` of `epoch` (at most 2^32 epochs): data set and index of each
 * sample, arrays of mdmt_sampler_batch_size numbers each. Batches taken in order
 * cost O(batch), any other O(sizes + steps). One caller at a time. */
mdmt_status mdmt_sampler_batch(mdmt_sampler *sampler, int64_t epoch, int64_t step,
                               int64_t *data_set, int64_t *index);

#endif
