/* Whether an array holds numbers alone. */
#ifndef MDMT_CPU_FINITE_H
#define MDMT_CPU_FINITE_H

#include <stddef.h>

#include "../base/pool.h"

/* 1 where none of the `count` floats is a NaN or an infinity. */
int mdmt_all_finite(mdmt_pool *pool, const float *values, size_t count);

#endif
