/* The data sets, images and masks: in the GPU's memory as uint8, or, where they do not fit, on
 * their way to it in batches: gathered into one of two rooms of pinned memory while the GPU works
 * on the batch before, copied by a stream of its own into one of two rooms of the GPU. */
#include <stdlib.h>

#include "backend.cuh"

mdmt_status mdmt_gpu_check_samples(const mdmt_step *step, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int data_set = step->sample_source[i];
        int64_t index = step->sample_index[i];
        if (data_set < 0 || data_set >= step->source_count || data_set >= MDMT_GPU_SOURCES) {
            return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                                   "sample %zu is of data set %d, but %d data sets are attached", i,
                                   data_set, step->source_count);
        }
        if (index < 0 || index >= step->sources[data_set].count) {
            return mdmt_lent->fail(
                MDMT_BAD_ARGUMENT, "sample %zu is image %lld of data set %d, which has %lld images",
                i, (long long)index, data_set, (long long)step->sources[data_set].count);
        }
    }
    return MDMT_OK;
}

/* Bytes that images may take of the GPU's memory: what is free, less a sixteenth of all (libraries
 * and other processes); MDMT_CUDA_STORE_MB lowers it. */
static mdmt_status store_room(const mdmt_gpu *gpu, size_t *room)
{
    size_t available = 0, total = 0, held = 0;
    const char *wish = getenv("MDMT_CUDA_STORE_MB");
    MDMT_TRY(mdmt_device_room(&available, &total));
    *room = available > total / 16 ? available - total / 16 : 0;
    for (int i = 0; i < gpu->residents; i++) {
        held += gpu->resident[i].bytes;
    }
    if (wish && *wish) {
        char *end;
        double limit = strtod(wish, &end) * 1048576.0;
        if (*end || !(limit >= 0)) {
            return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                                   "the environment variable MDMT_CUDA_STORE_MB is '%s'; give a "
                                   "number of megabytes",
                                   wish);
        }
        double left = limit > (double)held ? limit - (double)held : 0;
        *room = left < (double)*room ? (size_t)left : *room;
    }
    return MDMT_OK;
}

/* Images or masks of a source in the GPU's memory, copied when they are first seen; NULL: no
 * room. */
static mdmt_status resident(mdmt_gpu *gpu, const uint8_t *host, size_t bytes, const uint8_t **copy)
{
    size_t room;
    void *data;
    *copy = NULL;
    for (int i = 0; i < gpu->residents; i++) {
        if (gpu->resident[i].host == host && gpu->resident[i].bytes == bytes) {
            *copy = gpu->resident[i].copy;
            return MDMT_OK;
        }
    }
    MDMT_TRY(store_room(gpu, &room));
    if (bytes > room || gpu->residents == MDMT_GPU_RESIDENT) {
        return MDMT_OK;
    }
    mdmt_status status = mdmt_device_try(&data, bytes);
    if (status == MDMT_NO_MEMORY) {
        return MDMT_OK;
    }
    MDMT_TRY(status);
    status = mdmt_device_write(gpu->stream, data, host, bytes);
    if (status != MDMT_OK) {
        mdmt_device_free(data);
        return status;
    }
    gpu->resident[gpu->residents].host = host;
    gpu->resident[gpu->residents].bytes = bytes;
    gpu->resident[gpu->residents].copy = (uint8_t *)data;
    gpu->residents++;
    *copy = (const uint8_t *)data;
    return MDMT_OK;
}

mdmt_status mdmt_gpu_take_sources(mdmt_gpu *gpu, const mdmt_step *step, mdmt_gpu_step *next,
                                  size_t *streamed)
{
    *streamed = 0;
    for (int i = 0; i < step->source_count && i < MDMT_GPU_SOURCES; i++) {
        const mdmt_image_source *s = &step->sources[i];
        mdmt_gpu_source *to = &next->source[i];
        size_t count = (size_t)s->count, each = 0;
        to->count = s->count;
        to->planes = s->planes;
        to->height = s->height;
        to->width = s->width;
        to->masked = s->masks != NULL;
        to->masks = NULL;
        MDMT_TRY(resident(gpu, s->pixels, count * mdmt_image_bytes(s), &to->pixels));
        MDMT_TRY(s->masks ? resident(gpu, s->masks, count * mdmt_mask_bytes(s), &to->masks)
                          : MDMT_OK);
        each += to->pixels ? 0 : mdmt_image_bytes(s);
        each += s->masks && !to->masks ? mdmt_mask_bytes(s) : 0;
        *streamed = each > *streamed ? each : *streamed;
    }
    return MDMT_OK;
}

