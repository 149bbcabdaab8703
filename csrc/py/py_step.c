#include "py_step.h"

#include <string.h>

static int number(PyObject *keywords, const char *key, uint64_t *out)
{
    PyObject *value = PyDict_GetItemString(keywords, key);
    if (value) {
        *out = PyLong_AsUnsignedLongLong(value);
    }
    return PyErr_Occurred() ? -1 : 0;
}

static PyArrayObject *hold(mdmt_py_step *s, PyObject *object, int type, int least, int most,
                           const char *what)
{
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROM_OTF(object, type, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (array && (PyArray_NDIM(array) < least || PyArray_NDIM(array) > most)) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimensions, not %d", what, least,
                     PyArray_NDIM(array));
        Py_CLEAR(array);
    }
    if (array) {
        s->held[s->held_count++] = (PyObject *)array;
    }
    return array;
}

static int parse_sources(mdmt_py_step *s, PyObject *list)
{
    Py_ssize_t count = PySequence_Size(list);
    if (count < 0 || count > MDMT_PY_MAX_SOURCES) {
        PyErr_Format(PyExc_ValueError, "there may be at most %d data sets", MDMT_PY_MAX_SOURCES);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        if (item && PyArray_Check(item) && PyArray_TYPE((PyArrayObject *)item) != NPY_UINT8) {
            PyErr_SetString(PyExc_ValueError, "resident images must be uint8");
            Py_CLEAR(item);
        }
        PyArrayObject *array =
            item ? hold(s, item, NPY_UINT8, 3, 4, "resident images (count, [channels,] height, width)")
                 : NULL;
        Py_XDECREF(item);
        if (!array) {
            return -1;
        }
        int dims = PyArray_NDIM(array);
        s->source[i] = (mdmt_image_source){.pixels = PyArray_DATA(array),
                                           .count = PyArray_DIM(array, 0),
                                           .planes = dims == 4 ? (int)PyArray_DIM(array, 1) : 1,
                                           .height = (int)PyArray_DIM(array, dims - 2),
                                           .width = (int)PyArray_DIM(array, dims - 1)};
    }
    s->step.sources = s->source;
    s->step.source_count = (int)count;
    return 0;
}

/* masks: for each source None, or an array of its shape. */
static int parse_masks(mdmt_py_step *s, PyObject *list)
{
    if (PySequence_Size(list) != s->step.source_count) {
        PyErr_SetString(PyExc_ValueError, "there must be as many masks as data sets");
        return -1;
    }
    for (int i = 0; i < s->step.source_count; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        PyArrayObject *array =
            item && item != Py_None ? hold(s, item, NPY_UINT8, 3, 3, "resident masks") : NULL;
        Py_XDECREF(item);
        if (PyErr_Occurred()) {
            return -1;
        }
        mdmt_image_source *source = &s->source[i];
        if (array && (PyArray_DIM(array, 0) != source->count ||
                      PyArray_DIM(array, 1) != source->height ||
                      PyArray_DIM(array, 2) != source->width)) {
            PyErr_Format(PyExc_ValueError, "the masks of data set %d differ from its images", i);
            return -1;
        }
        source->masks = array ? PyArray_DATA(array) : NULL;
    }
    return 0;
}

/* (samples), or (batches, samples). */
static int parse_samples(mdmt_py_step *s, PyObject *dataset, PyObject *index)
{
    PyArrayObject *d = hold(s, dataset, NPY_INT32, 1, 2, "dataset");
    PyArrayObject *i = d ? hold(s, index, NPY_INT64, 1, 2, "index") : NULL;
    if (!i) {
        return -1;
    }
    int dims = PyArray_NDIM(d);
    if (PyArray_NDIM(i) != dims || !PyArray_CompareLists(PyArray_DIMS(d), PyArray_DIMS(i), dims)) {
        PyErr_SetString(PyExc_ValueError, "dataset and index must have one length");
        return -1;
    }
    s->batches = dims == 1 ? 1 : (int)PyArray_DIM(d, 0);
    s->samples = (int)PyArray_DIM(d, dims - 1);
    s->step.sample_source = PyArray_DATA(d);
    s->step.sample_index = PyArray_DATA(i);
    for (npy_intp n = 0; n < PyArray_SIZE(d); n++) {
        int32_t from = s->step.sample_source[n];
        int64_t at = s->step.sample_index[n];
        if (from < 0 || from >= s->step.source_count || at < 0 || at >= s->source[from].count) {
            PyErr_Format(PyExc_IndexError,
                         "sample %zd asks for image %lld of data set %d, which does not exist",
                         (Py_ssize_t)n, (long long)at, (int)from);
            return -1;
        }
    }
    return 0;
}

