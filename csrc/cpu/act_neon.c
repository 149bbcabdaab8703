#if defined(__aarch64__)
#include "act_body.h"
#include "gate_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
