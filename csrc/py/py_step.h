/* What changes from step to step, parsed from keyword arguments: seed, step,
 * epoch, sources, masks, dataset, index, augmentation; parts: (of a step, the
 * first one, float32 factors of the steps' sums). */
#ifndef MDMT_PY_STEP_H
#define MDMT_PY_STEP_H

#include "common.h"

enum { MDMT_PY_MAX_SOURCES = 64 };

typedef struct {
    mdmt_step step;
    mdmt_image_source source[MDMT_PY_MAX_SOURCES];
    PyObject *held[2 * MDMT_PY_MAX_SOURCES + 3]; /* the arrays that the step points into */
    int held_count;
    int batches, samples; /* of dataset and index: (samples), or (batches, samples) */
    mdmt_parts parts;     /* count 0: each batch is a step */
} mdmt_py_step;

/* Parses `keywords` (a dict or NULL). Checks that every sample lies inside its
 * source. 0, or -1 with an exception; then nothing is held. */
int mdmt_py_step_parse(mdmt_py_step *s, PyObject *keywords);
void mdmt_py_step_free(mdmt_py_step *s);

#endif
