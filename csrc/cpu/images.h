/* From stored images (uint8) to network input: training augmentation and
 * resampling as one inverse map with one bilinear sampling. The arithmetic of
 * the op images and of the NumPy function augment.
 *
 * An output pixel at q = (x, y), measured from the centre of the output image,
 * takes the grey value of the source at
 *
 *   p = diag(source size / output size) F R(-angle) / zoom (q + u(q) - shift)
 *
 * measured from the source's centre, where u is the elastic displacement, R a
 * rotation and F = diag(+-1, 1) the flip: the content is flipped, zoomed, rotated,
 * shifted, and then deformed. Samples lie at pixel centres (as in
 * align_corners=False), so that the identity copies pixels exactly. Beyond its
 * border the source is mirrored: a constant leaves wedges at rotated and shifted
 * radiographs, and repeating the border smears the bright one-pixel margins that
 * many of them have into such wedges. A network can learn both. There is no
 * filter before a reduction: images are stored at about the size of the output.
 *
 * The elastic field is that of Simard et al. (ICDAR 2003): alpha times uniform
 * noise in -1 .. 1, smoothed by a Gaussian of sigma, in pixels of the output.
 * The smooth field is made on a grid of every `step`-th pixel, step =
 * floor(sigma / 3), and interpolated linearly: the noise there gets the factor
 * 1 / step that keeps the variance, 1 / (12 pi sigma^2) alpha^2. Noise is drawn
 * beyond the border too, so that the field is as strong there as inside.
 *
 * Every number is a function of (seed, epoch, data set, index), so an image is
 * augmented alike on any thread and after any interruption. */
#ifndef MDMT_CPU_IMAGES_H
#define MDMT_CPU_IMAGES_H

#include "cpu.h"

/* What was drawn for one image. */
typedef struct {
    float shift[2]; /* x, y: fraction of the width, height */
    float zoom;     /* factor                              */
    float angle;    /* degrees                             */
    int flip;       /* left and right exchanged            */
    float alpha;    /* pixels; 0: no elastic deformation   */
    float sigma;    /* pixels                              */
    uint64_t noise_key;
} mdmt_warp;

/* The map that only resamples. */
mdmt_warp mdmt_warp_identity(void);
mdmt_warp mdmt_warp_draw(const mdmt_augmentation *augmentation, uint64_t seed, uint64_t epoch,
                         int data_set, int64_t index);
/* Checks the ranges: zoom below 1, probability within 0 .. 1, alphas in order. */
mdmt_status mdmt_augmentation_check(const mdmt_augmentation *augmentation);

/* Floats of scratch for an output of that size, whatever the warp. */
size_t mdmt_warp_scratch(int height, int width);
/* Grey values of source (sh, sw) at (x[i], y[i]), bilinear, in pixels with the
 * first pixel's centre at (0, 0); mirrored at the border, once. All versions give
 * the same bits. */
typedef void (*mdmt_sample_row_fn)(const uint8_t *source, int sh, int sw, const float *x,
                                   const float *y, float *out, int count);
void mdmt_sample_row__ref(const uint8_t *source, int sh, int sw, const float *x, const float *y,
                          float *out, int count);
/* source (planes, sh, sw) u8 -> out (planes, height, width) f32 of values 0 .. 255. */
void mdmt_warp_apply(const mdmt_warp *warp, mdmt_sample_row_fn sample_row, const uint8_t *source,
                     int planes, int sh, int sw, float *out, int height, int width, float *scratch);

/* The op images with that sampling (images_ref.c); needs() of all its kernels. */
mdmt_status mdmt_images_run(const mdmt_site *site, const mdmt_call *call,
                            mdmt_sample_row_fn sample_row);
void mdmt_images_needs(const mdmt_site *site, mdmt_needs *needs);

/* Augments single images, each as sample (data_set[i], index[i]) of the epoch. */
typedef struct {
    const uint8_t *images; /* (n, planes, sh, sw) */
    int planes, sh, sw;
    const int64_t *data_set, *index; /* (n) */
    uint64_t seed, epoch;
    mdmt_augmentation augmentation;
    int masks;  /* 1: the images are masks, moved alike, but their values are left alone */
    float *out; /* (n, planes, height, width) values 0 .. 255 */
    int height, width;
    float *scratch; /* mdmt_warp_scratch(height, width) floats per thread of the pool */
} mdmt_augment_job;
void mdmt_augment_images(mdmt_pool *pool, int n, mdmt_augment_job *job);

#endif
