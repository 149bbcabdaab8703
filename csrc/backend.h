/* What a backend is to the executor: storage, conversion between plain arrays
 * and its own layouts, and a kernel for each op. Filled by cpu/ and cuda/. */
#ifndef MDMT_BACKEND_H
#define MDMT_BACKEND_H

#include "base/memory.h"
#include "ir/record.h"
#include "ops/attrs.h"

/* Images of one data set, resident for the whole training: uint8, grey or with a plane for each
 * channel of the network. */
typedef struct {
    const uint8_t *pixels; /* (count, planes, height, width) */
    const uint8_t *masks;  /* (count, height, width), 255 inside; NULL: it has none */
    int64_t count;
    int planes, height, width; /* planes: 1, or the channels */
} mdmt_image_source;

/* Bytes of one image, and of its mask. */
static inline size_t mdmt_mask_bytes(const mdmt_image_source *s)
{
    return (size_t)s->height * (size_t)s->width;
}
static inline size_t mdmt_image_bytes(const mdmt_image_source *s)
{
    return (size_t)s->planes * mdmt_mask_bytes(s);
}

/* Ranges of the training augmentation (paper's code; notes.md): each transform
 * is applied with probability `probability`. Zero range = never. */
typedef struct {
    float probability;
    float shift;            /* fraction of the side, +-                   */
    float zoom;             /* factor 1 - zoom .. 1 + zoom                */
    float flip;             /* 1: horizontal flip allowed                 */
    float rotation;         /* degrees, +-                                */
    float elastic_alpha[2]; /* pixels, low and high                       */
    float elastic_sigma;    /* pixels                                     */
    /* Of the grey values v in 0..1, in this order, each cut to 0..1 (masks stay as they are); of
     * an image in colour, each plane by itself with the same numbers, but noise of its own: */
    float gamma;      /* v ^ exp(g), g within +- gamma                         */
    float contrast;   /* m + c (v - m), c within 1 +- contrast, m the mean     */
    float brightness; /* v + b, b within +- brightness                         */
    float invert;     /* 1 - v, with this probability (whatever `probability`) */
    float noise;      /* deviation of the noise, 0 .. noise                    */
} mdmt_augmentation;

/* What an augmentation asks for at all. */
enum { MDMT_AUGMENTS = 1, MDMT_AUGMENTS_GREY = 2, MDMT_AUGMENTS_CONTRAST = 4 };

static inline int mdmt_augmentation_kinds(const mdmt_augmentation *a)
{
    int contrast = a->contrast > 0;
    int grey = contrast || a->gamma > 0 || a->brightness > 0 || a->invert > 0 || a->noise > 0;
    return MDMT_AUGMENTS | (grey ? MDMT_AUGMENTS_GREY : 0) |
           (contrast ? MDMT_AUGMENTS_CONTRAST : 0);
}

/* What changes from step to step. */
typedef struct {
    uint64_t seed;
    uint64_t step;  /* counts training steps: dropout */
    uint64_t epoch; /* augmentation */
    const mdmt_image_source *sources;
    int source_count;
    const int32_t *sample_source; /* (N) data set of each sample           */
    const int64_t *sample_index;  /* (N) its position in that data set     */
    mdmt_augmentation augmentation;
} mdmt_step;

/* An argument of a kernel: the data, and for a lazy tensor what to do on load. */
typedef struct {
    void *data;                 /* NULL: absent; lazy: the source's data        */
    const float *scale, *shift; /* NULL: stored as it is                       */
    const float *gate;          /* ROWS (N, C), multiplies after act; or NULL   */
    mdmt_act act;
} mdmt_value;

/* Adam (Kingma & Ba 2015) as PyTorch computes it: L2 decay added to the
 * gradient, or decoupled (AdamW). `step` counts from 1. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    int decoupled;
    int64_t step;
    double clip; /* largest norm of the gradient, or 0: gradients longer than that are multiplied by
                    clip / (norm + 1e-6), as by torch.nn.utils.clip_grad_norm_ (Pascanu, Mikolov,
                    Bengio, ICML 2013) */
} mdmt_adam;

/* Parameters that share factors of the learning rate and of the weight decay. */
typedef struct {
    double lr, weight_decay;
    float own[4]; /* the backend's */
} mdmt_group;

