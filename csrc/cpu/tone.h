/* The part of the training augmentation that changes grey values and moves nothing: gamma,
 * contrast, brightness, inversion and noise, in this order (backend.h has the formulas). Every
 * number is a function of (seed, epoch, data set, index), as those of the warp (images.h) are. */
#ifndef MDMT_CPU_TONE_H
#define MDMT_CPU_TONE_H

#include "cpu.h"

/* What was drawn for one image; 1, 1, 0, 0, 0 changes nothing. */
typedef struct {
    float gamma, contrast, brightness;
    int invert;
    float noise; /* deviation */
    uint64_t noise_key;
} mdmt_tone;

mdmt_tone mdmt_tone_identity(void);
mdmt_tone mdmt_tone_draw(const mdmt_augmentation *augmentation, uint64_t seed, uint64_t epoch,
                         int data_set, int64_t index);
mdmt_status mdmt_tone_check(const mdmt_augmentation *augmentation);
int mdmt_tone_changes(const mdmt_tone *tone);
/* grey (count) in 0..1, of one plane of an image, in place; contrast is about its mean. Noise is the sum of two uniform numbers, so that a pixel is never
 * off by more than sqrt(6) deviations. */
void mdmt_tone_apply(const mdmt_tone *tone, int plane, float *grey, size_t count);

#endif
