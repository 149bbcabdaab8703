/* Recorded steps. Where starts of kernels may overlap in several ways (device.cuh), a step is
 * recorded in each of them; the first runs take turns, and the fastest is kept: results are the
 * same bits in all. */
#include <stdlib.h>

#include "backend.cuh"

/* ROUNDS: runs of each, of which the first, which brings it to the device, does not count. */
enum { WAYS = MDMT_OVERLAP_WAYS, ROUNDS = 4 };

struct mdmt_recording {
    mdmt_graph_handle graph[WAYS];
    int made, runs, chosen; /* made: graphs; chosen: -1: they still take turns */
    mdmt_event_handle from[ROUNDS][WAYS], to[ROUNDS][WAYS];
};

static mdmt_gpu *gpu_of(mdmt_backend *backend)
{
    return (mdmt_gpu *)(void *)backend; /* base is its first member */
}

static int record_ways(mdmt_backend *backend)
{
    (void)backend;
    return mdmt_device_overlap_measured() ? WAYS : 1;
}

static mdmt_status record_begin(mdmt_backend *backend, int way)
{
    MDMT_TRY(mdmt_device_use(gpu_of(backend)->options.device));
    MDMT_TRY(mdmt_record_begin(gpu_of(backend)->stream));
    mdmt_device_overlap(mdmt_device_overlap_measured() ? way : MDMT_OVERLAP_AS_WISHED);
    return MDMT_OK;
}

static void close_events(mdmt_recording *r)
{
    for (int round = 0; round < ROUNDS; round++) {
        for (int way = 0; way < WAYS; way++) {
            mdmt_event_close(r->from[round][way]);
            mdmt_event_close(r->to[round][way]);
            r->from[round][way] = r->to[round][way] = NULL;
        }
    }
}

static void record_close(mdmt_backend *backend, mdmt_recording *r)
{
    mdmt_device_use(gpu_of(backend)->options.device);
    mdmt_device_wait(gpu_of(backend)->stream); /* it may still run */
    for (int way = 0; way < WAYS; way++) {
        mdmt_record_close(r->graph[way]);
    }
    close_events(r);
    mdmt_lent->release(r);
}

static mdmt_status open_events(mdmt_recording *r)
{
    for (int round = 0; round < ROUNDS; round++) {
        for (int way = 0; way < WAYS; way++) {
            MDMT_TRY(mdmt_event_open(&r->from[round][way], 1));
            MDMT_TRY(mdmt_event_open(&r->to[round][way], 1));
        }
    }
    return MDMT_OK;
}

static mdmt_status record_end(mdmt_backend *backend, mdmt_recording **recording)
{
    mdmt_graph_handle graph;
    mdmt_status status = mdmt_record_end(gpu_of(backend)->stream, &graph);
    mdmt_device_overlap(MDMT_OVERLAP_AS_WISHED);
    mdmt_recording *r = *recording;
    if (status == MDMT_OK && !r) {
        r = (mdmt_recording *)mdmt_lent->acquire(1, sizeof *r);
        if (!r) {
            mdmt_record_close(graph);
            status = mdmt_lent->fail(MDMT_NO_MEMORY, "out of memory for a recorded step");
        } else {
            memset((void *)r, 0, sizeof *r);
            r->chosen = record_ways(backend) > 1 && open_events(r) == MDMT_OK ? -1 : 0;
        }
    }
    if (status == MDMT_OK) {
        r->graph[r->made++] = graph;
    } else if (r) {
        record_close(backend, r);
        r = NULL;
    }
    *recording = r;
    return status;
}

/* The way whose fastest run is the fastest, by half a percent where it is not the first. */
static mdmt_status choose(mdmt_recording *r)
{
    float best = 0;
    int chosen = 0;
    for (int way = 0; way < r->made; way++) {
        float least = 0, span;
        for (int round = 1; round < ROUNDS; round++) {
            MDMT_TRY(mdmt_event_span(r->from[round][way], r->to[round][way], &span));
            least = round == 1 || span < least ? span : least;
        }
        if (way == 0 || least < 0.995f * best) {
            best = least;
            chosen = way;
        }
    }
    for (int way = 0; way < r->made; way++) {
        if (way != chosen) {
            mdmt_record_close(r->graph[way]);
            r->graph[way] = NULL;
        }
    }
    close_events(r);
    r->chosen = chosen;
    return MDMT_OK;
}

static mdmt_status record_run(mdmt_backend *backend, mdmt_recording *r)
{
    mdmt_stream_handle stream = gpu_of(backend)->stream;
    MDMT_TRY(mdmt_device_use(gpu_of(backend)->options.device));
    if (r->chosen < 0 && r->runs == ROUNDS * r->made) {
        MDMT_TRY(choose(r));
    }
    if (r->chosen >= 0) {
        return mdmt_record_run(r->graph[r->chosen], stream);
    }
    int way = r->runs % r->made, round = r->runs / r->made;
    MDMT_TRY(mdmt_event_record(r->from[round][way], stream));
    MDMT_TRY(mdmt_record_run(r->graph[way], stream));
    MDMT_TRY(mdmt_event_record(r->to[round][way], stream));
    r->runs++; /* one that could not be started has its turn again: without it no span is known */
    return MDMT_OK;
}

void mdmt_gpu_fill_recordings(mdmt_backend *base)
{
    const char *wish = getenv("MDMT_CUDA_RECORD");
    base->record_ways = record_ways;
    base->record_begin = wish && strcmp(wish, "off") == 0 ? NULL : record_begin;
    base->record_end = record_end;
    base->record_run = record_run;
    base->record_close = record_close;
}
