/* A stand-in for the CUDA runtime on the processor (cuda_runtime.h beside it).
 *
 * A stream is a queue. What is asynchronous in CUDA is queued and runs when it must: when the host
 * waits for it, or another stream for an event behind it. fake_cuda_set("order", n) chooses among
 * the orders that CUDA allows: 0 at once, 1 as late as possible, 2 other streams first. So that
 * work that misses a wait reads or writes too early or too late, and results change ("waits" 0
 * drops all waits of streams: to see that they do), and "late" 1 copies from any memory of the host
 * when the copy has its turn, as CUDA may. "walk" 1 takes the blocks and threads of a
 * kernel from the last to the first, 2 without an order. What CUDA forbids during a recording is
 * refused: to the thread that records, and waits for the whole device to all. Other threads may do
 * something while one records alone (fake_cuda_beside), nothing here is locked. Fresh and freed
 * memory holds garbage. */
#include "cuda_runtime.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

long fake_walk;

namespace
{

struct settings {
    long order = 0, driver = 13000, devices = 1, code = 1, capture = 1;
    long lose_after = -1, fail_at_launch = -1, fail_at_graph = -1, waits = 1, late = 0;
    long ptx = 90;         /* what the code is compiled for */
    long overlap_cost = 0; /* microseconds of a kernel that starts early */
    long long memory = 1ll << 40;
    long long allocations = 0, launches = 0, graph_launches = 0, captures = 0, copies = 0;
    long long graphs = 0, overlapped = 0; /* kernels that started early */
} now;

cudaError_t last = cudaSuccess, lost = cudaSuccess;
struct block {
    size_t bytes;
    int counted;
};
std::map<void *, block> blocks;
long long used;

struct task {
    void (*run)(const void *) = nullptr;
    std::vector<char> bytes;      /* what run gets */
    cudaStream_t other = nullptr; /* wait for it to have done `until` tasks */
    uint64_t until = 0;
    cudaEvent_t event = nullptr; /* note the time */
    void *to = nullptr;          /* copy */
    const void *from = nullptr;
    size_t size = 0;
    int overlaps = 0; /* a kernel that may start early */
};

void (*beside)(void); /* what is to be done while a thread records, once */

double worked; /* milliseconds of all streams: what early starts cost */

cudaError_t say(cudaError_t error)
{
    if (error != cudaSuccess) {
        last = error;
    }
    return error;
}

/* Counts down to the loss of the device; afterwards every call fails, as after a real one. */
cudaError_t alive(void)
{
    if (lost == cudaSuccess && now.lose_after >= 0 && now.lose_after-- == 0) {
        lost = cudaErrorIllegalAddress;
    }
    return say(lost);
}

} // namespace

/* Recorded work: of the stream that began it, and of those that joined it by waiting for its events;
 * a task that waits names a stream of the recording. */
struct fake_graph {
    std::vector<cudaStream_t> stream; /* the first one began */
    std::vector<std::vector<task>> tasks;
    std::vector<uint64_t> awaited; /* tasks of each that the first has waited for */
    int invalid = 0;
    std::thread::id thread = std::this_thread::get_id(); /* which records */

    size_t lane(cudaStream_t s)
    {
        for (size_t i = 0; i < stream.size(); i++) {
            if (stream[i] == s) {
                return i;
            }
        }
        stream.push_back(s);
        tasks.emplace_back();
        awaited.push_back(0);
        return stream.size() - 1;
    }
};

/* The first two members are known to the other stand-ins (fake_cudnn.c). */
struct fake_stream {
    cudaError_t (*enqueue)(cudaStream_t, void (*)(const void *), const void *, size_t);
    double clock; /* milliseconds of work, as its jobs say */
    std::deque<task> queue;
    uint64_t begun, done; /* tasks given and done so far */
    fake_graph *recording;
    int waiting; /* for another stream */
};

struct fake_event {
    cudaStream_t stream;
    uint64_t at;
    fake_graph *graph; /* recorded in it, or NULL */
    double clock;
};

