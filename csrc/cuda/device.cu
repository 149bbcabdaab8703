/* The calls of the CUDA runtime, and a sentence for each of its errors. */
#include <stdio.h>
#include <stdlib.h>

#include "backend.cuh"

#if CUDART_VERSION < 12000
#error "mdmt needs CUDA 12.0 or newer"
#endif

const mdmt_cuda_services *mdmt_lent;

/* Errors after which every later call of the process fails, with the same error. */
static int is_lost(cudaError_t error)
{
    switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorLaunchFailure:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
        return 1;
    default:
        return 0;
    }
}

static mdmt_status failed(cudaError_t error, const char *what)
{
    cudaGetLastError(); /* or a later check would find it again */
    if (is_lost(error)) {
        return mdmt_lent->fail(MDMT_INTERNAL,
                               "the GPU was lost during %s (%s): what it held is gone; start the "
                               "program again from its last checkpoint",
                               what, cudaGetErrorString(error));
    }
    switch (error) {
    case cudaErrorMemoryAllocation:
        return mdmt_lent->fail(MDMT_NO_MEMORY, "out of GPU memory during %s", what);
    case cudaErrorDevicesUnavailable:
        return mdmt_lent->fail(MDMT_UNSUPPORTED,
                               "the GPU is busy or reserved for another process (%s): wait for it, "
                               "or use the device 'cpu'",
                               cudaGetErrorString(error));
    default:
        return mdmt_lent->fail(MDMT_INTERNAL, "the GPU refused %s: %s", what,
                               cudaGetErrorString(error));
    }
}

#define TRY_CUDA(call, what)                                                                       \
    do {                                                                                           \
        cudaError_t error_ = (call);                                                               \
        if (error_ != cudaSuccess) {                                                               \
            return failed(error_, what);                                                           \
        }                                                                                          \
    } while (0)

mdmt_status mdmt_device_check(const char *what)
{
    TRY_CUDA(cudaGetLastError(), what);
    return MDMT_OK;
}

/* A kernel without work: whether this build has code for the device. */
static __global__ void nothing_to_do(void)
{
}

static mdmt_status check_driver(void)
{
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "no NVIDIA driver was found: install one, or use "
                                                 "the device 'cpu'");
    }
    if (driver / 1000 < CUDART_VERSION / 1000) {
        return mdmt_lent->fail(
            MDMT_UNSUPPORTED,
            "the NVIDIA driver supports CUDA %d.%d, but this build needs %d.0 or "
            "newer: update the driver, or use the device 'cpu'",
            driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
    }
    return MDMT_OK;
}

static int overlap_wanted, overlap_measured;
static uint64_t opened_old; /* bit i: device i, where kernels must not start early */

mdmt_status mdmt_device_open(int ordinal)
{
    const char *overlap = getenv("MDMT_CUDA_OVERLAP");
    int count = 0;
    MDMT_TRY(check_driver());
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        cudaGetLastError();
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "no NVIDIA GPU can be used here (%s)",
                               error == cudaSuccess ? "none was found" : cudaGetErrorString(error));
    }
    if (ordinal < 0 || ordinal >= count) {
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                               "there is no device 'cuda:%d': the GPUs here are cuda:0 to cuda:%d",
                               ordinal, count - 1);
    }
    struct cudaDeviceProp device;
    TRY_CUDA(cudaGetDeviceProperties(&device, ordinal), "the query of a device");
    TRY_CUDA(cudaSetDevice(ordinal), "the choice of a device");
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, nothing_to_do);
    if (is_lost(error)) {
        return failed(error, "what was done before");
    }
    if (error != cudaSuccess) {
        cudaGetLastError();
        return mdmt_lent->fail(
            MDMT_UNSUPPORTED,
            "this build has no code for the GPU %s (compute capability %d.%d; %s): "
            "build with MDMT_CUDA_ARCHS=%d%d, or use the device 'cpu'",
            device.name, device.major, device.minor, cudaGetErrorString(error), device.major,
            device.minor);
    }
    overlap_wanted = !overlap                      ? MDMT_OVERLAP_ALL
                     : strcmp(overlap, "off") == 0 ? MDMT_OVERLAP_NONE
                     : strcmp(overlap, "own") == 0 ? MDMT_OVERLAP_OWN
                                                   : MDMT_OVERLAP_ALL;
    overlap_measured = overlap && strcmp(overlap, "measured") == 0;
    /* Code that a driver made on a newer device from PTX for an older one does not wait at its
     * beginning either: mdmt_await_kernel_before is empty there. */
    uint64_t bit = (uint64_t)1 << (ordinal % 64);
    int old = device.major < 9 || attributes.ptxVersion < 90;
    opened_old = old ? opened_old | bit : opened_old & ~bit;
    return MDMT_OK;
}