/* ---- on their way ---- */

static void close_slots(mdmt_gpu *gpu)
{
    mdmt_stream_close(gpu->copies); /* waits: copies read what is freed next */
    gpu->copies = NULL;
    mdmt_pinned_free(gpu->pinned);
    mdmt_device_free(gpu->slots);
    gpu->pinned = gpu->slots = NULL;
    gpu->slot_bytes = 0;
    for (int i = 0; i < MDMT_GPU_SLOTS; i++) {
        mdmt_event_close(gpu->copied[i]);
        mdmt_event_close(gpu->used[i]);
        gpu->copied[i] = gpu->used[i] = NULL;
    }
    gpu->staged = 0;
}

static mdmt_status open_slots(mdmt_gpu *gpu, size_t bytes)
{
    void *pinned, *slots;
    MDMT_TRY(mdmt_stream_open(&gpu->copies, 0));
    for (int i = 0; i < MDMT_GPU_SLOTS; i++) {
        MDMT_TRY(mdmt_event_open(&gpu->copied[i], 0));
        MDMT_TRY(mdmt_event_open(&gpu->used[i], 0));
    }
    MDMT_TRY(mdmt_pinned_alloc(&pinned, MDMT_GPU_SLOTS * bytes));
    gpu->pinned = (char *)pinned;
    MDMT_TRY(mdmt_device_alloc(&slots, MDMT_GPU_SLOTS * bytes, "batches of images on their way"));
    gpu->slots = (char *)slots;
    gpu->slot_bytes = bytes;
    return MDMT_OK;
}

mdmt_status mdmt_gpu_slot_room(mdmt_gpu *gpu, size_t samples, size_t stride)
{
    size_t bytes = mdmt_round_up(samples * stride, 256);
    if (bytes <= gpu->slot_bytes) {
        return MDMT_OK;
    }
    close_slots(gpu);
    mdmt_status status = open_slots(gpu, bytes);
    if (status != MDMT_OK) {
        close_slots(gpu);
    }
    return status;
}

mdmt_status mdmt_gpu_stage(mdmt_gpu *gpu, const mdmt_step *step, int samples, size_t stride,
                           const mdmt_gpu_step *sources, const uint8_t **slot)
{
    int turn = (int)(gpu->staged % MDMT_GPU_SLOTS);
    int before = (int)((gpu->staged + MDMT_GPU_SLOTS - 1) % MDMT_GPU_SLOTS);
    char *pinned = gpu->pinned + (size_t)turn * gpu->slot_bytes;
    char *to = gpu->slots + (size_t)turn * gpu->slot_bytes;
    if (gpu->staged > 0) { /* the batch before has been started by now */
        MDMT_TRY(mdmt_event_record(gpu->used[before], gpu->stream));
    }
    if (gpu->staged >= MDMT_GPU_SLOTS) {
        MDMT_TRY(mdmt_event_wait(gpu->copied[turn]));
        MDMT_TRY(mdmt_event_before(gpu->used[turn], gpu->copies));
    }
    for (int i = 0; i < samples; i++) {
        const mdmt_image_source *s = &step->sources[step->sample_source[i]];
        const mdmt_gpu_source *there = &sources->source[step->sample_source[i]];
        size_t index = (size_t)step->sample_index[i];
        size_t bytes = mdmt_image_bytes(s), mask = mdmt_mask_bytes(s);
        char *at = pinned + (size_t)i * stride;
        if (!there->pixels) {
            memcpy(at, s->pixels + index * bytes, bytes);
            at += bytes;
        }
        if (s->masks && !there->masks) {
            memcpy(at, s->masks + index * mask, mask);
        }
    }
    MDMT_TRY(mdmt_pinned_write(gpu->copies, to, pinned, (size_t)samples * stride));
    MDMT_TRY(mdmt_event_record(gpu->copied[turn], gpu->copies));
    MDMT_TRY(mdmt_event_before(gpu->copied[turn], gpu->stream));
    gpu->staged++;
    *slot = (const uint8_t *)to;
    return MDMT_OK;
}

void mdmt_gpu_forget_images(mdmt_gpu *gpu)
{
    while (gpu->residents) {
        mdmt_device_free(gpu->resident[--gpu->residents].copy);
    }
    close_slots(gpu);
}
