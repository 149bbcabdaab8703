/* Winograd convolution for AVX-512. */
#include "cpu.h"

typedef int mdmt_conv_winograd_avx512_unit;

#if defined(__AVX512F__)

#include "conv_winograd_impls.h"

IMPLS(MDMT_ISA_AVX512, avx512)

#endif