/* Streams on which a library's kernel was the last; of this thread. */
enum { STREAMS = 4 };
static thread_local mdmt_stream_handle after_library[STREAMS];
static thread_local int overlap_now = MDMT_OVERLAP_AS_WISHED;

int mdmt_device_overlap_measured(void)
{
    return overlap_measured && !opened_old;
}

void mdmt_device_overlap(int way)
{
    overlap_now = way;
}

void mdmt_device_library_ran(mdmt_stream_handle stream)
{
    int at = 0;
    for (int i = 0; i < STREAMS; i++) {
        if (after_library[i] == stream) {
            return;
        }
        at = after_library[i] ? at : i;
    }
    after_library[at] = stream;
}

int mdmt_device_overlaps(mdmt_stream_handle stream)
{
    int own = 1;
    for (int i = 0; i < STREAMS; i++) {
        if (after_library[i] == stream) {
            after_library[i] = NULL;
            own = 0;
        }
    }
    int way = overlap_now == MDMT_OVERLAP_AS_WISHED ? overlap_wanted : overlap_now;
    return !opened_old && (way == MDMT_OVERLAP_ALL || (way == MDMT_OVERLAP_OWN && own));
}

mdmt_status mdmt_device_use(int ordinal)
{
    TRY_CUDA(cudaSetDevice(ordinal), "the choice of a device");
    return MDMT_OK;
}

mdmt_status mdmt_device_room(size_t *available, size_t *total)
{
    TRY_CUDA(cudaMemGetInfo(available, total), "the query of its memory");
    return MDMT_OK;
}

mdmt_status mdmt_stream_open(mdmt_stream_handle *stream, int first)
{
    int least = 0, greatest = 0;
    TRY_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest), "the start of a stream");
    TRY_CUDA(
        cudaStreamCreateWithPriority(stream, cudaStreamNonBlocking, first ? greatest : least),
        "the start of a stream");
    return MDMT_OK;
}

void mdmt_stream_close(mdmt_stream_handle stream)
{
    if (stream) {
        cudaStreamSynchronize(stream);
        cudaStreamDestroy(stream);
    }
}

mdmt_status mdmt_device_try(void **data, size_t bytes)
{
    *data = NULL;
    cudaError_t error = cudaMalloc(data, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* so that no later check finds it */
        *data = NULL;
        return MDMT_NO_MEMORY;
    }
    TRY_CUDA(error, "an allocation");
    return MDMT_OK;
}

mdmt_status mdmt_device_alloc(void **data, size_t bytes, const char *what)
{
    const double gib = (double)((size_t)1 << 30);
    size_t available = 0, total = 0;
    mdmt_status status = mdmt_device_try(data, bytes);
    if (status == MDMT_NO_MEMORY) {
        cudaMemGetInfo(&available, &total);
        return mdmt_lent->fail(MDMT_NO_MEMORY,
                               "out of GPU memory: the %s needs %zu bytes (%.2f GiB), but only "
                               "%.2f of %.2f GiB are free; use a smaller batch or smaller images",
                               what, bytes, (double)bytes / gib, (double)available / gib,
                               (double)total / gib);
    }
    MDMT_TRY(status);
    /* On this thread's own stream, which ours do not wait for. A wait for the whole device would
     * fail, and spoil the recording, where another thread records. */
    TRY_CUDA(cudaMemsetAsync(*data, 0, bytes ? bytes : 1, cudaStreamPerThread), "an allocation");
    TRY_CUDA(cudaStreamSynchronize(cudaStreamPerThread), "an allocation");
    return MDMT_OK;
}

void mdmt_device_free(void *data)
{
    cudaFree(data); /* waits for all that may still use it */
}

mdmt_status mdmt_device_write(mdmt_stream_handle stream, void *to, const void *host, size_t bytes)
{
    TRY_CUDA(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream),
             "a copy to its memory");
    /* Pageable memory: CUDA promises no end of its reading before the copy's own (a GPU that shares
     * the host's page tables copies from where it lies). */
    return mdmt_device_wait(stream);
}

mdmt_status mdmt_device_read(mdmt_stream_handle stream, void *host, const void *from, size_t bytes)
{
    TRY_CUDA(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream),
             "a copy from its memory");
    return mdmt_device_wait(stream);
}

mdmt_status mdmt_device_wait(mdmt_stream_handle stream)
{
    TRY_CUDA(cudaStreamSynchronize(stream), "the work before");
    return MDMT_OK;
}

/* ---- pinned memory, events ---- */

mdmt_status mdmt_pinned_alloc(void **data, size_t bytes)
{
    *data = NULL;
    cudaError_t error = cudaMallocHost(data, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return mdmt_lent->fail(MDMT_NO_MEMORY,
                               "out of memory: %zu bytes of the host's memory for batches on their "
                               "way to the GPU could not be had",
                               bytes);
    }
    TRY_CUDA(error, "an allocation of the host's memory");
    return MDMT_OK;
}

