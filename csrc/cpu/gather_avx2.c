typedef int mdmt_gather_avx2_unit; /* a unit is never empty */

#if defined(__AVX2__) && defined(__FMA__)
#include "gather_body.h"
#endif
