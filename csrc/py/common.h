/* What the binding files share. Bindings parse, call and wrap; no algorithms. */
#ifndef MDMT_PY_COMMON_H
#define MDMT_PY_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL mdmt_ARRAY_API
#ifndef MDMT_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "../cpu/cpu.h"
#include "../exec/network.h"
#include "../base/pool.h"
#include "../base/cpuid.h"

/* Sets the exception that belongs to the status, with its sentence; NULL. */
PyObject *mdmt_py_raise(mdmt_status status);

/* A backend together with the threads it runs on. */
typedef struct {
    mdmt_backend *backend;
    mdmt_pool *own;      /* threads of its own, or NULL: those of the process    */
    unsigned generation; /* of the process's threads when the backend was opened */
    PyObject *module;    /* the capsule of mdmt._cuda, or NULL: on the CPU          */
    mdmt_cpu_options options;
} mdmt_py_backend;

/* What a backend is asked to be. */
typedef struct {
    const char *isa;    /* NULL: the best                 */
    int threads;        /* 0: those of the process        */
    int winograd, bf16; /* as in mdmt_cpu_options         */
    PyObject *device;   /* None: the CPU; or (capsule of mdmt._cuda, ordinal, precision, libraries,
                           deterministic), to which the others mean nothing */
} mdmt_py_choice;

mdmt_status mdmt_py_backend_open(mdmt_py_backend *b, const mdmt_py_choice *choice);
/* On the CPU. */
mdmt_status mdmt_py_backend_open_cpu(mdmt_py_backend *b, const mdmt_py_choice *choice);
void mdmt_py_backend_close(mdmt_py_backend *b);
/* After set_num_threads: opens the backend again. 1 when it was, 0 when there
 * was nothing to do, -1 on failure. The former one goes to *former. */
int mdmt_py_backend_refresh(mdmt_py_backend *b, mdmt_backend **former);

/* A new plain array of the tensor's shape and type. */
PyArrayObject *mdmt_py_empty(const mdmt_tensor *tensor);
/* `object` as a C-ordered array of the tensor's type; ValueError, naming the
 * tensor, when its shape is another. New reference. */
PyArrayObject *mdmt_py_like(PyObject *object, const mdmt_tensor *tensor);
/* The attributes of an op by name from a dictionary (or NULL) into `attrs`. */
int mdmt_py_attrs(const mdmt_op_record *record, PyObject *keywords, unsigned char *attrs);
/* A whole number that an int holds; else -1 with an exception that names `what`. */
int mdmt_py_int(PyObject *value, const char *what);
/* An int that may be given as a word ("relu", "ce"); -1 with an exception. */
int mdmt_py_word(const char *field, PyObject *value, int *out);

typedef struct {
    PyObject_HEAD
    mdmt_graph *graph;
} mdmt_py_graph;
extern PyType_Spec mdmt_py_graph_spec, mdmt_py_program_spec, mdmt_py_network_spec;
/* The Graph type, for checks; set when the module is made. */
extern PyTypeObject *mdmt_py_graph_type;
/* A list of dicts that describe the ops of a lowered program or a graph. */
PyObject *mdmt_py_describe(const mdmt_graph *graph, const mdmt_kernel *kernels);

/* Each adds its functions and types to the module; -1 on failure. */
int mdmt_py_add_backend(PyObject *module);
int mdmt_py_add_bench(PyObject *module);
int mdmt_py_add_train(PyObject *module);

#endif
