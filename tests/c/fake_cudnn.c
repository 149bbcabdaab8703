/* A library with the functions of cuDNN that the backend calls. It keeps descriptors as they are
 * set, refuses what the real one refuses (an attribute of the wrong type, use before the end of
 * the description), and carries out convolutions by their definition, on the processor, in the
 * order of a stream of the stand-in for the CUDA runtime (fake_cuda).
 * MDMT_FAKE_VERSION: what it claims to be. Its engines:
 *   0 is not deterministic and uses tensor cores, 1 has no plan, 2 takes 3 ms, 3 takes 2 ms,
 *   4 wants too large a workspace, 5 does not run.
 * FAKE_CUDNN_FASTEST in the environment names one that takes 1 ms, FAKE_CUDNN_WRONG those that make
 * a mistake; with FAKE_CUDNN_STRIDED convolutions in single steps take twice as long; with
 * FAKE_CUDNN_SMALL 4 is content with less, and takes 1 ms; with FAKE_CUDNN_IDLE they take their
 * time, but compute nothing. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/cuda/cudnn_api.h"

#ifndef MDMT_FAKE_VERSION
#define MDMT_FAKE_VERSION 91002
#endif

enum { ATTRIBUTES = 16, VALUES = 8, WRONG = 2000, FAKE_ENGINES = 6 };

typedef struct {
    int name, type;
    int64_t count;
    uint64_t value[VALUES];
} attribute;

typedef struct descriptor {
    int kind, done, count, engine;
    struct descriptor *graph;
    attribute attr[ATTRIBUTES];
} descriptor;

static size_t bytes_of(int type)
{
    return type == CUDNN_AS_HANDLE || type == CUDNN_AS_INT64 || type == CUDNN_AS_POINTER ||
                   type == CUDNN_AS_DESCRIPTOR
               ? 8
               : 4;
}

static attribute *find(descriptor *d, int name)
{
    for (int i = 0; d && i < d->count; i++) {
        if (d->attr[i].name == name) {
            return &d->attr[i];
        }
    }
    return NULL;
}

static const void *values(descriptor *d, int name)
{
    attribute *a = find(d, name);
    return a ? a->value : NULL;
}

static descriptor *child(descriptor *d, int name)
{
    const void *v = values(d, name);
    return v ? *(descriptor *const *)v : NULL;
}

size_t cudnnGetVersion(void)
{
    return MDMT_FAKE_VERSION;
}

#ifdef MDMT_FAKE_RUNTIME
/* The CUDA runtime that it says it was built for; it then needs that runtime's libcublasLt. */
size_t cudnnGetCudartVersion(void)
{
    return MDMT_FAKE_RUNTIME;
}
#endif

const char *cudnnGetErrorString(int status)
{
    return status ? "FAKE_ERROR" : "FAKE_SUCCESS";
}

/* The beginning of fake_cuda's stream. */
typedef struct {
    int (*enqueue)(void *stream, void (*run)(const void *), const void *job, size_t bytes);
    double clock;
} stream_head;

typedef struct {
    stream_head *stream;
} handle_of;

int cudnnCreate(void **handle)
{
    *handle = calloc(1, sizeof(handle_of));
    return *handle ? CUDNN_SUCCESS : WRONG;
}

int cudnnDestroy(void *handle)
{
    free(handle);
    return CUDNN_SUCCESS;
}

int cudnnSetStream(void *handle, void *stream)
{
    if (!handle) {
        return WRONG;
    }
    ((handle_of *)handle)->stream = stream;
    return CUDNN_SUCCESS;
}

int cudnnBackendCreateDescriptor(int kind, void **made)
{
    descriptor *d = calloc(1, sizeof *d);
    if (d) {
        d->kind = kind;
    }
    *made = d;
    return d ? CUDNN_SUCCESS : WRONG;
}

int cudnnBackendDestroyDescriptor(void *d)
{
    free(d);
    return CUDNN_SUCCESS;
}

