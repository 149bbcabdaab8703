#if defined(__AVX512BF16__)
#define MDMT_BF16_MAPS
#include "norm_body.h"
#include "norm_bwd_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
