/* The backend itself, and what changes from step to step in the GPU's memory. */
#ifndef MDMT_CUDA_BACKEND_CUH
#define MDMT_CUDA_BACKEND_CUH

#include "site.cuh"

enum { MDMT_GPU_SOURCES = 64, MDMT_GPU_RESIDENT = 128, MDMT_GPU_SLOTS = 2 };

/* Images of a data set in the GPU's memory, and their masks; NULL: too many, they come batch by
 * batch. */
struct mdmt_gpu_source {
    const uint8_t *pixels, *masks;
    int64_t count;
    int64_t masked; /* whether there are masks */
    int planes, height, width;
};

/* The step as kernels read it: arguments of a launch never change from step to
 * step, so that a recorded sequence of launches can be repeated. */
struct mdmt_gpu_step {
    uint64_t step, epoch;
    uint64_t dropout_key, augment_key, elastic_key;
    mdmt_augmentation augmentation;
    const int32_t *sample_source; /* (N) */
    const int64_t *sample_index;  /* (N) */
    const uint8_t *streamed;      /* sample i at streamed + i stride, where it is streamed: its
                                     image, its mask, or both in this order */
    size_t stride;
    mdmt_gpu_source source[MDMT_GPU_SOURCES];
};

/* Adam's numbers in this step, in the order of operations of torch.optim. */
struct mdmt_gpu_adam {
    float decay_factor, l2, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps,
        step_size;
};

/* All that changes from step to step, in the GPU's memory. */
struct mdmt_gpu_state {
    mdmt_gpu_step step;
    mdmt_gpu_adam adam;
    /* of a series */
    int64_t next, current; /* batches begun; the one now, from 0 */
    int64_t update;        /* the step it belongs to, from 0; */
    int64_t parts, first_part; /* batches of a step, 0: one; the series' first is its first_part-th */
    int part;                  /* the current batch of its step */
    const float *scales;       /* (steps): of the sums of gradients */
    int64_t samples;
    uint64_t first_step;
    const int32_t *all_sources; /* (batches, samples) */
    const int64_t *all_indices; /* (batches, samples) */
    const uint8_t *slots;       /* MDMT_GPU_SLOTS rooms of slot_bytes, or NULL */
    size_t slot_bytes;
    mdmt_adam adam_first;
    int64_t halted; /* 0, or 1 + the first batch after which nothing must be updated */
    double norm;    /* of the gradient, where it is clipped; */
    double *norms;  /* (steps), or NULL */
    float clip_scale;
    uint32_t *feed[MDMT_MAX_FEEDS], *log[MDMT_MAX_LOGS]; /* (batches, words) */
};

/* A label or task that the loss refused, found by the GPU. kind: 0 none. */
struct mdmt_gpu_fault {
    int kind, sample, task, classes;
    float value;
};
enum {
    MDMT_FAULT_NONE,
    MDMT_FAULT_TASK,
    MDMT_FAULT_BCE,
    MDMT_FAULT_MSE,
    MDMT_FAULT_CLASS,
    MDMT_FAULT_WEIGHT
};

struct mdmt_conv_plan; /* cudnn.cu */
struct mdmt_tuning;    /* tune.cu */
struct mdmt_gpu_slab;  /* mirror.cu */

struct mdmt_gpu {
    mdmt_backend base;
    mdmt_cuda_options options;
    int opened; /* whether the device was found fit */
    mdmt_stream_handle stream; /* what ops are given to: the line's or a branch's */
    mdmt_stream_handle line, branch;
    mdmt_event_handle forked, branched; /* where a branch begins and ends */
    int branching;                      /* a branch has not been joined */
    mdmt_gpu_state *state; /* in the GPU's memory, as fault and the arrays below */
    mdmt_gpu_step written; /* what stands in state->step, if written_valid */
    int written_valid;
    int32_t *sample_source; /* of a single step */
    int64_t *sample_index;
    int sample_room;
    mdmt_gpu_fault *fault;
    int fault_possible; /* a loss ran since the fault was last looked at */
    struct {
        const uint8_t *host; /* images, or masks */
        size_t bytes;
        uint8_t *copy;
    } resident[MDMT_GPU_RESIDENT];
    int residents;
    /* a series */
    int in_series;
    char *series; /* positions, feeds, logs and norms of all its steps */
    size_t series_room;
    double *squares; /* parts of a sum, where gradients are clipped, or NULL */
    /* images on their way, where they do not fit: two rooms on each side */
    mdmt_stream_handle copies;
    mdmt_event_handle copied[MDMT_GPU_SLOTS], used[MDMT_GPU_SLOTS];
    char *pinned, *slots;
    size_t slot_bytes;
    int64_t staged;    /* batches given to the stream of copies so far */
    void *cudnn;       /* its handle, or NULL */
    int cudnn_refused; /* it could not be made */
    mdmt_conv_plan *plans;
    mdmt_gpu_slab *slabs;
    int tune; /* engines are measured */
    mdmt_tuning *tuning;
};

