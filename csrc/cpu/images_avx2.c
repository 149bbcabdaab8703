/* Bilinear sampling of eight pixels at once: two neighbours in a row come with one
 * gathered word. No fused multiply-adds, so the bits are the reference's. */
#if defined(__AVX2__)
#include <immintrin.h>

#include "images.h"
#include "kernels.h"

static inline __m256 mirror(__m256 x, __m256 last)
{
    x = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    __m256 folded = _mm256_sub_ps(_mm256_add_ps(last, last), x);
    x = _mm256_blendv_ps(x, folded, _mm256_cmp_ps(x, last, _CMP_GT_OQ));
    return _mm256_max_ps(x, _mm256_setzero_ps());
}

/* source[offset] + fx (source[offset + 1] - source[offset]); where `right` is zero
 * the neighbour is the pixel itself. A word is read no further than `last`, the
 * offset of the last whole word. */
static inline __m256 row_value(const uint8_t *source, __m256i offset, __m256i last, __m256i right,
                               __m256 fx)
{
    __m256i from = _mm256_min_epi32(offset, last);
    __m256i word = _mm256_i32gather_epi32((const int *)(const void *)source, from, 1);
    word = _mm256_srlv_epi32(word, _mm256_slli_epi32(_mm256_sub_epi32(offset, from), 3));
    const __m256i byte = _mm256_set1_epi32(255);
    __m256i a = _mm256_and_si256(word, byte);
    __m256i b = _mm256_and_si256(_mm256_srli_epi32(word, 8), byte);
    __m256i step = _mm256_and_si256(_mm256_sub_epi32(b, a), right);
    return _mm256_add_ps(_mm256_cvtepi32_ps(a), _mm256_mul_ps(fx, _mm256_cvtepi32_ps(step)));
}

static void sample_row(const uint8_t *source, int sh, int sw, const float *x, const float *y,
                       float *out, int count)
{
    int64_t size = (int64_t)sh * sw;
    int i = 0;
    if (size >= 4 && size < INT32_MAX) {
        const __m256 last_x = _mm256_set1_ps((float)(sw - 1));
        const __m256 last_y = _mm256_set1_ps((float)(sh - 1));
        const __m256i width = _mm256_set1_epi32(sw), one = _mm256_set1_epi32(1);
        const __m256i last = _mm256_set1_epi32((int)size - 4);
        for (; i + 8 <= count; i += 8) {
            __m256 px = mirror(_mm256_loadu_ps(x + i), last_x);
            __m256 py = mirror(_mm256_loadu_ps(y + i), last_y);
            __m256i x0 = _mm256_cvttps_epi32(px), y0 = _mm256_cvttps_epi32(py);
            __m256 fx = _mm256_sub_ps(px, _mm256_cvtepi32_ps(x0));
            __m256 fy = _mm256_sub_ps(py, _mm256_cvtepi32_ps(y0));
            __m256i right = _mm256_cmpgt_epi32(width, _mm256_add_epi32(x0, one));
            __m256i down = _mm256_cmpgt_epi32(_mm256_set1_epi32(sh), _mm256_add_epi32(y0, one));
            __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(y0, width), x0);
            __m256i below = _mm256_add_epi32(at, _mm256_and_si256(down, width));
            __m256 top = row_value(source, at, last, right, fx);
            __m256 bottom = row_value(source, below, last, right, fx);
            __m256 grey = _mm256_add_ps(top, _mm256_mul_ps(fy, _mm256_sub_ps(bottom, top)));
            _mm256_storeu_ps(out + i, grey);
        }
    }
    mdmt_sample_row__ref(source, sh, sw, x + i, y + i, out + i, count - i);
}

static mdmt_status run(const mdmt_site *site, const mdmt_call *call)
{
    return mdmt_images_run(site, call, sample_row);
}

const mdmt_cpu_impl mdmt_f32_images__avx2 = {
    .name = "mdmt_f32_images__avx2", .isa = MDMT_ISA_AVX2, .needs = mdmt_images_needs, .run = run};
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
