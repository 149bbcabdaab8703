/* Engines of cuDNN chosen by measurement, and the table of choices, which goes to disk and back as
 * text: one line per convolution, its key as numbers, then mode, rank, engine, milliseconds. */
#include <stdio.h>
#include <stdlib.h>

#include <mutex>

#include "cudnn.cuh"
#include "cudnn_api.h"

/* ---- the table ---- */

enum { IDENTITY = 320, TABLES = 16, KEY_NUMBERS = sizeof(mdmt_conv_key) / sizeof(int) };

struct mdmt_tuning {
    char identity[IDENTITY];
    mdmt_tuned *entry;
    int count, room;
    int measured; /* entries that were measured in this process */
};

/* Of the process: threads that train networks side by side share them. */
static mdmt_tuning tables[TABLES];
static std::mutex tables_lock;
typedef std::lock_guard<std::mutex> locked;

static mdmt_status identity_of(int ordinal, char *text, size_t room)
{
    MDMT_TRY(mdmt_device_identity(ordinal, text, room));
    size_t used = strlen(text);
    snprintf(text + used, room - used, ", cuDNN %d", mdmt_cudnn_version());
    return MDMT_OK;
}

mdmt_tuning *mdmt_tuning_of(int ordinal)
{
    char text[IDENTITY];
    if (identity_of(ordinal, text, sizeof text) != MDMT_OK) {
        return NULL;
    }
    locked lock(tables_lock);
    for (int i = 0; i < TABLES; i++) {
        if (!tables[i].identity[0]) {
            memcpy(tables[i].identity, text, sizeof text);
        }
        if (strcmp(tables[i].identity, text) == 0) {
            return &tables[i];
        }
    }
    return NULL;
}

int mdmt_tuning_find(const mdmt_tuning *t, const mdmt_conv_key *key, mdmt_tuned *found)
{
    locked lock(tables_lock);
    for (int i = 0; t && i < t->count; i++) {
        if (memcmp(&t->entry[i].key, key, sizeof *key) == 0) {
            *found = t->entry[i];
            return 1;
        }
    }
    return 0;
}

/* Adds or replaces, within a lock; 0 when there is no memory. */
static int add(mdmt_tuning *t, const mdmt_tuned *tuned)
{
    for (int i = 0; i < t->count; i++) {
        if (memcmp(&t->entry[i].key, &tuned->key, sizeof tuned->key) == 0) {
            t->entry[i] = *tuned;
            return 1;
        }
    }
    if (t->count == t->room) {
        int room = t->room ? 2 * t->room : 64;
        void *grown = realloc((void *)t->entry, sizeof *t->entry * (size_t)room);
        if (!grown) {
            return 0;
        }
        t->entry = (mdmt_tuned *)grown;
        t->room = room;
    }
    t->entry[t->count++] = *tuned;
    return 1;
}

void mdmt_tuning_keep(mdmt_tuning *t, const mdmt_tuned *tuned)
{
    if (t) {
        locked lock(tables_lock);
        t->measured += add(t, tuned);
    }
}

int mdmt_cuda_tuning(int ordinal, char *identity, size_t identity_room, char *text, size_t room,
                     int *measured)
{
    const mdmt_tuning *t = mdmt_tuning_of(ordinal);
    size_t used = 0;
    identity[0] = '\0';
    *measured = 0;
    if (room) {
        text[0] = '\0';
    }
    if (!t) {
        return 0;
    }
    locked lock(tables_lock);
    snprintf(identity, identity_room, "%s", t->identity);
    *measured = t->measured;
    for (int i = 0; i < t->count; i++) {
        const mdmt_tuned *e = &t->entry[i];
        int number[KEY_NUMBERS];
        memcpy(number, &e->key, sizeof number);
        for (int k = 0; k < KEY_NUMBERS && used + 16 < room; k++) {
            used += (size_t)snprintf(text + used, room - used, "%d ", number[k]);
        }
        if (used + 96 < room) {
            used += (size_t)snprintf(text + used, room - used, "%d %d %lld %.6f\n", e->mode,
                                     e->rank, (long long)e->engine, (double)e->milliseconds);
        }
    }
    return t->count;
}

