/* One pixel of a mask: the arithmetic of mask_sums and its gradient. */
#ifndef MDMT_CPU_MASK_H
#define MDMT_CPU_MASK_H

#include <math.h>

#include "cpu.h"

/* Of a logit z and the truth t in 0..1. */
typedef struct {
    double entropy; /* -t log s(z) - (1 - t) log s(-z) */
    double p;       /* s(z) = 1 / (1 + exp(-z))        */
    double slope;   /* d p / d z = p (1 - p)           */
} mask_pixel;

static inline mask_pixel mask_pixel_of(double z, double t)
{
    double small = exp(-fabs(z)), inverse = 1 / (1 + small); /* of the less likely side */
    return (mask_pixel){(z > 0      ? z
                         : isnan(z) ? z
                                    : 0.0) -
                            z * t + log1p(small),
                        z >= 0 ? inverse : small * inverse, small * inverse * inverse};
}

/* d loss / d z, from d loss / d sums. */
static inline double mask_gradient(const float *dsums, double pixels, double z, double t)
{
    mask_pixel at = mask_pixel_of(z, t);
    return dsums[MDMT_MASK_ENTROPY] * (at.p - t) / pixels +
           (dsums[MDMT_MASK_BOTH] * t + dsums[MDMT_MASK_GUESSED]) * at.slope;
}

#endif
