/* Weights rounded to bfloat16 once per update. Convolutions in bfloat16 read each weight twice in a
 * step; a mirror of the slab of weights, which Adam writes as it goes, spares them the conversion.
 * A mirror exists from the first series of steps that updates the slab to the slab's end, and holds
 * at all times what converting the slab would give: whoever writes weights writes it, too. */
#include <stdlib.h>

#include "backend.cuh"
#include "fours.cuh"

/* A slab of this backend. */
struct mdmt_gpu_slab {
    const float *data;
    size_t count; /* floats */
    mdmt_bf16 *mirror;
    int tried; /* no second time: recorded updates do not know a mirror that comes later */
    mdmt_gpu_slab *next;
};

struct round_weights {
    const float *from;
    mdmt_bf16 *to;

    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        ((mdmt_four_rounded *)(void *)to)[i] =
            mdmt_rounded(((const mdmt_four_floats *)(const void *)from)[i]);
    }
};

/* `count`: a multiple of MDMT_FOUR, as everything in a slab is. */
static mdmt_status round_all(mdmt_gpu *gpu, const float *from, mdmt_bf16 *to, size_t count)
{
    round_weights f = {from, to};
    return mdmt_count_over(gpu->stream, count / MDMT_FOUR, f);
}

static mdmt_gpu_slab *slab_with(const mdmt_gpu *gpu, const void *data)
{
    const float *at = (const float *)data;
    mdmt_gpu_slab *s = gpu->slabs;
    while (s && !(at >= s->data && at < s->data + s->count)) {
        s = s->next;
    }
    return s;
}

mdmt_status mdmt_gpu_slab_note(mdmt_gpu *gpu, const mdmt_slab *slab)
{
    mdmt_gpu_slab *s = (mdmt_gpu_slab *)mdmt_lent->acquire(1, sizeof *s); /* zeroed */
    if (!s) {
        return MDMT_NO_MEMORY;
    }
    s->data = (const float *)slab->data;
    s->count = slab->bytes / sizeof(float);
    s->next = gpu->slabs;
    gpu->slabs = s;
    return MDMT_OK;
}

void mdmt_gpu_slab_forget(mdmt_gpu *gpu, const void *data)
{
    for (mdmt_gpu_slab **at = &gpu->slabs; *at; at = &(*at)->next) {
        mdmt_gpu_slab *s = *at;
        if ((const void *)s->data == data) {
            *at = s->next;
            mdmt_device_free(s->mirror);
            mdmt_lent->release(s);
            return;
        }
    }
}

mdmt_status mdmt_gpu_mirror(mdmt_gpu *gpu, const float *weights)
{
    mdmt_gpu_slab *s = slab_with(gpu, weights);
    const char *wish = getenv("MDMT_CUDA_MIRROR");
    void *mirror;
    if (!s || s->tried || gpu->options.precision != MDMT_CUDA_BF16) {
        return MDMT_OK;
    }
    s->tried = 1;
    if (wish && strcmp(wish, "off") == 0) {
        return MDMT_OK;
    }
    if (mdmt_device_try(&mirror, s->count * sizeof(mdmt_bf16)) != MDMT_OK) {
        return MDMT_OK; /* each convolution converts its own */
    }
    s->mirror = (mdmt_bf16 *)mirror;
    return round_all(gpu, s->data, s->mirror, s->count);
}

mdmt_bf16 *mdmt_gpu_mirrored(const mdmt_gpu *gpu, const void *weights)
{
    const mdmt_gpu_slab *s = slab_with(gpu, weights);
    return s && s->mirror ? s->mirror + ((const float *)weights - s->data) : NULL;
}

mdmt_status mdmt_gpu_mirror_again(mdmt_gpu *gpu, const void *weights, size_t bytes)
{
    mdmt_bf16 *mirror = mdmt_gpu_mirrored(gpu, weights);
    size_t count = mdmt_round_up(bytes / sizeof(float), MDMT_FOUR);
    return mirror ? round_all(gpu, (const float *)weights, mirror, count) : MDMT_OK;
}
