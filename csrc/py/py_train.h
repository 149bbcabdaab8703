/* Bindings of sampler, masked loss, augmentation, schedule and checkpoints. */
#ifndef MDMT_PY_PY_TRAIN_H
#define MDMT_PY_PY_TRAIN_H

#include "common.h"

/* The parts of mdmt_py_add_train; 0, or -1 with an exception set. */
int mdmt_py_add_sampler(PyObject *module);
int mdmt_py_add_checkpoint(PyObject *module);

#endif
