#include "network.h"

#include <math.h>
#include <string.h>

enum { MAX_PROGRAMS = 12 };

typedef struct {
    mdmt_mode mode;
    char logits[MDMT_MAX_TASKS][MDMT_NAME_BYTES];
    mdmt_program *program;
    uint64_t used;
} entry;

struct mdmt_network {
    mdmt_graph *graph;
    mdmt_backend *backend;
    uint64_t seed;
    int64_t *offset; /* per tensor of the graph: bytes into its slab, -1 if not held */
    int64_t parameter_bytes, buffer_bytes;
    mdmt_slab parameters, buffers, gradients, first, second, activations;
    mdmt_slab sums; /* of the gradients of a step's parts */
    mdmt_slab groups; /* MDMT_MAX_GROUPS groups, then the number of each MDMT_GROUP_FLOATS floats */
    int group_count;  /* 0: all parameters are of one */
    entry cache[MAX_PROGRAMS];
    uint64_t clock;
    int closed; /* 1 while a device works on a series of steps */
};

void mdmt_network_rebase(mdmt_network *n, mdmt_backend *backend)
{
    for (int i = 0; i < MAX_PROGRAMS; i++) {
        mdmt_program_close(n->cache[i].program);
        memset(&n->cache[i], 0, sizeof n->cache[i]);
    }
    n->backend = backend;
    n->clock++;
}

uint64_t mdmt_network_uses(const mdmt_network *n)
{
    return n->clock;
}

void mdmt_network_close_to_others(mdmt_network *n, int closed)
{
    n->closed = closed;
}

int mdmt_network_recordings(const mdmt_network *n)
{
    int count = 0;
    for (int i = 0; i < MAX_PROGRAMS; i++) {
        const mdmt_program *p = n->cache[i].program;
        count += p ? !!p->recorded[0].recording + !!p->recorded[1].recording : 0;
    }
    return count;
}

const mdmt_graph *mdmt_network_graph(const mdmt_network *network)
{
    return network->graph;
}

static void lay_out(mdmt_network *n)
{
    for (int t = 0; t < n->graph->tensors; t++) {
        const mdmt_tensor *tensor = &n->graph->tensor[t];
        int64_t *total = tensor->role == MDMT_ROLE_PARAM    ? &n->parameter_bytes
                         : tensor->role == MDMT_ROLE_BUFFER ? &n->buffer_bytes
                                                            : NULL;
        n->offset[t] = -1;
        if (total) {
            n->offset[t] = *total;
            *total +=
                (int64_t)mdmt_round_up(n->backend->tensor_bytes(n->backend, tensor), MDMT_ALIGN);
        }
    }
}

mdmt_status mdmt_network_open(mdmt_network **network, mdmt_graph *graph, mdmt_backend *backend,
                              uint64_t seed)
{
    mdmt_network *n = mdmt_acquire(1, sizeof *n);
    if (!n) {
        mdmt_graph_close(graph);
        return MDMT_NO_MEMORY;
    }
    n->graph = graph;
    n->backend = backend;
    n->seed = seed;
    n->offset = mdmt_acquire((size_t)graph->tensors, sizeof *n->offset);
    mdmt_status status = MDMT_NO_MEMORY;
    if (n->offset) {
        lay_out(n);
        status = backend->slab_open(backend, &n->parameters, (size_t)n->parameter_bytes,
                                    "weights of the network");
    }
    if (status == MDMT_OK) {
        status = backend->slab_open(backend, &n->buffers, (size_t)n->buffer_bytes,
                                    "running statistics of the network");
    }
    if (status != MDMT_OK) {
        mdmt_network_close(n);
        return status;
    }
    *network = n;
    return MDMT_OK;
}

void mdmt_network_close(mdmt_network *n)
{
    if (!n) {
        return;
    }
    for (int i = 0; i < MAX_PROGRAMS; i++) {
        mdmt_program_close(n->cache[i].program);
    }
    mdmt_slab *slabs[] = {&n->parameters, &n->buffers,     &n->gradients, &n->first,
                          &n->second,     &n->activations, &n->groups,    &n->sums};
    for (size_t i = 0; i < sizeof slabs / sizeof *slabs; i++) {
        n->backend->slab_close(n->backend, slabs[i]);
    }
    mdmt_graph_close(n->graph);
    mdmt_release(n->offset);
    mdmt_release(n);
}

