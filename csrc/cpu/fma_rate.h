/* How many multiply-adds the cores of this machine do right now: the yardstick
 * of benchmarks on shared machines. */
#ifndef MDMT_CPU_FMA_RATE_H
#define MDMT_CPU_FMA_RATE_H

#include "../base/cpuid.h"
#include "../base/status.h"

/* Runs a loop of independent multiply-adds in registers on `threads` threads
 * for about `seconds` and gives their float32 operations per second together
 * (two per multiply-add) in *rate. */
mdmt_status mdmt_fma_rate(double seconds, int threads, mdmt_isa isa, double *rate);

/* The loops: `rounds` rounds; return the operations done. The sum of the
 * accumulators goes to *sink, so that nothing is optimised away. */
double mdmt_fma_loop__ref(int rounds, float *sink);
double mdmt_fma_loop__avx2(int rounds, float *sink);
double mdmt_fma_loop__avx512(int rounds, float *sink);
double mdmt_fma_loop__neon(int rounds, float *sink);

#endif
