#include "py_io.h"

static int write_one(mdmt_program *program, PyObject *name, PyObject *value)
{
    const char *text = PyUnicode_AsUTF8(name);
    int t = text ? mdmt_graph_find(program->graph, text) : -1;
    if (t < 0) {
        PyErr_Format(PyExc_ValueError, "the graph has no tensor named %S", name);
        return -1;
    }
    PyArrayObject *array = mdmt_py_like(value, &program->graph->tensor[t]);
    if (!array) {
        return -1;
    }
    mdmt_status status = mdmt_program_write(program, text, PyArray_DATA(array));
    Py_DECREF(array);
    if (status != MDMT_OK) {
        mdmt_py_raise(status);
        return -1;
    }
    return 0;
}

int mdmt_py_feed(mdmt_program *program, PyObject *feeds)
{
    PyObject *name, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(feeds, &at, &name, &value)) {
        if (write_one(program, name, value) < 0) {
            return -1;
        }
    }
    return 0;
}

PyObject *mdmt_py_read(mdmt_program *program, int t)
{
    PyArrayObject *array = mdmt_py_empty(&program->graph->tensor[t]);
    if (array) {
        mdmt_status status =
            program->backend->download(program->backend, &program->graph->tensor[t],
                                       program->address[t], PyArray_DATA(array));
        if (status != MDMT_OK) {
            Py_DECREF(array);
            return mdmt_py_raise(status);
        }
    }
    return (PyObject *)array;
}

PyObject *mdmt_py_kernels(const mdmt_program *program, const double *seconds, int repeats)
{
    PyObject *list = PyList_New(program->graph->ops);
    for (int i = 0; list && i < program->graph->ops; i++) {
        const char *op = program->graph->op[i].record->name, *kernel = program->kernel[i].name;
        PyObject *item = seconds ? Py_BuildValue("(ssd)", op, kernel, seconds[i] / repeats)
                                 : Py_BuildValue("(ss)", op, kernel);
        if (!item) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}