int cudnnBackendSetAttribute(void *to, int name, int type, int64_t count, const void *from)
{
    descriptor *d = to;
    int is_vector = name == CUDNN_TENSOR_DIMENSIONS || name == CUDNN_TENSOR_STRIDES;
    if (!d || d->done || d->count == ATTRIBUTES || count < 1 || count > VALUES ||
        (is_vector && (count != 4 || type != CUDNN_AS_INT64)) ||
        (type == CUDNN_AS_DESCRIPTOR && !(*(descriptor *const *)from)->done)) {
        return WRONG;
    }
    attribute *a = &d->attr[d->count++];
    a->name = name;
    a->type = type;
    a->count = count;
    memcpy(a->value, from, bytes_of(type) * (size_t)count);
    return CUDNN_SUCCESS;
}

int cudnnBackendFinalize(void *which)
{
    static const int needed[][3] = {
        {CUDNN_IS_TENSOR, CUDNN_TENSOR_ID, CUDNN_TENSOR_ALIGNMENT},
        {CUDNN_IS_CONVOLUTION, CUDNN_CONV_MODE, CUDNN_CONV_POST_PADDINGS},
        {CUDNN_IS_CONV_FORWARD, CUDNN_FORWARD_FIRST, CUDNN_FORWARD_FIRST + 5},
        {CUDNN_IS_CONV_DATA, CUDNN_DATA_FIRST, CUDNN_DATA_FIRST + 5},
        {CUDNN_IS_CONV_WEIGHT, CUDNN_WEIGHT_FIRST, CUDNN_WEIGHT_FIRST + 5},
        {CUDNN_IS_GRAPH, CUDNN_GRAPH_OPS, CUDNN_GRAPH_HANDLE},
        {CUDNN_IS_HEURISTIC, CUDNN_HEUR_GRAPH, CUDNN_HEUR_MODE},
        {CUDNN_IS_PLAN, CUDNN_PLAN_CFG, CUDNN_PLAN_HANDLE},
        {CUDNN_IS_VARIANTS, CUDNN_VARIANT_POINTERS, CUDNN_VARIANT_WORKSPACE},
    };
    descriptor *d = which;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (needed[i][0] == d->kind && (!find(d, needed[i][1]) || !find(d, needed[i][2]))) {
            return WRONG;
        }
    }
    /* The second engine cannot make a plan. */
    if (d->kind == CUDNN_IS_PLAN && child(d, CUDNN_PLAN_CFG)->engine == 1) {
        return 3000;
    }
    d->done = 1;
    return CUDNN_SUCCESS;
}

int cudnnBackendGetAttribute(void *from, int name, int type, int64_t room, int64_t *count, void *to)
{
    descriptor *d = from, **list = to;
    (void)type;
    if (name == CUDNN_HEUR_RESULTS) {
        *count = 0;
        for (int i = 0; d->done && i < FAKE_ENGINES && i < room; i++) {
            list[i]->engine = i;
            list[i]->graph = child(d, CUDNN_HEUR_GRAPH);
            list[i]->done = 1;
            ++*count;
        }
        return d->done ? CUDNN_SUCCESS : WRONG;
    }
    if (name == CUDNN_CFG_ENGINE) {
        list[0]->engine = d->engine;
        *count = 1;
    } else if (name == CUDNN_ENGINE_GLOBAL_INDEX) {
        *(int64_t *)to = 10 * d->engine + 1;
        *count = 1;
    } else if (name == CUDNN_ENGINE_NUMERICAL_NOTE) {
        const int notes[2] = {CUDNN_NOTE_TENSOR_CORE, CUDNN_NOTE_NONDETERMINISTIC};
        *count = d->engine == 0 ? 2 : 0;
        memcpy(to, notes, sizeof(int) * (size_t)*count);
    } else if (name == CUDNN_PLAN_WORKSPACE) {
        descriptor *config = child(d, CUDNN_PLAN_CFG);
        d->engine = config->engine;
        d->graph = config->graph;
        int large = d->engine == 4 && !getenv("FAKE_CUDNN_SMALL");
        *(int64_t *)to = large ? (int64_t)1 << 31 : 512 * d->engine;
        *count = 1;
    } else {
        return WRONG;
    }
    return CUDNN_SUCCESS;
}

