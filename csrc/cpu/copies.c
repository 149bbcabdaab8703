#include "copies.h"

#include <string.h>

#include "../base/memory.h"

void mdmt_widen(float *to, const uint16_t *from, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
}

void mdmt_narrow(uint16_t *to, const float *from, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        /* A NaN whose payload lies in the lower half must not become an infinity. */
        to[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
    }
}

/* Floats of the dense copy of a MAP, from one sample to the next. */
static size_t dense_sample(const mdmt_tensor *map)
{
    return (size_t)mdmt_blocks(map->dim[1]) * mdmt_map_block(map);
}

static size_t copy_bytes(const mdmt_tensor *map)
{
    return mdmt_round_up((size_t)map->dim[0] * dense_sample(map) * sizeof(float), 4096);
}

static size_t take(const mdmt_tensor *from, mdmt_tensor *to, const mdmt_tensor **at)
{
    if (!mdmt_is_float_map(from)) {
        return 0;
    }
    *to = *from;
    to->pitch = 0;
    *at = to;
    return copy_bytes(to);
}

void mdmt_float_site_of(const mdmt_site *site, mdmt_float_site *copy)
{
    copy->site = *site;
    copy->site.bf16 = 0;
    copy->bytes = 0;
    for (int i = 0; i < site->op->inputs; i++) {
        copy->bytes += take(site->in[i], &copy->in[i], &copy->site.in[i]);
    }
    for (int i = 0; i < site->op->outputs; i++) {
        copy->bytes += take(site->out[i], &copy->out[i], &copy->site.out[i]);
    }
}

typedef struct {
    const mdmt_tensor *map;
    float *floats;
    uint16_t *stored;
    int narrow;
} copy_job;

static void copy_task(void *context, int sample, int thread)
{
    const copy_job *j = context;
    const size_t count = dense_sample(j->map);
    float *floats = j->floats + (size_t)sample * count;
    uint16_t *stored = j->stored + (size_t)sample * mdmt_map_sample(j->map);
    (void)thread;
    if (j->narrow) {
        mdmt_narrow(stored, floats, count);
    } else {
        mdmt_widen(floats, stored, count);
    }
}

mdmt_status mdmt_float_site_run(const mdmt_cpu_impl *impl, const mdmt_site *site,
                                const mdmt_call *call, size_t workspace_bytes)
{
    mdmt_float_site copy;
    mdmt_value in[MDMT_MAX_IN] = {{.data = NULL}};
    void *out[MDMT_MAX_OUT] = {NULL};
    char *at = (char *)call->workspace + mdmt_round_up(workspace_bytes, 4096);
    mdmt_float_site_of(site, &copy);
    for (int i = 0; i < site->op->inputs; i++) {
        in[i] = call->in[i];
        if (mdmt_is_float_map(site->in[i]) && in[i].data) {
            copy_job job = {.map = site->in[i], .floats = (float *)at, .stored = in[i].data};
            mdmt_parallel(site->pool, site->in[i]->dim[0], copy_task, &job);
            in[i].data = at;
            at += copy_bytes(site->in[i]);
        }
    }
    for (int i = 0; i < site->op->outputs; i++) {
        out[i] = call->out[i];
        if (mdmt_is_float_map(site->out[i]) && out[i]) {
            out[i] = at;
            at += copy_bytes(site->out[i]);
        }
    }
    const mdmt_call floats = {
        .in = in, .out = out, .workspace = call->workspace, .step = call->step};
    MDMT_TRY(impl->run(&copy.site, &floats));
    for (int i = 0; i < site->op->outputs; i++) {
        if (mdmt_is_float_map(site->out[i]) && out[i]) {
            copy_job job = {
                .map = site->out[i], .floats = out[i], .stored = call->out[i], .narrow = 1};
            mdmt_parallel(site->pool, site->out[i]->dim[0], copy_task, &job);
        }
    }
    return MDMT_OK;
}
