/* The load stage of direct convolution for AVX2: every activation, and gates. */
typedef int mdmt_conv_load_avx2_unit; /* a unit is never empty */

#if defined(__AVX2__) && defined(__FMA__)
#include "conv_load_body.h"
#endif
