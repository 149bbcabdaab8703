typedef int mdmt_gather_avx512_unit; /* a unit is never empty */

#if defined(__AVX512F__)
#include "gather_body.h"
#endif
