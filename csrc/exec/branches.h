/* Which ops of a program may run beside its main line. */
#ifndef MDMT_EXEC_BRANCHES_H
#define MDMT_EXEC_BRANCHES_H

#include "../backend.h"

/* Gradients of parameters wait for the end of a step, so that the ops that make nothing else leave
 * the line of ops that wait for each other. Neighbours of them make a branch; the line goes on
 * beside it until the next branch begins, or an op reads what the branch makes. Arrays per op. */
typedef struct {
    char *beside; /* the op belongs to a branch                                           */
    char *joins;  /* the line waits for the branch before it goes on with this op          */
    int *until;   /* the last op beside which this one may still run; itself for the line's */
} mdmt_branches;

mdmt_status mdmt_branches_make(const mdmt_graph *graph, const mdmt_backend *backend,
                               mdmt_branches *branches);
void mdmt_branches_free(mdmt_branches *branches);

#endif
