/* Products of 16 x 16 by 16 x 8 bfloat16 numbers on tensor cores, for operations that are done for
 * each channel alone: of the product of all channels with all others only the diagonal is wanted.
 *
 * A row is a pack, 8 channels of one pixel in shared memory. Thread 4 g + t of a warp gets what the
 * instructions mma.m16n8k16 and ldmatrix give it (PTX ISA, "Warp-level matrix instructions"); on
 * the processor, where threads run one by one, it computes what it can from its own numbers, which
 * for the diagonal is all. */
#ifndef MDMT_CUDA_FRAGMENTS_CUH
#define MDMT_CUDA_FRAGMENTS_CUH

#include "tiles.cuh"

#ifdef __CUDA_ARCH__
static __device__ __forceinline__ void mdmt_multiply(float *c, const uint32_t *a, uint32_t b0,
                                                     uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

/* Of the 32 rows that lie row(0) ... row(31) bytes after `from`: a[i] = channels 2 t, 2 t + 1 of
 * row 8 i + g. */
template <class Row>
MDMT_HD void mdmt_load_rows(uint32_t *a, const mdmt_bf16 *from, int lane, const Row &row)
{
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(from) + (uint32_t)row(lane))
                 : "memory");
#else
    for (int i = 0; i < 4; i++) {
        const mdmt_bf16 *at = from + row(8 * i + lane / 4) / 2 + lane % 4 * 2;
        a[i] = *(const uint32_t *)(const void *)at;
    }
#endif
}

/* Channel g of rows 8 i + 2 t and 8 i + 2 t + 1, of 8 COUNT rows. */
template <int COUNT, class Row>
MDMT_HD void mdmt_load_columns(uint32_t *a, const mdmt_bf16 *from, int lane, const Row &row)
{
#ifdef __CUDA_ARCH__
    if (COUNT == 4) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                     : "r"((uint32_t)__cvta_generic_to_shared(from) + (uint32_t)row(lane))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(a[0]), "=r"(a[1])
                     : "r"((uint32_t)__cvta_generic_to_shared(from) + (uint32_t)row(lane % 16))
                     : "memory");
    }
#else
    for (int i = 0; i < COUNT; i++) {
        const mdmt_bf16 *first = from + row(8 * i + lane % 4 * 2) / 2;
        const mdmt_bf16 *second = from + row(8 * i + lane % 4 * 2 + 1) / 2;
        a[i] = (uint32_t)first[lane / 4].bits | (uint32_t)second[lane / 4].bits << 16;
    }
#endif
}

/* Factors of channels 2 t and 2 t + 1 are masked with this for mdmt_add_scaled: thread 4 g + t
 * holds column g of a diagonal matrix, in rows 2 t and 2 t + 1. */
MDMT_HD uint32_t mdmt_diagonal_mask(int lane)
{
#ifdef __CUDA_ARCH__
    int g = lane / 4;
    return g / 2 != lane % 4 ? 0 : g % 2 ? 0xffff0000u : 0xffffu;
#else
    (void)lane;
    return 0xffffffffu;
#endif
}

/* Of mdmt_load_rows: c[0], c[1] += rows g x w0 + rows 16 + g x w1, channels 2 t and 2 t + 1;
 * c[2], c[3] the same of rows 8 + g and 24 + g. */
MDMT_HD void mdmt_add_scaled(float *c, const uint32_t *a, uint32_t w0, uint32_t w1)
{
#ifdef __CUDA_ARCH__
    mdmt_multiply(c, a, w0, w1);
#else
    mdmt_pair first = mdmt_pair_of(w0), second = mdmt_pair_of(w1);
    for (int i = 0; i < 2; i++) {
        mdmt_pair sum = {c[2 * i], c[2 * i + 1]};
        mdmt_add_product(&sum, mdmt_pair_of(a[i]), first);
        mdmt_add_product(&sum, mdmt_pair_of(a[2 + i]), second);
        c[2 * i] = sum.a;
        c[2 * i + 1] = sum.b;
    }
#endif
}

/* Of mdmt_load_columns: the sums over 16 rows b of their product with 16 rows each of two kinds,
 * a being rows 0 to 7 of the first and of the second kind, rows 8 to 15 of the first and of the
 * second; channel by channel. What the threads 4 g ... 4 g + 3 have in `of` of mdmt_dot_of(c, kind)
 * is to be added up to channel g's sum. */
MDMT_HD void mdmt_add_dots(float *c, const uint32_t *a, const uint32_t *b)
{
#ifdef __CUDA_ARCH__
    mdmt_multiply(c, a, b[0], b[1]);
#else
    for (int kind = 0; kind < 2; kind++) {
        mdmt_pair sum = mdmt_zero_pair();
        mdmt_add_product(&sum, mdmt_pair_of(a[kind]), mdmt_pair_of(b[0]));
        mdmt_add_product(&sum, mdmt_pair_of(a[2 + kind]), mdmt_pair_of(b[1]));
        c[2 * kind] += sum.a + sum.b;
    }
#endif
}

MDMT_HD float mdmt_dot_of(const float *c, int kind, int lane)
{
#ifdef __CUDA_ARCH__
    int g = lane / 4;
    float found = g % 2 ? c[2 * kind + 1] : c[2 * kind];
    return g / 2 == lane % 4 ? found : 0.0f;
#else
    (void)lane;
    return c[2 * kind];
#endif
}

/* ACT of two numbers, rounded to bfloat16. */
template <int ACT> MDMT_HD uint32_t mdmt_rounded_act(float a, float b)
{
#ifdef __CUDA_ARCH__
    if (ACT == MDMT_ACT_RELU || ACT == MDMT_ACT_RELU6) {
        uint32_t bits;
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(b), "f"(a));
        if (ACT == MDMT_ACT_RELU6) {
            asm("min.NaN.bf16x2 %0, %0, %1;" : "+r"(bits) : "r"(0x40c040c0u)); /* 6, 6 */
        }
        return bits;
    }
#endif
    if (ACT == MDMT_ACT_SILU) {
        a *= mdmt_sigmoid_of<1>(a);
        b *= mdmt_sigmoid_of<1>(b);
    } else {
        a = mdmt_act_of(ACT, a);
        b = mdmt_act_of(ACT, b);
    }
    return mdmt_bf16_pair(a, b);
}

#endif
