/* Bindings that tests and benchmarks use: what this build and this machine have. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../cpu/fma_rate.h"
#include "../cpu/kernels.h"
#include "py_bench.h"

PyDoc_STRVAR(fma_rate_doc, "fma_rate($module, seconds, threads, isa=None, /)\n--\n\n"
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
    mdmt_isa level = isa ? mdmt_isa_named(isa) : mdmt_detect_isa();
    if (!mdmt_isa_includes(mdmt_detect_isa(), level)) {
        return PyErr_Format(PyExc_ValueError, "fma_rate: this processor has no path '%s'", isa);
    }
    mdmt_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mdmt_fma_rate(seconds, threads, level, &rate);
    Py_END_ALLOW_THREADS
    if (status != MDMT_OK) {
        PyObject *kind = status == MDMT_NO_MEMORY ? PyExc_MemoryError : PyExc_ValueError;
        return PyErr_Format(kind, "%s", mdmt_last_error());
    }
    return PyFloat_FromDouble(rate);
}

PyDoc_STRVAR(op_kernels_doc, "op_kernels($module, op, /)\n--\n\nReturns [(name, isa)]. "
                             "The CPU kernels of an op in this build, best first, each with the "
                             "instruction set it needs;\nempty for an op that has none.");

static PyObject *op_kernels(PyObject *self, PyObject *name)
{
    (void)self;
    const char *text = PyUnicode_AsUTF8(name);
    const mdmt_op_record *record = text ? mdmt_op_find(text) : NULL;
    if (!record) {
        return text ? PyErr_Format(PyExc_ValueError, "there is no op named '%s'", text) : NULL;
    }
    PyObject *list = PyList_New(0);
    const mdmt_cpu_impl *const *impl = mdmt_cpu_kernels(record);
    for (; list && impl && *impl; impl++) {
        PyObject *pair = Py_BuildValue("(ss)", (*impl)->name, mdmt_isa_name((*impl)->isa));
        if (!pair || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
    }
    return list;
}

static PyMethodDef bench_methods[] = {{"fma_rate", fma_rate, METH_VARARGS, fma_rate_doc},
                                      {"op_kernels", op_kernels, METH_O, op_kernels_doc},
                                      {NULL, NULL, 0, NULL}};

int mdmt_py_add_bench(PyObject *module)
{
    return PyModule_AddFunctions(module, bench_methods);
}
