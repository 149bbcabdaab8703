/* Winograd convolution for AVX2. */
#include "cpu.h"

typedef int mdmt_conv_winograd_avx2_unit;

#if defined(__AVX2__)

#include "conv_winograd_impls.h"

IMPLS(MDMT_ISA_AVX2, avx2)

#endif
