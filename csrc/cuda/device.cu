/* The GPU's memory, streams and errors; compiled without nvcc, the processor's
 * memory in their place. */
#include <stdio.h>

#include "backend.cuh"

const mdmt_cuda_services *mdmt_lent;

#ifdef __CUDACC__

static mdmt_status failed(cudaError_t error, const char *what)
{
    switch (error) {
    case cudaErrorMemoryAllocation:
        return mdmt_lent->fail(MDMT_NO_MEMORY, "out of GPU memory during %s", what);
    case cudaErrorECCUncorrectable:
    case cudaErrorLaunchFailure:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
        return mdmt_lent->fail(MDMT_INTERNAL,
                               "the GPU was lost during %s (%s): what it held is gone; start the "
                               "program again from its last checkpoint",
                               what, cudaGetErrorString(error));
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

mdmt_status mdmt_device_open(int ordinal)
{
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
    if (error != cudaSuccess) {
        cudaGetLastError();
        return mdmt_lent->fail(MDMT_UNSUPPORTED,
                               "this build has no code for the GPU %s (compute capability %d.%d): "
                               "build with MDMT_CUDA_ARCHS=%d%d, or use the device 'cpu'",
                               device.name, device.major, device.minor, device.major, device.minor);
    }
    return MDMT_OK;
}

mdmt_status mdmt_device_use(int ordinal)
{
    TRY_CUDA(cudaSetDevice(ordinal), "the choice of a device");
    return MDMT_OK;
}

mdmt_status mdmt_stream_open(mdmt_stream_handle *stream)
{
    TRY_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "the start of a stream");
    return MDMT_OK;
}

void mdmt_stream_close(mdmt_stream_handle stream)
{
    if (stream) {
        cudaStreamSynchronize(stream);
        cudaStreamDestroy(stream);
    }
}

mdmt_status mdmt_device_alloc(void **data, size_t bytes, const char *what)
{
    const double gib = (double)((size_t)1 << 30);
    size_t available = 0, total = 0;
    *data = NULL;
    cudaError_t error = cudaMalloc(data, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&available, &total);
        return mdmt_lent->fail(MDMT_NO_MEMORY,
                               "out of GPU memory: the %s needs %zu bytes (%.2f GiB), but only "
                               "%.2f of %.2f GiB are free; use a smaller batch or smaller images",
                               what, bytes, (double)bytes / gib, (double)available / gib,
                               (double)total / gib);
    }
    TRY_CUDA(error, "an allocation");
    TRY_CUDA(cudaMemset(*data, 0, bytes), "an allocation");
    TRY_CUDA(cudaDeviceSynchronize(), "an allocation"); /* our streams do not wait for it */
    return MDMT_OK;
}

void mdmt_device_free(void *data)
{
    cudaFree(data); /* waits for all that may still use it */
}

mdmt_status mdmt_device_write(mdmt_stream_handle stream, void *to, const void *host, size_t bytes)
{
    /* Pageable memory: the call returns when the array has been read. */
    TRY_CUDA(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream),
             "a copy to its memory");
    return MDMT_OK;
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

int mdmt_cuda_emulated(void)
{
    return 0;
}

#define TEXT_OF(number)            #number
#define VERSION_TEXT(major, minor) "CUDA " TEXT_OF(major) "." TEXT_OF(minor)

const char *mdmt_cuda_build(void)
{
    return VERSION_TEXT(__CUDACC_VER_MAJOR__, __CUDACC_VER_MINOR__);
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

#else

int mdmt_cuda_emulated(void)
{
    return 1;
}

const char *mdmt_cuda_build(void)
{
    return "on the processor";
}

int mdmt_cuda_probe(char *text, size_t room)
{
    snprintf(text, room, "cuda:0 the processor in its place");
    return 1;
}

mdmt_status mdmt_device_check(const char *what)
{
    (void)what;
    return MDMT_OK;
}

mdmt_status mdmt_device_open(int ordinal)
{
    return ordinal == 0
               ? MDMT_OK
               : mdmt_lent->fail(MDMT_BAD_ARGUMENT,
                                 "there is no device 'cuda:%d': only cuda:0 here", ordinal);
}

mdmt_status mdmt_device_use(int ordinal)
{
    (void)ordinal;
    return MDMT_OK;
}

mdmt_status mdmt_stream_open(mdmt_stream_handle *stream)
{
    *stream = NULL;
    return MDMT_OK;
}

void mdmt_stream_close(mdmt_stream_handle stream)
{
    (void)stream;
}

/* Blocks begin at 256 bytes, as the GPU's do. */
mdmt_status mdmt_device_alloc(void **data, size_t bytes, const char *what)
{
    (void)what;
    char *block = (char *)mdmt_lent->acquire(bytes + 512, 1);
    *data = NULL;
    if (!block) {
        return MDMT_NO_MEMORY;
    }
    char *aligned = (char *)(((uintptr_t)block + 512) / 256 * 256);
    memcpy(aligned - sizeof block, &block, sizeof block);
    *data = aligned;
    return MDMT_OK;
}

void mdmt_device_free(void *data)
{
    if (data) {
        void *block;
        memcpy(&block, (char *)data - sizeof block, sizeof block);
        mdmt_lent->release(block);
    }
}

mdmt_status mdmt_device_write(mdmt_stream_handle stream, void *to, const void *host, size_t bytes)
{
    (void)stream;
    memcpy(to, host, bytes);
    return MDMT_OK;
}

mdmt_status mdmt_device_read(mdmt_stream_handle stream, void *host, const void *from, size_t bytes)
{
    (void)stream;
    memcpy(host, from, bytes);
    return MDMT_OK;
}

mdmt_status mdmt_device_wait(mdmt_stream_handle stream)
{
    (void)stream;
    return MDMT_OK;
}

#endif