enum { MDMT_MAX_GROUPS = 256, MDMT_GROUP_FLOATS = MDMT_ALIGN / sizeof(float) };

typedef struct mdmt_backend mdmt_backend;

/* What Adam works on: flat slabs of `count` floats. */
typedef struct {
    float *weights; /* NULL: no update */
    float *gradients, *first, *second;
    int64_t count;
    const uint8_t *group; /* (count / MDMT_GROUP_FLOATS): the group of each so many floats; NULL: all
                             are of one whose factors are 1 */
    mdmt_group *groups;   /* (group_count) */
    int group_count;
} mdmt_update;

/* Of the batches whose gradients make one update together. */
typedef struct {
    int count;   /* 0 or 1: each batch has its own */
    int first;   /* which of an update's a series begins with: 0 .. count - 1 */
    float *sums; /* (update.count) */
    const float *scale; /* (updates of the series), on the host: factors of the sums */
} mdmt_parts;

/* Which of an update's the batch i of a series is. */
static inline int mdmt_part_at(const mdmt_parts *parts, int i)
{
    return parts->count > 1 ? (parts->first + i) % parts->count : 0;
}

/* The number of a step's part: the step's for the first one, so that dropout differs in each. */
static inline uint64_t mdmt_part_step(uint64_t step, int part)
{
    return step | (uint64_t)part << 48;
}

/* Updates that the first `count` batches of a series make. */
static inline int mdmt_updates_of(const mdmt_parts *parts, int count)
{
    return parts->count > 1 ? (parts->first + count) / parts->count : count;
}

/* A tensor (ROWS, SCALAR, or a MAP that gives) that gets, or gives, one row of a host array per
 * step. */
typedef struct {
    const mdmt_tensor *tensor;
    void *data;   /* the tensor's                    */
    void *host;   /* (steps, bytes)                  */
    size_t bytes; /* of one step                     */
} mdmt_port;

enum { MDMT_MAX_FEEDS = 2, MDMT_MAX_LOGS = 20 };

/* Batches in a row on resident data sets, between which the host has nothing to decide. Each is a
 * step of training, or a part of one. */
typedef struct {
    int count, samples; /* batches; samples of each */
    int augment;     /* 0, or mdmt_augmentation_kinds: work that is not asked for is not started */
    mdmt_step first; /* the first step; its sample arrays are (count, samples) */
    mdmt_adam adam;  /* of the first step */
    mdmt_update update;
    mdmt_parts parts;
    int watch; /* log[0] is the loss: after a batch in which it is not finite nothing is updated */
    double *norms; /* (updates), on the host: of the gradients before they are clipped; NULL: they
                      are not. A norm that is not finite is as a loss that is not */
    int feeds, logs;
    mdmt_port feed[MDMT_MAX_FEEDS], log[MDMT_MAX_LOGS];
} mdmt_series;

/* Work that was recorded to be repeated as a whole; the backend's own. */
typedef struct mdmt_recording mdmt_recording;

/* An op with its kernel chosen. Owned by the program that prepared it. */
typedef struct mdmt_kernel {
    const char *name;        /* for profiles and tests                          */
    const void *impl;        /* the backend's own record of it                  */
    size_t workspace_bytes;  /* valid only while the kernel runs                */
    uint32_t inplace_inputs; /* of the record's, those that this kernel allows */
} mdmt_kernel;

