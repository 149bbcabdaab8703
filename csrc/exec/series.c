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
        s->parts = call->parts;
        MDMT_TRY(mdmt_network_update(n, mode, &s->update));
        MDMT_TRY(s->parts.count > 1 ? mdmt_network_sums(n, mode, &s->parts.sums) : MDMT_OK);
    }
    return MDMT_OK;
}

/* ---- on a device that works beside the host ---- */

static int ends_step(const mdmt_series *s, int i)
{
    return s->parts.count < 2 || mdmt_part_at(&s->parts, i) == s->parts.count - 1;
}

static mdmt_status start_batch(mdmt_program *p, const mdmt_series *s, int last)
{
    MDMT_TRY(p->backend->series_next(p->backend, s));
    MDMT_TRY(mdmt_program_run(p, &s->first));
    return p->backend->series_note(p->backend, s, last);
}

enum { MOST_REFUSALS = 3 };

/* Records the batch. A device may refuse to, for good or because of what another thread does to it
 * at that moment: then it runs op by op, and the next batches try again, a few times. */
static mdmt_status record(mdmt_program *p, const mdmt_series *s, int last)
{
    mdmt_recording *recording = NULL;
    mdmt_status status = MDMT_OK;
    int ways = p->backend->record_ways(p->backend);
    for (int way = 0; way < ways && status == MDMT_OK; way++) {
        status = p->backend->record_begin(p->backend, way);
        if (status == MDMT_OK) {
            mdmt_status inside = start_batch(p, s, last);
            status = p->backend->record_end(p->backend, &recording);
            status = status == MDMT_OK ? inside : status;
        }
    }
    if (status != MDMT_OK) {
        if (recording) {
            p->backend->record_close(p->backend, recording);
        }
        p->refusals++;
        return MDMT_OK;
    }
    p->recorded[last].recording = recording;
    p->recorded[last].of = *s;
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
           a->parts.sums == b->parts.sums && !a->norms == !b->norms &&
           same_ports(a->feed, b->feed, a->feeds) && same_ports(a->log, b->log, a->logs);
}

/* The first batch of a program runs op by op, and the first one with other kernels: what they need
 * is loaded then, which must not happen within a recording. */
static mdmt_status run_batch(mdmt_program *p, const mdmt_series *s, int last)
{
    mdmt_recorded *r = &p->recorded[last];
    if (r->recording && !same_recording(&r->of, s)) {
        mdmt_program_forget(p);
    }
    int warm = 1 + s->augment;
    if (!r->recording && r->warm == warm && p->refusals < MOST_REFUSALS && p->backend->record_begin) {
        MDMT_TRY(record(p, s, last));
    }
    r->warm = warm;
    return r->recording ? p->backend->record_run(p->backend, r->recording)
                        : start_batch(p, s, last);
}

/* Before batch i: asks between steps. */
static mdmt_status interrupted(const mdmt_series_call *call, int i)
{
    int between = i && mdmt_part_at(&call->parts, i) == 0;
    int stop = between && call->stop && call->stop(call->context);
    return stop ? mdmt_fail(MDMT_INTERRUPTED, "the steps were interrupted") : MDMT_OK;
}

