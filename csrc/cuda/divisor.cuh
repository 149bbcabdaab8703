/* Division by a number known before the launch. */
#ifndef MDMT_CUDA_DIVISOR_CUH
#define MDMT_CUDA_DIVISOR_CUH

#include "target.cuh"

/* n / by for n < 2^31, 0 < by < 2^31, as a multiplication and a shift: a GPU's own division takes
 * some twenty instructions. With 2^(shift - 1) < by <= 2^shift, factor = 2^32 (2^shift - by) / by
 * + 1 rounded down, the quotient is (n + n factor / 2^32) / 2^shift (Granlund and Montgomery). */
struct mdmt_divisor {
    uint32_t by, factor;
    int shift;

    MDMT_HD uint32_t of(uint32_t n) const
    {
        return (n + (uint32_t)((uint64_t)n * factor >> 32)) >> shift;
    }
    /* The quotient; n becomes the remainder. */
    MDMT_HD uint32_t split(uint32_t *n) const
    {
        uint32_t quotient = of(*n);
        *n -= quotient * by;
        return quotient;
    }
};

static inline mdmt_divisor mdmt_divisor_of(size_t by)
{
    mdmt_divisor d = {(uint32_t)by, 0, 0};
    while (((uint64_t)1 << d.shift) < by) {
        d.shift++;
    }
    d.factor = (uint32_t)((((uint64_t)1 << d.shift) - by) * ((uint64_t)1 << 32) / by + 1);
    return d;
}

#endif