/* One line into *e; the rest of the text, or NULL. */
static const char *read_line(const char *at, mdmt_tuned *e)
{
    int number[KEY_NUMBERS + 2];
    char *end;
    for (int k = 0; k < KEY_NUMBERS + 2; k++) {
        long v = strtol(at, &end, 10);
        if (end == at || v < -1 || v > 0x7ffffffe) {
            return NULL;
        }
        number[k] = (int)v;
        at = end;
    }
    memcpy((void *)&e->key, number, sizeof e->key);
    e->mode = number[KEY_NUMBERS];
    e->rank = number[KEY_NUMBERS + 1];
    e->engine = strtoll(at, &end, 10);
    at = end;
    e->milliseconds = strtof(at, &end);
    int sound = end != at && *end == '\n' && e->rank >= 0 && e->rank < 1000 &&
                e->milliseconds >= 0 && e->milliseconds < 1e6f &&
                (e->mode == CUDNN_HEUR_A || e->mode == CUDNN_HEUR_FALLBACK);
    return sound ? end + 1 : NULL;
}

int mdmt_cuda_take_tuning(int ordinal, const char *text)
{
    mdmt_tuning *t = mdmt_tuning_of(ordinal);
    int taken = 0;
    mdmt_tuned e, known;
    for (const char *at = text; *at; at = read_line(at, &e)) {
        if (!read_line(at, &e)) {
            return -1;
        }
    }
    for (const char *at = text; t && *at;) {
        at = read_line(at, &e);
        if (!mdmt_tuning_find(t, &e.key, &known)) {
            locked lock(tables_lock);
            taken += add(t, &e);
        }
    }
    return taken;
}

/* ---- the measurement ---- */

/* Numbers in -1 .. 1 without a pattern: zeros would be multiplied faster than numbers are. */
template <class T> struct noise {
    T *to;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        mdmt_philox4 four = mdmt_philox(1, i, 0);
        mdmt_from_float(2 * mdmt_uniform(four.v[0]) - 1, &to[i]);
    }
};

static size_t elements_of(const int *dim, int pitch)
{
    return (size_t)dim[0] * (size_t)dim[2] * (size_t)dim[3] * (size_t)pitch;
}

static mdmt_status fill(mdmt_gpu *gpu, void *data, size_t count, int type)
{
    if (type == CUDNN_BF16) {
        noise<mdmt_bf16> f = {(mdmt_bf16 *)data};
        return mdmt_count_over(gpu->stream, count, f);
    }
    noise<float> f = {(float *)data};
    return mdmt_count_over(gpu->stream, count, f);
}

struct bench {
    void *x, *w, *y, *workspace;
    mdmt_event_handle from, to;
};

enum { MAPS_MOST = 4 }; /* GiB of x and y: each engine would run for seconds */

/* Fails where the maps are too large to be tried out, or for the memory that is left. */
static mdmt_status open_bench(mdmt_gpu *gpu, const mdmt_conv_key *key, size_t workspace, bench *b)
{
    size_t map = key->map_type == CUDNN_BF16 ? 2 : 4;
    int w_type = key->pass == MDMT_CONV_WEIGHT ? key->result_type : key->map_type;
    size_t x = elements_of(key->x, key->x_pitch), y = elements_of(key->y, key->y_pitch);
    size_t w = (size_t)key->w[0] * (size_t)key->w[1] * (size_t)(key->w[2] * key->w[3]);
    if ((x + y) * map > (size_t)MAPS_MOST << 30) {
        return MDMT_UNSUPPORTED;
    }
    MDMT_TRY(mdmt_device_try(&b->x, x * map));
    MDMT_TRY(mdmt_device_try(&b->y, y * map));
    MDMT_TRY(mdmt_device_try(&b->w, w * (w_type == CUDNN_BF16 ? 2 : 4)));
    MDMT_TRY(mdmt_device_try(&b->workspace, workspace));
    MDMT_TRY(mdmt_event_open(&b->from, 1));
    MDMT_TRY(mdmt_event_open(&b->to, 1));
    MDMT_TRY(fill(gpu, b->x, x, key->map_type));
    MDMT_TRY(fill(gpu, b->y, y, key->map_type));
    return fill(gpu, b->w, w, w_type);
}

static void close_bench(bench *b)
{
    mdmt_event_close(b->from);
    mdmt_event_close(b->to);
    mdmt_device_free(b->workspace);
    mdmt_device_free(b->w);
    mdmt_device_free(b->y);
    mdmt_device_free(b->x);
}

