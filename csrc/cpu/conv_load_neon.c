/* The load stage of direct convolution for NEON: every activation, and gates. */
typedef int mdmt_conv_load_neon_unit; /* a unit is never empty */

#if defined(__aarch64__)
#include "conv_load_body.h"
#endif
