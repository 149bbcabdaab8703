/* A library with the functions of cuDNN that the backend calls. It keeps descriptors as they are
 * set, refuses what the real one refuses (an attribute of the wrong type, use before the end of
 * the description), and carries out convolutions by their definition, on the processor.
 * MDMT_FAKE_VERSION: what it claims to be; FAKE_ENGINES below: what its engines are. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/cuda/cudnn_api.h"

#ifndef MDMT_FAKE_VERSION
#define MDMT_FAKE_VERSION 91002
#endif

enum { ATTRIBUTES = 16, VALUES = 8, WRONG = 2000, FAKE_ENGINES = 3 };

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

const char *cudnnGetErrorString(int status)
{
    return status ? "FAKE_ERROR" : "FAKE_SUCCESS";
}

int cudnnCreate(void **handle)
{
    *handle = malloc(1);
    return *handle ? CUDNN_SUCCESS : WRONG;
}

int cudnnDestroy(void *handle)
{
    free(handle);
    return CUDNN_SUCCESS;
}

int cudnnSetStream(void *handle, void *stream)
{
    (void)stream;
    return handle ? CUDNN_SUCCESS : WRONG;
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

/* Engine 0 is not deterministic and uses tensor cores, 1 has no plan, 2 is plain. */
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
    } else if (name == CUDNN_ENGINE_NUMERICAL_NOTE) {
        const int notes[2] = {CUDNN_NOTE_TENSOR_CORE, CUDNN_NOTE_NONDETERMINISTIC};
        *count = d->engine == 0 ? 2 : 0;
        memcpy(to, notes, sizeof(int) * (size_t)*count);
    } else if (name == CUDNN_PLAN_WORKSPACE) {
        descriptor *config = child(d, CUDNN_PLAN_CFG);
        d->engine = config->engine;
        d->graph = config->graph;
        *(int64_t *)to = 512;
        *count = 1;
    } else {
        return WRONG;
    }
    return CUDNN_SUCCESS;
}

typedef struct {
    char *data;
    const int64_t *dim, *stride;
    int type;
} view;

static view view_of(descriptor *t, descriptor *variants)
{
    const int64_t *id = values(variants, CUDNN_VARIANT_IDS);
    char *const *pointer = values(variants, CUDNN_VARIANT_POINTERS);
    const int64_t *own = values(t, CUDNN_TENSOR_ID);
    view v = {NULL, values(t, CUDNN_TENSOR_DIMENSIONS), values(t, CUDNN_TENSOR_STRIDES),
              *(const int *)values(t, CUDNN_TENSOR_TYPE)};
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
    view x, w, y;
    const int64_t *stride, *dilation, *before;
} job;

/* Sum over the pairs of y's element and tap that stand over the element of the
 * result at index `at`; pass as in csrc/cuda/cudnn.cuh. */
static double sum_at(const job *j, int kind, const int64_t *at)
{
    const view *x = &j->x, *w = &j->w, *y = &j->y;
    int64_t from[7] = {0},
            to[7] = {y->dim[0], y->dim[1], y->dim[2], y->dim[3], w->dim[1], w->dim[2], w->dim[3]};
    int64_t i[7];
    double sum = 0;
    static const int fixed[3][4] = {{0, 1, 2, 3}, {1, 4, 5, 6}, {0, 4, -1, -1}};
    int which = kind == CUDNN_IS_CONV_FORWARD ? 0 : kind == CUDNN_IS_CONV_WEIGHT ? 1 : 2;
    for (int k = 0; k < 4; k++) {
        if (fixed[which][k] >= 0) {
            from[fixed[which][k]] = at[k];
            to[fixed[which][k]] = at[k] + 1;
        }
    }
#define OVER(n) for (i[n] = from[n]; i[n] < to[n]; i[n]++)
    OVER(0) OVER(1) OVER(2) OVER(3) OVER(4) OVER(5) OVER(6)
    {
        int64_t h = i[2] * j->stride[0] - j->before[0] + i[5] * j->dilation[0];
        int64_t c = i[3] * j->stride[1] - j->before[1] + i[6] * j->dilation[1];
        if (h < 0 || h >= x->dim[2] || c < 0 || c >= x->dim[3] ||
            (which == 2 && (h != at[2] || c != at[3]))) {
            continue;
        }
        double a = which == 2 ? load(w, element(w, i[1], i[4], i[5], i[6]))
                              : load(x, element(x, i[0], i[4], h, c));
        double b = which == 0 ? load(w, element(w, i[1], i[4], i[5], i[6]))
                              : load(y, element(y, i[0], i[1], i[2], i[3]));
        sum += a * b;
    }
    return sum;
}

int cudnnBackendExecute(void *handle, void *plan_of, void *variants_of)
{
    descriptor *plan = plan_of, *variants = variants_of;
    descriptor *op = child(plan->graph, CUDNN_GRAPH_OPS);
    int first = op->kind == CUDNN_IS_CONV_FORWARD  ? CUDNN_FORWARD_FIRST
                : op->kind == CUDNN_IS_CONV_WEIGHT ? CUDNN_WEIGHT_FIRST
                                                   : CUDNN_DATA_FIRST;
    descriptor *conv = child(op, first + 2);
    job j = {view_of(child(op, first + 3), variants), view_of(child(op, first + 4), variants),
             view_of(child(op, first + 5), variants), values(conv, CUDNN_CONV_STRIDES),
             values(conv, CUDNN_CONV_DILATIONS),      values(conv, CUDNN_CONV_PRE_PADDINGS)};
    view w = j.x, x = j.w; /* in the order of the attributes: w, x, y */
    j.x = x;
    j.w = w;
    const view *out = op->kind == CUDNN_IS_CONV_FORWARD  ? &j.y
                      : op->kind == CUDNN_IS_CONV_WEIGHT ? &j.w
                                                         : &j.x;
    int64_t i[4];
    if (!handle || !plan->done || plan->engine != 2 || !variants->done || !out->data) {
        return 5000;
    }
    for (i[0] = 0; i[0] < out->dim[0]; i[0]++) {
        for (i[1] = 0; i[1] < out->dim[1]; i[1]++) {
            for (i[2] = 0; i[2] < out->dim[2]; i[2]++) {
                for (i[3] = 0; i[3] < out->dim[3]; i[3]++) {
                    store(out, element(out, i[0], i[1], i[2], i[3]), sum_at(&j, op->kind, i));
                }
            }
        }
    }
    return CUDNN_SUCCESS;
}
