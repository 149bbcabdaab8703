#include "py_train.h"

#include "../base/memory.h"
#include "../base/pool.h"
#include "../cpu/images.h"
#include "../cpu/loss.h"
#include "../train/schedule.h"

/* ---- masked loss ---- */

/* A new reference to `object` if it is a C-ordered array (n, k) of float32. */
static PyArrayObject *float_rows(PyObject *object, npy_intp n, const char *what)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_FLOAT32 || PyArray_NDIM(array) != 2 ||
        !PyArray_ISCARRAY_RO(array) || (n >= 0 && PyArray_DIM(array, 0) != n)) {
        PyErr_Format(PyExc_ValueError, "%s must be a C-ordered float32 array (N, k)", what);
        return NULL;
    }
    Py_INCREF(object);
    return array;
}

/* Fills the logits, widths and gradients of all tasks from a list of arrays; the
 * gradients are new arrays in the list `gradients`. */
static int take_logits(PyObject *list, mdmt_loss_problem *p, PyObject *gradients)
{
    for (int k = 0; k < p->attrs->tasks; k++) {
        PyArrayObject *logits = float_rows(PyList_GET_ITEM(list, k), p->samples, "logits");
        if (!logits) {
            return -1;
        }
        p->width[k] = (int)PyArray_DIM(logits, 1);
        p->logits[k] = PyArray_DATA(logits);
        PyObject *gradient = PyArray_SimpleNew(2, PyArray_DIMS(logits), NPY_FLOAT32);
        Py_DECREF(logits); /* the caller's list keeps it */
        if (!gradient) {
            return -1;
        }
        p->dlogits[k] = PyArray_DATA((PyArrayObject *)gradient);
        PyList_SET_ITEM(gradients, k, gradient);
    }
    return 0;
}

static int take_labels(PyObject *task, PyObject *target, mdmt_loss_problem *p)
{
    PyArrayObject *numbers = (PyArrayObject *)task;
    if (!PyArray_Check(task) || PyArray_TYPE(numbers) != NPY_INT32 || PyArray_NDIM(numbers) != 1 ||
        !PyArray_ISCARRAY_RO(numbers)) {
        PyErr_SetString(PyExc_ValueError, "task must be a C-ordered int32 array (N)");
        return -1;
    }
    PyArrayObject *targets = float_rows(target, PyArray_DIM(numbers, 0), "target");
    if (!targets) {
        return -1;
    }
    p->samples = (int)PyArray_DIM(numbers, 0);
    p->task = PyArray_DATA(numbers);
    p->target = PyArray_DATA(targets);
    p->target_width = (int)PyArray_DIM(targets, 1);
    Py_DECREF(targets); /* the caller holds it */
    return 0;
}

/* The tasks' loss kinds, weights and smoothing from a list of (kind, weight, smoothing). */
static int take_tasks(PyObject *list, mdmt_loss_attrs *attrs)
{
    for (int k = 0; k < attrs->tasks; k++) {
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, k), "iff", &attrs->loss[k], &attrs->weight[k],
                              &attrs->smoothing[k])) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(masked_loss_doc,
             "masked_loss($module, logits, task, target, tasks, reduction, weighted, /)\n--\n\n"
             "Returns (loss, dlogits, per_task).\n"
             "\nlogits: list of (N, C_k) float32; task (N) int32; target (N, k) float32; tasks: "
             "list of (kind, weight,\nsmoothing) with kind 0 ce, 1 bce, 2 mse, 3 ordinal; reduction "
             "0 mean, 1 per_task_mean, 2 sum;\nweighted: target (N, 2k), targets and their weights. "
             "per_task (K, 2) float64: [sum of losses, samples].");

/* Runs a problem whose arrays are set; (loss, gradients, per_task). */
static PyObject *run_loss(const mdmt_loss_problem *p, PyObject *gradients)
{
    npy_intp shape[2] = {p->attrs->tasks, 2};
    double loss = 0, *scratch = PyMem_New(double, (size_t)mdmt_loss_scratch(p));
    PyObject *per_task = PyArray_SimpleNew(2, shape, NPY_FLOAT64), *result = NULL;
    if (!scratch) {
        PyErr_NoMemory();
    } else if (per_task) {
        mdmt_status status;
        Py_BEGIN_ALLOW_THREADS status =
            mdmt_masked_loss(p, scratch, &loss, PyArray_DATA((PyArrayObject *)per_task));
        Py_END_ALLOW_THREADS result = status == MDMT_OK
                                          ? Py_BuildValue("dOO", loss, gradients, per_task)
                                          : mdmt_py_raise(status);
    }
    PyMem_Free(scratch);
    Py_XDECREF(per_task);
    return result;
}