/* Gradients and moments exist from the first time they are asked for. */
static mdmt_status slab_of(mdmt_network *n, mdmt_holding what, mdmt_slab **slab)
{
    static const char *const names[] = {"weights", "gradients", "first moments of Adam",
                                        "second moments of Adam"};
    mdmt_slab *slabs[] = {&n->parameters, &n->gradients, &n->first, &n->second};
    *slab = slabs[what];
    if (!(*slab)->data) {
        return n->backend->slab_open(n->backend, *slab, (size_t)n->parameter_bytes, names[what]);
    }
    return MDMT_OK;
}

static mdmt_status address_of(mdmt_network *n, mdmt_holding what, const char *name,
                              const mdmt_tensor **tensor, void **address)
{
    int t = mdmt_graph_find(n->graph, name);
    if (t < 0 || n->offset[t] < 0) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the network has no weight named %s", name);
    }
    *tensor = &n->graph->tensor[t];
    mdmt_slab *slab = &n->buffers;
    if ((*tensor)->role == MDMT_ROLE_PARAM) {
        MDMT_TRY(slab_of(n, what, &slab));
    } else if (what != MDMT_HOLDS_WEIGHTS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "%s is a running statistic and has no gradient", name);
    }
    *address = (char *)slab->data + n->offset[t];
    return MDMT_OK;
}

mdmt_status mdmt_network_get(mdmt_network *n, mdmt_holding what, const char *name, void *host)
{
    const mdmt_tensor *tensor = NULL;
    void *address = NULL;
    MDMT_TRY(address_of(n, what, name, &tensor, &address));
    return n->backend->download(n->backend, tensor, address, host);
}

mdmt_status mdmt_network_set(mdmt_network *n, mdmt_holding what, const char *name, const void *host)
{
    const mdmt_tensor *tensor = NULL;
    void *address = NULL;
    MDMT_TRY(address_of(n, what, name, &tensor, &address));
    return n->backend->upload(n->backend, tensor, address, host);
}

static void *locate(void *context, const mdmt_tensor *tensor)
{
    mdmt_network *n = context;
    const mdmt_tensor *found;
    void *address = NULL;
    mdmt_holding what =
        tensor->role == MDMT_ROLE_GRADIENT ? MDMT_HOLDS_GRADIENT : MDMT_HOLDS_WEIGHTS;
    return address_of(n, what, tensor->name, &found, &address) == MDMT_OK ? address : NULL;
}

/* For a program that is only looked at, never run. */
static void *locate_nothing(void *context, const mdmt_tensor *tensor)
{
    (void)tensor;
    return context;
}

static mdmt_status compile(mdmt_network *n, const mdmt_mode *mode, mdmt_program **program)
{
    mdmt_graph *graph;
    MDMT_TRY(mdmt_lower(n->graph, mode, &graph));
    if (mode->want_gradients) {
        mdmt_slab *slab; /* an allocation that must not happen inside locate */
        mdmt_status status = slab_of(n, MDMT_HOLDS_GRADIENT, &slab);
        if (status != MDMT_OK) {
            mdmt_graph_close(graph);
            return status;
        }
    }
    return mdmt_program_open(program, graph, n->backend, NULL, locate, n);
}

static int same_mode(const entry *e, const mdmt_mode *mode)
{
    const mdmt_mode *a = &e->mode;
    if (!e->program || a->batch != mode->batch || a->height != mode->height ||
        a->width != mode->width || a->training != mode->training ||
        a->want_gradients != mode->want_gradients || a->from_store != mode->from_store) {
        return 0;
    }
    if (a->from_store &&
        (a->augment != mode->augment || a->colour != mode->colour || memcmp(a->mean, mode->mean, sizeof a->mean) != 0 ||
         memcmp(a->std, mode->std, sizeof a->std) != 0)) {
        return 0;
    }
    if (!a->want_gradients) {
        return 1;
    }
    if (strcmp(a->learns, mode->learns) != 0 || a->target_width != mode->target_width ||
        a->loss.tasks != mode->loss.tasks || a->loss.reduction != mode->loss.reduction ||
        a->loss.weighted != mode->loss.weighted) {
        return 0;
    }
    for (int k = 0; k < a->loss.tasks; k++) {
        if (a->loss.loss[k] != mode->loss.loss[k] || a->loss.weight[k] != mode->loss.weight[k] ||
            a->loss.smoothing[k] != mode->loss.smoothing[k] ||
            strcmp(e->logits[k], mode->logits[k]) != 0) {
            return 0;
        }
    }
    return 1;
}

