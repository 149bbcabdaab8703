/* The backend itself, and what changes from step to step in the GPU's memory. */
#ifndef MDMT_CUDA_BACKEND_CUH
#define MDMT_CUDA_BACKEND_CUH

#include "site.cuh"

enum { MDMT_GPU_SOURCES = 64, MDMT_GPU_RESIDENT = 64 };

/* Images of a data set in the GPU's memory. */
struct mdmt_gpu_source {
    const uint8_t *pixels;
    int64_t count;
    int height, width;
};

/* The step as kernels read it: arguments of a launch never change from step to
 * step, so that a recorded sequence of launches can be repeated. */
struct mdmt_gpu_step {
    uint64_t step, epoch;
    uint64_t dropout_key, augment_key, elastic_key;
    mdmt_augmentation augmentation;
    mdmt_gpu_source source[MDMT_GPU_SOURCES];
};

/* A label or task that the loss refused, found by the GPU. kind: 0 none. */
struct mdmt_gpu_fault {
    int kind, sample, task, classes;
    float value;
};
enum { MDMT_FAULT_NONE, MDMT_FAULT_TASK, MDMT_FAULT_BCE, MDMT_FAULT_MSE, MDMT_FAULT_CLASS };

struct mdmt_conv_plan; /* cudnn.cu */

struct mdmt_gpu {
    mdmt_backend base;
    mdmt_cuda_options options;
    int opened; /* whether the device was found fit */
    mdmt_stream_handle stream;
    mdmt_gpu_step *step;   /* in the GPU's memory, as the next two and fault */
    mdmt_gpu_step written; /* what stands there */
    int32_t *sample_source;
    int64_t *sample_index;
    int sample_room;
    mdmt_gpu_fault *fault;
    int fault_possible; /* a loss ran since the fault was last looked at */
    struct {
        mdmt_image_source host;
        uint8_t *pixels;
    } resident[MDMT_GPU_RESIDENT];
    int residents;
    void *cudnn;       /* its handle, or NULL */
    int cudnn_refused; /* it could not be made */
    mdmt_conv_plan *plans;
};

/* ---- device.cu: the CUDA runtime, or the processor's memory in its place ---- */

/* Checks driver, device and compute capability, and makes it current. */
mdmt_status mdmt_device_open(int ordinal);
/* Makes it current for this thread. */
mdmt_status mdmt_device_use(int ordinal);
mdmt_status mdmt_stream_open(mdmt_stream_handle *stream);
void mdmt_stream_close(mdmt_stream_handle stream);
/* `what` completes "out of GPU memory: the ... needs". Zeroed. */
mdmt_status mdmt_device_alloc(void **data, size_t bytes, const char *what);
void mdmt_device_free(void *data);
/* Both in the order of the stream; the host's array may be used again at once. */
mdmt_status mdmt_device_write(mdmt_stream_handle stream, void *to, const void *host, size_t bytes);
mdmt_status mdmt_device_read(mdmt_stream_handle stream, void *host, const void *from, size_t bytes);
mdmt_status mdmt_device_wait(mdmt_stream_handle stream);

/* ---- images.cu ---- */

/* Writes the step into the GPU's memory where it is another than before. With
 * samples > 0, checks the step's samples first and brings its data sets there. */
mdmt_status mdmt_gpu_take_step(mdmt_gpu *gpu, const mdmt_step *step, int samples, int augment);
/* Room for the positions of that many samples; not called during a run. */
mdmt_status mdmt_gpu_sample_room(mdmt_gpu *gpu, int samples);
/* Frees the data sets in the GPU's memory. */
void mdmt_gpu_forget_images(mdmt_gpu *gpu);

/* ---- loss.cu ---- */

/* After a wait for the stream: the sentence of a fault that a loss found. */
mdmt_status mdmt_gpu_check_fault(mdmt_gpu *gpu);

#endif
