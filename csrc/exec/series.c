#include "series.h"

#include <math.h>
#include <string.h>

mdmt_status mdmt_loss_not_finite(const mdmt_mode *mode, const float *per_task, uint64_t step)
{
    const char *task = "all tasks";
    for (int k = mode->loss.tasks - 1; k >= 0; k--) {
        task = isfinite(per_task[2 * k]) ? task : mode->logits[k];
    }
    return mdmt_fail(MDMT_NOT_FINITE,
                     "the loss is not a finite number at training step %llu (task %s): the input, "
                     "the target or the weights hold NaN or infinity, or the learning rate is too "
                     "high; the weights were not updated in this step",
                     (unsigned long long)step, task);
}

static mdmt_status add_port(mdmt_port *port, int *count, int room, mdmt_program *p,
                            const char *name, const void *host)
{
    int t = mdmt_graph_find(p->graph, name);
    if (t < 0 || !p->address[t]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the network has no output named %s", name);
    }
    if (*count == room) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a series of steps keeps at most %d outputs", room);
    }
    port[(*count)++] = (mdmt_port){.tensor = &p->graph->tensor[t],
                                   .data = p->address[t],
                                   .host = (void *)(uintptr_t)host,
                                   .bytes = 4 * (size_t)mdmt_tensor_elements(&p->graph->tensor[t])};
    return MDMT_OK;
}

static mdmt_status describe(mdmt_network *n, mdmt_program *p, const mdmt_mode *mode,
                            const mdmt_series_call *call, mdmt_series *s)
{
    memset(s, 0, sizeof *s);
    s->count = call->count;
    s->samples = mode->batch;
    s->augment = mode->augment ? mdmt_augmentation_kinds(&call->first.augmentation) : 0;
    s->first = call->first;
    if (mode->want_gradients) {
        s->watch = 1;
        MDMT_TRY(add_port(s->feed, &s->feeds, MDMT_MAX_FEEDS, p, MDMT_NAME_TASK, call->task));
        MDMT_TRY(add_port(s->feed, &s->feeds, MDMT_MAX_FEEDS, p, MDMT_NAME_TARGET, call->target));
    }
    for (int i = 0; i < call->outputs; i++) {
        MDMT_TRY(add_port(s->log, &s->logs, MDMT_MAX_LOGS, p, call->name[i], call->to[i]));
    }
    if (call->adam) {
        s->adam = *call->adam;
        s->norms = call->adam->clip > 0 ? call->norms : NULL;
        MDMT_TRY(mdmt_network_update(n, mode, &s->update));
    }
    return MDMT_OK;
}

/* ---- on a device that works beside the host ---- */

static mdmt_status start_step(mdmt_program *p, const mdmt_series *s)
{
    MDMT_TRY(p->backend->series_next(p->backend, s));
    MDMT_TRY(mdmt_program_run(p, &s->first));
    return p->backend->series_note(p->backend, s);
}

/* Records the step. A device may refuse to: then *p is marked, and it runs op by op. */
static mdmt_status record(mdmt_program *p, const mdmt_series *s)
{
    mdmt_recording *recording = NULL;
    mdmt_status status = p->backend->record_begin(p->backend);
    if (status == MDMT_OK) {
        mdmt_status inside = start_step(p, s);
        status = p->backend->record_end(p->backend, &recording);
        status = status == MDMT_OK ? inside : status;
    }
    if (status != MDMT_OK) {
        if (recording) {
            p->backend->record_close(p->backend, recording);
        }
        p->unrecordable = 1;
        return MDMT_OK;
    }
    p->recording = recording;
    p->recorded = *s;
    return MDMT_OK;
}

static int same_ports(const mdmt_port *a, const mdmt_port *b, int count)
{
    for (int i = 0; i < count; i++) {
        if (a[i].data != b[i].data || a[i].bytes != b[i].bytes) {
            return 0;
        }
    }
    return 1;
}

static int same_recording(const mdmt_series *a, const mdmt_series *b)
{
    return a->samples == b->samples && a->augment == b->augment && a->watch == b->watch &&
           a->feeds == b->feeds && a->logs == b->logs && a->update.weights == b->update.weights &&
           a->update.gradients == b->update.gradients && a->update.first == b->update.first &&
           a->update.second == b->update.second && a->update.count == b->update.count &&
           a->update.group == b->update.group && a->update.group_count == b->update.group_count &&
           !a->norms == !b->norms &&
           same_ports(a->feed, b->feed, a->feeds) && same_ports(a->log, b->log, a->logs);
}

/* The first step of a program runs op by op, and the first one with other kernels: what they need
 * is loaded then, which must not happen within a recording. */
