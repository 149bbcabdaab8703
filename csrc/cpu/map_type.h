/* What MAPs of floats are stored as: floats, or bfloat16 where the including file defines
 * MDMT_BF16_MAPS before its first header (and is compiled for AVX512-BF16). */
#ifndef MDMT_CPU_MAP_TYPE_H
#define MDMT_CPU_MAP_TYPE_H

#include <stdint.h>

#ifdef MDMT_BF16_MAPS
typedef uint16_t map_float;
#define MDMT_MAP_TYPE bf16
enum { MDMT_MAPS_BF16 = 1 };
#else
typedef float map_float;
#define MDMT_MAP_TYPE f32
enum { MDMT_MAPS_BF16 = 0 };
#endif

/* MDMT_MAP_NAME(MDMT_MAP_TYPE, add) is mdmt_f32_add, or mdmt_bf16_add for MAPs of bfloat16. */
#define MDMT_MAP_NAME_(type, name) mdmt_##type##_##name
#define MDMT_MAP_NAME(type, name)  MDMT_MAP_NAME_(type, name)

#endif
