/* Winograd convolution for AVX-512, maps stored in bfloat16. */
#include "cpu.h"

typedef int mdmt_conv_winograd_bf16_unit;

#if defined(__AVX512BF16__)

#define MDMT_BF16_MAPS
#include "conv_winograd_impls.h"

IMPLS(MDMT_ISA_AVX512, avx512)

#endif
