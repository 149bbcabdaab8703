/* Winograd convolution for NEON. */
#include "cpu.h"

typedef int mdmt_conv_winograd_neon_unit;

#if defined(__aarch64__)

#include "conv_winograd_impls.h"

IMPLS(MDMT_ISA_NEON, neon)

#endif