struct mdmt_backend {
    const char *name;
    /* Bytes that a tensor takes (padding included). */
    size_t (*tensor_bytes)(const mdmt_backend *backend, const mdmt_tensor *tensor);
    /* Bytes from the root's data to a view's. */
    size_t (*view_bytes)(const mdmt_backend *backend, const mdmt_tensor *view);
    /* Chooses the kernel of an op and says what it needs. May set the first
     * dimension (parts) of a STATS output. `force` (or NULL) names a kernel. */
    mdmt_status (*prepare)(mdmt_backend *backend, mdmt_graph *graph, mdmt_op *op, const char *force,
                           mdmt_kernel *kernel);
    /* Whether the op's kernel would store its lazy input before it reads it, so that a copy for all
     * such kernels saves time; NULL: none would. */
    int (*stores_lazy)(const mdmt_backend *backend, const mdmt_graph *graph, const mdmt_op *op,
                       int input);
    mdmt_status (*run)(mdmt_backend *backend, const mdmt_graph *graph, const mdmt_op *op,
                       const mdmt_kernel *kernel, const mdmt_value *in, void *const *out,
                       void *workspace, const mdmt_step *step);
    /* A branch: what is run from begin to end sees all that was run before it, and may run beside
     * what is run after it until join, which waits for it; join without a branch does nothing. All
     * NULL: ops run one after the other. */
    mdmt_status (*branch_begin)(mdmt_backend *backend);
    mdmt_status (*branch_end)(mdmt_backend *backend);
    mdmt_status (*branch_join)(mdmt_backend *backend);
    /* Between plain C-ordered host arrays of the tensor's dtype and the
     * backend's layout. Padding is written as zeros. */
    mdmt_status (*upload)(mdmt_backend *backend, const mdmt_tensor *tensor, void *data,
                          const void *host);
    mdmt_status (*download)(mdmt_backend *backend, const mdmt_tensor *tensor, const void *data,
                            void *host);
    mdmt_status (*slab_open)(mdmt_backend *backend, mdmt_slab *slab, size_t bytes,
                             const char *what);
    void (*slab_close)(mdmt_backend *backend, mdmt_slab *slab);
    /* Adam over flat slabs. *norm: with adam->clip, of the gradient before it is clipped; where it
     * is not finite, nothing is updated. */
    mdmt_status (*adam)(mdmt_backend *backend, const mdmt_adam *adam, const mdmt_update *update,
                        double *norm);
    /* Adds up the gradients of the parts of a step, of which this is the `part`-th: the first one's
     * become the sums, further ones are added, and after the last the gradients are
     * scale * (sums + gradients). */
    mdmt_status (*accumulate)(mdmt_backend *backend, const mdmt_update *update, float *sums,
                              int part, int parts, float scale);
    /* A series; all NULL where the host runs each batch itself. In this order, for each batch i:
     *   series_open   once: takes everything to the device
     *   series_stage  on the host, before batch i: its images, where they do not fit the device
     *   series_next   begins the next batch: its numbers and feeds become the current ones
     *   (the program's ops)
     *   series_note   ends it: keeps its logs, adds up the gradients; `last` of its step: updates
     *                 the weights
     *   series_close  once, also after a failure: waits, copies the logs to the host. *done:
     *                 batches before the first whose loss or norm let nothing be updated, or all
     * What lies from series_next to series_note may be recorded and repeated instead: none of its
     * arguments changes from batch to batch, but `last`. A recording holds for the same program at
     * the same addresses and the same `augment`, `update`, `watch`, `parts.sums`, ports and `last`,
     * with norms or without. */
    mdmt_status (*series_open)(mdmt_backend *backend, const mdmt_series *series);
    mdmt_status (*series_stage)(mdmt_backend *backend, const mdmt_series *series, int i);
    mdmt_status (*series_next)(mdmt_backend *backend, const mdmt_series *series);
    mdmt_status (*series_note)(mdmt_backend *backend, const mdmt_series *series, int last);
    mdmt_status (*series_close)(mdmt_backend *backend, const mdmt_series *series, int *done);
    /* A recording is made `ways` times over, each time a little otherwise; the backend keeps what
     * runs fastest. */
    int (*record_ways)(mdmt_backend *backend);
    /* way: 0 to ways - 1, in this order. NULL: nothing is recorded. */
    mdmt_status (*record_begin)(mdmt_backend *backend, int way);
    /* *recording: NULL for the first way, then what the ways before made; NULL when the status is
     * not MDMT_OK. */
    mdmt_status (*record_end)(mdmt_backend *backend, mdmt_recording **recording);
    mdmt_status (*record_run)(mdmt_backend *backend, mdmt_recording *recording);
    void (*record_close)(mdmt_backend *backend, mdmt_recording *recording);
    /* Waits for all that was started; NULL: nothing runs beside the host. */
    mdmt_status (*wait)(mdmt_backend *backend);
    /* Frees copies of image sources, whose arrays may change or go; NULL: it has none. */
    void (*forget_images)(mdmt_backend *backend);
    void (*close)(mdmt_backend *backend);
};

#endif
