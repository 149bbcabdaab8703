/* What a thread takes of a slab of numbers at once: slabs are padded to more than that. */
#ifndef MDMT_CUDA_FOURS_CUH
#define MDMT_CUDA_FOURS_CUH

#include "target.cuh"

enum { MDMT_FOUR = 4 };

struct alignas(16) mdmt_four_floats {
    float v[MDMT_FOUR];
};

struct alignas(8) mdmt_four_rounded {
    mdmt_bf16 v[MDMT_FOUR];
};

MDMT_HD mdmt_four_rounded mdmt_rounded(const mdmt_four_floats &f)
{
    mdmt_four_rounded r;
    for (int k = 0; k < MDMT_FOUR; k++) {
        mdmt_from_float(f.v[k], &r.v[k]);
    }
    return r;
}

#endif
