#include "py_series.h"

#include <time.h>

enum { MAX_OUTPUTS = MDMT_MAX_LOGS };

/* feeds[key] as a C-ordered array of `count` elements. */
static PyArrayObject *labels(PyObject *feeds, const char *key, int type, npy_intp count)
{
    PyObject *item = PyDict_GetItemString(feeds, key);
    PyArrayObject *array =
        item ? (PyArrayObject *)PyArray_FROM_OTF(item, type, NPY_ARRAY_IN_ARRAY) : NULL;
    if (!item) {
        PyErr_Format(PyExc_ValueError, "a series of training steps needs the feed %s", key);
    } else if (array && PyArray_SIZE(array) != count) {
        PyErr_Format(PyExc_ValueError, "%s must hold %zd values for these steps, not %zd", key,
                     (Py_ssize_t)count, (Py_ssize_t)PyArray_SIZE(array));
        Py_CLEAR(array);
    }
    return array;
}

/* A new array (batches, ...) for an output of the program. */
static PyObject *room_for(const mdmt_program *program, PyObject *name, int batches)
{
    const char *text = PyUnicode_AsUTF8(name);
    int t = text ? mdmt_graph_find(program->graph, text) : -1;
    npy_intp dim[5] = {batches};
    if (t < 0) {
        return PyErr_Format(PyExc_KeyError, "the network has no output named %S", name);
    }
    const mdmt_tensor *tensor = &program->graph->tensor[t];
    for (int i = 0; i < tensor->dims; i++) {
        dim[i + 1] = tensor->dim[i];
    }
    return PyArray_ZEROS(tensor->dims + 1, dim, NPY_FLOAT32, 0);
}

typedef struct {
    const char *name[MAX_OUTPUTS];
    void *to[MAX_OUTPUTS];
} outputs;

/* Makes the arrays; a new dictionary that holds them. */
static PyObject *make_outputs(mdmt_network *network, const mdmt_mode *mode, PyObject *names,
                              int batches, outputs *o)
{
    mdmt_program *program;
    mdmt_status status = mdmt_network_program(network, mode, &program);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    PyObject *dict = PyDict_New();
    for (Py_ssize_t i = 0; dict && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i), *array = room_for(program, name, batches);
        if (!array || PyDict_SetItem(dict, name, array) < 0) {
            Py_CLEAR(dict);
        } else {
            o->name[i] = PyUnicode_AsUTF8(name);
            o->to[i] = PyArray_DATA((PyArrayObject *)array);
        }
        Py_XDECREF(array);
    }
    return dict;
}

/* The thread that waits for a series, without Python's lock. */
typedef struct {
    PyThreadState *thread;
    struct timespec asked; /* when it last looked for signals */
} waiting;

/* Ctrl-C and other signals: their handlers run here, and what one raises ends the series. Looked
 * for 20 times a second, since Python's lock has to be waited for. */
static int signalled(void *context)
{
    waiting *w = context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = difftime(now.tv_sec, w->asked.tv_sec) +
                     1e-9 * (double)(now.tv_nsec - w->asked.tv_nsec);
    if (seconds < 0.05) {
        return 0;
    }
    w->asked = now;
    PyEval_RestoreThread(w->thread);
    int raised = PyErr_CheckSignals() < 0;
    w->thread = PyEval_SaveThread();
    return raised;
}

PyObject *mdmt_py_series(mdmt_network *network, const mdmt_mode *mode, PyObject *feeds,
                         PyObject *names, const mdmt_adam *adam, const mdmt_py_step *s, int *done)
{
    PyArrayObject *task = NULL, *target = NULL;
    PyArrayObject *norms = NULL;
    outputs o;
    waiting w;
    npy_intp samples = (npy_intp)s->batches * mode->batch;
    mdmt_series_call call = {.count = s->batches,
                             .first = s->step,
                             .adam = adam,
                             .parts = s->parts,
                             .outputs = (int)PyTuple_GET_SIZE(names),
                             .name = o.name,
                             .to = o.to,
                             .stop = signalled,
                             .context = &w};
    if (s->batches < 1 || s->samples != mode->batch || call.outputs > MAX_OUTPUTS) {
        return PyErr_Format(PyExc_ValueError,
                            "a series needs a data set and an index per batch and sample, and at "
                            "most %d outputs",
                            MAX_OUTPUTS);
    }
    if (mode->want_gradients) {
        task = labels(feeds, "task", NPY_INT32, samples);
        target = task ? labels(feeds, "target", NPY_FLOAT32, samples * mode->target_width) : NULL;
    }
    PyObject *dict =
        mode->want_gradients && !target ? NULL : make_outputs(network, mode, names, s->batches, &o);
    if (dict && adam && adam->clip > 0) {
        npy_intp steps = mdmt_updates_of(&s->parts, s->batches);
        norms = (PyArrayObject *)PyArray_ZEROS(1, &steps, NPY_FLOAT64, 0);
        if (!norms || PyDict_SetItemString(dict, MDMT_PY_NORM, (PyObject *)norms) < 0) {
            Py_CLEAR(dict);
        }
    }
    if (dict) {
        mdmt_status status;
        call.norms = norms ? PyArray_DATA(norms) : NULL;
        call.task = task ? PyArray_DATA(task) : NULL;
        call.target = target ? PyArray_DATA(target) : NULL;
        clock_gettime(CLOCK_MONOTONIC, &w.asked);
        w.thread = PyEval_SaveThread();
        status = mdmt_network_series(network, mode, &call, done);
        PyEval_RestoreThread(w.thread);
        if (status != MDMT_OK) {
            Py_CLEAR(dict);
            mdmt_py_raise(status);
        }
    }
    Py_XDECREF(task);
    Py_XDECREF(target);
    Py_XDECREF(norms);
    return dict;
}