static PyObject *masked_loss(PyObject *self, PyObject *args)
{
    PyObject *logits, *task, *target, *tasks, *result = NULL;
    mdmt_loss_attrs attrs = {.want_gradient = 1};
    mdmt_loss_problem p = {.attrs = &attrs};
    (void)self;
    if (!PyArg_ParseTuple(args, "O!OOO!ip", &PyList_Type, &logits, &task, &target, &PyList_Type,
                          &tasks, &attrs.reduction, &attrs.weighted)) {
        return NULL;
    }
    attrs.tasks = (int)PyList_GET_SIZE(logits);
    if (attrs.tasks < 1 || attrs.tasks > MDMT_MAX_TASKS || PyList_GET_SIZE(tasks) != attrs.tasks) {
        return PyErr_Format(PyExc_ValueError, "a masked loss takes 1 to %d tasks", MDMT_MAX_TASKS);
    }
    PyObject *gradients = PyList_New(attrs.tasks);
    if (gradients && take_tasks(tasks, &attrs) == 0 && take_labels(task, target, &p) == 0 &&
        take_logits(logits, &p, gradients) == 0) {
        result = run_loss(&p, gradients);
    }
    Py_XDECREF(gradients);
    return result;
}

/* ---- augmentation ---- */

PyDoc_STRVAR(
    augment_doc,
    "augment($module, images, dataset, index, seed, epoch, ranges, size, threads, masks, /)\n--\n\n"
    "images (N, h, w) or (N, C, h, w) uint8; dataset, index (N) int64: what the random numbers are keyed "
    "by; ranges:\n(probability, shift, zoom, flip, rotation, alpha low, alpha high, "
    "sigma, gamma, contrast, brightness,\ninvert, noise); size (H, W); masks: move "
    "only. float32 of as many dimensions, 0 to 255.");

/* Checks the arrays of an augment job and takes their data. */
static int take_images(PyArrayObject *images, PyArrayObject *set, PyArrayObject *index,
                       mdmt_augment_job *job)
{
    int dims = PyArray_NDIM(images), colour = dims == 4;
    npy_intp n = dims == 3 || colour ? PyArray_DIM(images, 0) : -1;
    if (PyArray_TYPE(images) != NPY_UINT8 || !PyArray_ISCARRAY_RO(images) || n < 0 || n > INT_MAX ||
        PyArray_DIM(images, dims - 2) < 1 || PyArray_DIM(images, dims - 1) < 1 ||
        (colour && (PyArray_DIM(images, 1) < 1 || PyArray_DIM(images, 1) > 4))) {
        PyErr_SetString(PyExc_ValueError,
                        "images must be a C-ordered uint8 array (N, h, w), or (N, C, h, w) with 1 "
                        "to 4 channels");
        return -1;
    }
    PyArrayObject *const keys[] = {set, index};
    for (int i = 0; i < 2; i++) {
        if (PyArray_TYPE(keys[i]) != NPY_INT64 || PyArray_NDIM(keys[i]) != 1 ||
            PyArray_DIM(keys[i], 0) != n || !PyArray_ISCARRAY_RO(keys[i])) {
            PyErr_SetString(PyExc_ValueError, "dataset and index must be int64 arrays (N)");
            return -1;
        }
    }
    job->images = PyArray_DATA(images);
    job->planes = colour ? (int)PyArray_DIM(images, 1) : 1;
    job->sh = (int)PyArray_DIM(images, dims - 2);
    job->sw = (int)PyArray_DIM(images, dims - 1);
    job->data_set = PyArray_DATA(set);
    job->index = PyArray_DATA(index);
    return 0;
}

static mdmt_status run_augment(mdmt_augment_job *job, int n, int threads)
{
    mdmt_slab slab = {NULL, 0};
    mdmt_pool *pool = NULL;
    MDMT_TRY(mdmt_augmentation_check(&job->augmentation));
    MDMT_TRY(mdmt_pool_open(&pool, threads));
    size_t bytes = sizeof(float) * mdmt_warp_scratch(job->height, job->width);
    mdmt_status status = mdmt_slab_open(&slab, bytes * (size_t)threads, "augmentation");
    if (status == MDMT_OK) {
        job->scratch = slab.data;
        mdmt_augment_images(pool, n, job);
    }
    mdmt_slab_close(&slab);
    mdmt_pool_close(pool);
    return status;
}

