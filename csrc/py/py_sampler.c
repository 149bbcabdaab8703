#include "py_train.h"

#include <pthread.h>

#include "../train/sampler.h"

typedef struct {
    PyObject head;
    mdmt_sampler *sampler;
    pthread_mutex_t lock; /* batches are drawn without the GIL, one at a time */
} sampler_object;

/* Copies a sequence of `count` numbers; 0, or -1 with an exception set. */
static int take_numbers(PyObject *object, int type, int count, void *numbers, size_t item)
{
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FROMANY(object, type, 1, 1, NPY_ARRAY_CARRAY_RO);
    if (!array) {
        return -1;
    }
    int right = PyArray_DIM(array, 0) == count;
    if (right) {
        memcpy(numbers, PyArray_DATA(array), (size_t)count * item);
    } else {
        PyErr_Format(PyExc_ValueError, "%d data sets need as many numbers, not %zd", count,
                     (Py_ssize_t)PyArray_DIM(array, 0));
    }
    Py_DECREF(array);
    return right ? 0 : -1;
}

/* Fills sets, size and ratio. */
static int take_sets(PyObject *sizes, PyObject *ratio, mdmt_sampler_config *c)
{
    Py_ssize_t sets = PyObject_Size(sizes);
    if (sets < 0) {
        return -1;
    }
    c->sets = sets > MDMT_MAX_SETS ? MDMT_MAX_SETS + 1 : (int)sets;
    if (c->sets > MDMT_MAX_SETS) {
        return 0; /* refused when the sampler is opened */
    }
    if (take_numbers(sizes, NPY_INT64, c->sets, c->size, sizeof *c->size) < 0) {
        return -1;
    }
    return ratio == Py_None ? 0
                            : take_numbers(ratio, NPY_FLOAT64, c->sets, c->ratio, sizeof *c->ratio);
}

static PyObject *sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *sizes, *ratio;
    long long batch, steps;
    unsigned long long seed;
    int mode, epoch, drop_last;
    (void)kwargs;
    mdmt_sampler_config c = {0};
    if (!PyArg_ParseTuple(args, "OLiOiLpK", &sizes, &batch, &mode, &ratio, &epoch, &steps,
                          &drop_last, &seed) ||
        take_sets(sizes, ratio, &c) < 0) {
        return NULL;
    }
    c.batch = batch;
    c.mode = (mdmt_sample_mode)mode;
    c.epoch = (mdmt_epoch_rule)epoch;
    c.steps = steps;
    c.drop_last = drop_last;
    c.seed = seed;
    sampler_object *self = (sampler_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    pthread_mutex_init(&self->lock, NULL);
    mdmt_status status = mdmt_sampler_open(&self->sampler, &c);
    if (status != MDMT_OK) {
        Py_DECREF(self);
        return mdmt_py_raise(status);
    }
    return (PyObject *)self;
}

static void sampler_dealloc(PyObject *object)
{
    sampler_object *self = (sampler_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    mdmt_sampler_close(self->sampler);
    pthread_mutex_destroy(&self->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *sampler_steps(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(mdmt_sampler_steps(((sampler_object *)object)->sampler));
}

PyDoc_STRVAR(batch_doc, "batch($self, epoch, step, /)\n--\n\n"
                        "Returns (dataset, index), two int64 arrays.");

static PyObject *sampler_batch(PyObject *object, PyObject *args)
{
    sampler_object *self = (sampler_object *)object;
    long long epoch, step;
    if (!PyArg_ParseTuple(args, "LL", &epoch, &step)) {
        return NULL;
    }
    npy_intp size = mdmt_sampler_batch_size(self->sampler, step);
    PyObject *set = PyArray_SimpleNew(1, &size, NPY_INT64);
    PyObject *index = PyArray_SimpleNew(1, &size, NPY_INT64);
    PyObject *result = NULL;
    if (set && index) {
        mdmt_status status;
        Py_BEGIN_ALLOW_THREADS pthread_mutex_lock(&self->lock);
        status = mdmt_sampler_batch(self->sampler, epoch, step, PyArray_DATA((PyArrayObject *)set),
                                    PyArray_DATA((PyArrayObject *)index));
        pthread_mutex_unlock(&self->lock);
        Py_END_ALLOW_THREADS result =
            status == MDMT_OK ? PyTuple_Pack(2, set, index) : mdmt_py_raise(status);
    }
    Py_XDECREF(set);
    Py_XDECREF(index);
    return result;
}

static PyMethodDef methods[] = {{"batch", sampler_batch, METH_VARARGS, batch_doc},
                                {NULL, NULL, 0, NULL}};
static PyGetSetDef getters[] = {{"steps", sampler_steps, NULL, "Batches of an epoch.", NULL},
                                {NULL, NULL, NULL, NULL, NULL}};

PyDoc_STRVAR(sampler_doc,
             "Sampler(sizes, batch, mode, ratio, epoch, steps, drop_last, seed, /)\n--\n\nmode 0 "
             "union, 1 balanced, 2 ratio; epoch 0 union, 1 longest, 2 shortest, 3 steps.");

static PyType_Slot slots[] = {{Py_tp_new, sampler_new},         {Py_tp_dealloc, sampler_dealloc},
                              {Py_tp_methods, methods},         {Py_tp_getset, getters},
                              {Py_tp_doc, (void *)sampler_doc}, {0, NULL}};
static PyType_Spec spec = {.name = "mdmt._core.Sampler",
                           .basicsize = sizeof(sampler_object),
                           .flags = Py_TPFLAGS_DEFAULT,
                           .slots = slots};

int mdmt_py_add_sampler(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    int status = type ? PyModule_AddObjectRef(module, "Sampler", type) : -1;
    Py_XDECREF(type);
    return status;
}