void mdmt_pinned_free(void *data)
{
    cudaFreeHost(data);
}

mdmt_status mdmt_pinned_write(mdmt_stream_handle stream, void *to, const void *pinned, size_t bytes)
{
    TRY_CUDA(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, stream),
             "a copy to its memory");
    return MDMT_OK;
}

mdmt_status mdmt_event_open(mdmt_event_handle *event, int timed)
{
    TRY_CUDA(cudaEventCreateWithFlags(event, timed ? cudaEventDefault : cudaEventDisableTiming),
             "an event");
    return MDMT_OK;
}

void mdmt_event_close(mdmt_event_handle event)
{
    if (event) {
        cudaEventDestroy(event);
    }
}

mdmt_status mdmt_event_record(mdmt_event_handle event, mdmt_stream_handle stream)
{
    TRY_CUDA(cudaEventRecord(event, stream), "an event");
    return MDMT_OK;
}

mdmt_status mdmt_event_before(mdmt_event_handle event, mdmt_stream_handle stream)
{
    TRY_CUDA(cudaStreamWaitEvent(stream, event, 0), "an event");
    return MDMT_OK;
}

mdmt_status mdmt_event_wait(mdmt_event_handle event)
{
    TRY_CUDA(cudaEventSynchronize(event), "the work before");
    return MDMT_OK;
}

mdmt_status mdmt_event_span(mdmt_event_handle from, mdmt_event_handle to, float *milliseconds)
{
    TRY_CUDA(cudaEventSynchronize(to), "the work before");
    TRY_CUDA(cudaEventElapsedTime(milliseconds, from, to), "a measurement");
    return MDMT_OK;
}

/* ---- recorded work ---- */

mdmt_status mdmt_record_begin(mdmt_stream_handle stream)
{
    TRY_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a recording");
    return MDMT_OK;
}

mdmt_status mdmt_record_end(mdmt_stream_handle stream, mdmt_graph_handle *graph)
{
    cudaGraph_t recorded = NULL;
    *graph = NULL;
    cudaError_t error = cudaStreamEndCapture(stream, &recorded);
    if (error == cudaSuccess) {
        error = cudaGraphInstantiate(graph, recorded, 0);
    }
    if (recorded) {
        cudaGraphDestroy(recorded);
    }
    if (error != cudaSuccess) {
        cudaGetLastError();
        *graph = NULL;
        return failed(error, "a recording");
    }
    return MDMT_OK;
}

mdmt_status mdmt_record_run(mdmt_graph_handle graph, mdmt_stream_handle stream)
{
    TRY_CUDA(cudaGraphLaunch(graph, stream), "the start of a recording");
    return MDMT_OK;
}

void mdmt_record_close(mdmt_graph_handle graph)
{
    if (graph) {
        cudaGraphExecDestroy(graph);
    }
}

mdmt_status mdmt_device_identity(int ordinal, char *text, size_t room)
{
    struct cudaDeviceProp p;
    int driver = 0;
    TRY_CUDA(cudaGetDeviceProperties(&p, ordinal), "the query of a device");
    TRY_CUDA(cudaDriverGetVersion(&driver), "the query of the driver");
    snprintf(text, room, "%s, capability %d.%d, driver %d.%d", p.name, p.major, p.minor,
             driver / 1000, driver % 1000 / 10);
    return MDMT_OK;
}

int mdmt_cuda_emulated(void)
{
#ifdef __CUDACC__
    return 0;
#else
    return 1;
#endif
}

#define TEXT_OF(number)            #number
#define VERSION_TEXT(major, minor) "CUDA " TEXT_OF(major) "." TEXT_OF(minor)

const char *mdmt_cuda_build(void)
{
#ifdef __CUDACC__
    return VERSION_TEXT(__CUDACC_VER_MAJOR__, __CUDACC_VER_MINOR__);
#else
    return "on the processor";
#endif
}

int mdmt_cuda_probe(char *text, size_t room)
{
    int driver = 0, count = 0;
    size_t used = 0;
    text[0] = '\0';
    cudaDriverGetVersion(&driver);
    if (driver == 0) {
        snprintf(text, room, "no NVIDIA driver");
        return 0;
    }
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        cudaGetLastError();
        snprintf(text, room, "%s", error == cudaSuccess ? "no GPU" : cudaGetErrorString(error));
        return 0;
    }
    for (int i = 0; i < count && used < room; i++) {
        struct cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, i) == cudaSuccess) {
            used += (size_t)snprintf(text + used, room - used,
                                     "%scuda:%d %s (capability %d.%d, %.0f GiB)", i ? ", " : "", i,
                                     p.name, p.major, p.minor,
                                     (double)p.totalGlobalMem / (double)((size_t)1 << 30));
        }
    }
    return count;
}
