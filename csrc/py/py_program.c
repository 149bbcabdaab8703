/* _core.Program: a graph run exactly as it was written, for tests and study. */
#include "py_io.h"
#include "py_step.h"

typedef struct {
    PyObject_HEAD mdmt_program *program;
    mdmt_py_backend backend;
    mdmt_slab held;   /* parameters and buffers */
    mdmt_slab values; /* all else               */
    int64_t used;     /* bytes of `held` given out by locate */
} py_program;

static size_t held_bytes(const py_program *self, const mdmt_graph *graph)
{
    size_t total = 0;
    for (int t = 0; t < graph->tensors; t++) {
        const mdmt_tensor *tensor = &graph->tensor[t];
        if (tensor->role != MDMT_ROLE_VALUE && tensor->role != MDMT_ROLE_INPUT) {
            total += mdmt_round_up(
                self->backend.backend->tensor_bytes(self->backend.backend, tensor), MDMT_ALIGN);
        }
    }
    return total;
}

static void *locate(void *context, const mdmt_tensor *tensor)
{
    py_program *self = context;
    void *at = (char *)self->held.data + self->used;
    self->used += (int64_t)mdmt_round_up(
        self->backend.backend->tensor_bytes(self->backend.backend, tensor), MDMT_ALIGN);
    return at;
}

static mdmt_status open_program(py_program *self, const mdmt_graph *graph, const char *kernel)
{
    mdmt_graph *copy;
    mdmt_backend *backend = self->backend.backend;
    MDMT_TRY(backend->slab_open(backend, &self->held, held_bytes(self, graph), "parameters"));
    MDMT_TRY(mdmt_graph_copy(graph, &copy));
    MDMT_TRY(mdmt_program_open(&self->program, copy, backend, kernel, locate, self));
    MDMT_TRY(backend->slab_open(backend, &self->values, (size_t)self->program->plan.total,
                                "values of the graph"));
    mdmt_program_bind(self->program, self->values.data);
    return MDMT_OK;
}

static PyObject *program_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"graph",    "isa",    "threads", "kernel",
                            "winograd", "device", "bf16",    NULL};
    PyObject *graph, *threads = Py_None;
    const char *kernel = NULL;
    mdmt_py_choice choice = {.winograd = 2, .device = Py_None};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!|zOziOp", names, mdmt_py_graph_type, &graph,
                                     &choice.isa, &threads, &kernel, &choice.winograd,
                                     &choice.device, &choice.bf16)) {
        return NULL;
    }
    if (threads != Py_None) {
        choice.threads = mdmt_py_int(threads, "the number of threads");
    }
    py_program *self = PyErr_Occurred() ? NULL : (py_program *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    mdmt_status status = mdmt_py_backend_open(&self->backend, &choice);
    if (status == MDMT_OK) {
        status = open_program(self, ((mdmt_py_graph *)graph)->graph, kernel);
    }
    if (status != MDMT_OK) {
        Py_DECREF(self);
        return mdmt_py_raise(status);
    }
    return (PyObject *)self;
}

