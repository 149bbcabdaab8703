#include "common.h"

#include <limits.h>
#include <string.h>

PyObject *mdmt_py_raise(mdmt_status status)
{
    PyObject *kinds[] = {PyExc_RuntimeError,        PyExc_ValueError,         PyExc_MemoryError,
                         PyExc_OSError,             PyExc_NotImplementedError, PyExc_FloatingPointError,
                         PyExc_RuntimeError};
    if (status != MDMT_INTERRUPTED || !PyErr_Occurred()) {
        PyErr_SetString(status == MDMT_INTERRUPTED ? PyExc_KeyboardInterrupt : kinds[status],
                        mdmt_last_error());
    }
    return NULL;
}

static int numpy_type(mdmt_dtype dtype)
{
    return dtype == MDMT_F32 ? NPY_FLOAT32 : dtype == MDMT_I32 ? NPY_INT32 : NPY_UINT8;
}

PyArrayObject *mdmt_py_empty(const mdmt_tensor *tensor)
{
    npy_intp dim[4];
    for (int i = 0; i < tensor->dims; i++) {
        dim[i] = tensor->dim[i];
    }
    return (PyArrayObject *)PyArray_SimpleNew(tensor->dims, dim, numpy_type(tensor->dtype));
}

PyArrayObject *mdmt_py_like(PyObject *object, const mdmt_tensor *tensor)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF(
        object, numpy_type(tensor->dtype), NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (!array) {
        return NULL;
    }
    int same = PyArray_NDIM(array) == tensor->dims;
    for (int i = 0; same && i < tensor->dims; i++) {
        same = PyArray_DIM(array, i) == tensor->dim[i];
    }
    if (!same) {
        char text[64];
        PyObject *shape = PyObject_GetAttrString((PyObject *)array, "shape");
        PyErr_Format(PyExc_ValueError, "%s must have the shape %s, not %S", tensor->name,
                     mdmt_tensor_text(tensor, text), shape ? shape : Py_None);
        Py_XDECREF(shape);
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

static const struct {
    const char *field, *word;
    int value;
} words[] = {{"act", "none", MDMT_ACT_NONE},
             {"act", "relu", MDMT_ACT_RELU},
             {"act", "relu6", MDMT_ACT_RELU6},
             {"act", "silu", MDMT_ACT_SILU},
             {"act", "sigmoid", MDMT_ACT_SIGMOID},
             {"act", "hardswish", MDMT_ACT_HARDSWISH},
             {"act", "hardsigmoid", MDMT_ACT_HARDSIGMOID},
             {"loss", "ce", MDMT_LOSS_CE},
             {"loss", "bce", MDMT_LOSS_BCE},
             {"loss", "mse", MDMT_LOSS_MSE},
             {"loss", "ordinal", MDMT_LOSS_ORDINAL},
             {"loss", "dice_ce", MDMT_LOSS_DICE_CE},
             {"mode", "nearest", MDMT_UPSAMPLE_NEAREST},
             {"mode", "bilinear", MDMT_UPSAMPLE_BILINEAR},
             {"reduction", "mean", MDMT_REDUCE_MEAN},
             {"reduction", "per_task_mean", MDMT_REDUCE_PER_TASK_MEAN},
             {"reduction", "sum", MDMT_REDUCE_SUM}};

int mdmt_py_int(PyObject *value, const char *what)
{
    int overflow;
    long number = PyLong_AsLongAndOverflow(value, &overflow);
    if (overflow || number > INT_MAX || number < INT_MIN) {
        PyErr_Format(PyExc_ValueError, "%s cannot be %S: it must lie within 2^31", what, value);
        return -1;
    }
    return (int)number;
}

int mdmt_py_word(const char *field, PyObject *value, int *out)
{
    if (!PyUnicode_Check(value)) {
        *out = mdmt_py_int(value, field);
        return *out == -1 && PyErr_Occurred() ? -1 : 0;
    }
    const char *word = PyUnicode_AsUTF8(value);
    for (size_t i = 0; word && i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i].field, field) == 0 && strcmp(words[i].word, word) == 0) {
            *out = words[i].value;
            return 0;
        }
    }
    if (word) {
        PyErr_Format(PyExc_ValueError, "%s cannot be '%s'", field, word);
    }
    return -1;
}

