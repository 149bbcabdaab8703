/* Bindings of sampler, masked loss, augmentation, schedule and checkpoints. */
#ifndef MDMT_PY_PY_TRAIN_H
#define MDMT_PY_PY_TRAIN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL mdmt_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "../base/status.h"

/* Sets the exception for a failure; returns NULL. */
PyObject *mdmt_py_train_raise(mdmt_status status);
/* Adds everything of this domain to the module; 0, or -1 with an exception set. */
int mdmt_py_add_train(PyObject *module);
/* Its parts. */
int mdmt_py_add_sampler(PyObject *module);
int mdmt_py_add_checkpoint(PyObject *module);

#endif
