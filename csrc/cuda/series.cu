/* Steps in a row without the host: what changes from step to step lies in the GPU's memory and
 * moves on by itself, so that a step is the same launches every time and can be recorded. */
#include "adam.cuh"
#include "map.cuh"

/* ---- the start and the end of a batch ---- */

/* One thread: the numbers of the batch that begins. */
struct advance {
    mdmt_gpu_state *state;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)i;
        (void)unused;
        mdmt_gpu_state *s = state;
        int64_t now = s->next;
        int64_t turn = s->first_part + now;
        s->next = now + 1;
        s->current = now;
        s->update = s->parts > 1 ? turn / s->parts : now;
        s->part = s->parts > 1 ? (int)(turn % s->parts) : 0;
        /* As mdmt_part_step. */
        s->step.step = (s->first_step + (uint64_t)s->update) | (uint64_t)s->part << 48;
        s->step.sample_source = s->all_sources + now * s->samples;
        s->step.sample_index = s->all_indices + now * s->samples;
        s->step.streamed =
            s->slots ? s->slots + (size_t)(now % MDMT_GPU_SLOTS) * s->slot_bytes : NULL;
        s->adam = mdmt_gpu_adam_numbers(s->adam_first, s->adam_first.step + s->update);
    }
};

/* Words between the ports' tensors and their rows of this step. */
struct move_ports {
    const mdmt_gpu_state *state;
    uint32_t *tensor[MDMT_MAX_LOGS];
    uint32_t words[MDMT_MAX_LOGS];
    int count, to_log;

    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        int k = 0;
        while (k < count - 1 && i >= words[k]) {
            i -= words[k++];
        }
        uint32_t *rows = to_log ? state->log[k] : state->feed[k];
        uint32_t *row = rows + (size_t)state->current * words[k] + i;
        if (to_log) {
            *row = tensor[k][i];
        } else {
            tensor[k][i] = *row;
        }
    }
};

/* The same to a log, of a feature map: (N, C, H, W) floats. */
template <class T> struct log_map {
    const mdmt_gpu_state *state;
    mdmt_map<T> map;
    int k;

    MDMT_HD void at(uint32_t pixel, int pack) const
    {
        size_t area = (size_t)map.h * (size_t)map.w, channels = (size_t)map.c;
        size_t sample = pixel / area, from = sample * channels * area + pixel % area;
        mdmt_pack v = map.load(pixel, pack);
        float *row = (float *)(void *)state->log[k] +
                     (size_t)state->current * (size_t)map.n * channels * area;
        for (int i = 0; i < MDMT_PACK && pack * MDMT_PACK + i < map.c; i++) {
            row[from + (size_t)(pack * MDMT_PACK + i) * area] = v.v[i];
        }
    }
};

template <class T> static mdmt_status log_one(mdmt_gpu *gpu, const mdmt_port *port, int k)
{
    log_map<T> f = {gpu->state, mdmt_map_of<T>(port->tensor, port->data), k};
    return mdmt_walk_over(gpu->stream, f.map.pixels(), f.map.packs, f);
}

/* One thread: whether from this batch on nothing must be updated. */
struct watch_step {
    mdmt_gpu_state *state;
    const mdmt_gpu_fault *fault;
    const float *loss; /* NULL: there is none */
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)i;
        (void)unused;
        int bad = 0;
        if (loss) {
            uint32_t bits;
            memcpy(&bits, loss, sizeof bits);
            bad = (bits & 0x7f800000u) == 0x7f800000u || fault->kind != MDMT_FAULT_NONE;
        }
        if (bad && !state->halted) {
            state->halted = state->current + 1;
        }
    }
};

static mdmt_gpu *gpu_of(mdmt_backend *backend)
{
    return (mdmt_gpu *)(void *)backend; /* base is its first member */
}

static mdmt_status move(mdmt_gpu *gpu, const mdmt_port *port, int count, int to_log)
{
    move_ports f;
    size_t words = 0;
    memset((void *)&f, 0, sizeof f);
    f.state = gpu->state;
    f.count = count;
    f.to_log = to_log;
    for (int k = 0; k < count; k++) {
        int map = port[k].tensor->kind == MDMT_MAP;
        f.tensor[k] = (uint32_t *)port[k].data;
        f.words[k] = map ? 0 : (uint32_t)(port[k].bytes / sizeof(uint32_t));
        words += f.words[k];
        if (map) {
            MDMT_TRY(gpu->options.precision == MDMT_CUDA_BF16 ? log_one<mdmt_bf16>(gpu, &port[k], k)
                                                              : log_one<float>(gpu, &port[k], k));
        }
    }
    return mdmt_count_over(gpu->stream, words, f);
}

static mdmt_status series_next(mdmt_backend *backend, const mdmt_series *s)
{
    mdmt_gpu *gpu = gpu_of(backend);
    advance f = {gpu->state};
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    MDMT_TRY(mdmt_count_over(gpu->stream, 1, f));
    return move(gpu, s->feed, s->feeds, 0);
}

