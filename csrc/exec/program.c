#define _POSIX_C_SOURCE 200809L
#include "program.h"

#include <string.h>
#include <time.h>

#include "stored.h"

static mdmt_status prepare_kernels(mdmt_program *p, const char *force)
{
    int forced = 0;
    for (int i = 0; i < p->graph->ops; i++) {
        mdmt_op *op = &p->graph->op[i];
        mdmt_status status = p->backend->prepare(p->backend, p->graph, op, force, &p->kernel[i]);
        forced |= force && status == MDMT_OK;
        if (force && status == MDMT_BAD_ARGUMENT) { /* the name belongs to another op */
            status = p->backend->prepare(p->backend, p->graph, op, NULL, &p->kernel[i]);
        }
        MDMT_TRY(status);
    }
    if (force && !forced) {
        return mdmt_fail(MDMT_UNSUPPORTED, "no op here has a kernel named %s", force);
    }
    return MDMT_OK;
}

static mdmt_status plan_memory(mdmt_program *p)
{
    size_t ops = (size_t)p->graph->ops;
    size_t *workspace = mdmt_acquire(ops, sizeof *workspace);
    uint32_t *inplace = mdmt_acquire(ops, sizeof *inplace);
    size_t *view = mdmt_acquire((size_t)p->graph->tensors, sizeof *view);
    mdmt_status status = MDMT_NO_MEMORY;
    if (workspace && inplace && view) {
        for (int t = 0; t < p->graph->tensors; t++) {
            const mdmt_tensor *tensor = &p->graph->tensor[t];
            p->tensor_bytes[t] = p->backend->tensor_bytes(p->backend, tensor);
            if (tensor->view_of >= 0) {
                view[t] = p->backend->view_bytes(p->backend, tensor);
            }
        }
        for (size_t i = 0; i < ops; i++) {
            workspace[i] = p->kernel[i].workspace_bytes;
            inplace[i] = p->kernel[i].inplace_inputs;
        }
        status = mdmt_plan_make(p->graph, p->tensor_bytes, view, workspace, inplace,
                                p->branches.until, &p->plan);
    }
    mdmt_release(workspace);
    mdmt_release(inplace);
    mdmt_release(view);
    return status;
}

static mdmt_status locate_all(mdmt_program *p, mdmt_locate_fn locate, void *context)
{
    for (int t = 0; t < p->graph->tensors; t++) {
        const mdmt_tensor *tensor = &p->graph->tensor[t];
        if (tensor->role == MDMT_ROLE_PARAM || tensor->role == MDMT_ROLE_BUFFER ||
            tensor->role == MDMT_ROLE_GRADIENT) {
            p->address[t] = locate(context, tensor);
            if (!p->address[t]) {
                return mdmt_fail(MDMT_INTERNAL, "the tensor %s has no storage", tensor->name);
            }
        }
    }
    return MDMT_OK;
}

mdmt_status mdmt_program_open(mdmt_program **program, mdmt_graph *graph, mdmt_backend *backend,
                              const char *force, mdmt_locate_fn locate, void *context)
{
    mdmt_program *p = mdmt_acquire(1, sizeof *p);
    if (!p) {
        mdmt_graph_close(graph);
        return MDMT_NO_MEMORY;
    }
    p->graph = graph;
    mdmt_status shared = mdmt_share_stored(graph, backend);
    if (shared != MDMT_OK) {
        mdmt_program_close(p);
        return shared;
    }
    size_t ops = (size_t)graph->ops, tensors = (size_t)graph->tensors;
    p->backend = backend;
    p->kernel = mdmt_acquire(ops, sizeof *p->kernel);
    p->tensor_bytes = mdmt_acquire(tensors, sizeof *p->tensor_bytes);
    p->address = mdmt_acquire(tensors, sizeof *p->address);
    p->in = mdmt_acquire(ops * MDMT_MAX_IN, sizeof *p->in);
    p->out = mdmt_acquire(ops * MDMT_MAX_OUT, sizeof *p->out);
    p->workspace = mdmt_acquire(ops, sizeof *p->workspace);
    mdmt_status status = MDMT_NO_MEMORY;
    if (p->kernel && p->tensor_bytes && p->address && p->in && p->out && p->workspace) {
        status = prepare_kernels(p, force);
    }
    if (status == MDMT_OK) {
        status = mdmt_branches_make(graph, backend, &p->branches);
    }
    if (status == MDMT_OK) {
        status = plan_memory(p);
    }
    if (status == MDMT_OK) {
        status = locate_all(p, locate, context);
    }
    if (status != MDMT_OK) {
        mdmt_program_close(p);
        return status;
    }
    *program = p;
    return MDMT_OK;
}

void mdmt_program_forget(mdmt_program *p)
{
    for (int i = 0; i < 2; i++) {
        if (p->recorded[i].recording) {
            p->backend->record_close(p->backend, p->recorded[i].recording);
            p->recorded[i].recording = NULL;
        }
    }
}