/* (parts of a step, the first one, their factors), for the batches that were parsed. */
static int parse_parts(mdmt_py_step *s, PyObject *tuple)
{
    PyObject *scale;
    mdmt_parts *p = &s->parts;
    int batches = s->batches ? s->batches : 1;
    if (!PyArg_ParseTuple(tuple, "iiO", &p->count, &p->first, &scale)) {
        return -1;
    }
    PyArrayObject *array = hold(s, scale, NPY_FLOAT32, 1, 1, "the factors of sums");
    if (!array) {
        return -1;
    }
    if (p->count < 1 || p->first < 0 || p->first >= p->count ||
        PyArray_SIZE(array) * p->count < p->first + batches) {
        PyErr_Format(PyExc_ValueError, "%d batches from part %d of %d on need as many factors as "
                     "steps, not %zd", batches, p->first, p->count,
                     (Py_ssize_t)PyArray_SIZE(array));
        return -1;
    }
    p->scale = PyArray_DATA(array);
    return 0;
}

static float real(PyObject *dict, const char *key, float value)
{
    PyObject *item = PyDict_GetItemString(dict, key);
    return item ? (float)PyFloat_AsDouble(item) : value;
}

/* {"probability": .5, "shift": .1, ..., "elastic_alpha": (20, 40), ...} */
static int parse_augmentation(mdmt_augmentation *a, PyObject *dict)
{
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "augmentation must be a dictionary");
        return -1;
    }
    *a = (mdmt_augmentation){.probability = real(dict, "probability", 0.5f),
                             .shift = real(dict, "shift", 0),
                             .zoom = real(dict, "zoom", 0),
                             .flip = real(dict, "flip", 0),
                             .rotation = real(dict, "rotation", 0),
                             .elastic_sigma = real(dict, "elastic_sigma", 7),
                             .gamma = real(dict, "gamma", 0),
                             .contrast = real(dict, "contrast", 0),
                             .brightness = real(dict, "brightness", 0),
                             .invert = real(dict, "invert", 0),
                             .noise = real(dict, "noise", 0)};
    PyObject *alpha = PyDict_GetItemString(dict, "elastic_alpha");
    if (alpha && !PyErr_Occurred()) {
        PyObject *pair = PySequence_Tuple(alpha);
        if (!pair || !PyArg_ParseTuple(pair, "ff", &a->elastic_alpha[0], &a->elastic_alpha[1])) {
            Py_XDECREF(pair);
            return -1;
        }
        Py_DECREF(pair);
    }
    return PyErr_Occurred() ? -1 : 0;
}

int mdmt_py_step_parse(mdmt_py_step *s, PyObject *keywords)
{
    memset(s, 0, sizeof *s);
    if (!keywords) {
        return 0;
    }
    PyObject *sources = PyDict_GetItemString(keywords, "sources");
    PyObject *masks = PyDict_GetItemString(keywords, "masks");
    PyObject *dataset = PyDict_GetItemString(keywords, "dataset");
    PyObject *index = PyDict_GetItemString(keywords, "index");
    PyObject *augmentation = PyDict_GetItemString(keywords, "augmentation");
    PyObject *parts = PyDict_GetItemString(keywords, "parts");
    int failed = number(keywords, "seed", &s->step.seed) < 0 ||
                 number(keywords, "step", &s->step.step) < 0 ||
                 number(keywords, "epoch", &s->step.epoch) < 0 ||
                 (sources && parse_sources(s, sources) < 0) ||
                 (sources && masks && parse_masks(s, masks) < 0) ||
                 (dataset && index && parse_samples(s, dataset, index) < 0) ||
                 (parts && parse_parts(s, parts) < 0) ||
                 (augmentation && augmentation != Py_None &&
                  parse_augmentation(&s->step.augmentation, augmentation) < 0);
    if (failed) {
        mdmt_py_step_free(s);
        return -1;
    }
    return 0;
}

void mdmt_py_step_free(mdmt_py_step *s)
{
    while (s->held_count) {
        Py_DECREF(s->held[--s->held_count]);
    }
}
