#ifndef MDMT_PY_PY_BENCH_H
#define MDMT_PY_PY_BENCH_H

#include <Python.h>

/* Adds fma_rate to the module; 0, or -1 with an exception set. */
int mdmt_py_add_bench(PyObject *module);

#endif
