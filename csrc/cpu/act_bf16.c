#if defined(__AVX512BF16__)
#define MDMT_BF16_MAPS
#include "act_body.h"
#include "gate_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
