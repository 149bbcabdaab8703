/* The threads of the process and the backends that run on them. */
#include "common.h"

#include <string.h>

#include "../cpu/cpu.h"
#include "../cpu/finite.h"

enum { MAX_THREADS = 1024 };

/* The threads that all networks share; made when they are first needed. A former
 * pool stays open, for a network may still be inside it, and is used again when
 * its number is wanted again. */
static mdmt_pool *shared_pool;
static mdmt_pool *pool_of[MAX_THREADS + 1]; /* by the number of threads */
static int shared_threads; /* wanted; 0: as many as there are cores */
static unsigned shared_generation;

static mdmt_status wanted_threads(int *threads)
{
    const char *wish = getenv("MDMT_NUM_THREADS");
    *threads = shared_threads;
    if (!*threads && wish && *wish) {
        char *end;
        long number = strtol(wish, &end, 10);
        if (*end || number < 1 || number > 1024) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the environment variable MDMT_NUM_THREADS is '%s'; use 1 to 1024",
                             wish);
        }
        *threads = (int)number;
    }
    if (!*threads) {
        *threads = mdmt_usable_cores();
    }
    return MDMT_OK;
}

static mdmt_status process_pool(mdmt_pool **pool)
{
    if (!shared_pool) {
        int threads;
        MDMT_TRY(wanted_threads(&threads));
        if (threads < 1 || threads > MAX_THREADS || !mdmt_pool_runs(pool_of[threads])) {
            MDMT_TRY(mdmt_pool_open(&shared_pool, threads));
            pool_of[threads] = shared_pool;
        }
        shared_pool = pool_of[threads];
    }
    *pool = shared_pool;
    return MDMT_OK;
}

static mdmt_status isa_from_name(const char *name, mdmt_isa *isa)
{
    *isa = mdmt_detect_isa();
    if (!name) {
        return MDMT_OK;
    }
    *isa = mdmt_isa_named(name);
    if (*isa == MDMT_ISAS) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "there is no backend '%s'; use ref, avx2, avx512 or neon", name);
    }
    return MDMT_OK;
}

mdmt_status mdmt_py_backend_open_cpu(mdmt_py_backend *b, const mdmt_py_choice *choice)
{
    memset(b, 0, sizeof *b);
    b->options = (mdmt_cpu_options){.winograd = choice->winograd, .bf16 = choice->bf16};
    MDMT_TRY(isa_from_name(choice->isa, &b->options.isa));
    b->generation = shared_generation;
    mdmt_pool *pool;
    if (choice->threads) {
        MDMT_TRY(mdmt_pool_open(&b->own, choice->threads));
        pool = b->own;
    } else {
        MDMT_TRY(process_pool(&pool));
    }
    mdmt_status status = mdmt_cpu_open(&b->backend, pool, b->options);
    if (status != MDMT_OK) {
        mdmt_py_backend_close(b);
    }
    return status;
}

void mdmt_py_backend_close(mdmt_py_backend *b)
{
    if (b->backend) {
        b->backend->close(b->backend);
    }
    mdmt_pool_close(b->own);
    Py_XDECREF(b->module);
    memset(b, 0, sizeof *b);
}

int mdmt_py_backend_refresh(mdmt_py_backend *b, mdmt_backend **former)
{
    if (b->own || b->module || b->generation == shared_generation) {
        return 0;
    }
    mdmt_pool *pool;
    mdmt_backend *fresh;
    mdmt_status status = process_pool(&pool);
    if (status == MDMT_OK) {
        status = mdmt_cpu_open(&fresh, pool, b->options);
    }
    if (status != MDMT_OK) {
        mdmt_py_raise(status);
        return -1;
    }
    *former = b->backend;
    b->backend = fresh;
    b->generation = shared_generation;
    return 1;
}

