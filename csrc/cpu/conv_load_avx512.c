/* The load stage of direct convolution for AVX-512: every activation, and gates. */
typedef int mdmt_conv_load_avx512_unit; /* a unit is never empty */

#if defined(__AVX512F__)
#include "conv_load_body.h"
#endif
