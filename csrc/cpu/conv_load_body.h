/* The load stage of direct convolution for any activation and with a gate; those
 * of residual networks have their own in conv_tile.h. Included once by each
 * conv_load_<isa>.c. */
#include "conv_direct.h"
#include "lanes_act.h"

MDMT_INLINE void load_run(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                          lanes_affine affine, lanes gate, mdmt_act act, int gated)
{
    for (int i = 0; i < count; i++, src += step, dst += MDMT_BLOCK) {
        lanes_fetch(src + fetch);
        lanes v = lanes_activate(act, lanes_apply(affine, lanes_load(src)));
        lanes_store(dst, gated ? lanes_mul(v, gate) : v);
    }
}

void MDMT_KERNEL(mdmt_f32_conv_load)(float *dst, const float *src, int count, ptrdiff_t step,
                                     ptrdiff_t fetch, const mdmt_conv_load *load)
{
    lanes_affine affine = lanes_affine_load(load->scale, load->shift, 0);
    lanes gate = load->gate ? lanes_load(load->gate) : lanes_zero();
#define RUN(act)       load_run(dst, src, count, step, fetch, affine, gate, act, 0)
#define RUN_GATED(act) load_run(dst, src, count, step, fetch, affine, gate, act, 1)
    if (load->gate) {
        LANES_EACH_ACT(load->act, RUN_GATED);
    } else {
        LANES_EACH_ACT(load->act, RUN);
    }
#undef RUN
#undef RUN_GATED
}