namespace
{

std::vector<cudaStream_t> streams;

void perform(const task &t);

/* Whether what the task waits for is done. */
int reached(const task &t)
{
    return !t.other || t.other->done >= t.until;
}

void run_until(cudaStream_t s, uint64_t until)
{
    while (s->done < until) {
        if (now.order == 2) {
            std::vector<cudaStream_t> others = streams; /* a graph brings streams of its own */
            for (cudaStream_t o : others) {
                while (o != s && !o->waiting && !o->queue.empty() && reached(o->queue.front())) {
                    task t = o->queue.front();
                    o->queue.pop_front();
                    o->done++;
                    o->waiting = 1;
                    perform(t);
                    o->waiting = 0;
                }
            }
            if (s->done >= until) { /* they had its tasks done */
                break;
            }
        }
        task t = s->queue.front();
        s->queue.pop_front();
        s->done++;
        s->waiting = 1; /* what follows in this stream must not overtake the task */
        perform(t);
        s->waiting = 0;
    }
}

void perform(const task &t)
{
    if (t.other) {
        run_until(t.other, t.until);
    }
    if (t.run) {
        t.run(t.bytes.data());
    }
    if (t.to) {
        memcpy(t.to, t.from ? t.from : t.bytes.data(), t.size);
    }
    if (t.overlaps) {
        now.overlapped++;
        worked += (double)now.overlap_cost / 1000;
    }
    if (t.event) {
        t.event->clock = t.event->stream->clock + worked;
    }
}

cudaError_t give(cudaStream_t s, task t)
{
    if (s->recording) {
        s->recording->tasks[s->recording->lane(s)].push_back(std::move(t));
        return cudaSuccess;
    }
    s->queue.push_back(std::move(t));
    s->begun++;
    if (now.order == 0) {
        run_until(s, s->begun);
    }
    return cudaSuccess;
}

/* A call that CUDA refuses while a stream of this thread records; `any`: of any thread. */
cudaError_t not_recording(int any = 0)
{
    for (cudaStream_t s : streams) {
        if (s->recording && (any || s->recording->thread == std::this_thread::get_id())) {
            s->recording->invalid = 1;
            return say(cudaErrorStreamCaptureUnsupported);
        }
    }
    return cudaSuccess;
}

cudaError_t give_kernel(cudaStream_t s, void (*run)(const void *), const void *kernel, size_t bytes,
                        int overlaps)
{
    task t;
    t.run = run;
    t.bytes.assign((const char *)kernel, (const char *)kernel + bytes);
    t.overlaps = overlaps;
    return give(s, std::move(t));
}

cudaError_t give_launch(cudaStream_t s, void (*run)(const void *), const void *kernel, size_t bytes)
{
    return give_kernel(s, run, kernel, bytes, 0);
}

} // namespace

#define CHECK(call)                                                                                \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            return e_;                                                                             \
        }                                                                                          \
    } while (0)

cudaError_t cudaGetLastError(void)
{
    cudaError_t was = last;
    last = lost;
    return was;
}

