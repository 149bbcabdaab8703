#if defined(__aarch64__)
#include "upsample_body.h"
#include "mask_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
