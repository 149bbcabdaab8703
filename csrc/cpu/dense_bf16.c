#if defined(__AVX512BF16__)
#define MDMT_BF16_MAPS
#include "upsample_body.h"
#include "mask_body.h"
#else
typedef int mdmt_empty_unit; /* C wants one declaration */
#endif