const char *cudaGetErrorString(cudaError_t error)
{
    static char text[64];
    snprintf(text, sizeof text, "fake error %d", (int)error);
    return text;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = (int)now.driver;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = (int)now.devices;
    return now.devices ? cudaSuccess : say(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    (void)device;
    memset((void *)p, 0, sizeof *p);
    strcpy(p->name, "the processor in its place");
    p->totalGlobalMem = (size_t)now.memory;
    p->major = 9;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    CHECK(alive());
    return device < now.devices ? cudaSuccess : say(cudaErrorInvalidDevice);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, void (*function)(void))
{
    a->ptxVersion = (int)now.ptx;
    a->binaryVersion = 90;
    function();
    /* 0: has no code for the device; above 1: an error that it ran into before */
    return now.code == 1 ? cudaSuccess
                         : say(now.code ? (cudaError_t)now.code : cudaErrorNoKernelImageForDevice);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = (size_t)now.memory;
    *available = (size_t)(now.memory - used);
    return cudaSuccess;
}

/* counted: against the device's memory. */
static cudaError_t take(void **data, size_t bytes, int counted)
{
    CHECK(alive());
    CHECK(not_recording());
    if (counted && used + (long long)bytes > now.memory) {
        return say(cudaErrorMemoryAllocation);
    }
    size_t rounded = (bytes + 511) / 256 * 256;
    *data = aligned_alloc(256, rounded);
    if (!*data) {
        return say(cudaErrorMemoryAllocation);
    }
    memset(*data, 0xCB, rounded);
    blocks[*data] = block{bytes, counted};
    used += counted ? (long long)bytes : 0;
    now.allocations++;
    return cudaSuccess;
}

static cudaError_t give_back(void *data)
{
    if (!data) {
        return cudaSuccess;
    }
    CHECK(not_recording());
    for (cudaStream_t s : streams) {
        run_until(s, s->begun);
    }
    auto found = blocks.find(data);
    if (found == blocks.end()) {
        return say(cudaErrorInvalidDevice);
    }
    memset(data, 0xFF, found->second.bytes);
    used -= found->second.counted ? (long long)found->second.bytes : 0;
    blocks.erase(found);
    free(data);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **data, size_t bytes)
{
    return take(data, bytes, 1);
}

cudaError_t cudaFree(void *data)
{
    return give_back(data);
}

cudaError_t cudaMallocHost(void **data, size_t bytes)
{
    return take(data, bytes, 0);
}

cudaError_t cudaFreeHost(void *data)
{
    return give_back(data);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream; /* the thread's own, which nothing else is given to */
    CHECK(alive());
    CHECK(not_recording());
    memset(to, value, bytes);
    return cudaSuccess;
}

/* Whether it is one of cudaMallocHost (or of the device: they are kept alike). */
static int pinned(const void *data)
{
    auto after = blocks.upper_bound((void *)(uintptr_t)data);
    return after != blocks.begin() &&
           (const char *)data < (char *)std::prev(after)->first + std::prev(after)->second.bytes;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    CHECK(alive());
    now.copies++;
    if (kind == cudaMemcpyDeviceToHost) {
        CHECK(not_recording());
        run_until(stream, stream->begun);
        memcpy(to, from, bytes);
        return cudaSuccess;
    }
    task t;
    t.to = to;
    t.size = bytes;
    if (pinned(from) || now.late) {
        t.from = from; /* read when its turn comes */
    } else {
        CHECK(not_recording());
        t.bytes.assign((const char *)from, (const char *)from + bytes);
    }
    return give(stream, std::move(t));
}

cudaError_t cudaDeviceSynchronize(void)
{
    CHECK(alive());
    CHECK(not_recording(1));
    for (cudaStream_t s : streams) {
        run_until(s, s->begun);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return alive();
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    (void)flags;
    (void)priority;
    CHECK(alive());
    *stream = new fake_stream();
    (*stream)->enqueue = give_launch;
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CHECK(alive());
    CHECK(not_recording());
    if (stream != cudaStreamPerThread) {
        run_until(stream, stream->begun);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    run_until(stream, stream->begun);
    for (size_t i = 0; i < streams.size(); i++) {
        if (streams[i] == stream) {
            streams.erase(streams.begin() + (long)i);
            break;
        }
    }
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    CHECK(alive());
    fake_graph *graph = nullptr; /* one that is being recorded */
    for (cudaStream_t s : streams) {
        graph = event->graph && s->recording == event->graph ? event->graph : graph;
    }
    if (graph && (!stream->recording || stream->recording == graph)) {
        stream->recording = graph; /* joins it, if it had not */
        (void)graph->lane(stream);
        if (graph->stream[0] == stream) {
            graph->awaited[graph->lane(event->stream)] = event->at;
        }
    } else {
        CHECK(not_recording());
    }
    task t;
    t.other = event->stream == stream ? nullptr : event->stream;
    t.until = event->at;
    return event->stream && now.waits ? give(stream, std::move(t)) : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    CHECK(alive());
    *event = new fake_event();
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CHECK(alive());
    task t;
    event->stream = stream;
    event->graph = stream->recording;
    if (event->graph) {
        event->at = event->graph->tasks[event->graph->lane(stream)].size() + 1;
    } else {
        CHECK(not_recording());
        event->at = stream->begun + 1;
    }
    t.event = event;
    return give(stream, std::move(t));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CHECK(alive());
    CHECK(not_recording());
    if (event->stream) {
        run_until(event->stream, event->at);
    }
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    CHECK(alive());
    if (!from->stream || !to->stream) { /* never recorded */
        return say(cudaErrorInvalidResourceHandle);
    }
    *milliseconds = (float)(to->clock - from->clock);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    for (cudaStream_t s : streams) {
        run_until(s, s->begun); /* its tasks may note their time there */
    }
    delete event;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode)
{
    (void)mode;
    CHECK(alive());
    CHECK(not_recording());
    if (!now.capture) {
        return say(cudaErrorStreamCaptureUnsupported);
    }
    stream->recording = new fake_graph();
    (void)stream->recording->lane(stream);
    now.captures++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    fake_graph *made = stream->recording;
    stream->recording = nullptr;
    *graph = nullptr;
    for (size_t i = 1; made && i < made->stream.size(); i++) {
        made->stream[i]->recording = nullptr;
        made->invalid |= made->awaited[i] < made->tasks[i].size(); /* not joined */
    }
    if (!made || made->invalid) {
        delete made;
        return say(cudaErrorStreamCaptureInvalidated);
    }
    *graph = made;
    return alive();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    CHECK(alive());
    *made = new fake_graph(*graph);
    now.graphs++;
    return cudaSuccess;
}

/* Each stream of the recording as a stream of its own, for as long as it runs. */
static void run_all(const void *which)
{
    const fake_graph &graph = **(fake_graph *const *)which;
    std::vector<cudaStream_t> made;
    for (size_t i = 0; i < graph.tasks.size(); i++) {
        made.push_back(new fake_stream());
        streams.push_back(made[i]);
    }
    for (size_t i = 0; i < graph.tasks.size(); i++) {
        for (task t : graph.tasks[i]) {
            for (size_t k = 0; t.other && k < made.size(); k++) {
                if (graph.stream[k] == t.other) {
                    t.other = made[k];
                    break;
                }
            }
            made[i]->queue.push_back(std::move(t));
            made[i]->begun++;
        }
    }
    for (cudaStream_t s : made) {
        run_until(s, s->begun);
    }
    for (cudaStream_t s : made) {
        streams.erase(std::find(streams.begin(), streams.end(), s));
        delete s;
    }
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    CHECK(alive());
    CHECK(not_recording());
    if (now.fail_at_graph >= 0 && now.fail_at_graph-- == 0) {
        return say(cudaErrorMemoryAllocation);
    }
    now.graph_launches++;
    return give_launch(stream, run_all, &graph, sizeof graph);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    for (cudaStream_t s : streams) {
        run_until(s, s->begun);
    }
    delete graph;
    now.graphs--;
    return cudaSuccess;
}

cudaError_t fake_launch(cudaStream_t stream, void (*run)(const void *), const void *kernel,
                        size_t bytes, int overlaps)
{
    CHECK(alive());
    now.launches++;
    if (beside && stream->recording) {
        void (*action)(void) = beside;
        beside = nullptr;
        action();
    }
    if (now.fail_at_launch >= 0 && now.fail_at_launch-- == 0) {
        return say(cudaErrorLaunchFailure);
    }
    return give_kernel(stream, run, kernel, bytes, overlaps);
}

size_t fake_block_with(const void *at, const void **from)
{
    auto after = blocks.upper_bound((void *)(uintptr_t)at);
    if (after == blocks.begin() || !std::prev(after)->second.counted) {
        return 0;
    }
    *from = std::prev(after)->first;
    return std::prev(after)->second.bytes;
}

/* 2: by leaps of about 5/8 of the count, with which they have no divisor in common. */
size_t fake_walked(size_t turn, size_t count)
{
    static size_t of, leap;
    if (fake_walk < 2) {
        return fake_walk ? count - 1 - turn : turn;
    }
    if (of != count) {
        of = count;
        leap = count / 8 * 5 + 1;
        while (std::gcd(leap, count) != 1) {
            leap++;
        }
    }
    return turn * leap % count;
}

/* ---- for the tests, through ctypes ---- */

extern "C" __attribute__((visibility("default"))) int fake_cuda_set(const char *name,
                                                                    long long value);
extern "C" __attribute__((visibility("default"))) long long fake_cuda_get(const char *name);
/* Has the first launch that is recorded from now on call `action`, before it. */
extern "C" __attribute__((visibility("default"))) void fake_cuda_beside(void (*action)(void));

static std::map<std::string, long *> knobs(void)
{
    return {{"order", &now.order},           {"driver", &now.driver},
            {"devices", &now.devices},       {"code", &now.code},
            {"capture", &now.capture},       {"walk", &fake_walk},
            {"waits", &now.waits},           {"late", &now.late},
            {"lose_after", &now.lose_after}, {"fail_at_launch", &now.fail_at_launch},
            {"overlap_cost", &now.overlap_cost}, {"fail_at_graph", &now.fail_at_graph},
            {"ptx", &now.ptx}};
}

int fake_cuda_set(const char *name, long long value)
{
    if (strcmp(name, "reset") == 0) {
        now = settings();
        fake_walk = 0;
        last = lost = cudaSuccess;
        return 0;
    }
    if (strcmp(name, "memory") == 0) {
        now.memory = value;
        return 0;
    }
    if (strcmp(name, "memory_left") == 0) {
        now.memory = used + value;
        return 0;
    }
    auto all = knobs();
    if (!all.count(name)) {
        return -1;
    }
    *all[name] = (long)value;
    return 0;
}

void fake_cuda_beside(void (*action)(void))
{
    beside = action;
}

long long fake_cuda_get(const char *name)
{
    const std::map<std::string, long long> all = {{"used", used},
                                                  {"blocks", (long long)blocks.size()},
                                                  {"allocations", now.allocations},
                                                  {"launches", now.launches},
                                                  {"graph_launches", now.graph_launches},
                                                  {"captures", now.captures},
                                                  {"graphs", now.graphs},
                                                  {"overlapped", now.overlapped},
                                                  {"copies", now.copies},
                                                  {"streams", (long long)streams.size()}};
    auto found = all.find(name);
    return found == all.end() ? -1 : found->second;
}
