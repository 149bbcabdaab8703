/* The image of a stem, and its weights, as a dense convolution of a library reads them: in one of
 * two forms.
 *   plain   a map of the image's size, its channels padded to 8
 *   folded  for steps of 2: the four pixels of each square of 2 x 2 become the channels of one, so
 *           that the kernel takes half as many taps a side and single steps. Three channels are
 *           twelve of sixteen then, not three of eight. What the convolution pads with is part of
 *           the map. */
#ifndef MDMT_CUDA_STEM_CUH
#define MDMT_CUDA_STEM_CUH

#include "map.cuh"

struct mdmt_stem_form {
    int step;     /* 1: plain, 2: folded */
    int channels; /* of the image */
    int width;    /* channels of the map, as stored */
    /* by axis, y and x */
    int image[2], map[2];   /* sizes */
    int kernel[2], taps[2]; /* taps of the weights, and of the map's convolution */
    int before[2];          /* pixels of the map before the image */
    int shift[2];           /* tap t of the map begins with tap step t + shift of the weights */
};

/* Folding takes a convolution in steps of 2 without dilation, of at most four channels. */
static inline int mdmt_stem_folds(const mdmt_tensor *image, const mdmt_tensor *weight,
                                  const mdmt_conv_attrs *a)
{
    int can = image->dim[1] <= 4;
    for (int i = 0; i < 2; i++) {
        can &= a->stride[i] == 2 && a->dilation[i] == 1 && a->pad[i] < weight->dim[2 + i];
    }
    return can;
}

/* image (N, C, H, W), weight (O, C, kh, kw), y: the convolution's result. */
static inline mdmt_stem_form mdmt_stem_form_of(const mdmt_tensor *image, const mdmt_tensor *weight,
                                               const mdmt_tensor *y, const mdmt_conv_attrs *a,
                                               int fold)
{
    mdmt_stem_form f;
    f.step = fold ? 2 : 1;
    f.channels = image->dim[1];
    f.width = mdmt_up(f.channels * f.step * f.step);
    for (int i = 0; i < 2; i++) {
        int pad = a->pad[i], kernel = weight->dim[2 + i];
        f.image[i] = image->dim[2 + i];
        f.kernel[i] = kernel;
        f.before[i] = fold ? (pad + 1) / 2 : 0;
        f.taps[i] = fold ? f.before[i] + (kernel - 1 - pad) / 2 + 1 : kernel;
        f.map[i] = fold ? y->dim[2 + i] + f.taps[i] - 1 : f.image[i];
        f.shift[i] = fold ? pad - 2 * f.before[i] : 0;
    }
    return f;
}

/* Walks through the channels of a pixel of the map: channel i of the image, dy and dx pixels into
 * the square; dy = step behind the last. */
struct mdmt_stem_channel {
    int i, dy, dx;

    MDMT_HD void next(const mdmt_stem_form &form)
    {
        if (++i == form.channels) {
            i = 0;
            if (++dx == form.step) {
                dx = 0;
                dy++;
            }
        }
    }
};

/* One thread per pixel of the map. */
template <class T> struct mdmt_stem_map {
    const float *image; /* (N, C, H, W) */
    T *map;             /* (N, map[0], map[1], width) */
    mdmt_stem_form form;

    MDMT_HD void at(uint32_t pixel, int unused) const
    {
        (void)unused;
        uint32_t columns = (uint32_t)form.map[1], rows = (uint32_t)form.map[0];
        int y0 = form.step * ((int)(pixel / columns % rows) - form.before[0]);
        int x0 = form.step * ((int)(pixel % columns) - form.before[1]);
        size_t area = (size_t)form.image[0] * (size_t)form.image[1];
        const float *from = image + (size_t)(pixel / columns / rows) * (size_t)form.channels * area;
        mdmt_stem_channel c = {0, 0, 0};
        for (int pack = 0; pack < form.width; pack += MDMT_PACK) {
            mdmt_pack p;
            MDMT_UNROLL for (int k = 0; k < MDMT_PACK; k++)
            {
                int y = y0 + c.dy, x = x0 + c.dx;
                int inside =
                    c.dy < form.step && y >= 0 && y < form.image[0] && x >= 0 && x < form.image[1];
                p.v[k] =
                    inside
                        ? from[(size_t)c.i * area + (size_t)y * (size_t)form.image[1] + (size_t)x]
                        : 0.0f;
                c.next(form);
            }
            mdmt_store_pack(map + (size_t)pixel * (size_t)form.width + pack, p);
        }
    }
};

/* One thread per (output channel as stored, tap of the map): between the weights as they are kept,
 * [I][kh][kw][O up], and those of the map, [O up][taps][width]. */
template <class T> struct mdmt_stem_weights {
    float *stem;
    T *dense;
    int outputs, up, to_dense;
    mdmt_stem_form form;

    MDMT_HD void at(uint32_t row, int unused) const
    {
        (void)unused;
        int taps = form.taps[0] * form.taps[1];
        int o = (int)(row / (uint32_t)taps), tap = (int)(row % (uint32_t)taps);
        int y0 = form.step * (tap / form.taps[1]) + form.shift[0];
        int x0 = form.step * (tap % form.taps[1]) + form.shift[1];
        T *here = dense + (size_t)row * (size_t)form.width;
        mdmt_stem_channel c = {0, 0, 0};
        for (int k = 0; k < form.width; k++, c.next(form)) {
            int y = y0 + c.dy, x = x0 + c.dx;
            int inside =
                c.dy < form.step && y >= 0 && y < form.kernel[0] && x >= 0 && x < form.kernel[1];
            size_t at = ((size_t)c.i * (size_t)form.kernel[0] + (size_t)(inside ? y : 0)) *
                            (size_t)form.kernel[1] +
                        (size_t)(inside ? x : 0);
            float *there = stem + at * (size_t)up + (size_t)o;
            if (to_dense) {
                mdmt_from_float(inside && o < outputs ? *there : 0.0f, here + k);
            } else if (inside) {
                *there = o < outputs ? mdmt_to_float(here[k]) : 0.0f;
            }
        }
    }
};

#endif
