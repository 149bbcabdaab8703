#if defined(__aarch64__)
#include "conv_depth_forward.h"
#include "conv_depth_weight.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
