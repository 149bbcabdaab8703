/* Sums over the pixels of a mask and their gradient, a register of pixels at a time: the logit of a
 * pixel is the first of its sixteen lanes. Included once by each dense_<isa>.c, and by dense_bf16.c
 * for logits of bfloat16. */
#include "lanes_act.h"
#include "mask.h"

enum {
    MASK_PART = 4096, /* pixels of a task: sums are taken in float within it */
    MASK_PIXELS = sizeof(reg) / sizeof(float)
};

typedef struct {
    const map_float *logits;
    const float *mask, *dsums;
    map_float *out;
    double *partial; /* (N, parts, MDMT_MASK_SUMS) */
    int64_t area, sample;
    int parts;
} mask_job;

#if defined(__AVX512F__)
/* The first lanes of consecutive pixels. */
MDMT_INLINE reg mask_logits(const map_float *z)
{
    const __m512i lane =
        _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
#ifdef MDMT_BF16_MAPS /* the second lane comes along */
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_i32gather_epi32(lane, z, 2), 16));
#else
    return _mm512_i32gather_ps(lane, z, 4);
#endif
}
/* v in the first lane, zeros in the others. */
MDMT_INLINE void mask_put(map_float *p, const float *v)
{
    lanes_store(p, _mm512_zextps128_ps512(_mm_load_ss(v)));
}
MDMT_INLINE float mask_logit(const map_float *z)
{
    return _mm512_cvtss_f32(lanes_load(z));
}
#elif defined(__AVX2__)
MDMT_INLINE float mask_logit(const float *z)
{
    return *z;
}
MDMT_INLINE reg mask_logits(const float *z)
{
    return _mm256_i32gather_ps(z, _mm256_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112), 4);
}
MDMT_INLINE void mask_put(float *p, const float *v)
{
    _mm256_storeu_ps(p, _mm256_zextps128_ps256(_mm_load_ss(v)));
    _mm256_storeu_ps(p + 8, _mm256_setzero_ps());
}
#else
MDMT_INLINE float mask_logit(const float *z)
{
    return *z;
}
MDMT_INLINE reg mask_logits(const float *z)
{
    reg v = vld1q_dup_f32(z);
    v = vld1q_lane_f32(z + 16, v, 1);
    v = vld1q_lane_f32(z + 32, v, 2);
    return vld1q_lane_f32(z + 48, v, 3);
}
MDMT_INLINE void mask_put(float *p, const float *v)
{
    lanes first = lanes_zero();
    first.a = vld1q_lane_f32(v, first.a, 0);
    lanes_store(p, first);
}
#endif

/* log(1 + u) for u in 0..1: 2 artanh(s), s = u / (2 + u) <= 1/3, to 2e-8 of it. */
MDMT_INLINE reg mask_log1p(reg u)
{
    reg s = reg_div(u, reg_add(reg_set(2.0f), u)), q = reg_mul(s, s);
    reg p = reg_fma(q, reg_set(1.0f / 13), reg_set(1.0f / 11));
    p = reg_fma(p, q, reg_set(1.0f / 9));
    p = reg_fma(p, q, reg_set(1.0f / 7));
    p = reg_fma(p, q, reg_set(1.0f / 5));
    p = reg_fma(p, q, reg_set(1.0f / 3));
    p = reg_fma(p, q, reg_set(1.0f));
    return reg_mul(reg_add(s, s), p);
}

/* mask_pixel of a register of pixels. */
typedef struct {
    reg small, inverse, p;
} mask_pixels;

MDMT_INLINE mask_pixels mask_pixels_of(reg z)
{
    const reg zero = reg_set(0.0f), one = reg_set(1.0f);
    mask_pixels at;
    at.small = reg_exp(reg_sub(zero, reg_max(reg_sub(zero, z), z)));
    at.inverse = reg_div(one, reg_add(one, at.small));
    at.p = reg_choose_from(z, zero, at.inverse, reg_mul(at.small, at.inverse));
    return at;
}

static int64_t mask_end(const mask_job *job, int64_t first)
{
    return first + MASK_PART < job->area ? first + MASK_PART : job->area;
}

/* Task: part of a sample. */
static void mask_sums_task(void *context, int task, int thread)
{
    const mask_job *job = context;
    int64_t n = task / job->parts, at = (int64_t)(task % job->parts) * MASK_PART;
    int64_t end = mask_end(job, at);
    const map_float *z = job->logits + n * job->sample;
    const float *t = job->mask + n * job->area;
    const reg zero = reg_set(0.0f);
    reg sum[MDMT_MASK_SUMS] = {zero, zero, zero, zero};
    (void)thread;
    for (; at + MASK_PIXELS <= end; at += MASK_PIXELS) {
        reg logit = mask_logits(z + at * MDMT_BLOCK), truth = reg_load(t + at);
        mask_pixels v = mask_pixels_of(logit);
        reg entropy = reg_fnma(logit, truth, reg_max(zero, logit));
        entropy = reg_add(entropy, mask_log1p(v.small));
        sum[MDMT_MASK_ENTROPY] = reg_add(sum[MDMT_MASK_ENTROPY], entropy);
        sum[MDMT_MASK_BOTH] = reg_fma(v.p, truth, sum[MDMT_MASK_BOTH]);
        sum[MDMT_MASK_GUESSED] = reg_add(sum[MDMT_MASK_GUESSED], v.p);
        sum[MDMT_MASK_TRUE] = reg_add(sum[MDMT_MASK_TRUE], truth);
    }
    double *out = job->partial + (int64_t)task * MDMT_MASK_SUMS;
    for (int i = 0; i < MDMT_MASK_SUMS; i++) {
        float each[MASK_PIXELS];
        reg_store(each, sum[i]);
        out[i] = 0;
        for (int k = 0; k < MASK_PIXELS; k++) {
            out[i] += each[k];
        }
    }
    for (; at < end; at++) {
        mask_pixel v = mask_pixel_of(mask_logit(z + at * MDMT_BLOCK), t[at]);
        out[MDMT_MASK_ENTROPY] += v.entropy;
        out[MDMT_MASK_BOTH] += v.p * t[at];
        out[MDMT_MASK_GUESSED] += v.p;
        out[MDMT_MASK_TRUE] += t[at];
    }
}