/* An empty place in the cache, or that of the program not used for longest. */
static entry *place_for(mdmt_network *n, const mdmt_mode *mode)
{
    entry *oldest = &n->cache[0];
    for (int i = 0; i < MAX_PROGRAMS; i++) {
        if (n->cache[i].used < oldest->used) {
            oldest = &n->cache[i];
        }
    }
    mdmt_program_close(oldest->program);
    memset(oldest, 0, sizeof *oldest);
    oldest->mode = *mode;
    for (int k = 0; mode->want_gradients && k < mode->loss.tasks; k++) {
        strncpy(oldest->logits[k], mode->logits[k], MDMT_NAME_BYTES - 1);
    }
    return oldest;
}

/* Makes the shared slab large enough; programs bound to a former one are bound
 * again when they are next used. */
static mdmt_status make_room(mdmt_network *n, const mdmt_program *program)
{
    if ((int64_t)n->activations.bytes >= program->plan.total) {
        return MDMT_OK;
    }
    n->backend->slab_close(n->backend, &n->activations);
    for (int i = 0; i < MAX_PROGRAMS; i++) {
        if (n->cache[i].program) {
            n->cache[i].program->bound = NULL;
            mdmt_program_forget(n->cache[i].program);
        }
    }
    return n->backend->slab_open(n->backend, &n->activations, (size_t)program->plan.total,
                                 "batch (its activations and workspace)");
}

mdmt_status mdmt_network_program(mdmt_network *n, const mdmt_mode *mode, mdmt_program **program)
{
    entry *found = NULL;
    if (n->closed) {
        return mdmt_fail(MDMT_INTERNAL,
                         "the device is in the middle of a series of steps of this network: the "
                         "handler of a signal can read its weights, but not run it");
    }
    for (int i = 0; i < MAX_PROGRAMS && !found; i++) {
        found = same_mode(&n->cache[i], mode) ? &n->cache[i] : NULL;
    }
    if (!found) {
        mdmt_program *fresh;
        MDMT_TRY(compile(n, mode, &fresh));
        found = place_for(n, mode);
        found->program = fresh;
    }
    found->used = ++n->clock;
    MDMT_TRY(make_room(n, found->program));
    if (found->program->bound != n->activations.data || !found->program->bound) {
        mdmt_program_bind(found->program, n->activations.data);
    }
    *program = found->program;
    return MDMT_OK;
}

/* Bytes of parameters before the first that learns; all after it must. */
static mdmt_status resting(const mdmt_network *n, const char *learns, int64_t *bytes)
{
    *bytes = -1;
    for (int t = 0; t < n->graph->tensors; t++) {
        const mdmt_tensor *tensor = &n->graph->tensor[t];
        if (tensor->role != MDMT_ROLE_PARAM) {
            continue;
        }
        int does = strncmp(tensor->name, learns, strlen(learns)) == 0;
        if (!does && *bytes >= 0) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the weights whose names begin with '%s' cannot learn alone: %s comes "
                             "after one of them",
                             learns, tensor->name);
        }
        *bytes = does && *bytes < 0 ? n->offset[t] : *bytes;
    }
    return *bytes >= 0 ? MDMT_OK
                       : mdmt_fail(MDMT_BAD_ARGUMENT, "no weight's name begins with '%s'", learns);
}

mdmt_status mdmt_network_update(mdmt_network *n, const mdmt_mode *mode, mdmt_update *update)
{
    int64_t rest;
    MDMT_TRY(resting(n, mode->learns, &rest));
    mdmt_slab *gradients, *first, *second;
    MDMT_TRY(slab_of(n, MDMT_HOLDS_GRADIENT, &gradients));
    MDMT_TRY(slab_of(n, MDMT_HOLDS_FIRST, &first));
    MDMT_TRY(slab_of(n, MDMT_HOLDS_SECOND, &second));
    *update = (mdmt_update){.count = (n->parameter_bytes - rest) / (int64_t)sizeof(float)};
    rest /= (int64_t)sizeof(float);
    update->weights = (float *)n->parameters.data + rest;
    update->gradients = (float *)gradients->data + rest;
    update->first = (float *)first->data + rest;
    update->second = (float *)second->data + rest;
    if (n->group_count) {
        update->groups = n->groups.data;
        update->group_count = n->group_count;
        update->group =
            (const uint8_t *)(update->groups + MDMT_MAX_GROUPS) + rest / MDMT_GROUP_FLOATS;
    }
    return MDMT_OK;
}

