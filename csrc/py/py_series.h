/* Network.series: many steps in one call. */
#ifndef MDMT_PY_SERIES_H
#define MDMT_PY_SERIES_H

#include "py_step.h"

#include "../exec/series.h"

/* Where adam clips: its norms before that. */
#define MDMT_PY_NORM "gradient_norm"

/* {output: array (batches, ...)} for the outputs named in the tuple `names`; feeds: {"task",
 * "target"} with a row per batch, used with mode->want_gradients. *done: steps that took effect. */
PyObject *mdmt_py_series(mdmt_network *network, const mdmt_mode *mode, PyObject *feeds,
                         PyObject *names, const mdmt_adam *adam, const mdmt_py_step *s, int *done);

#endif