static int mask_parts(const mdmt_tensor *z)
{
    int64_t area = (int64_t)z->dim[2] * z->dim[3];
    return (int)((area + MASK_PART - 1) / MASK_PART);
}

static void mask_sums_needs(const mdmt_site *site, mdmt_needs *needs)
{
    needs->workspace_bytes = sizeof(double) * MDMT_MASK_SUMS * (size_t)site->in[0]->dim[0] *
                             (size_t)mask_parts(site->in[0]);
}

static mdmt_status mask_sums_run(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_tensor *z = site->in[0];
    mask_job job = {.logits = call->in[0].data,
                    .mask = call->in[1].data,
                    .partial = call->workspace,
                    .area = (int64_t)z->dim[2] * z->dim[3],
                    .sample = (int64_t)mdmt_map_sample(z),
                    .parts = mask_parts(z)};
    mdmt_parallel(site->pool, z->dim[0] * job.parts, mask_sums_task, &job);
    float *out = call->out[0];
    const double *part = job.partial;
    for (int n = 0; n < z->dim[0]; n++, out += MDMT_MASK_SUMS) {
        double sum[MDMT_MASK_SUMS] = {0};
        for (int k = 0; k < job.parts; k++, part += MDMT_MASK_SUMS) {
            for (int i = 0; i < MDMT_MASK_SUMS; i++) {
                sum[i] += part[i];
            }
        }
        sum[MDMT_MASK_ENTROPY] /= (double)job.area;
        for (int i = 0; i < MDMT_MASK_SUMS; i++) {
            out[i] = (float)sum[i];
        }
    }
    return MDMT_OK;
}

static void mask_sums_bwd_task(void *context, int task, int thread)
{
    const mask_job *job = context;
    int64_t n = task / job->parts, at = (int64_t)(task % job->parts) * MASK_PART;
    int64_t end = mask_end(job, at);
    const map_float *z = job->logits + n * job->sample;
    const float *t = job->mask + n * job->area;
    const float *dsums = job->dsums + n * MDMT_MASK_SUMS;
    map_float *dz = job->out + n * job->sample;
    const reg entropy = reg_set((float)(dsums[MDMT_MASK_ENTROPY] / (double)job->area));
    const reg both = reg_set(dsums[MDMT_MASK_BOTH]), guessed = reg_set(dsums[MDMT_MASK_GUESSED]);
    (void)thread;
    for (; at + MASK_PIXELS <= end; at += MASK_PIXELS) {
        reg truth = reg_load(t + at);
        mask_pixels v = mask_pixels_of(mask_logits(z + at * MDMT_BLOCK));
        reg slope = reg_mul(v.small, reg_mul(v.inverse, v.inverse));
        reg value = reg_mul(entropy, reg_sub(v.p, truth));
        value = reg_fma(reg_fma(both, truth, guessed), slope, value);
        float each[MASK_PIXELS];
        reg_store(each, value);
        for (int k = 0; k < MASK_PIXELS; k++) {
            mask_put(dz + (at + k) * MDMT_BLOCK, each + k);
        }
    }
    for (; at < end; at++) {
        float logit = mask_logit(z + at * MDMT_BLOCK);
        float value = (float)mask_gradient(dsums, (double)job->area, logit, t[at]);
        mask_put(dz + at * MDMT_BLOCK, &value);
    }
}

static int mask_bwd_supports(const mdmt_site *site)
{
    return mdmt_map_sample(site->in[1]) == mdmt_map_sample(site->out[0]);
}

static mdmt_status mask_sums_bwd_run(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_tensor *z = site->in[1];
    mask_job job = {.dsums = call->in[0].data,
                    .logits = call->in[1].data,
                    .mask = call->in[2].data,
                    .out = call->out[0],
                    .area = (int64_t)z->dim[2] * z->dim[3],
                    .sample = (int64_t)mdmt_map_sample(z),
                    .parts = mask_parts(z)};
    mdmt_parallel(site->pool, z->dim[0] * job.parts, mask_sums_bwd_task, &job);
    return MDMT_OK;
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(mask_sums) = {
    .name = MDMT_MAP_KERNEL_TEXT(mask_sums),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .needs = mask_sums_needs,
    .run = mask_sums_run,
};
const mdmt_cpu_impl MDMT_MAP_KERNEL(mask_sums_bwd) = {
    .name = MDMT_MAP_KERNEL_TEXT(mask_sums_bwd),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .supports = mask_bwd_supports,
    .run = mask_sums_bwd_run,
};
