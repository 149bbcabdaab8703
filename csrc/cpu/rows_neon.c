#if defined(__aarch64__)
#include "channel_body.h"
#include "flatten_body.h"
#include "linear_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