static mdmt_status run_step(mdmt_program *p, const mdmt_series *s)
{
    if (p->recording && !same_recording(&p->recorded, s)) {
        mdmt_program_forget(p);
    }
    int warm = 1 + s->augment;
    if (!p->recording && p->warm == warm && !p->unrecordable && p->backend->record_begin) {
        MDMT_TRY(record(p, s));
    }
    p->warm = warm;
    return p->recording ? p->backend->record_run(p->backend, p->recording) : start_step(p, s);
}

static mdmt_status interrupted(const mdmt_series_call *call)
{
    int stop = call->stop && call->stop(call->context);
    return stop ? mdmt_fail(MDMT_INTERRUPTED, "the steps were interrupted") : MDMT_OK;
}

static mdmt_status run_beside(mdmt_program *p, const mdmt_series_call *call, const mdmt_series *s,
                              int *done)
{
    mdmt_backend *b = p->backend;
    mdmt_status stopped = MDMT_OK, status = b->series_open(b, s);
    int started = 0;
    while (started < s->count && status == MDMT_OK && stopped == MDMT_OK) {
        stopped = started ? interrupted(call) : MDMT_OK;
        status = stopped == MDMT_OK ? b->series_stage(b, s, started) : MDMT_OK;
        if (status == MDMT_OK && stopped == MDMT_OK) {
            status = run_step(p, s);
            started += status == MDMT_OK;
        }
    }
    if (status != MDMT_OK) {
        /* Its sentence, not the one of the close, which fails alike after a loss. */
        char why[512];
        int ignored;
        strncpy(why, mdmt_last_error(), sizeof why - 1);
        why[sizeof why - 1] = '\0';
        *done = 0;
        b->series_close(b, s, &ignored);
        return mdmt_fail(status, "%s", why);
    }
    status = b->series_close(b, s, done);
    *done = *done < started ? *done : started;
    return status == MDMT_OK ? stopped : status;
}

/* ---- step by step ---- */

static mdmt_status host_step(mdmt_program *p, const mdmt_series *s, int i)
{
    mdmt_backend *b = p->backend;
    mdmt_step step = s->first;
    step.step += (uint64_t)i;
    step.sample_source += (size_t)i * (size_t)s->samples;
    step.sample_index += (size_t)i * (size_t)s->samples;
    for (int k = 0; k < s->feeds; k++) {
        const mdmt_port *f = &s->feed[k];
        MDMT_TRY(b->upload(b, f->tensor, f->data, (char *)f->host + (size_t)i * f->bytes));
    }
    MDMT_TRY(mdmt_program_run(p, &step));
    for (int k = 0; k < s->logs; k++) {
        const mdmt_port *l = &s->log[k];
        MDMT_TRY(b->download(b, l->tensor, l->data, (char *)l->host + (size_t)i * l->bytes));
    }
    return MDMT_OK;
}

static mdmt_status run_here(mdmt_program *p, const mdmt_series_call *call, const mdmt_series *s,
                            int *done)
{
    mdmt_backend *b = p->backend;
    for (*done = 0; *done < s->count; ++*done) {
        MDMT_TRY(*done ? interrupted(call) : MDMT_OK);
        MDMT_TRY(host_step(p, s, *done));
        if (s->watch && !isfinite(((const float *)s->log[0].host)[*done])) {
            return MDMT_OK;
        }
        if (s->update.weights) {
            mdmt_adam adam = s->adam;
            adam.step += *done;
            double norm = 0;
            MDMT_TRY(b->adam(b, &adam, &s->update, &norm));
            if (s->norms) {
                s->norms[*done] = norm;
            }
            if (!isfinite(norm)) {
                return MDMT_OK;
            }
        }
    }
    return MDMT_OK;
}

mdmt_status mdmt_network_series(mdmt_network *n, const mdmt_mode *mode,
                                const mdmt_series_call *call, int *done)
{
    mdmt_program *p;
    mdmt_series s;
    *done = 0;
    if (call->count < 1 || !mode->from_store) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "a series has at least one step, with images of resident data sets");
    }
    MDMT_TRY(mdmt_network_program(n, mode, &p));
    MDMT_TRY(describe(n, p, mode, call, &s));
    MDMT_TRY(p->backend->series_open ? run_beside(p, call, &s, done) : run_here(p, call, &s, done));
    if (*done < s.count && isfinite(((const float *)call->to[0])[*done])) {
        return mdmt_gradient_not_finite(call->first.step + (uint64_t)*done);
    }
    if (*done < s.count) {
        return mdmt_loss_not_finite(
            mode, (const float *)call->to[1] + (size_t)*done * 2 * (size_t)mode->loss.tasks,
            call->first.step + (uint64_t)*done);
    }
    return MDMT_OK;
}
