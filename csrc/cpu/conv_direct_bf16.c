/* Inner kernels of direct convolution in bfloat16 for AVX-512: words of two values, whose products
 * vdpbf16ps adds to a float; otherwise as for floats: 14 pixels x 2 vectors of 16 outputs. */
typedef int mdmt_conv_direct_bf16_unit; /* a unit is never empty */

#if defined(__AVX512BF16__)

#include "conv_direct.h"
#include "conv_vector_512.h"
#include "kernels.h"
#define MDMT_BF16_MAPS
#include "lanes_act.h"

#define VDOT(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
/* A pixel of a map, whose words are addressed as floats. */
#define VTAKE(p)        lanes_load((const map_float *)(const void *)(p))
#define VPUT(p, v)      lanes_store((map_float *)(void *)(p), v)
#define VPUT_PAST(p, v) lanes_stream((map_float *)(void *)(p), v)

#include "conv_tile.h"

enum { PAIRS_OF_BLOCK = MDMT_BLOCK / 2 };

#define PIXEL 8
#include "conv_tile_set.h"

/* ---- rounding ---- */

/* Of two vectors of 16 halves, one behind the other, those of a pair side by side. */
INLINE __m512i word_order(void)
{
    return _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
}

/* Words (first, second): a word's lower half is the first. */
INLINE __m512i interleave(__m512 first, __m512 second)
{
    return _mm512_permutexvar_epi16(word_order(), (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

static void pack_block(float *dst, const float *src)
{
    for (int q = 0; q < PAIRS_OF_BLOCK; q++, src += 2 * MDMT_BLOCK, dst += MDMT_BLOCK) {
        _mm512_storeu_si512(dst, interleave(VLOAD(src), VLOAD(src + MDMT_BLOCK)));
    }
}

/* (16 in, 16 out) floats to (8 pairs of out, 16 in): rows of 8 words, two of them in a register, 8
 * apart, so that a transpose of 8 x 8 in each half gives whole rows. */
static void transpose_block(float *dst, const float *src)
{
    const __m512i low = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
    const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
    __m512i r[8], t[8];
    for (int i = 0; i < 8; i++) {
        r[i] = (__m512i)_mm512_cvtne2ps_pbh(VLOAD(src + (i + 8) * MDMT_BLOCK),
                                            VLOAD(src + i * MDMT_BLOCK));
    }
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int k = 0; k < 8; k += 4) {
        r[k] = _mm512_unpacklo_epi64(t[k], t[k + 2]);
        r[k + 1] = _mm512_unpackhi_epi64(t[k], t[k + 2]);
        r[k + 2] = _mm512_unpacklo_epi64(t[k + 1], t[k + 3]);
        r[k + 3] = _mm512_unpackhi_epi64(t[k + 1], t[k + 3]);
    }
    /* r[4 k + j] holds words j and 4 + j of rows 4 k .. 4 k + 3 of each half. */
    for (int j = 0; j < 4; j++) {
        _mm512_storeu_si512(dst + MDMT_BLOCK * j, _mm512_permutex2var_epi64(r[j], low, r[j + 4]));
        _mm512_storeu_si512(dst + MDMT_BLOCK * (j + 4),
                            _mm512_permutex2var_epi64(r[j], high, r[j + 4]));
    }
}

/* ---- the load stage ---- */

/* What happens to the 16 channels of a pixel. */
typedef struct {
    lanes_affine affine;
    lanes gate;
} change;

INLINE lanes changed(const change *c, const float *src, const int plain, const mdmt_act act,
                     const int gated)
{
    lanes v = VTAKE(src);
    if (!plain) {
        v = lanes_activate(act, lanes_apply(c->affine, v));
    }
    return gated ? lanes_mul(v, c->gate) : v;
}

INLINE void load_run(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                     const change *c, const mdmt_act act, const int gated)
{
    int i = 0;
    for (; i + 1 < count; i += 2, src += 2 * step, dst += MDMT_BLOCK) {
        lanes_fetch(src + fetch);
        lanes_fetch(src + step + fetch);
        const lanes first = changed(c, src, 0, act, gated);
        const lanes second = changed(c, src + step, 0, act, gated);
        _mm512_storeu_si512(dst, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
    if (i < count) {
        VPUT(dst, changed(c, src, 0, act, gated));
    }
}

static void copy_run(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch)
{
    for (int i = 0; i < count; i++, src += step, dst += PAIRS_OF_BLOCK) {
        lanes_fetch(src + fetch);
        _mm256_storeu_ps(dst, _mm256_loadu_ps(src));
    }
}

/* The word of two pixels as they are stored. */
INLINE __m512i stored_word(const float *first, const float *second)
{
    const __m512i both = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)first)),
        _mm256_loadu_si256((const __m256i *)(const void *)second), 1);
    return _mm512_permutexvar_epi16(word_order(), both);
}

