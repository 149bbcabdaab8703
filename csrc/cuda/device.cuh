/* The CUDA runtime as the backend uses it: the device, memory, streams, events,
 * recorded work. device.cu is all that calls the runtime's functions; the tests
 * compile it against a stand-in for the runtime (tests/c/fake_cuda). */
#ifndef MDMT_CUDA_DEVICE_CUH
#define MDMT_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include "services.h"

typedef cudaStream_t mdmt_stream_handle;
typedef cudaEvent_t mdmt_event_handle;

/* MDMT_OK, or the sentence for the last error of the CUDA runtime. */
mdmt_status mdmt_device_check(const char *what);
/* Checks driver, device and compute capability, and makes it current. */
mdmt_status mdmt_device_open(int ordinal);
/* Makes it current for this thread. */
mdmt_status mdmt_device_use(int ordinal);
/* Which kernels may come onto the device while the one before it on their stream ends: all, those
 * that do not follow a library's, none. MDMT_CUDA_OVERLAP (on, own, off) says which, or "measured":
 * recorded steps try them out. None before capability 9.0 of all devices opened, and of the code
 * that this build has for them. */
enum {
    MDMT_OVERLAP_AS_WISHED = -1,
    MDMT_OVERLAP_ALL,
    MDMT_OVERLAP_OWN,
    MDMT_OVERLAP_NONE,
    MDMT_OVERLAP_WAYS
};
int mdmt_device_overlap_measured(void);
/* What this thread starts from now on: one of these. */
void mdmt_device_overlap(int way);
/* Whether the next kernel on this stream may. */
int mdmt_device_overlaps(mdmt_stream_handle stream);
/* A library's kernel was started on the stream. */
void mdmt_device_library_ran(mdmt_stream_handle stream);
/* Bytes free and in all. */
mdmt_status mdmt_device_room(size_t *available, size_t *total);
/* first: its work goes before that of other streams wherever there is room for one alone. */
mdmt_status mdmt_stream_open(mdmt_stream_handle *stream, int first);
void mdmt_stream_close(mdmt_stream_handle stream);
/* `what` completes "out of GPU memory: the ... needs". Zeroed. */
mdmt_status mdmt_device_alloc(void **data, size_t bytes, const char *what);
/* As mdmt_device_alloc, not zeroed; MDMT_NO_MEMORY without a sentence. */
mdmt_status mdmt_device_try(void **data, size_t bytes);
void mdmt_device_free(void *data);
/* Both in the order of the stream; the host's array may be used again at once. */
mdmt_status mdmt_device_write(mdmt_stream_handle stream, void *to, const void *host, size_t bytes);
mdmt_status mdmt_device_read(mdmt_stream_handle stream, void *host, const void *from, size_t bytes);
mdmt_status mdmt_device_wait(mdmt_stream_handle stream);

/* Memory of the host that the GPU copies from by itself. */
mdmt_status mdmt_pinned_alloc(void **data, size_t bytes);
void mdmt_pinned_free(void *data);
/* From pinned memory, which must stay as it is until the copy has been made. */
mdmt_status mdmt_pinned_write(mdmt_stream_handle stream, void *to, const void *pinned,
                              size_t bytes);

/* timed: 1: for mdmt_event_span. */
mdmt_status mdmt_event_open(mdmt_event_handle *event, int timed);
void mdmt_event_close(mdmt_event_handle event);
/* The event is reached when all that the stream was given so far is done. */
mdmt_status mdmt_event_record(mdmt_event_handle event, mdmt_stream_handle stream);
/* What the stream is given from now on begins after the event. */
mdmt_status mdmt_event_before(mdmt_event_handle event, mdmt_stream_handle stream);
/* The host waits for the event. */
mdmt_status mdmt_event_wait(mdmt_event_handle event);
/* Milliseconds between two recorded events; waits for the second. */
mdmt_status mdmt_event_span(mdmt_event_handle from, mdmt_event_handle to, float *milliseconds);

/* Recorded work. From begin to end nothing runs; end gives what was recorded, ready to be
 * repeated as a whole, or NULL and a status when the runtime refused something in between. */
typedef cudaGraphExec_t mdmt_graph_handle;
mdmt_status mdmt_record_begin(mdmt_stream_handle stream);
mdmt_status mdmt_record_end(mdmt_stream_handle stream, mdmt_graph_handle *graph);
mdmt_status mdmt_record_run(mdmt_graph_handle graph, mdmt_stream_handle stream);
void mdmt_record_close(mdmt_graph_handle graph);

/* "NVIDIA H200, capability 9.0, driver 13.0": what measured choices depend on. */
mdmt_status mdmt_device_identity(int ordinal, char *text, size_t room);

#endif
