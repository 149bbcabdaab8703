/* Bindings that only benchmarks use. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../cpu/fma_rate.h"
#include "py_bench.h"

PyDoc_STRVAR(fma_rate_doc, "fma_rate(seconds, threads, isa=None, /) -> float\n\n"
                           "Float32 operations per second of multiply-adds in registers on that "
                           "many threads, measured\nfor that long. isa: \"ref\", \"avx2\", "
                           "\"avx512\" or None for the best one.");

static PyObject *fma_rate(PyObject *self, PyObject *args)
{
    double seconds, rate = 0.0;
    int threads;
    const char *isa = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "di|z", &seconds, &threads, &isa)) {
        return NULL;
    }
    int level = mdmt_detect_isa();
    while (isa && level >= 0 && strcmp(isa, mdmt_isa_name((mdmt_isa)level)) != 0) {
        level--;
    }
    if (level < 0) {
        return PyErr_Format(PyExc_ValueError, "fma_rate: this processor has no path '%s'", isa);
    }
    mdmt_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mdmt_fma_rate(seconds, threads, (mdmt_isa)level, &rate);
    Py_END_ALLOW_THREADS
    if (status != MDMT_OK) {
        PyObject *kind = status == MDMT_NO_MEMORY ? PyExc_MemoryError : PyExc_ValueError;
        return PyErr_Format(kind, "%s", mdmt_last_error());
    }
    return PyFloat_FromDouble(rate);
}

static PyMethodDef bench_methods[] = {{"fma_rate", fma_rate, METH_VARARGS, fma_rate_doc},
                                      {NULL, NULL, 0, NULL}};

int mdmt_py_add_bench(PyObject *module)
{
    return PyModule_AddFunctions(module, bench_methods);
}