/* The best of a few runs, after one that may compile the engine; -1: it does not run. */
static float measure(mdmt_gpu *gpu, void *plan, const bench *b, float best)
{
    float least = -1;
    if (mdmt_cudnn_run(gpu, plan, b->x, b->w, b->y, b->workspace) != MDMT_OK) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        float time = 0;
        if (mdmt_event_record(b->from, gpu->stream) != MDMT_OK ||
            mdmt_cudnn_run(gpu, plan, b->x, b->w, b->y, b->workspace) != MDMT_OK ||
            mdmt_event_record(b->to, gpu->stream) != MDMT_OK ||
            mdmt_event_span(b->from, b->to, &time) != MDMT_OK) {
            return -1;
        }
        least = least < 0 || time < least ? time : least;
        if (best > 0 && least > 2 * best) {
            break; /* hopeless */
        }
    }
    return least;
}

/* ---- whether engines agree: one that is wrong for a shape must not be chosen for its speed ----
 */

/* Sums of the squares of a result, and of the eighth powers of how far another is from it in units
 * of 1 / `scale`: hardly more than the largest counts. */
template <class T> struct compared {
    const T *result, *other; /* other NULL: the squares alone */
    float *partial;          /* (parts, MDMT_PACK) */
    float scale;

    MDMT_HD void add(mdmt_pack *sums, size_t at, int pack, int z, size_t first) const
    {
        (void)pack;
        (void)z;
        (void)first;
        mdmt_pack v = mdmt_load_pack(result + at * MDMT_PACK);
        mdmt_pack o = mdmt_load_pack((other ? other : result) + at * MDMT_PACK);
        for (int i = 0; i < MDMT_PACK; i++) {
            float d = other ? (v.v[i] - o.v[i]) * scale : v.v[i];
            d *= d;
            sums[0].v[i] += other ? d * d * (d * d) : d;
        }
    }
    MDMT_HD void done(int k, int part, int c, int z, float total) const
    {
        (void)k;
        (void)z;
        partial[(size_t)part * MDMT_PACK + (size_t)c] = total;
    }
};

/* What engines make, and a copy of what the first of them made. */
struct results {
    void *made, *kept;
    float *partial;
    size_t count; /* a multiple of MDMT_PACK */
    int type, parts;
};

template <class T>
static mdmt_status sum_of(mdmt_gpu *gpu, const results *r, const void *other, float scale,
                          double *sum)
{
    float host[MDMT_PARTS_MOST * MDMT_PACK];
    compared<T> f = {(const T *)r->made, (const T *)other, r->partial, scale};
    MDMT_TRY(mdmt_reduce_over<1>(gpu->stream, r->count / MDMT_PACK, 1, r->parts, 1, f));
    size_t count = (size_t)r->parts * MDMT_PACK;
    MDMT_TRY(mdmt_device_read(gpu->stream, host, r->partial, count * sizeof *host));
    *sum = 0;
    for (size_t i = 0; i < count; i++) {
        *sum += (double)host[i];
    }
    return MDMT_OK;
}

static mdmt_status compare(mdmt_gpu *gpu, const results *r, const void *other, float scale,
                           double *sum)
{
    return r->type == CUDNN_BF16 ? sum_of<mdmt_bf16>(gpu, r, other, scale, sum)
                                 : sum_of<float>(gpu, r, other, scale, sum);
}

template <class T> struct kept_copy {
    const T *from;
    T *to;
    MDMT_HD void at(uint32_t i, int unused) const
    {
        (void)unused;
        to[i] = from[i];
    }
};

static mdmt_status keep(mdmt_gpu *gpu, const results *r)
{
    if (r->type == CUDNN_BF16) {
        kept_copy<mdmt_bf16> f = {(const mdmt_bf16 *)r->made, (mdmt_bf16 *)r->kept};
        return mdmt_count_over(gpu->stream, r->count, f);
    }
    kept_copy<float> f = {(const float *)r->made, (float *)r->kept};
    return mdmt_count_over(gpu->stream, r->count, f);
}

static mdmt_status open_results(results *r, const mdmt_conv_key *key, const bench *b)
{
    void *partial;
    const int *dim = key->pass == MDMT_CONV_FORWARD ? key->y : key->x;
    int weight = key->pass == MDMT_CONV_WEIGHT;
    r->made = weight ? b->w : key->pass == MDMT_CONV_FORWARD ? b->y : b->x;
    r->type = weight ? key->result_type : key->map_type;
    r->count = weight ? elements_of(key->w, key->w[1]) /* (K, C, kh, kw) */
                      : elements_of(dim, dim == key->y ? key->y_pitch : key->x_pitch);
    r->parts = mdmt_parts_of(r->count / MDMT_PACK, 1, 1);
    MDMT_TRY(mdmt_device_try(&r->kept, r->count * (r->type == CUDNN_BF16 ? 2 : 4)));
    MDMT_TRY(mdmt_device_try(&partial, (size_t)r->parts * MDMT_PACK * sizeof(float)));
    r->partial = (float *)partial;
    return MDMT_OK;
}