mdmt_status mdmt_network_set_groups(mdmt_network *n, const mdmt_group *group, int count,
                                    const uint8_t *number)
{
    size_t table = MDMT_MAX_GROUPS * sizeof *group;
    size_t bytes = table + (size_t)n->parameter_bytes / MDMT_ALIGN;
    mdmt_tensor plain = {.kind = MDMT_ROWS,
                         .dtype = MDMT_U8,
                         .dims = 2,
                         .dim = {1, (int)bytes},
                         .lazy_source = -1,
                         .view_of = -1};
    if (count == 0) {
        n->group_count = 0;
        return MDMT_OK;
    }
    if (!n->groups.data) { /* once: what was recorded goes on to hold */
        MDMT_TRY(n->backend->slab_open(n->backend, &n->groups, bytes, "groups of parameters"));
    }
    char *host = mdmt_acquire(bytes, 1);
    if (!host) {
        return MDMT_NO_MEMORY;
    }
    memcpy(host, group, (size_t)count * sizeof *group);
    for (int t = 0; t < n->graph->tensors; t++) {
        if (n->graph->tensor[t].role == MDMT_ROLE_PARAM) {
            size_t own = n->backend->tensor_bytes(n->backend, &n->graph->tensor[t]);
            memset(host + table + n->offset[t] / MDMT_ALIGN, number[t],
                   mdmt_round_up(own, MDMT_ALIGN) / MDMT_ALIGN);
        }
    }
    mdmt_status status = n->backend->upload(n->backend, &plain, n->groups.data, host);
    mdmt_release(host);
    n->group_count = status == MDMT_OK ? count : n->group_count;
    return status;
}

mdmt_status mdmt_network_sums(mdmt_network *n, const mdmt_mode *mode, float **sums)
{
    int64_t rest;
    MDMT_TRY(resting(n, mode->learns, &rest));
    if (!n->sums.data) {
        MDMT_TRY(n->backend->slab_open(n->backend, &n->sums, (size_t)n->parameter_bytes,
                                       "sums of gradients"));
    }
    *sums = (float *)n->sums.data + rest / (int64_t)sizeof(float);
    return MDMT_OK;
}

mdmt_status mdmt_network_accumulate(mdmt_network *n, const mdmt_mode *mode, int part, int parts,
                                    float scale)
{
    mdmt_update u = {0};
    mdmt_slab *gradients;
    int64_t rest;
    float *sums;
    MDMT_TRY(resting(n, mode->learns, &rest));
    MDMT_TRY(slab_of(n, MDMT_HOLDS_GRADIENT, &gradients));
    MDMT_TRY(mdmt_network_sums(n, mode, &sums));
    u.count = (n->parameter_bytes - rest) / (int64_t)sizeof(float);
    u.gradients = (float *)gradients->data + rest / (int64_t)sizeof(float);
    return n->backend->accumulate(n->backend, &u, sums, part, parts, scale);
}

mdmt_status mdmt_network_adam(mdmt_network *n, const mdmt_mode *mode, const mdmt_adam *adam,
                              double *norm)
{
    mdmt_update u;
    MDMT_TRY(mdmt_network_update(n, mode, &u));
    MDMT_TRY(n->backend->adam(n->backend, adam, &u, norm));
    if (adam->clip > 0 && !isfinite(*norm)) {
        return mdmt_gradient_not_finite((uint64_t)adam->step - 1);
    }
    return MDMT_OK;
}

mdmt_status mdmt_gradient_not_finite(uint64_t step)
{
    return mdmt_fail(MDMT_NOT_FINITE,
                     "the gradient holds NaN or infinity at training step %llu, although the loss "
                     "is finite: the weights have grown too large, or the learning rate is too "
                     "high; the weights were not updated in this step",
                     (unsigned long long)step);
}

mdmt_status mdmt_network_look(mdmt_network *n, const mdmt_mode *mode, mdmt_program **program)
{
    mdmt_graph *graph;
    MDMT_TRY(mdmt_lower(n->graph, mode, &graph));
    return mdmt_program_open(program, graph, n->backend, NULL, locate_nothing, n);
}

mdmt_status mdmt_network_memory(mdmt_network *n, const mdmt_mode *mode, mdmt_memory *memory)
{
    mdmt_program *program;
    MDMT_TRY(mdmt_network_look(n, mode, &program));
    memset(memory, 0, sizeof *memory);
    memory->parameters = n->parameter_bytes + n->buffer_bytes;
    memory->gradients = mode->want_gradients ? n->parameter_bytes : 0;
    memory->optimizer = mode->want_gradients ? 2 * n->parameter_bytes : 0;
    memory->activations = program->plan.activations;
    memory->workspace = program->plan.total - program->plan.activations;
    mdmt_program_close(program);
    return MDMT_OK;
}
