/* MAPs that are stored in bfloat16, for kernels that know floats alone: they work on copies. */
#ifndef MDMT_CPU_COPIES_H
#define MDMT_CPU_COPIES_H

#include "cpu.h"

/* Whether an argument is a MAP of floats, which is what may be stored in bfloat16. */
static inline int mdmt_is_float_map(const mdmt_tensor *tensor)
{
    return tensor && tensor->kind == MDMT_MAP && tensor->dtype == MDMT_F32;
}

/* A site on dense copies of its MAPs, and the tensors it refers to. */
typedef struct {
    mdmt_site site;
    mdmt_tensor in[MDMT_MAX_IN], out[MDMT_MAX_OUT];
    size_t bytes; /* of all copies */
} mdmt_float_site;

void mdmt_float_site_of(const mdmt_site *site, mdmt_float_site *copy);
/* Runs a kernel on the copies, which lie in the call's workspace behind what the kernel needs. */
mdmt_status mdmt_float_site_run(const mdmt_cpu_impl *impl, const mdmt_site *site,
                                const mdmt_call *call, size_t workspace_bytes);

/* (count) floats from bfloat16, and to the nearest. */
void mdmt_widen(float *to, const uint16_t *from, size_t count);
void mdmt_narrow(uint16_t *to, const float *from, size_t count);

#endif
