#if defined(__aarch64__)
#include "norm_body.h"
#include "norm_bwd_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
