/* Stores past the caches. */
#ifndef MDMT_CPU_STREAMS_H
#define MDMT_CPU_STREAMS_H

/* Ends a thread's stores past the caches: what it stores afterwards is seen after them. Where
 * there are none (aarch64) nothing is to be done. */
static inline void mdmt_end_streams(void)
{
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

#endif
