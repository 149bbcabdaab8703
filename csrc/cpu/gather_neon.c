typedef int mdmt_gather_neon_unit; /* a unit is never empty */

#if defined(__aarch64__)
#include "gather_body.h"
#endif