static mdmt_status series_note(mdmt_backend *backend, const mdmt_series *s, int last)
{
    mdmt_gpu *gpu = gpu_of(backend);
    watch_step f = {gpu->state, gpu->fault, s->watch ? (const float *)s->log[0].data : NULL};
    MDMT_TRY(move(gpu, s->log, s->logs, 1));
    MDMT_TRY(mdmt_count_over(gpu->stream, 1, f));
    if (!s->update.weights) {
        return MDMT_OK;
    }
    MDMT_TRY(s->parts.sums ? mdmt_gpu_add_part(gpu, &s->update, s->parts.sums, last) : MDMT_OK);
    return last ? mdmt_gpu_update(gpu, &s->update, s->norms != NULL) : MDMT_OK;
}

/* ---- a series ---- */

enum { PIECE = 256 }; /* arrays begin at multiples of it */

static size_t updates_of(const mdmt_series *s)
{
    return (size_t)mdmt_updates_of(&s->parts, s->count);
}

static size_t scale_bytes(const mdmt_series *s)
{
    size_t parted = s->parts.count > 1 ? updates_of(s) : 0;
    return parted * sizeof *s->parts.scale;
}

/* What is given to the device lies before what comes back. */
static size_t given_bytes(const mdmt_series *s)
{
    size_t samples = (size_t)s->count * (size_t)s->samples;
    size_t bytes = mdmt_round_up(samples * sizeof(int32_t), PIECE) +
                   mdmt_round_up(samples * sizeof(int64_t), PIECE) +
                   mdmt_round_up(scale_bytes(s), PIECE);
    for (int k = 0; k < s->feeds; k++) {
        bytes += mdmt_round_up((size_t)s->count * s->feed[k].bytes, PIECE);
    }
    return bytes;
}

static size_t norm_bytes(const mdmt_series *s)
{
    return s->norms ? updates_of(s) * sizeof *s->norms : 0;
}

static size_t series_bytes(const mdmt_series *s)
{
    size_t bytes = given_bytes(s);
    for (int k = 0; k < s->logs; k++) {
        bytes += mdmt_round_up((size_t)s->count * s->log[k].bytes, PIECE);
    }
    return bytes + norm_bytes(s);
}

static mdmt_status series_room(mdmt_gpu *gpu, const mdmt_series *s)
{
    size_t bytes = series_bytes(s);
    void *data;
    if (bytes <= gpu->series_room) {
        return MDMT_OK;
    }
    mdmt_device_free(gpu->series);
    gpu->series = NULL;
    gpu->series_room = 0;
    MDMT_TRY(mdmt_device_alloc(&data, bytes, "labels and results of a series of steps"));
    gpu->series = (char *)data;
    gpu->series_room = bytes;
    return MDMT_OK;
}

static mdmt_status put(mdmt_gpu *gpu, char **at, const void *host, size_t bytes)
{
    char *to = *at;
    *at += mdmt_round_up(bytes, PIECE);
    return mdmt_device_write(gpu->stream, to, host, bytes);
}

/* Positions and feeds go there; where everything lies, into *state. */
static mdmt_status put_all(mdmt_gpu *gpu, const mdmt_series *s, mdmt_gpu_state *state)
{
    size_t samples = (size_t)s->count * (size_t)s->samples;
    char *at = gpu->series;
    state->all_sources = (const int32_t *)(const void *)at;
    MDMT_TRY(put(gpu, &at, s->first.sample_source, samples * sizeof(int32_t)));
    state->all_indices = (const int64_t *)(const void *)at;
    MDMT_TRY(put(gpu, &at, s->first.sample_index, samples * sizeof(int64_t)));
    state->scales = (const float *)(const void *)at;
    MDMT_TRY(scale_bytes(s) ? put(gpu, &at, s->parts.scale, scale_bytes(s)) : MDMT_OK);
    for (int k = 0; k < s->feeds; k++) {
        state->feed[k] = (uint32_t *)(void *)at;
        MDMT_TRY(put(gpu, &at, s->feed[k].host, (size_t)s->count * s->feed[k].bytes));
    }
    for (int k = 0; k < s->logs; k++) {
        state->log[k] = (uint32_t *)(void *)at;
        at += mdmt_round_up((size_t)s->count * s->log[k].bytes, PIECE);
    }
    state->norms = s->norms ? (double *)(void *)at : NULL;
    return MDMT_OK;
}

