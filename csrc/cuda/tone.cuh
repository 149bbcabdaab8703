/* The part of the training augmentation that changes grey values: the draws and the arithmetic of
 * cpu/tone.h. Sampling leaves the grey values of an image that changes, 0 to 255, in the first of
 * its planes; from there they go through the changes into all planes. Contrast needs their mean,
 * after gamma, before. */
#ifndef MDMT_CUDA_TONE_CUH
#define MDMT_CUDA_TONE_CUH

#include "backend.cuh"

/* What was drawn for a sample; mdmt_grey_drawn begins with one that changes nothing. */
struct alignas(16) mdmt_grey {
    float gamma, contrast, brightness, noise_unit;
    int invert;
    int changes; /* 0, or 1 + the plane whose noise this one's is */
    uint64_t noise_key;
};

MDMT_HD float mdmt_spread(uint32_t bits, float range)
{
    return range * (2 * mdmt_uniform(bits) - 1);
}

MDMT_HD mdmt_grey mdmt_grey_drawn(const mdmt_gpu_step *step, int data_set, int64_t index, int plane)
{
    const mdmt_augmentation *a = &step->augmentation;
    mdmt_grey g = {1, 1, 0, 0, 0, 0, 0};
    if (a->gamma == 0 && a->contrast == 0 && a->brightness == 0 && a->invert == 0 &&
        a->noise == 0) {
        return g;
    }
    uint64_t key = step->augment_key;
    uint64_t high = step->epoch << 32 | (uint64_t)(uint32_t)data_set << 8;
    mdmt_philox4 on = mdmt_philox(key, (uint64_t)index, high | 3); /* 0 .. 2 are the warp's */
    mdmt_philox4 value = mdmt_philox(key, (uint64_t)index, high | 4);
    mdmt_philox4 more = mdmt_philox(key, (uint64_t)index, high | 5);
    float chance = a->probability;
    if (mdmt_uniform(on.v[0]) < chance) {
        g.gamma = expf(mdmt_spread(value.v[0], a->gamma));
    }
    if (mdmt_uniform(on.v[1]) < chance) {
        g.contrast = 1 + mdmt_spread(value.v[1], a->contrast);
    }
    if (mdmt_uniform(on.v[2]) < chance) {
        g.brightness = mdmt_spread(value.v[2], a->brightness);
    }
    if (mdmt_uniform(on.v[3]) < chance) {
        /* the sum of two numbers of 16 bits has the variance 65536^2 / 6 */
        g.noise_unit = a->noise * mdmt_uniform(value.v[3]) * 2.44948974f / 65536;
    }
    g.invert = mdmt_uniform(more.v[0]) < a->invert;
    g.noise_key =
        mdmt_stream_key((uint64_t)more.v[1] | (uint64_t)more.v[2] << 32, MDMT_STREAM_NOISE);
    int changes =
        g.gamma != 1 || g.contrast != 1 || g.brightness != 0 || g.invert || g.noise_unit > 0;
    g.changes = changes ? 1 + plane : 0;
    return g;
}

/* What both kernels read and write. */
struct mdmt_grey_images {
    enum { PARTS = 8 };
    const mdmt_grey *grey; /* (samples) */
    double *sums;          /* (samples, PARTS) */
    float *images;         /* (samples, channels, area) */
    int samples, channels; /* in colour: all planes, of one channel; */
    int copies;            /* 1, or in colour planes of an image */
    uint32_t area;
    float mean[4], scale[4]; /* 1 / deviation */

    static size_t bytes(int samples)
    {
        return (sizeof(mdmt_grey) + PARTS * sizeof(double)) * (size_t)samples;
    }
    MDMT_HD float *planes(uint32_t sample) const
    {
        return images + (size_t)sample * (size_t)channels * area;
    }
    MDMT_HD static float start(const mdmt_grey &g, float v)
    {
        v /= 255.0f;
        return g.gamma != 1 ? powf(v, g.gamma) : v;
    }
};

/* For an image whose contrast changes, the sum of an eighth of its grey values: a block each. */
struct mdmt_grey_sums : mdmt_grey_images {
    enum { THREADS = 256, PHASES = 3, FEW = 16 };
    struct shared_type {
        double sum[THREADS];
    };

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        uint32_t sample = (uint32_t)block / PARTS, part = (uint32_t)block % PARTS;
        if (grey[sample].contrast == 1) {
            return;
        }
        double total = 0;
        if (phase == 0) {
            const mdmt_grey g = grey[sample];
            const float *from = planes(sample);
            uint32_t each = (area + PARTS - 1) / PARTS, end = (part + 1) * each;
            end = end < area ? end : area;
            for (uint32_t i = part * each + (uint32_t)thread; i < end; i += THREADS) {
                total += (double)start(g, from[i]);
            }
            shared.sum[thread] = total;
        } else if (phase == 1 && thread < FEW) {
            for (int i = thread; i < THREADS; i += FEW) {
                total += shared.sum[i];
            }
            shared.sum[thread] = total;
        } else if (phase == 2 && thread == 0) {
            for (int i = 0; i < FEW; i++) {
                total += shared.sum[i];
            }
            sums[block] = total;
        }
    }
};

