/* Inner kernels of direct convolution for NEON: 6 pixels x 4 vectors of 4 outputs (one block), 24
 * accumulators; one broadcast load feeds four multiply-adds. */
typedef int mdmt_conv_direct_neon_unit; /* a unit is never empty */

#if defined(__aarch64__)

#include "conv_direct.h"
#include "kernels.h"
#include "transpose_neon.h"

#define VEC             float32x4_t
#define VL              4
#define VZERO()         vdupq_n_f32(0.0f)
#define VLOAD(p)        vld1q_f32(p)
#define VSTORE(p, v)    vst1q_f32(p, v)
#define VSTREAM(p, v)   VSTORE(p, v)
#define VSET1(f)        vdupq_n_f32(f)
#define VFMA(a, b, c)   vfmaq_f32(c, a, b)
#define VDOT(a, b, c)   VFMA(a, b, c)
#define VTAKE(p)        VLOAD(p)
#define VPUT(p, v)      VSTORE(p, v)
#define VPUT_PAST(p, v) VSTREAM(p, v)
#define VADD(a, b)      vaddq_f32(a, b)
#define VSUB(a, b)      vsubq_f32(a, b)
#define VMAX(a, b)      vmaxq_f32(a, b)

#include "conv_tile.h"

#include "conv_stage_tile.h"

#include "conv_tile_narrow.h"

static const mdmt_conv_micro micro = {
    .floats_per_cycle = 8,
    .stage = stage_pixels,
    .stage_any = mdmt_f32_conv_load__neon,
    .fence = end_stores,
    .transpose = neon_transpose_block,
    .accumulate = accumulate_floats,
    NARROW_TILE_SET,
};

#define ISA      neon
#define ISA_ENUM MDMT_ISA_NEON
#define DTYPE    f32
#define IS_BF16  0
#define DIRECT   1
#define STEM     1
#include "conv_impl.h"

#endif