/* ---- store.cu: data sets in the GPU's memory, or on their way to it ---- */

/* Checks `count` samples. */
mdmt_status mdmt_gpu_check_samples(const mdmt_step *step, size_t count);
/* Sets the sources of *next: copied to the GPU when they are first seen, pixels NULL where they
 * or masks NULL where they do not fit. *streamed: the most bytes of those for one sample, or 0. */
mdmt_status mdmt_gpu_take_sources(mdmt_gpu *gpu, const mdmt_step *step, mdmt_gpu_step *next,
                                  size_t *streamed);
/* Room for batches of `samples` images, with their masks, of `stride` bytes. */
mdmt_status mdmt_gpu_slot_room(mdmt_gpu *gpu, size_t samples, size_t stride);
/* Sends the streamed images and masks among these samples to the slot of the batch; what the GPU is
 * given from now on sees them. The slot is used again two batches later, after all that the GPU was
 * given in between. */
mdmt_status mdmt_gpu_stage(mdmt_gpu *gpu, const mdmt_step *step, int samples, size_t stride,
                           const mdmt_gpu_step *sources, const uint8_t **slot);
/* Frees the data sets in the GPU's memory, and the slots. */
void mdmt_gpu_forget_images(mdmt_gpu *gpu);

/* ---- mirror.cu: weights rounded to bfloat16 once per update ---- */

/* A slab begins, and ends, before its memory is freed. */
mdmt_status mdmt_gpu_slab_note(mdmt_gpu *gpu, const mdmt_slab *slab);
void mdmt_gpu_slab_forget(mdmt_gpu *gpu, const void *data);
/* Mirrors the slab that holds these weights, where the precision is bfloat16 and there is memory
 * for it. */
mdmt_status mdmt_gpu_mirror(mdmt_gpu *gpu, const float *weights);
/* Where the mirror has these weights, at a multiple of 16 bytes for a whole tensor; NULL: there is
 * none. */
mdmt_bf16 *mdmt_gpu_mirrored(const mdmt_gpu *gpu, const void *weights);
/* After weights were written. */
mdmt_status mdmt_gpu_mirror_again(mdmt_gpu *gpu, const void *weights, size_t bytes);

/* ---- adam.cu ---- */

/* *norm: where gradients are clipped; waits for it then. */
mdmt_status mdmt_gpu_adam_now(mdmt_gpu *gpu, const mdmt_adam *adam, const mdmt_update *update,
                              double *norm);
mdmt_status mdmt_gpu_accumulate(mdmt_gpu *gpu, const mdmt_update *update, float *sums, int part,
                                int parts, float scale);
/* Sets the entries of the backend that have to do with series. */
void mdmt_gpu_fill_series(mdmt_backend *base);
/* And with recordings. */
void mdmt_gpu_fill_recordings(mdmt_backend *base);

/* ---- images.cu ---- */

/* Writes the step into the GPU's memory where it is another than before. With
 * samples > 0, checks the step's samples first and brings its data sets there.
 * Nothing to do within a series. */
mdmt_status mdmt_gpu_take_step(mdmt_gpu *gpu, const mdmt_step *step, int samples, int augment);
/* Room for the positions of that many samples; not called during a run. */
mdmt_status mdmt_gpu_sample_room(mdmt_gpu *gpu, int samples);

/* ---- loss.cu ---- */

/* After a wait for the stream: the sentence of a fault that a loss found. */
mdmt_status mdmt_gpu_check_fault(mdmt_gpu *gpu);

#endif