typedef struct {
    char *data;
    int64_t dim[4], stride[4];
    int type;
} view;

static view view_of(descriptor *t, descriptor *variants)
{
    const int64_t *id = values(variants, CUDNN_VARIANT_IDS);
    char *const *pointer = values(variants, CUDNN_VARIANT_POINTERS);
    const int64_t *own = values(t, CUDNN_TENSOR_ID);
    view v = {.type = *(const int *)values(t, CUDNN_TENSOR_TYPE)};
    memcpy(v.dim, values(t, CUDNN_TENSOR_DIMENSIONS), sizeof v.dim);
    memcpy(v.stride, values(t, CUDNN_TENSOR_STRIDES), sizeof v.stride);
    for (int i = 0; i < 3; i++) {
        v.data = id[i] == *own ? pointer[i] : v.data;
    }
    return v;
}

static char *element(const view *v, int64_t a, int64_t b, int64_t c, int64_t d)
{
    int64_t at = a * v->stride[0] + b * v->stride[1] + c * v->stride[2] + d * v->stride[3];
    return v->data + at * (v->type == CUDNN_BF16 ? 2 : 4);
}

static double load(const view *v, const char *at)
{
    float f;
    uint32_t bits = 0;
    if (v->type == CUDNN_BF16) {
        memcpy((char *)&bits + 2, at, 2);
        memcpy(&f, &bits, sizeof f);
    } else {
        memcpy(&f, at, sizeof f);
    }
    return (double)f;
}

static void store(const view *v, char *at, double value)
{
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (v->type == CUDNN_BF16) {
        bits += 0x7fffu + (bits >> 16 & 1u);
        memcpy(at, (char *)&bits + 2, 2);
    } else {
        memcpy(at, &f, sizeof f);
    }
}

typedef struct {
    double beta;  /* what the result holds counts as much */
    double error; /* added to the first element */
    view x, w, y;
    int64_t stride[2], dilation[2], before[2];
    int kind;
    double milliseconds;
    stream_head *stream;
} job;

/* The element of dx at `at`: over the windows that its taps belong to. */
static double data_at(const job *j, const int64_t *at)
{
    double sum = 0;
    for (int64_t r = 0; r < j->w.dim[2]; r++) {
        for (int64_t s = 0; s < j->w.dim[3]; s++) {
            int64_t h = at[2] + j->before[0] - r * j->dilation[0];
            int64_t c = at[3] + j->before[1] - s * j->dilation[1];
            if (h < 0 || c < 0 || h % j->stride[0] || c % j->stride[1] ||
                h / j->stride[0] >= j->y.dim[2] || c / j->stride[1] >= j->y.dim[3]) {
                continue;
            }
            for (int64_t k = 0; k < j->w.dim[0]; k++) {
                sum += load(&j->w, element(&j->w, k, at[1], r, s)) *
                       load(&j->y, element(&j->y, at[0], k, h / j->stride[0], c / j->stride[1]));
            }
        }
    }
    return sum;
}

/* The element of y or dw at `at`: over the pairs of y's element and tap. */
static double sum_at(const job *j, int kind, const int64_t *at)
{
    const view *x = &j->x, *w = &j->w, *y = &j->y;
    int64_t from[7] = {0},
            to[7] = {y->dim[0], y->dim[1], y->dim[2], y->dim[3], w->dim[1], w->dim[2], w->dim[3]};
    int64_t i[7];
    double sum = 0;
    static const int fixed[2][4] = {{0, 1, 2, 3}, {1, 4, 5, 6}};
    int forward = kind == CUDNN_IS_CONV_FORWARD;
    for (int k = 0; k < 4; k++) {
        int which = fixed[!forward][k];
        from[which] = at[k];
        to[which] = at[k] + 1;
    }
#define OVER(n) for (i[n] = from[n]; i[n] < to[n]; i[n]++)
    OVER(0) OVER(1) OVER(2) OVER(3) OVER(4) OVER(5) OVER(6)
    {
        int64_t h = i[2] * j->stride[0] - j->before[0] + i[5] * j->dilation[0];
        int64_t c = i[3] * j->stride[1] - j->before[1] + i[6] * j->dilation[1];
        if (h >= 0 && h < x->dim[2] && c >= 0 && c < x->dim[3]) {
            sum += load(x, element(x, i[0], i[4], h, c)) *
                   (forward ? load(w, element(w, i[1], i[4], i[5], i[6]))
                            : load(y, element(y, i[0], i[1], i[2], i[3])));
        }
    }
    return sum;
}

