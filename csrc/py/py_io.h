/* Arrays into and out of a program, for the bindings of programs and networks. */
#ifndef MDMT_PY_IO_H
#define MDMT_PY_IO_H

#include "common.h"

/* Writes {name: array} into the program's tensors; -1 with an exception. */
int mdmt_py_feed(mdmt_program *program, PyObject *feeds);
/* The stored tensor as a plain array. */
PyObject *mdmt_py_read(mdmt_program *program, int tensor);
/* [(op, kernel, seconds per run)]; NULL seconds: [(op, kernel)]. */
PyObject *mdmt_py_kernels(const mdmt_program *program, const double *seconds, int repeats);

#endif
