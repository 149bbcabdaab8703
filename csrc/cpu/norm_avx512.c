#if defined(__AVX512F__)
#include "norm_body.h"
#include "norm_bwd_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