/* A thread changes four pixels in a row: those that one draw gives noise. */
struct mdmt_grey_values : mdmt_grey_images {
    enum { THREADS = 256, PHASES = 2, FEW = 4, BLOCK = FEW * THREADS };
    struct shared_type {
        float mean;
    };
    struct alignas(16) few {
        float v[FEW];
    };

    MDMT_HD uint32_t blocks_each() const
    {
        return (area + BLOCK - 1) / BLOCK;
    }
    MDMT_HD static float within(float v)
    {
        return v < 0 ? 0 : v > 1 ? 1 : v;
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        uint32_t sample = (uint32_t)block / blocks_each();
        uint32_t at = ((uint32_t)block % blocks_each()) * BLOCK + (uint32_t)thread * FEW;
        const mdmt_grey g = grey[sample];
        if (!g.changes) {
            return;
        }
        if (phase == 0) {
            if (thread == 0 && g.contrast != 1) {
                double sum = 0;
                for (int i = 0; i < PARTS; i++) {
                    sum += sums[sample * PARTS + (uint32_t)i];
                }
                shared.mean = (float)(sum / (double)area);
            }
        } else if (at < area) {
            uint32_t count = area - at < FEW ? area - at : (uint32_t)FEW;
            few v = load(planes(sample) + at, count);
            change(g, g.contrast != 1 ? shared.mean : 0.0f, at, &v);
            for (int c = 0; c < channels; c++) {
                int of = copies > 1 ? (int)(sample % (uint32_t)copies) : c;
                few made;
                for (int i = 0; i < FEW; i++) {
                    made.v[i] = (v.v[i] - mean[of]) * scale[of];
                }
                store(planes(sample) + (size_t)c * area + at, made, count);
            }
        }
    }
    MDMT_HD void change(const mdmt_grey &g, float middle, uint32_t at, few *v) const
    {
        mdmt_philox4 drawn = {{0, 0, 0, 0}};
        if (g.noise_unit > 0) {
            drawn = mdmt_philox(g.noise_key, at / FEW, (uint64_t)(g.changes - 1));
        }
        for (int i = 0; i < FEW; i++) {
            float x = start(g, v->v[i]);
            if (g.contrast != 1) {
                x = within(middle + g.contrast * (x - middle));
            }
            if (g.brightness != 0) {
                x = within(x + g.brightness);
            }
            x = g.invert ? 1 - x : x;
            if (g.noise_unit > 0) {
                int sum = (int)(drawn.v[i] & 0xFFFF) + (int)(drawn.v[i] >> 16) - 65535;
                x = within(x + g.noise_unit * (float)sum);
            }
            v->v[i] = x;
        }
    }
    /* All four at once where planes have whole fours, and so begin at a multiple of 16 bytes. */
    MDMT_HD few load(const float *from, uint32_t count) const
    {
        if (area % FEW == 0) {
            return *(const few *)(const void *)from;
        }
        few v;
        for (uint32_t i = 0; i < FEW; i++) {
            v.v[i] = i < count ? from[i] : 0.0f;
        }
        return v;
    }
    MDMT_HD void store(float *to, const few &v, uint32_t count) const
    {
        if (area % FEW == 0) {
            *(few *)(void *)to = v;
            return;
        }
        for (uint32_t i = 0; i < FEW; i++) {
            if (i < count) {
                to[i] = v.v[i];
            }
        }
    }
};

/* After the images were sampled. */
static mdmt_status mdmt_grey_launch(mdmt_stream_handle stream, const mdmt_augmentation *asked,
                                    const mdmt_grey_images &images)
{
    if (asked->contrast > 0) {
        mdmt_grey_sums sums;
        (mdmt_grey_images &)sums = images;
        MDMT_TRY(mdmt_launch(stream, (size_t)images.samples * sums.PARTS, sums));
    }
    mdmt_grey_values values;
    (mdmt_grey_images &)values = images;
    return mdmt_launch(stream, (size_t)images.samples * values.blocks_each(), values);
}

#endif