/* A word of which a pixel may not exist. */
INLINE void edge_word(float *dst, const float *src, int at, int left, int right, ptrdiff_t step,
                      const change *c, const int plain, const mdmt_act act, const int gated)
{
    lanes first = lanes_zero(), second = lanes_zero();
    if (at >= left && at < right) {
        first = changed(c, src + at * step, plain, act, gated);
    }
    if (at + 1 >= left && at + 1 < right) {
        second = changed(c, src + (at + 1) * step, plain, act, gated);
    }
    _mm512_storeu_si512(dst, interleave(first, second));
}

/* Words of neighbouring pixels; see stage_pairs. */
INLINE void pair_run(float *dst, const float *src, int count, const int every, int left, int right,
                     ptrdiff_t step, ptrdiff_t fetch, const change *c, const int plain,
                     const mdmt_act act, const int gated)
{
    /* Words both of whose pixels exist. */
    const int from = mdmt_min(mdmt_ceil_div(left, every), count);
    const int to = mdmt_max(from, mdmt_min(count, right < 2 ? 0 : (right - 2) / every + 1));
    for (int i = 0; i < from; i++) {
        edge_word(dst + i * MDMT_BLOCK, src, i * every, left, right, step, c, plain, act, gated);
    }
    const float *at = src + (ptrdiff_t)from * every * step;
    if (plain) {
        for (int i = from; i < to; i++, at += every * step) {
            lanes_fetch(at + fetch);
            _mm512_storeu_si512(dst + i * MDMT_BLOCK, stored_word(at, at + step));
        }
    }
    lanes first = lanes_zero();
    if (!plain && every == 1 && from < to) {
        first = changed(c, at, plain, act, gated);
    }
    for (int i = plain ? to : from; i < to; i++, at += every * step) {
        lanes_fetch(at + fetch);
        if (every > 1) {
            lanes_fetch(at + step + fetch);
            first = changed(c, at, plain, act, gated);
        }
        const lanes second = changed(c, at + step, plain, act, gated);
        _mm512_storeu_si512(dst + i * MDMT_BLOCK, interleave(first, second));
        first = second;
    }
    for (int i = to; i < count; i++) {
        edge_word(dst + i * MDMT_BLOCK, src, i * every, left, right, step, c, plain, act, gated);
    }
}

static void stage_rounded(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                          const mdmt_conv_load *load)
{
    change c = {.gate = load->gate ? lanes_load(load->gate) : lanes_zero()};
    if (!load->scale) {
        copy_run(dst, src, count, step, fetch);
        return;
    }
    c.affine = lanes_affine_load(load->scale, load->shift, 0);
#define RUN(act)       load_run(dst, src, count, step, fetch, &c, act, 0)
#define RUN_GATED(act) load_run(dst, src, count, step, fetch, &c, act, 1)
    if (load->gate) {
        LANES_EACH_ACT(load->act, RUN_GATED);
    } else {
        LANES_EACH_ACT(load->act, RUN);
    }
#undef RUN
#undef RUN_GATED
}

static void stage_pixels(float *dst, const float *src, int count, ptrdiff_t step, ptrdiff_t fetch,
                         const float *scale, const float *shift, mdmt_act act)
{
    const mdmt_conv_load load = {.scale = scale, .shift = shift, .act = act};
    stage_rounded(dst, src, count, step, fetch, &load);
}

static void stage_pairs(float *dst, const float *src, int count, int every, int left, int right,
                        ptrdiff_t step, ptrdiff_t fetch, const mdmt_conv_load *load)
{
    change c = {.gate = load->gate ? lanes_load(load->gate) : lanes_zero()};
#define EACH(plain, act, gated)                                                                    \
    (every == 1 ? pair_run(dst, src, count, 1, left, right, step, fetch, &c, plain, act, gated)    \
                : pair_run(dst, src, count, 2, left, right, step, fetch, &c, plain, act, gated))
#define RUN(act)       EACH(0, act, 0)
#define RUN_GATED(act) EACH(0, act, 1)
    if (!load->scale) {
        EACH(1, MDMT_ACT_NONE, 0);
        return;
    }
    c.affine = lanes_affine_load(load->scale, load->shift, 0);
    if (load->gate) {
        LANES_EACH_ACT(load->act, RUN_GATED);
    } else {
        LANES_EACH_ACT(load->act, RUN);
    }
#undef RUN
#undef RUN_GATED
#undef EACH
}

static const mdmt_conv_micro micro = {
    .floats_per_cycle = 54, /* of 64: staging, and loops half as long */
    .pixel = PAIRS_OF_BLOCK,
    TILE_SET,
    .stage = stage_pixels,
    .stage_any = stage_rounded,
    .fence = end_stores,
    .transpose = transpose_block,
    .pack = pack_block,
    .stage_pairs = stage_pairs,
    .accumulate = accumulate_floats,
};

#define ISA      avx512
#define ISA_ENUM MDMT_ISA_AVX512
#define DTYPE    bf16
#define IS_BF16  1
#define DIRECT   1
#define STEM     0
#include "conv_impl.h"

#endif
