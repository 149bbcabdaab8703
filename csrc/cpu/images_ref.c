/* Kernel of the op images: for each sample of the step, augment (images.h), and
 * write (v / 255 - mean[c]) / std[c] for every channel: its plane, or the grey value
 * repeated, normalised per channel; where masks are wanted, those of the samples, moved alike, as v / 255.
 * One task per sample. */
#include "images.h"

#include <string.h>

#include "kernels.h"
#include "tone.h"

typedef struct {
    const mdmt_step *step;
    const mdmt_images_attrs *attrs;
    mdmt_sample_row_fn sample_row;
    float *out;    /* (N, C, H, W) */
    float *masks;  /* (N, 1, H, W), or NULL */
    char *scratch; /* per thread */
    size_t scratch_bytes;
} images_run;

static size_t bytes_per_thread(const mdmt_images_attrs *attrs)
{
    return mdmt_round_up(sizeof(float) * mdmt_warp_scratch(attrs->size[0], attrs->size[1]), 64);
}

void mdmt_images_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->workspace_bytes =
        bytes_per_thread(MDMT_ATTRS(mdmt_images_attrs, site->op)) * (size_t)site->threads;
}

/* The mask of a sample; of one that has none, zeros. */
static void one_mask(const images_run *r, const mdmt_image_source *source, const mdmt_warp *warp,
                     int sample, size_t at, float *scratch)
{
    int height = r->attrs->size[0], width = r->attrs->size[1];
    size_t pixels = (size_t)height * (size_t)width;
    float *mask = r->masks + (size_t)sample * pixels;
    if (!source->masks) {
        memset(mask, 0, sizeof(float) * pixels);
        return;
    }
    mdmt_warp_apply(warp, r->sample_row, source->masks + at, 1, source->height, source->width, mask,
                    height, width, scratch);
    for (size_t i = 0; i < pixels; i++) {
        mask[i] /= 255.0f;
    }
}

static void normalise(float *out, const float *in, size_t count, float mean, float deviation)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = (in[i] - mean) / deviation;
    }
}

static void one_sample(void *context, int sample, int thread)
{
    const images_run *r = context;
    const mdmt_images_attrs *attrs = r->attrs;
    int data_set = r->step->sample_source[sample];
    int64_t index = r->step->sample_index[sample];
    const mdmt_image_source *source = &r->step->sources[data_set];
    size_t pixels = (size_t)attrs->size[0] * (size_t)attrs->size[1];
    float *scratch = (float *)(void *)(r->scratch + (size_t)thread * r->scratch_bytes);
    mdmt_warp warp = mdmt_warp_identity();
    mdmt_tone tone = mdmt_tone_identity();
    if (attrs->augment) {
        const mdmt_step *step = r->step;
        warp = mdmt_warp_draw(&step->augmentation, step->seed, step->epoch, data_set, index);
        tone = mdmt_tone_draw(&step->augmentation, step->seed, step->epoch, data_set, index);
    }
    float *out = r->out + (size_t)sample * (size_t)attrs->channels * pixels;
    /* The last planes: of a grey image the one that is overwritten last. */
    float *first = out + (size_t)(attrs->channels - source->planes) * pixels;
    mdmt_warp_apply(&warp, r->sample_row,
                    source->pixels + (size_t)index * mdmt_image_bytes(source), source->planes,
                    source->height, source->width, first, attrs->size[0], attrs->size[1], scratch);
    for (size_t i = 0; i < (size_t)source->planes * pixels; i++) {
        first[i] /= 255.0f;
    }
    for (int p = 0; p < source->planes; p++) {
        mdmt_tone_apply(&tone, p, first + (size_t)p * pixels, pixels);
    }
    for (int c = 0; c < attrs->channels; c++) {
        float *plane = out + (size_t)c * pixels;
        normalise(plane, source->planes == 1 ? first : plane, pixels, attrs->mean[c],
                  attrs->std[c]);
    }
    if (r->masks) {
        one_mask(r, source, &warp, sample, (size_t)index * mdmt_mask_bytes(source), scratch);
    }
}

static mdmt_status check_samples(const mdmt_step *step, int samples, int channels)
{
    for (int i = 0; i < step->source_count; i++) {
        if (step->sources[i].planes != 1 && step->sources[i].planes != channels) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the images of data set %d have %d channels, the network takes %d", i,
                             step->sources[i].planes, channels);
        }
    }
    for (int i = 0; i < samples; i++) {
        int data_set = step->sample_source[i];
        int64_t index = step->sample_index[i];
        if (data_set < 0 || data_set >= step->source_count) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "sample %d is of data set %d, but %d data sets are attached", i,
                             data_set, step->source_count);
        }
        if (index < 0 || index >= step->sources[data_set].count) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "sample %d is image %lld of data set %d, which has %lld images", i,
                             (long long)index, data_set, (long long)step->sources[data_set].count);
        }
    }
    return MDMT_OK;
}

mdmt_status mdmt_images_run(const mdmt_site *site, const mdmt_call *call,
                            mdmt_sample_row_fn sample_row)
{
    const mdmt_images_attrs *attrs = MDMT_ATTRS(mdmt_images_attrs, site->op);
    if (!call->step || !call->step->sources) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "no images are attached: attach data sets first");
    }
    MDMT_TRY(check_samples(call->step, attrs->batch, attrs->channels));
    if (attrs->augment) {
        MDMT_TRY(mdmt_augmentation_check(&call->step->augmentation));
    }
    images_run r = {.step = call->step,
                    .attrs = attrs,
                    .sample_row = sample_row,
                    .out = call->out[0],
                    .masks = attrs->want_mask ? call->out[1] : NULL,
                    .scratch = call->workspace,
                    .scratch_bytes = bytes_per_thread(attrs)};
    mdmt_parallel(site->pool, attrs->batch, one_sample, &r);
    return MDMT_OK;
}

static mdmt_status run(const mdmt_site *site, const mdmt_call *call)
{
    return mdmt_images_run(site, call, mdmt_sample_row__ref);
}

const mdmt_cpu_impl mdmt_f32_images__ref = {.name = "mdmt_f32_images__ref",
                                            .isa = MDMT_ISA_REF,
                                            .needs = mdmt_images_needs,
                                            .cost = mdmt_ref_cost,
                                            .run = run};
