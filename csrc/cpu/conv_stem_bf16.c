/* Inner kernels of the convolution of an IMAGE for AVX-512, maps stored in bfloat16: the image, the
 * weights and all products are floats. */
typedef int mdmt_conv_stem_bf16_unit; /* a unit is never empty */

#if defined(__AVX512BF16__)

#include "conv_direct.h"
#include "conv_vector_512.h"
#include "kernels.h"
#define MDMT_BF16_MAPS
#include "lanes.h"

#define VDOT(a, b, c) VFMA(a, b, c)
/* A pixel of a map, whose words are addressed as floats. */
#define VTAKE(p)        lanes_load((const map_float *)(const void *)(p))
#define VPUT(p, v)      lanes_store((map_float *)(void *)(p), v)
#define VPUT_PAST(p, v) lanes_stream((map_float *)(void *)(p), v)

#include "conv_tile.h"

#include "conv_stem_set.h"
#include "conv_weight_set.h"

/* Floats from a map; those of no batch norm: it is the gradient that is staged. */
static void widen_pixels(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                         const float *scale, const float *shift, mdmt_act act)
{
    (void)scale;
    (void)shift;
    (void)act;
    for (int i = 0; i < count; i++, src += step, dst += MDMT_BLOCK) {
        lanes_fetch(src + fetch);
        VSTORE(dst, VTAKE(src));
    }
}

static const mdmt_conv_micro micro = {
    .floats_per_cycle = 32,
    .pixel = MDMT_BLOCK / 2,
    .columns = 14,
    .tile_blocks = 2,
    STEM_SET,
    WEIGHT_SET,
    .stage = widen_pixels,
    .fence = end_stores,
    .accumulate = accumulate_floats,
};

#define ISA      avx512
#define ISA_ENUM MDMT_ISA_AVX512
#define DTYPE    bf16
#define IS_BF16  1
#define DIRECT   0
#define STEM     1
#include "conv_impl.h"

#endif
