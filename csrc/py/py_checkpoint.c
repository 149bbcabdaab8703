#include "py_train.h"

#include "../base/memory.h"
#include "../train/checkpoint.h"

/* The arguments of a write, with the references that keep their data alive. */
typedef struct {
    mdmt_array *arrays;
    mdmt_text *metadata;
    PyObject **kept; /* the arrays in C order */
    int count, pairs;
} write_job;

static const struct {
    int type;
    const char *name;
} dtypes[] = {{NPY_FLOAT32, "F32"}, {NPY_FLOAT64, "F64"}, {NPY_FLOAT16, "F16"}, {NPY_INT32, "I32"},
              {NPY_INT64, "I64"},   {NPY_UINT8, "U8"},    {NPY_BOOL, "BOOL"}};

static const char *dtype_name(int type)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (PyArray_EquivTypenums(type, dtypes[i].type)) {
            return dtypes[i].name;
        }
    }
    return NULL;
}

static int take_text(PyObject *object, const char *what, mdmt_text *text)
{
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s of a checkpoint must be a string, not %R", what, object);
        return -1;
    }
    Py_ssize_t bytes;
    text->data = PyUnicode_AsUTF8AndSize(object, &bytes);
    text->bytes = (size_t)bytes;
    return text->data ? 0 : -1;
}

static int take_array(write_job *job, PyObject *name, PyObject *value)
{
    mdmt_array *to = &job->arrays[job->count];
    if (take_text(name, "a name", &to->name) < 0) {
        return -1;
    }
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROM_OF(value, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
    if (!array) {
        return -1;
    }
    job->kept[job->count++] = (PyObject *)array;
    to->dtype = dtype_name(PyArray_TYPE(array));
    if (!to->dtype || PyArray_NDIM(array) > MDMT_ARRAY_DIMS) {
        PyErr_Format(PyExc_TypeError, "the array %R cannot be written: its type is %R", name,
                     PyArray_DESCR(array));
        return -1;
    }
    to->item_bytes = (int)PyArray_ITEMSIZE(array);
    to->dims = PyArray_NDIM(array);
    to->data = PyArray_DATA(array);
    for (int d = 0; d < to->dims; d++) {
        to->dim[d] = PyArray_DIM(array, d);
    }
    return 0;
}

static int take_dictionaries(write_job *job, PyObject *arrays, PyObject *metadata)
{
    size_t count = (size_t)PyDict_GET_SIZE(arrays), pairs = (size_t)PyDict_GET_SIZE(metadata);
    PyObject *key, *value;
    job->arrays = mdmt_acquire(count, sizeof *job->arrays);
    job->kept = mdmt_acquire(count, sizeof *job->kept);
    job->metadata = mdmt_acquire(2 * pairs, sizeof *job->metadata);
    if (!job->arrays || !job->kept || !job->metadata) {
        mdmt_py_raise(MDMT_NO_MEMORY);
        return -1;
    }
    for (Py_ssize_t at = 0; PyDict_Next(arrays, &at, &key, &value);) {
        if (take_array(job, key, value) < 0) {
            return -1;
        }
    }
    for (Py_ssize_t at = 0; PyDict_Next(metadata, &at, &key, &value); job->pairs++) {
        if (take_text(key, "a metadata key", &job->metadata[2 * job->pairs]) < 0 ||
            take_text(value, "a metadata value", &job->metadata[2 * job->pairs + 1]) < 0) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(write_doc,
             "write_safetensors($module, path, arrays, metadata={}, /)\n--\n\n"
             "Writes {name: array} and {key: text} as one safetensors file, atomically: "
             "whatever happens, the\nfile of that "
             "name is the whole old or the whole new one. Raises OSError with path and cause.");

static void release_job(write_job *job)
{
    for (int i = 0; i < job->count; i++) {
        Py_DECREF(job->kept[i]);
    }
    mdmt_release(job->arrays);
    mdmt_release(job->kept);
    mdmt_release(job->metadata);
}

static PyObject *write_safetensors(PyObject *self, PyObject *args)
{
    PyObject *path = NULL, *arrays, *metadata = NULL, *result = NULL;
    write_job job = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O!|O!", PyUnicode_FSConverter, &path, &PyDict_Type, &arrays,
                          &PyDict_Type, &metadata)) {
        return NULL;
    }
    arrays = PyDict_Copy(arrays); /* so that nobody changes them meanwhile */
    metadata = metadata ? PyDict_Copy(metadata) : PyDict_New();
    if (arrays && metadata && take_dictionaries(&job, arrays, metadata) == 0) {
        mdmt_status status;
        Py_BEGIN_ALLOW_THREADS status = mdmt_write_safetensors(PyBytes_AS_STRING(path), job.arrays,
                                                               job.count, job.metadata, job.pairs);
        Py_END_ALLOW_THREADS result =
            status == MDMT_OK ? Py_NewRef(Py_None) : mdmt_py_raise(status);
    }
    release_job(&job);
    Py_XDECREF(arrays);
    Py_XDECREF(metadata);
    Py_DECREF(path);
    return result;
}

PyDoc_STRVAR(fail_doc, "_fail_io_after($module, n, /)\n--\n\n"
                       "Test hook: n further system calls of the "
                       "checkpoint writer succeed, the next one fails.");

static PyObject *fail_io_after(PyObject *self, PyObject *number)
{
    (void)self;
    long long n = PyLong_AsLongLong(number);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    mdmt_fail_io_after(n);
    Py_RETURN_NONE;
}

static PyMethodDef checkpoint_methods[] = {
    {"write_safetensors", write_safetensors, METH_VARARGS, write_doc},
    {"_fail_io_after", fail_io_after, METH_O, fail_doc},
    {NULL, NULL, 0, NULL}};

int mdmt_py_add_checkpoint(PyObject *module)
{
    return PyModule_AddFunctions(module, checkpoint_methods);
}