/* A new array of the augmented images, of as many dimensions. */
static PyObject *augmented(mdmt_augment_job *job, PyArrayObject *images, int threads)
{
    if (job->height < 1 || job->width < 1 || job->height > 32768 || job->width > 32768) {
        return PyErr_Format(PyExc_ValueError, "an image cannot have the size %d x %d", job->height,
                            job->width);
    }
    int dims = PyArray_NDIM(images);
    npy_intp n = PyArray_DIM(images, 0), shape[4] = {n, job->planes, job->height, job->width};
    shape[dims - 2] = job->height;
    shape[dims - 1] = job->width;
    PyObject *out = PyArray_SimpleNew(dims, shape, NPY_FLOAT32);
    if (!out) {
        return NULL;
    }
    job->out = PyArray_DATA((PyArrayObject *)out);
    mdmt_status status;
    Py_BEGIN_ALLOW_THREADS status = run_augment(job, (int)n, threads);
    Py_END_ALLOW_THREADS if (status != MDMT_OK)
    {
        Py_DECREF(out);
        return mdmt_py_raise(status);
    }
    return out;
}

static PyObject *augment(PyObject *self, PyObject *args)
{
    PyArrayObject *images, *set, *index;
    unsigned long long seed, epoch;
    int threads;
    mdmt_augment_job job = {.images = NULL};
    mdmt_augmentation *a = &job.augmentation;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!O!KK(fffffffffffff)(ii)ip", &PyArray_Type, &images,
                          &PyArray_Type, &set, &PyArray_Type, &index, &seed, &epoch,
                          &a->probability, &a->shift, &a->zoom, &a->flip, &a->rotation,
                          &a->elastic_alpha[0], &a->elastic_alpha[1], &a->elastic_sigma, &a->gamma,
                          &a->contrast, &a->brightness, &a->invert, &a->noise, &job.height,
                          &job.width, &threads, &job.masks) ||
        take_images(images, set, index, &job) < 0) {
        return NULL;
    }
    job.seed = seed;
    job.epoch = epoch;
    return augmented(&job, images, threads);
}

/* ---- schedule ---- */

static double *doubles(PyObject *object, int count)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_FLOAT64 || PyArray_NDIM(array) != 1 ||
        PyArray_DIM(array, 0) != count || !PyArray_ISCARRAY(array)) {
        PyErr_Format(PyExc_ValueError, "expected a writable float64 array (%d)", count);
        return NULL;
    }
    return PyArray_DATA(array);
}

PyDoc_STRVAR(schedule_start_doc, "schedule_start($module, config, state, /)\n--\n\n"
                                 "Checks config (12) and sets "
                                 "state (8), float64, in the order of csrc/train/schedule.h.");

static PyObject *schedule_start(PyObject *self, PyObject *args)
{
    PyObject *config, *state;
    double *c, *s;
    (void)self;
    if (!PyArg_ParseTuple(args, "OO", &config, &state) ||
        !(c = doubles(config, MDMT_SCHEDULE_CONFIG)) ||
        !(s = doubles(state, MDMT_SCHEDULE_STATE))) {
        return NULL;
    }
    mdmt_status status =
        mdmt_schedule_start((const mdmt_schedule_config *)c, (mdmt_schedule_state *)s);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(schedule_update_doc,
             "schedule_update($module, config, state, epoch, loss, /)\n--\n\n"
             "Returns (is_best, stop). Takes the "
             "validation loss of an epoch; state (8) is changed in place.");

static PyObject *schedule_update(PyObject *self, PyObject *args)
{
    PyObject *config, *state;
    double *c, *s, epoch, loss;
    int is_best = 0, stop = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOdd", &config, &state, &epoch, &loss) ||
        !(c = doubles(config, MDMT_SCHEDULE_CONFIG)) ||
        !(s = doubles(state, MDMT_SCHEDULE_STATE))) {
        return NULL;
    }
    mdmt_status status = mdmt_schedule_update(
        (const mdmt_schedule_config *)c, (mdmt_schedule_state *)s, epoch, loss, &is_best, &stop);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    return Py_BuildValue("NN", PyBool_FromLong(is_best), PyBool_FromLong(stop));
}

static PyMethodDef train_methods[] = {
    {"masked_loss", masked_loss, METH_VARARGS, masked_loss_doc},
    {"augment", augment, METH_VARARGS, augment_doc},
    {"schedule_start", schedule_start, METH_VARARGS, schedule_start_doc},
    {"schedule_update", schedule_update, METH_VARARGS, schedule_update_doc},
    {NULL, NULL, 0, NULL}};

int mdmt_py_add_train(PyObject *module)
{
    return PyModule_AddFunctions(module, train_methods) < 0 || mdmt_py_add_sampler(module) < 0 ||
                   mdmt_py_add_checkpoint(module) < 0
               ? -1
               : 0;
}
