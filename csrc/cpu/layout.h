/* Storage of a tensor in the layouts of cpu.h, and its conversion from and to
 * plain C-ordered arrays. */
#ifndef MDMT_CPU_LAYOUT_H
#define MDMT_CPU_LAYOUT_H

#include "cpu.h"

/* Elements and bytes that a tensor takes, padding included; 0 when lazy. */
size_t mdmt_storage_elements(const mdmt_tensor *tensor);
size_t mdmt_storage_bytes(const mdmt_tensor *tensor);
/* The same where MAPs of floats are stored in bfloat16. */
size_t mdmt_storage_bytes_bf16(const mdmt_tensor *tensor);

/* Whether a tensor is stored as the plain array, so that packing is a copy. */
int mdmt_layout_is_plain(const mdmt_tensor *tensor);
/* `plain` is C-ordered in the tensor's dims; `packed` has mdmt_storage_bytes.
 * Packing writes every padding lane as zero. The two must not overlap. */
void mdmt_layout_pack(const mdmt_tensor *tensor, void *packed, const void *plain);
void mdmt_layout_unpack(const mdmt_tensor *tensor, void *plain, const void *packed);
/* A MAP of floats that is stored in bfloat16. */
void mdmt_layout_pack_bf16(const mdmt_tensor *tensor, uint16_t *packed, const float *plain);
void mdmt_layout_unpack_bf16(const mdmt_tensor *tensor, float *plain, const uint16_t *packed);

#endif