/* Runs a plan on results that hold noise, so that what it does not write differs, too. */
static int run_afresh(mdmt_gpu *gpu, const results *r, void *plan, const bench *b)
{
    return fill(gpu, r->made, r->count, r->type) == MDMT_OK &&
           mdmt_cudnn_run(gpu, plan, b->x, b->w, b->y, b->workspace) == MDMT_OK;
}

/* agrees[i]: whether plan i makes what plan `first` makes; their number, or -1. */
static int agreeing(mdmt_gpu *gpu, const mdmt_conv_key *key, const results *r, void *const *plan,
                    const char *usable, int count, int first, const bench *b, char *agrees)
{
    double squares = 0;
    int found = 0;
    if (!run_afresh(gpu, r, plan[first], b) || keep(gpu, r) != MDMT_OK ||
        compare(gpu, r, NULL, 1, &squares) != MDMT_OK || !(squares > 0)) {
        return -1;
    }
    /* Of the root of the mean square. Neighbouring numbers of bfloat16 are 2^-8 apart, so that even
     * where all of 10^8 results were rounded to another neighbour, the sum would stay below 1. */
    double allowed = (key->exact ? 1e-2 : 0.25) * sqrt(squares / (double)r->count);
    for (int i = 0; i < count; i++) {
        double far = 2;
        agrees[i] = (char)(i == first);
        if (usable[i] && i != first && run_afresh(gpu, r, plan[i], b) &&
            compare(gpu, r, r->kept, (float)(1 / allowed), &far) == MDMT_OK) {
            agrees[i] = far <= 1;
        }
        found += agrees[i];
    }
    return found;
}

/* Marks the plans to choose among: the first, in the heuristic's order, with which at least half of
 * those that run agree, itself included, and these; none where there is no such plan. Where nothing
 * can be compared, all that run. */
static void trust(mdmt_gpu *gpu, const mdmt_conv_key *key, void *const *plan, char *usable,
                  int count, const bench *b)
{
    results r;
    char agrees[MDMT_TUNE_MOST];
    int all = 0, found = 0, most = 0;
    memset((void *)&r, 0, sizeof r);
    for (int i = 0; i < count; i++) {
        usable[i] =
            usable[i] && mdmt_cudnn_run(gpu, plan[i], b->x, b->w, b->y, b->workspace) == MDMT_OK;
        all += usable[i];
    }
    if (all > 1 && open_results(&r, key, b) == MDMT_OK) {
        for (int first = 0; first < count && 2 * found < all; first++) {
            found =
                usable[first] ? agreeing(gpu, key, &r, plan, usable, count, first, b, agrees) : 0;
            most = found > most ? found : most;
        }
        if (2 * found >= all) {
            memcpy(usable, agrees, (size_t)count);
        } else if (most > 0) {
            memset(usable, 0, (size_t)count);
        }
    }
    mdmt_device_free(r.partial);
    mdmt_device_free(r.kept);
}

enum { WORKSPACE_MOST = 1 << 29 }; /* bytes: more is not worth any speed */

int mdmt_tune(mdmt_gpu *gpu, const mdmt_conv_key *key, void *const *plan, const size_t *workspace,
              int count, float limit, float *milliseconds)
{
    bench b;
    char usable[MDMT_TUNE_MOST];
    size_t most = 0;
    int best = -1;
    *milliseconds = 0;
    memset((void *)&b, 0, sizeof b);
    for (int i = 0; i < count; i++) {
        usable[i] = workspace[i] <= WORKSPACE_MOST;
        most = usable[i] && workspace[i] > most ? workspace[i] : most;
    }
    mdmt_status status = open_bench(gpu, key, most, &b);
    if (status == MDMT_OK) {
        trust(gpu, key, plan, usable, count, &b);
    }
    for (int i = 0; i < count && status == MDMT_OK; i++) {
        float known = best < 0 || (limit > 0 && limit < *milliseconds) ? limit : *milliseconds;
        float time = usable[i] ? measure(gpu, plan[i], &b, known) : -1;
        /* Equal within 2 %: the heuristic's order, so that noise decides less often. */
        if (time >= 0 && (best < 0 || time < 0.98f * *milliseconds)) {
            best = i;
            *milliseconds = time > 1e-6f ? time : 1e-6f;
        }
    }
    close_bench(&b);
    return status == MDMT_OK ? best : 0;
}
