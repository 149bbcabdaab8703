/* Template: the load stage of direct convolution for residual networks, in floats; what the
 * including file defines stands in conv_tile.h. */

/* `fetch`: how far ahead of itself to bring the source, floats. */
INLINE void stage_vectors(float *d, const float *s, int count, const ptrdiff_t step,
                          const float *scale, const float *shift, mdmt_act act,
                          const ptrdiff_t fetch)
{
    if (!scale) {
        for (int i = 0; i < count; i++, s += step, d += MDMT_BLOCK) {
            if (fetch) {
                __builtin_prefetch(s + fetch);
            }
            VSTORE(d, VLOAD(s));
        }
        return;
    }
    const VEC a = VLOAD(scale), b = VLOAD(shift), zero = VZERO();
    for (int i = 0; i < count; i++, s += step, d += MDMT_BLOCK) {
        if (fetch) {
            __builtin_prefetch(s + fetch);
        }
        VEC value = VFMA(a, VLOAD(s), b);
        /* The order keeps a NaN. */
        VSTORE(d, act == MDMT_ACT_RELU ? VMAX(zero, value) : value);
    }
}

static void stage_pixels(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                         const float *scale, const float *shift, mdmt_act act)
{
    for (int p = 0; p < MDMT_BLOCK; p += VL) {
        const float *a = scale ? scale + p : NULL, *b = scale ? shift + p : NULL;
        if (step == MDMT_BLOCK) {
            stage_vectors(dst + p, src + p, count, MDMT_BLOCK, a, b, act, fetch);
        } else {
            stage_vectors(dst + p, src + p, count, step, a, b, act, fetch);
        }
    }
}
