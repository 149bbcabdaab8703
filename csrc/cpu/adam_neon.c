#if defined(__aarch64__)
#include "adam_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
