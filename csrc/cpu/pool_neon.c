#if defined(__aarch64__)
#include "pool_body.h"
#include "pool_avg_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
