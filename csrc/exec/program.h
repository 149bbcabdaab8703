/* A graph made ready to run on a backend: kernels chosen, memory planned,
 * addresses resolved. Running allocates nothing. */
#ifndef MDMT_EXEC_PROGRAM_H
#define MDMT_EXEC_PROGRAM_H

#include "../backend.h"
#include "../ir/plan.h"
#include "branches.h"

/* Where a parameter, buffer or gradient lives; called once for each. */
typedef void *(*mdmt_locate_fn)(void *context, const mdmt_tensor *tensor);

/* A batch that the backend recorded (series.c). */
typedef struct {
    mdmt_recording *recording; /* or NULL */
    mdmt_series of;            /* the series that it was recorded in */
    int warm; /* 1 + `augment` of the series whose batch ran last; 0: none did */
} mdmt_recorded;

typedef struct {
    mdmt_backend *backend; /* borrowed */
    mdmt_graph *graph;     /* owned    */
    mdmt_kernel *kernel;   /* per op   */
    size_t *tensor_bytes;  /* per tensor */
    mdmt_plan plan;
    void **address;   /* per tensor: its data, NULL for lazy ones    */
    mdmt_value *in;   /* per op MDMT_MAX_IN arguments                */
    void **out;       /* per op MDMT_MAX_OUT results                 */
    void **workspace; /* per op                                      */
    mdmt_branches branches;
    void *bound;      /* the slab that the addresses point into      */
    mdmt_recorded recorded[2]; /* of batches that do not end a step, and that do */
    int refusals;              /* of the backend to record one */
} mdmt_program;

/* Takes the graph over (also on failure). `force` (or NULL) names a kernel that
 * every op which knows it must use; at least one op must. */
mdmt_status mdmt_program_open(mdmt_program **program, mdmt_graph *graph, mdmt_backend *backend,
                              const char *force, mdmt_locate_fn locate, void *context);
void mdmt_program_close(mdmt_program *program);

/* Resolves the addresses into `slab` of at least program->plan.total bytes. */
void mdmt_program_bind(mdmt_program *program, void *slab);

/* Drops what was recorded. */
void mdmt_program_forget(mdmt_program *program);

/* Between plain host arrays and the tensor of that name. */
mdmt_status mdmt_program_write(mdmt_program *program, const char *name, const void *host);
mdmt_status mdmt_program_read(mdmt_program *program, const char *name, void *host);

mdmt_status mdmt_program_run(mdmt_program *program, const mdmt_step *step);
/* As run, and adds each op's seconds to seconds[op]. */
mdmt_status mdmt_program_profile(mdmt_program *program, const mdmt_step *step, double *seconds);

#endif
