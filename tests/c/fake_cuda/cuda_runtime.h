/* The part of the CUDA runtime that csrc/cuda/device.cu calls, carried out on the processor by
 * fake_cuda.cpp: memory of its own with a limit, streams as queues, events, recorded work. */
#ifndef FAKE_CUDA_RUNTIME_H
#define FAKE_CUDA_RUNTIME_H

#include <stddef.h>

#define CUDART_VERSION 13000
#define __global__

typedef enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901
} cudaError_t;

typedef struct fake_stream *cudaStream_t;
typedef struct fake_event *cudaEvent_t;
typedef struct fake_graph *cudaGraph_t, *cudaGraphExec_t;
#define cudaStreamPerThread ((cudaStream_t)2)
typedef enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 } cudaMemcpyKind;
enum { cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2 };
enum { cudaStreamCaptureModeThreadLocal = 1 };

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor;
};
struct cudaFuncAttributes {
    int ptxVersion, binaryVersion;
};

cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, void (*function)(void));
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMalloc(void **data, size_t bytes);
cudaError_t cudaFree(void *data);
cudaError_t cudaMallocHost(void **data, size_t bytes);
cudaError_t cudaFreeHost(void *data);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);

/* Races are looked for where the compiler reports each access to memory (races.cpp). `started` of
 * `bytes`: a kernel and its arguments. */
#ifdef __SANITIZE_THREAD__
#define FAKE_WATCHES 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FAKE_WATCHES 1
#endif
#endif
#ifndef FAKE_WATCHES
#define FAKE_WATCHES 0
#endif
void fake_watch_launch(const char *name, const void *started, size_t bytes);
void fake_watch_block(size_t block, const void *shared, size_t bytes);
void fake_watch_thread(int phase, int thread);
void fake_watch_end(void);
#if !FAKE_WATCHES && !defined(FAKE_RACES)
#define fake_watch_launch(name, started, bytes) ((void)0)
#define fake_watch_block(block, shared, bytes)  ((void)0)
#define fake_watch_thread(phase, thread)        ((void)0)
#define fake_watch_end()                        ((void)0)
#endif
/* The order of the threads of a phase, and of blocks. 0: from the first to the last. */
extern long fake_walk;
size_t fake_walked(size_t turn, size_t count);
/* Which of `count` has its turn at `turn`. */
static inline size_t fake_place(size_t turn, size_t count)
{
    return FAKE_WATCHES || fake_walk ? fake_walked(turn, count) : turn;
}
/* The block of the device's memory that has `at`: its first byte and its size, or 0. */
size_t fake_block_with(const void *at, const void **from);
/* In the place of <<<>>>: run(copy) in the order of the stream; `kernel` of `bytes` is copied. */
/* overlaps: whether it may start while what is before it on the stream ends. */
cudaError_t fake_launch(cudaStream_t stream, void (*run)(const void *), const void *kernel,
                        size_t bytes, int overlaps);

#endif