/* All of it is in the job: descriptors may be gone when its turn comes. */
static void run_job(const void *which)
{
    const job *j = which;
    const view *out = j->kind == CUDNN_IS_CONV_FORWARD  ? &j->y
                      : j->kind == CUDNN_IS_CONV_WEIGHT ? &j->w
                                                        : &j->x;
    int64_t i[4];
    j->stream->clock += j->milliseconds;
    if (getenv("FAKE_CUDNN_IDLE")) {
        return;
    }
    for (i[0] = 0; i[0] < out->dim[0]; i[0]++) {
        for (i[1] = 0; i[1] < out->dim[1]; i[1]++) {
            for (i[2] = 0; i[2] < out->dim[2]; i[2]++) {
                for (i[3] = 0; i[3] < out->dim[3]; i[3]++) {
                    char *at = element(out, i[0], i[1], i[2], i[3]);
                    double before = j->beta == 0 ? 0 : j->beta * load(out, at);
                    double sum =
                        j->kind == CUDNN_IS_CONV_DATA ? data_at(j, i) : sum_at(j, j->kind, i);
                    double error = i[0] + i[1] + i[2] + i[3] ? 0 : j->error;
                    store(out, at, before + sum + error);
                }
            }
        }
    }
}

int cudnnBackendExecute(void *handle, void *plan_of, void *variants_of)
{
    descriptor *plan = plan_of, *variants = variants_of;
    descriptor *op = child(plan->graph, CUDNN_GRAPH_OPS);
    int first = op->kind == CUDNN_IS_CONV_FORWARD  ? CUDNN_FORWARD_FIRST
                : op->kind == CUDNN_IS_CONV_WEIGHT ? CUDNN_WEIGHT_FIRST
                                                   : CUDNN_DATA_FIRST;
    descriptor *conv = child(op, first + 2);
    const char *fastest = getenv("FAKE_CUDNN_FASTEST"), *wrong = getenv("FAKE_CUDNN_WRONG");
    job j = {.w = view_of(child(op, first + 3), variants), /* in the order of the attributes */
             .x = view_of(child(op, first + 4), variants),
             .y = view_of(child(op, first + 5), variants),
             .beta = *(const float *)values(op, first + 1),
             .error = wrong && strchr(wrong, '0' + (int)plan->engine) ? 40 * plan->engine : 0,
             .kind = op->kind};
    memcpy(j.stride, values(conv, CUDNN_CONV_STRIDES), sizeof j.stride);
    memcpy(j.dilation, values(conv, CUDNN_CONV_DILATIONS), sizeof j.dilation);
    memcpy(j.before, values(conv, CUDNN_CONV_PRE_PADDINGS), sizeof j.before);
    if (!handle || !plan->done || plan->engine < 2 || plan->engine > 4 || !variants->done ||
        !j.x.data || !j.w.data || !j.y.data) {
        return 5000;
    }
    /* As the tensors' descriptions promise, and as cudaMalloc gives it. */
    const uintptr_t *room = values(variants, CUDNN_VARIANT_WORKSPACE);
    if (((uintptr_t)j.x.data | (uintptr_t)j.w.data | (uintptr_t)j.y.data) % 16 || *room % 256) {
        return 6000;
    }
    j.stream = ((handle_of *)handle)->stream;
    j.milliseconds = fastest && atoi(fastest) == plan->engine ? 1 : 5 - plan->engine;
    j.milliseconds *= getenv("FAKE_CUDNN_STRIDED") && j.stride[0] == 1 ? 2 : 1;
    return j.stream->enqueue(j.stream, run_job, &j, sizeof j) ? 4000 : CUDNN_SUCCESS;
}
