#include "tone.h"

#include <math.h>

#include "../base/philox.h"

mdmt_tone mdmt_tone_identity(void)
{
    return (mdmt_tone){.gamma = 1, .contrast = 1};
}

int mdmt_tone_changes(const mdmt_tone *t)
{
    return t->gamma != 1 || t->contrast != 1 || t->brightness != 0 || t->invert || t->noise > 0;
}

static float spread(uint32_t bits, float range)
{
    return range * (2 * mdmt_uniform(bits) - 1);
}

mdmt_tone mdmt_tone_draw(const mdmt_augmentation *a, uint64_t seed, uint64_t epoch, int data_set,
                         int64_t index)
{
    mdmt_tone tone = mdmt_tone_identity();
    if (a->gamma == 0 && a->contrast == 0 && a->brightness == 0 && a->invert == 0 &&
        a->noise == 0) {
        return tone;
    }
    uint64_t key = mdmt_stream_key(seed, MDMT_STREAM_AUGMENT);
    uint64_t high = epoch << 32 | (uint64_t)(uint32_t)data_set << 8;
    mdmt_philox4 on = mdmt_philox(key, (uint64_t)index, high | 3); /* 0 .. 2 are the warp's */
    mdmt_philox4 value = mdmt_philox(key, (uint64_t)index, high | 4);
    mdmt_philox4 more = mdmt_philox(key, (uint64_t)index, high | 5);
    if (mdmt_uniform(on.v[0]) < a->probability) {
        tone.gamma = expf(spread(value.v[0], a->gamma));
    }
    if (mdmt_uniform(on.v[1]) < a->probability) {
        tone.contrast = 1 + spread(value.v[1], a->contrast);
    }
    if (mdmt_uniform(on.v[2]) < a->probability) {
        tone.brightness = spread(value.v[2], a->brightness);
    }
    if (mdmt_uniform(on.v[3]) < a->probability) {
        tone.noise = a->noise * mdmt_uniform(value.v[3]);
    }
    tone.invert = mdmt_uniform(more.v[0]) < a->invert;
    tone.noise_key = (uint64_t)more.v[1] | (uint64_t)more.v[2] << 32;
    return tone;
}

mdmt_status mdmt_tone_check(const mdmt_augmentation *a)
{
    const float values[] = {a->gamma, a->contrast, a->brightness, a->invert, a->noise};
    const char *const names[] = {"gamma", "contrast", "brightness", "invert", "noise"};
    const float most[] = {3, 1, 1, 1, 1};
    for (int i = 0; i < 5; i++) {
        if (!(values[i] >= 0 && values[i] <= most[i])) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the %s of the augmentation must be within 0 to %g, not %g", names[i],
                             (double)most[i], (double)values[i]);
        }
    }
    return MDMT_OK;
}

static inline float within(float v)
{
    return v < 0 ? 0 : v > 1 ? 1 : v;
}

static void add_noise(const mdmt_tone *tone, int plane, float *grey, size_t count)
{
    uint64_t key = mdmt_stream_key(tone->noise_key, MDMT_STREAM_NOISE);
    float unit = tone->noise * 2.44948974f / 65536; /* the sum has the variance 65536^2 / 6 */
    for (size_t at = 0; at < count; at += 4) {
        mdmt_philox4 four = mdmt_philox(key, at / 4, (uint64_t)plane);
        for (size_t i = 0; i < 4 && at + i < count; i++) {
            int sum = (int)(four.v[i] & 0xFFFF) + (int)(four.v[i] >> 16) - 65535;
            grey[at + i] = within(grey[at + i] + unit * (float)sum);
        }
    }
}

void mdmt_tone_apply(const mdmt_tone *tone, int plane, float *grey, size_t count)
{
    if (tone->gamma != 1) {
        for (size_t i = 0; i < count; i++) {
            grey[i] = powf(grey[i], tone->gamma);
        }
    }
    if (tone->contrast != 1) {
        double sum = 0;
        for (size_t i = 0; i < count; i++) {
            sum += grey[i];
        }
        float mean = (float)(sum / (double)count);
        for (size_t i = 0; i < count; i++) {
            grey[i] = within(mean + tone->contrast * (grey[i] - mean));
        }
    }
    if (tone->brightness != 0) {
        for (size_t i = 0; i < count; i++) {
            grey[i] = within(grey[i] + tone->brightness);
        }
    }
    if (tone->invert) {
        for (size_t i = 0; i < count; i++) {
            grey[i] = 1 - grey[i];
        }
    }
    if (tone->noise > 0) {
        add_noise(tone, plane, grey, count);
    }
}