static PyObject *set_num_threads(PyObject *self, PyObject *argument)
{
    (void)self;
    long threads = PyLong_AsLong(argument);
    if (threads == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (threads < 1 || threads > 1024) {
        return PyErr_Format(PyExc_ValueError, "the number of threads must be 1 to 1024, not %ld",
                            threads);
    }
    if (!mdmt_pool_runs(shared_pool) || mdmt_pool_threads(shared_pool) != (int)threads) {
        shared_threads = (int)threads;
        shared_pool = NULL;
        shared_generation++;
    }
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    int threads;
    mdmt_status status = wanted_threads(&threads);
    return status == MDMT_OK ? PyLong_FromLong(threads) : mdmt_py_raise(status);
}

/* The names of the instruction sets of this processor, worst first. */
static PyObject *cpu_paths(void)
{
    PyObject *paths = PyList_New(0);
    for (mdmt_isa isa = MDMT_ISA_REF; paths && isa < MDMT_ISAS; isa++) {
        if (!mdmt_isa_includes(mdmt_detect_isa(), isa)) {
            continue;
        }
        PyObject *name = PyUnicode_FromString(mdmt_isa_name(isa));
        if (!name || PyList_Append(paths, name) < 0) {
            Py_CLEAR(paths);
        }
        Py_XDECREF(name);
    }
    return paths;
}

static PyObject *cpu_info(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    PyObject *paths = cpu_paths();
    if (!paths) {
        return NULL;
    }
    return Py_BuildValue("{s:s,s:s,s:N,s:i,s:i,s:O}", "name", mdmt_cpu_name(), "isa",
                         mdmt_isa_name(mdmt_detect_isa()), "paths", paths, "cores",
                         mdmt_usable_cores(), "l2_bytes", (int)mdmt_l2_bytes(), "bf16",
                         mdmt_cpu_has_bf16() ? Py_True : Py_False);
}

static PyObject *available_memory(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    long long bytes = mdmt_available_bytes();
    if (bytes < 0) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLongLong(bytes);
}

static PyObject *allocation_count(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong(mdmt_allocation_count());
}

static PyObject *slab_bytes(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong(mdmt_slab_bytes());
}

static PyObject *fail_allocation_after(PyObject *self, PyObject *argument)
{
    (void)self;
    long long n = PyLong_AsLongLong(argument);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    mdmt_fail_allocation_after(n);
    Py_RETURN_NONE;
}

static PyObject *all_finite(PyObject *self, PyObject *array)
{
    (void)self;
    Py_buffer view;
    mdmt_pool *pool = NULL;
    if (PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    mdmt_status status = process_pool(&pool);
    if (!view.format || strcmp(view.format, "f") != 0) {
        PyErr_Format(PyExc_TypeError, "all_finite takes float32, not '%s'",
                     view.format ? view.format : "B");
    } else if (status != MDMT_OK) {
        mdmt_py_raise(status);
    } else {
        int finite;
        Py_BEGIN_ALLOW_THREADS
        finite = mdmt_all_finite(pool, view.buf, (size_t)view.len / sizeof(float));
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef functions[] = {
    {"set_num_threads", set_num_threads, METH_O,
     "set_num_threads($module, threads, /)\n--\n\n"
     "Threads that all networks share."},
    {"get_num_threads", get_num_threads, METH_NOARGS,
     "get_num_threads($module)\n--\n\n"
     "Threads that networks run on."},
    {"cpu_info", cpu_info, METH_NOARGS,
     "cpu_info($module)\n--\n\n"
     "Name, instruction set and cores of the processor."},
    {"available_memory", available_memory, METH_NOARGS,
     "available_memory($module)\n--\n\n"
     "Bytes that can still be taken, or None."},
    {"all_finite", all_finite, METH_O,
     "all_finite($module, array, /)\n--\n\n"
     "Whether no element of a C-ordered float32 array is a NaN or an infinity."},
    {"allocation_count", allocation_count, METH_NOARGS,
     "allocation_count($module)\n--\n\n"
     "Allocations of the engine so far."},
    {"slab_bytes", slab_bytes, METH_NOARGS,
     "slab_bytes($module)\n--\n\n"
     "Bytes the engine holds in slabs."},
    {"fail_allocation_after", fail_allocation_after, METH_O,
     "fail_allocation_after($module, n, /)\n--\n\n"
     "For tests: lets n more allocations succeed and the next one fail; negative: off."},
    {NULL, NULL, 0, NULL}};

int mdmt_py_add_backend(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