/* One number, or element i of a sequence. */
static int set_field(const mdmt_field *field, PyObject *value, int i, unsigned char *attrs)
{
    if (field->type == MDMT_FIELD_FLOAT) {
        float number = (float)PyFloat_AsDouble(value);
        memcpy(attrs + field->offset + (size_t)i * sizeof number, &number, sizeof number);
        return PyErr_Occurred() ? -1 : 0;
    }
    int number;
    if (mdmt_py_word(field->name, value, &number) < 0) {
        return -1;
    }
    memcpy(attrs + field->offset + (size_t)i * sizeof number, &number, sizeof number);
    return 0;
}

static int set_attr(const mdmt_op_record *record, PyObject *key, PyObject *value,
                    unsigned char *attrs)
{
    const mdmt_field *field = record->fields;
    while (field && field->name && PyUnicode_CompareWithASCIIString(key, field->name) != 0) {
        field++;
    }
    if (!field || !field->name) {
        PyErr_Format(PyExc_TypeError, "%s has no attribute '%S'", record->name, key);
        return -1;
    }
    if (field->count == 1) {
        return set_field(field, value, 0, attrs);
    }
    PyObject *list = PySequence_Fast(value, "a sequence is expected");
    if (!list) {
        return -1;
    }
    Py_ssize_t length = PySequence_Fast_GET_SIZE(list);
    int failed = length > field->count;
    if (failed) {
        PyErr_Format(PyExc_ValueError, "%s of %s takes %d numbers, not %zd", field->name,
                     record->name, field->count, length);
    }
    for (int i = 0; !failed && i < (int)length; i++) {
        failed = set_field(field, PySequence_Fast_GET_ITEM(list, i), i, attrs) < 0;
    }
    Py_DECREF(list);
    return failed ? -1 : 0;
}

int mdmt_py_attrs(const mdmt_op_record *record, PyObject *keywords, unsigned char *attrs)
{
    memset(attrs, 0, MDMT_ATTR_BYTES);
    if (record->defaults) {
        memcpy(attrs, record->defaults, record->attr_bytes);
    }
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (keywords && PyDict_Next(keywords, &at, &key, &value)) {
        if (set_attr(record, key, value, attrs) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *attrs_dict(const mdmt_op *op)
{
    PyObject *dict = PyDict_New();
    for (const mdmt_field *f = op->record->fields; dict && f && f->name; f++) {
        PyObject *list = PyTuple_New(f->count);
        for (int i = 0; list && i < f->count; i++) {
            const unsigned char *at = op->attrs + f->offset + (size_t)i * 4;
            int whole;
            float real;
            memcpy(&whole, at, sizeof whole);
            memcpy(&real, at, sizeof real);
            PyTuple_SET_ITEM(list, i, f->type == MDMT_FIELD_INT ? PyLong_FromLong(whole)
                                                                : PyFloat_FromDouble(real));
        }
        if (!list || PyDict_SetItemString(dict, f->name, list) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(list);
    }
    return dict;
}

/* (name, shape) of the tensors of an op's side. */
static PyObject *tensor_list(const mdmt_graph *graph, const int *index, int count)
{
    PyObject *list = PyList_New(count);
    for (int i = 0; list && i < count; i++) {
        PyObject *item = Py_NewRef(Py_None);
        if (index[i] >= 0) {
            const mdmt_tensor *t = &graph->tensor[index[i]];
            char text[64];
            Py_DECREF(item);
            item = Py_BuildValue("(issO)", index[i], t->name, mdmt_tensor_text(t, text),
                                 t->lazy_source >= 0 ? Py_True : Py_False);
        }
        if (!item) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

PyObject *mdmt_py_describe(const mdmt_graph *graph, const mdmt_kernel *kernels)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < graph->ops; i++) {
        const mdmt_op *op = &graph->op[i];
        mdmt_cost cost = mdmt_op_cost(graph, op);
        PyObject *item = Py_BuildValue(
            "{s:s,s:N,s:N,s:N,s:z,s:d,s:d}", "op", op->record->name, "inputs",
            tensor_list(graph, op->in, op->inputs), "outputs",
            tensor_list(graph, op->out, op->outputs), "attributes", attrs_dict(op), "kernel",
            kernels ? kernels[i].name : NULL, "macs", cost.macs, "bytes",
            cost.bytes);
        if (!item || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}