static mdmt_status check_series(const mdmt_series *s)
{
    if (s->feeds > MDMT_MAX_FEEDS || s->logs > MDMT_MAX_LOGS) {
        return mdmt_lent->fail(MDMT_INTERNAL, "a series of steps has too many tensors");
    }
    for (int k = 0; k < s->feeds + s->logs; k++) {
        const mdmt_port *p = k < s->feeds ? &s->feed[k] : &s->log[k - s->feeds];
        int map = p->tensor->kind == MDMT_MAP && p->tensor->dtype == MDMT_F32 && k >= s->feeds;
        if (p->tensor->kind != MDMT_ROWS && p->tensor->kind != MDMT_SCALAR && !map) {
            return mdmt_lent->fail(MDMT_UNSUPPORTED,
                                   "the tensor %s cannot be followed through a series of steps",
                                   p->tensor->name);
        }
    }
    MDMT_TRY(s->update.weights ? mdmt_gpu_check_adam(&s->adam) : MDMT_OK);
    MDMT_TRY(s->augment ? mdmt_lent->check_augmentation(&s->first.augmentation) : MDMT_OK);
    return mdmt_gpu_check_samples(&s->first, (size_t)s->count * (size_t)s->samples);
}

static void fill_state(const mdmt_gpu *gpu, const mdmt_series *s, mdmt_gpu_state *state)
{
    const mdmt_step *first = &s->first;
    state->step.epoch = first->epoch;
    state->step.dropout_key = mdmt_stream_key(first->seed, MDMT_STREAM_DROPOUT);
    state->step.augment_key = mdmt_stream_key(first->seed, MDMT_STREAM_AUGMENT);
    state->step.elastic_key = mdmt_stream_key(first->seed, MDMT_STREAM_ELASTIC);
    state->step.augmentation = first->augmentation;
    state->samples = s->samples;
    state->parts = s->parts.count;
    state->first_part = s->parts.first;
    state->first_step = first->step;
    state->slots = state->step.stride ? (const uint8_t *)gpu->slots : NULL;
    state->slot_bytes = gpu->slot_bytes;
    state->adam_first = s->adam;
}

static mdmt_status series_open(mdmt_backend *backend, const mdmt_series *s)
{
    mdmt_gpu *gpu = gpu_of(backend);
    mdmt_gpu_state state;
    size_t stride;
    memset((void *)&state, 0, sizeof state);
    MDMT_TRY(check_series(s));
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    MDMT_TRY(mdmt_gpu_take_sources(gpu, &s->first, &state.step, &stride));
    if (stride) {
        MDMT_TRY(mdmt_gpu_slot_room(gpu, (size_t)s->samples, stride));
        MDMT_TRY(mdmt_device_wait(gpu->stream));
        gpu->staged = 0;
    }
    state.step.stride = stride;
    MDMT_TRY(s->update.weights ? mdmt_gpu_mirror(gpu, s->update.weights) : MDMT_OK);
    MDMT_TRY(s->norms ? mdmt_gpu_clip_room(gpu) : MDMT_OK);
    MDMT_TRY(series_room(gpu, s));
    MDMT_TRY(put_all(gpu, s, &state));
    fill_state(gpu, s, &state);
    gpu->written = state.step;
    gpu->written_valid = 0;
    MDMT_TRY(mdmt_device_write(gpu->stream, gpu->state, &state, sizeof state));
    gpu->fault_possible = s->watch;
    gpu->in_series = 1;
    return MDMT_OK;
}

static mdmt_status series_stage(mdmt_backend *backend, const mdmt_series *s, int i)
{
    mdmt_gpu *gpu = gpu_of(backend);
    const uint8_t *slot;
    if (!gpu->written.stride) {
        return MDMT_OK;
    }
    mdmt_step step = s->first;
    step.sample_source += (size_t)i * (size_t)s->samples;
    step.sample_index += (size_t)i * (size_t)s->samples;
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    return mdmt_gpu_stage(gpu, &step, s->samples, gpu->written.stride, &gpu->written, &slot);
}

static mdmt_status series_close(mdmt_backend *backend, const mdmt_series *s, int *done)
{
    mdmt_gpu *gpu = gpu_of(backend);
    int64_t halted = 0;
    *done = 0;
    if (!gpu->in_series) {
        return MDMT_OK;
    }
    gpu->in_series = 0;
    char *at = gpu->series + given_bytes(s);
    MDMT_TRY(mdmt_device_use(gpu->options.device));
    for (int k = 0; k < s->logs; k++) {
        size_t bytes = (size_t)s->count * s->log[k].bytes;
        MDMT_TRY(mdmt_device_read(gpu->stream, s->log[k].host, at, bytes));
        at += mdmt_round_up(bytes, PIECE);
    }
    MDMT_TRY(s->norms ? mdmt_device_read(gpu->stream, s->norms, at, norm_bytes(s)) : MDMT_OK);
    MDMT_TRY(mdmt_device_read(gpu->stream, &halted, &gpu->state->halted, sizeof halted));
    *done = halted ? (int)halted - 1 : s->count;
    return mdmt_gpu_check_fault(gpu);
}

void mdmt_gpu_fill_series(mdmt_backend *base)
{
    base->series_open = series_open;
    base->series_stage = series_stage;
    base->series_next = series_next;
    base->series_note = series_note;
    base->series_close = series_close;
}