void mdmt_program_close(mdmt_program *p)
{
    if (!p) {
        return;
    }
    mdmt_program_forget(p);
    mdmt_graph_close(p->graph);
    mdmt_plan_free(&p->plan);
    mdmt_branches_free(&p->branches);
    mdmt_release(p->kernel);
    mdmt_release(p->tensor_bytes);
    mdmt_release(p->address);
    mdmt_release(p->in);
    mdmt_release(p->out);
    mdmt_release(p->workspace);
    mdmt_release(p);
}

static mdmt_value argument(const mdmt_program *p, int tensor)
{
    const mdmt_tensor *t = &p->graph->tensor[tensor];
    if (t->lazy_source < 0) {
        return (mdmt_value){.data = p->address[tensor]};
    }
    return (mdmt_value){.data = p->address[t->lazy_source],
                        .scale = p->address[t->lazy_scale],
                        .shift = p->address[t->lazy_shift],
                        .gate = t->lazy_gate < 0 ? NULL : p->address[t->lazy_gate],
                        .act = t->lazy_act};
}

void mdmt_program_bind(mdmt_program *p, void *slab)
{
    char *base = slab;
    mdmt_program_forget(p); /* it holds the former addresses */
    for (int t = 0; t < p->graph->tensors; t++) {
        if (p->plan.offset[t] >= 0) {
            p->address[t] = base + p->plan.offset[t];
        }
    }
    for (int i = 0; i < p->graph->ops; i++) {
        const mdmt_op *op = &p->graph->op[i];
        for (int j = 0; j < op->inputs; j++) {
            p->in[i * MDMT_MAX_IN + j] =
                op->in[j] < 0 ? (mdmt_value){.data = NULL} : argument(p, op->in[j]);
        }
        for (int j = 0; j < op->outputs; j++) {
            p->out[i * MDMT_MAX_OUT + j] = op->out[j] < 0 ? NULL : p->address[op->out[j]];
        }
        p->workspace[i] = p->plan.workspace[i] < 0 ? NULL : base + p->plan.workspace[i];
    }
    p->bound = slab;
}

static mdmt_status find(const mdmt_program *p, const char *name, int *tensor)
{
    *tensor = mdmt_graph_find(p->graph, name);
    if (*tensor < 0 || !p->address[*tensor]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT, "the program has no stored tensor named %s", name);
    }
    return MDMT_OK;
}

mdmt_status mdmt_program_write(mdmt_program *p, const char *name, const void *host)
{
    int t;
    MDMT_TRY(find(p, name, &t));
    return p->backend->upload(p->backend, &p->graph->tensor[t], p->address[t], host);
}

mdmt_status mdmt_program_read(mdmt_program *p, const char *name, void *host)
{
    int t;
    MDMT_TRY(find(p, name, &t));
    return p->backend->download(p->backend, &p->graph->tensor[t], p->address[t], host);
}

static mdmt_status run_op(mdmt_program *p, int i, const mdmt_step *step)
{
    return p->backend->run(p->backend, p->graph, &p->graph->op[i], &p->kernel[i],
                           p->in + i * MDMT_MAX_IN, p->out + i * MDMT_MAX_OUT, p->workspace[i],
                           step);
}

/* Op i and those that follow it in its branch; *i: the last of them. */
static mdmt_status run_branch(mdmt_program *p, int *i, const mdmt_step *step)
{
    MDMT_TRY(p->backend->branch_begin(p->backend));
    mdmt_status status = run_op(p, *i, step);
    while (status == MDMT_OK && *i + 1 < p->graph->ops && p->branches.beside[*i + 1]) {
        status = run_op(p, ++*i, step);
    }
    mdmt_status ended = p->backend->branch_end(p->backend);
    return status == MDMT_OK ? ended : status;
}

static mdmt_status run_all(mdmt_program *p, const mdmt_step *step)
{
    for (int i = 0; i < p->graph->ops; i++) {
        if (p->branches.joins[i]) {
            MDMT_TRY(p->backend->branch_join(p->backend));
        }
        MDMT_TRY(p->branches.beside[i] ? run_branch(p, &i, step) : run_op(p, i, step));
    }
    return MDMT_OK;
}

mdmt_status mdmt_program_run(mdmt_program *p, const mdmt_step *step)
{
    mdmt_status status = run_all(p, step);
    if (p->backend->branch_join) { /* after a failure, too: nothing is left to run alone */
        mdmt_status joined = p->backend->branch_join(p->backend);
        status = status == MDMT_OK ? joined : status;
    }
    return status;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

mdmt_status mdmt_program_profile(mdmt_program *p, const mdmt_step *step, double *seconds)
{
    double before = now();
    for (int i = 0; i < p->graph->ops; i++) {
        MDMT_TRY(run_op(p, i, step));
        MDMT_TRY(p->backend->wait ? p->backend->wait(p->backend) : MDMT_OK);
        double after = now();
        seconds[i] += after - before;
        before = after;
    }
    return MDMT_OK;
}