static mdmt_status run_beside(mdmt_program *p, const mdmt_series_call *call, const mdmt_series *s,
                              int *done)
{
    mdmt_backend *b = p->backend;
    mdmt_status stopped = MDMT_OK, status = b->series_open(b, s);
    int started = 0;
    while (started < s->count && status == MDMT_OK && stopped == MDMT_OK) {
        stopped = interrupted(call, started);
        status = stopped == MDMT_OK ? b->series_stage(b, s, started) : MDMT_OK;
        if (status == MDMT_OK && stopped == MDMT_OK) {
            status = run_batch(p, s, ends_step(s, started));
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

/* ---- batch by batch ---- */

static mdmt_status host_batch(mdmt_program *p, const mdmt_series *s, int i)
{
    mdmt_backend *b = p->backend;
    mdmt_step step = s->first;
    step.step = mdmt_part_step(s->first.step + (uint64_t)mdmt_updates_of(&s->parts, i),
                               mdmt_part_at(&s->parts, i));
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

/* What follows batch i. */
static mdmt_status host_update(mdmt_backend *b, const mdmt_series *s, int i, double *norm)
{
    int step = mdmt_updates_of(&s->parts, i);
    if (s->parts.count > 1) {
        MDMT_TRY(b->accumulate(b, &s->update, s->parts.sums, mdmt_part_at(&s->parts, i),
                               s->parts.count, s->parts.scale[step]));
    }
    if (!ends_step(s, i)) {
        return MDMT_OK;
    }
    mdmt_adam adam = s->adam;
    adam.step += step;
    MDMT_TRY(b->adam(b, &adam, &s->update, norm));
    if (s->norms) {
        s->norms[step] = *norm;
    }
    return MDMT_OK;
}

/* A signal's handler that ran between two steps may have used the network: its programs, their
 * room and the backend may be others since. */
static mdmt_status look_again(mdmt_network *n, const mdmt_mode *mode, const mdmt_series_call *call,
                              uint64_t *uses, mdmt_program **p, mdmt_series *s)
{
    if (mdmt_network_uses(n) == *uses) {
        return MDMT_OK;
    }
    MDMT_TRY(mdmt_network_program(n, mode, p));
    *uses = mdmt_network_uses(n);
    return describe(n, *p, mode, call, s);
}

static mdmt_status run_here(mdmt_network *n, const mdmt_mode *mode, const mdmt_series_call *call,
                            mdmt_program *p, mdmt_series *s, int *done)
{
    uint64_t uses = mdmt_network_uses(n);
    for (*done = 0; *done < s->count; ++*done) {
        MDMT_TRY(interrupted(call, *done));
        MDMT_TRY(look_again(n, mode, call, &uses, &p, s));
        MDMT_TRY(host_batch(p, s, *done));
        if (s->watch && !isfinite(((const float *)s->log[0].host)[*done])) {
            return MDMT_OK;
        }
        double norm = 0;
        MDMT_TRY(s->update.weights ? host_update(p->backend, s, *done, &norm) : MDMT_OK);
        if (!isfinite(norm)) {
            return MDMT_OK;
        }
    }
    return MDMT_OK;
}

static mdmt_status check_call(const mdmt_mode *mode, const mdmt_series_call *call)
{
    const mdmt_parts *parts = &call->parts;
    if (call->count < 1 || !mode->from_store) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "a series has at least one step, with images of resident data sets");
    }
    if (parts->count > 1 && (!call->adam || parts->first < 0 || parts->first >= parts->count)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "a step in %d parts ends with an update, and cannot go on with part %d",
                         parts->count, parts->first);
    }
    return MDMT_OK;
}

mdmt_status mdmt_network_series(mdmt_network *n, const mdmt_mode *mode,
                                const mdmt_series_call *call, int *done)
{
    mdmt_program *p;
    mdmt_series s;
    int batches = 0;
    *done = 0;
    MDMT_TRY(check_call(mode, call));
    MDMT_TRY(mdmt_network_program(n, mode, &p));
    MDMT_TRY(describe(n, p, mode, call, &s));
    mdmt_status status;
    if (p->backend->series_open) {
        mdmt_network_close_to_others(n, 1);
        status = run_beside(p, call, &s, &batches);
        mdmt_network_close_to_others(n, 0);
    } else {
        status = run_here(n, mode, call, p, &s, &batches);
    }
    *done = mdmt_updates_of(&s.parts, batches);
    if (status != MDMT_OK || batches == s.count) {
        return status;
    }
    uint64_t step = call->first.step + (uint64_t)*done;
    if (isfinite(((const float *)call->to[0])[batches])) {
        return mdmt_gradient_not_finite(step);
    }
    return mdmt_loss_not_finite(
        mode, (const float *)call->to[1] + (size_t)batches * 2 * (size_t)mode->loss.tasks, step);
}