static void program_dealloc(PyObject *object)
{
    py_program *self = (py_program *)object;
    PyTypeObject *type = Py_TYPE(object);
    mdmt_program_close(self->program);
    mdmt_backend *backend = self->backend.backend;
    if (backend) {
        backend->slab_close(backend, &self->held);
        backend->slab_close(backend, &self->values);
    }
    mdmt_py_backend_close(&self->backend);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *read_outputs(mdmt_program *program)
{
    PyObject *dict = PyDict_New();
    for (int t = 0; dict && t < program->graph->tensors; t++) {
        if (program->graph->tensor[t].is_output) {
            PyObject *array = mdmt_py_read(program, t);
            if (!array || PyDict_SetItemString(dict, program->graph->tensor[t].name, array) < 0) {
                Py_CLEAR(dict);
            }
            Py_XDECREF(array);
        }
    }
    return dict;
}

static PyObject *program_run(PyObject *object, PyObject *args, PyObject *keywords)
{
    py_program *self = (py_program *)object;
    PyObject *feeds;
    mdmt_py_step s;
    if (!PyArg_ParseTuple(args, "O!", &PyDict_Type, &feeds) ||
        mdmt_py_feed(self->program, feeds) < 0 || mdmt_py_step_parse(&s, keywords) < 0) {
        return NULL;
    }
    mdmt_status status;
    Py_BEGIN_ALLOW_THREADS status = mdmt_program_run(self->program, &s.step);
    Py_END_ALLOW_THREADS mdmt_py_step_free(&s);
    return status == MDMT_OK ? read_outputs(self->program) : mdmt_py_raise(status);
}

static PyObject *program_read(PyObject *object, PyObject *name)
{
    py_program *self = (py_program *)object;
    const char *text = PyUnicode_AsUTF8(name);
    int t = text ? mdmt_graph_find(self->program->graph, text) : -1;
    if (t < 0 || !self->program->address[t]) {
        return PyErr_Format(PyExc_ValueError, "the graph has no stored tensor named %S", name);
    }
    return mdmt_py_read(self->program, t);
}

static PyObject *program_kernels(PyObject *object, PyObject *unused)
{
    (void)unused;
    return mdmt_py_kernels(((py_program *)object)->program, NULL, 1);
}

static PyObject *program_profile(PyObject *object, PyObject *args, PyObject *keywords)
{
    py_program *self = (py_program *)object;
    PyObject *feeds;
    int repeats = 1;
    mdmt_py_step s;
    if (!PyArg_ParseTuple(args, "O!|i", &PyDict_Type, &feeds, &repeats) ||
        mdmt_py_feed(self->program, feeds) < 0 || mdmt_py_step_parse(&s, keywords) < 0) {
        return NULL;
    }
    double *seconds = PyMem_Calloc((size_t)self->program->graph->ops + 1, sizeof *seconds);
    mdmt_status status = seconds ? MDMT_OK : mdmt_fail(MDMT_NO_MEMORY, "out of memory");
    Py_BEGIN_ALLOW_THREADS for (int r = 0; r < repeats && status == MDMT_OK; r++)
    {
        status = mdmt_program_profile(self->program, &s.step, seconds);
    }
    Py_END_ALLOW_THREADS mdmt_py_step_free(&s);
    PyObject *list = status == MDMT_OK ? mdmt_py_kernels(self->program, seconds, repeats)
                                       : mdmt_py_raise(status);
    PyMem_Free(seconds);
    return list;
}

static PyObject *program_describe(PyObject *object, PyObject *unused)
{
    (void)unused;
    mdmt_program *program = ((py_program *)object)->program;
    return mdmt_py_describe(program->graph, program->kernel);
}

static PyObject *program_memory(PyObject *object, PyObject *unused)
{
    (void)unused;
    const mdmt_plan *plan = &((py_program *)object)->program->plan;
    return Py_BuildValue("{s:L,s:L,s:i}", "total", (long long)plan->total, "activations",
                         (long long)plan->activations, "in_place", plan->in_place);
}

static PyMethodDef program_methods[] = {
    {"run", (PyCFunction)(void (*)(void))program_run, METH_VARARGS | METH_KEYWORDS,
     "run($self, feeds, /, **step)\n--\n\n"
     "Returns {output: array}"},
    {"read", program_read, METH_O, "read($self, name, /)\n--\n\n"
     "Returns array"},
    {"kernels", program_kernels, METH_NOARGS, "kernels($self)\n--\n\n"
     "Returns [(op, kernel)]"},
    {"profile", (PyCFunction)(void (*)(void))program_profile, METH_VARARGS | METH_KEYWORDS,
     "profile($self, feeds, repeats=1, /, **step)\n--\n\n"
     "Returns [(op, kernel, seconds)]"},
    {"describe", program_describe, METH_NOARGS, "describe($self)\n--\n\n"
     "Returns list of dicts, one per op"},
    {"memory", program_memory, METH_NOARGS, "memory($self)\n--\n\n"
     "Returns planned bytes"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot program_slots[] = {{Py_tp_new, program_new},
                                      {Py_tp_dealloc, program_dealloc},
                                      {Py_tp_methods, program_methods},
                                      {Py_tp_doc, "A graph made ready to run."},
                                      {0, NULL}};
PyType_Spec mdmt_py_program_spec = {"mdmt._core.Program", sizeof(py_program), 0, Py_TPFLAGS_DEFAULT,
                                    program_slots};
