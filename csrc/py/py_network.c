/* _core.Network: a network with weights, gradients and optimiser state. */
#include "py_io.h"
#include "py_series.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD mdmt_network *network;
    mdmt_py_backend backend;
    int done; /* steps of the last series that took effect */
    /* Who is in a method, which may have released the GIL; read and set under it. */
    int depth; /* methods; 0: nobody */
    unsigned long thread;
    pid_t process;
} py_network;

/* A step runs without the GIL: another thread could then change or free what it
 * works on, and is refused (mdmt.Model has its threads wait). A signal's handler
 * may come in between two steps of its own thread; and a forked child lacks the
 * thread that was in. */
static int enter(py_network *self)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (self->depth && self->process != getpid()) {
        self->depth = 0;
    }
    if (self->depth && self->thread != thread) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the network is being used by another thread; wait for it, or use "
                        "mdmt.Model, which does");
        return -1;
    }
    self->thread = thread;
    self->process = getpid();
    self->depth += 1;
    return 0;
}

static PyObject *leave(py_network *self, PyObject *result)
{
    self->depth -= 1;
    return result;
}

/* `method`, one thread at a time. */
#define ALONE(method)                                                                              \
    static PyObject *method##_alone(PyObject *object, PyObject *args)                              \
    {                                                                                              \
        py_network *self = (py_network *)object;                                                   \
        return enter(self) < 0 ? NULL : leave(self, method(object, args));                         \
    }
#define ALONE_NAMED(method)                                                                        \
    static PyObject *method##_alone(PyObject *object, PyObject *args, PyObject *keywords)          \
    {                                                                                              \
        py_network *self = (py_network *)object;                                                   \
        return enter(self) < 0 ? NULL : leave(self, method(object, args, keywords));               \
    }

static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"graph", "isa", "winograd", "seed", "device", "bf16", NULL};
    PyObject *graph;
    mdmt_py_choice choice = {.winograd = 2, .device = Py_None};
    unsigned long long seed = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!|ziKOp", names, mdmt_py_graph_type, &graph,
                                     &choice.isa, &choice.winograd, &seed, &choice.device,
                                     &choice.bf16)) {
        return NULL;
    }
    py_network *self = (py_network *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    mdmt_graph *copy;
    mdmt_status status = mdmt_py_backend_open(&self->backend, &choice);
    if (status == MDMT_OK) {
        status = mdmt_graph_copy(((mdmt_py_graph *)graph)->graph, &copy);
    }
    if (status == MDMT_OK) {
        status = mdmt_network_open(&self->network, copy, self->backend.backend, seed);
    }
    if (status != MDMT_OK) {
        Py_DECREF(self);
        return mdmt_py_raise(status);
    }
    return (PyObject *)self;
}

static void network_dealloc(PyObject *object)
{
    py_network *self = (py_network *)object;
    PyTypeObject *type = Py_TYPE(object);
    mdmt_network_close(self->network);
    mdmt_py_backend_close(&self->backend);
    type->tp_free(object);
    Py_DECREF(type);
}

/* Follows a change of the number of threads. */
static int refresh(py_network *self)
{
    mdmt_backend *former;
    int changed = mdmt_py_backend_refresh(&self->backend, &former);
    if (changed > 0) {
        mdmt_network_rebase(self->network, self->backend.backend);
        former->close(former);
    }
    return changed < 0 ? -1 : 0;
}

static int holding(const char *name, mdmt_holding *what)
{
    static const char *const names[] = {"weight", "gradient", "m", "v"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(names[i], name) == 0) {
            *what = (mdmt_holding)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "a network holds weight, gradient, m and v, not '%s'", name);
    return -1;
}

static const mdmt_tensor *tensor_named(const py_network *self, const char *name)
{
    const mdmt_graph *graph = mdmt_network_graph(self->network);
    int t = mdmt_graph_find(graph, name);
    if (t < 0) {
        PyErr_Format(PyExc_KeyError, "the network has no tensor named %s", name);
        return NULL;
    }
    return &graph->tensor[t];
}

static PyObject *network_get(PyObject *object, PyObject *args)
{
    py_network *self = (py_network *)object;
    const char *name, *word = "weight";
    mdmt_holding what;
    if (!PyArg_ParseTuple(args, "s|s", &name, &word) || holding(word, &what) < 0) {
        return NULL;
    }
    const mdmt_tensor *tensor = tensor_named(self, name);
    PyArrayObject *array = tensor ? mdmt_py_empty(tensor) : NULL;
    if (!array) {
        return NULL;
    }
    mdmt_status status = mdmt_network_get(self->network, what, name, PyArray_DATA(array));
    if (status != MDMT_OK) {
        Py_DECREF(array);
        return mdmt_py_raise(status);
    }
    return (PyObject *)array;
}

static PyObject *network_set(PyObject *object, PyObject *args)
{
    py_network *self = (py_network *)object;
    const char *name, *word = "weight";
    PyObject *value;
    mdmt_holding what;
    if (!PyArg_ParseTuple(args, "sO|s", &name, &value, &word) || holding(word, &what) < 0) {
        return NULL;
    }
    const mdmt_tensor *tensor = tensor_named(self, name);
    PyArrayObject *array = tensor ? mdmt_py_like(value, tensor) : NULL;
    if (!array) {
        return NULL;
    }
    mdmt_status status = mdmt_network_set(self->network, what, name, PyArray_DATA(array));
    Py_DECREF(array);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    Py_RETURN_NONE;
}

static PyObject *network_names(PyObject *object, PyObject *unused)
{
    (void)unused;
    const mdmt_graph *graph = mdmt_network_graph(((py_network *)object)->network);
    PyObject *list = PyList_New(0);
    for (int t = 0; list && t < graph->tensors; t++) {
        const mdmt_tensor *tensor = &graph->tensor[t];
        if (tensor->role == MDMT_ROLE_PARAM || tensor->role == MDMT_ROLE_BUFFER) {
            PyObject *item = Py_BuildValue("(sO)", tensor->name,
                                           tensor->role == MDMT_ROLE_PARAM ? Py_True : Py_False);
            if (!item || PyList_Append(list, item) < 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(item);
        }
    }
    return list;
}

static int flag(PyObject *mode, const char *key)
{
    PyObject *value = PyDict_GetItemString(mode, key);
    return value ? mdmt_py_int(value, key) : 0;
}

static int parse_floats(PyObject *mode, const char *key, float *out)
{
    PyObject *value = PyDict_GetItemString(mode, key);
    PyObject *list = value ? PySequence_Fast(value, "a sequence of numbers is expected") : NULL;
    for (int i = 0; list && i < 4 && i < (int)PySequence_Fast_GET_SIZE(list); i++) {
        out[i] = (float)PyFloat_AsDouble(PySequence_Fast_GET_ITEM(list, i));
    }
    Py_XDECREF(list);
    return PyErr_Occurred() ? -1 : 0;
}

/* mode["tasks"]: [(output name, loss, weight[, smoothing])]; mode["reduction"], ["weighted"]. */
static int parse_tasks(PyObject *dict, mdmt_mode *mode)
{
    PyObject *tasks = PyDict_GetItemString(dict, "tasks");
    PyObject *reduction = PyDict_GetItemString(dict, "reduction");
    if (!tasks || !PyList_Check(tasks) || PyList_GET_SIZE(tasks) > MDMT_MAX_TASKS) {
        PyErr_Format(PyExc_ValueError, "a network trains 1 to %d tasks", MDMT_MAX_TASKS);
        return -1;
    }
    mode->loss.tasks = (int)PyList_GET_SIZE(tasks);
    mode->loss.weighted = flag(dict, "weighted");
    for (int k = 0; k < mode->loss.tasks; k++) {
        PyObject *loss, *item = PyList_GET_ITEM(tasks, k);
        if (!PyArg_ParseTuple(item, "sOf|f", &mode->logits[k], &loss, &mode->loss.weight[k],
                              &mode->loss.smoothing[k]) ||
            mdmt_py_word("loss", loss, &mode->loss.loss[k]) < 0) {
            return -1;
        }
    }
    return reduction ? mdmt_py_word("reduction", reduction, &mode->loss.reduction) : 0;
}

/* mode["learns"]: how the names of the parameters that learn begin. */
static int parse_learns(PyObject *dict, mdmt_mode *mode)
{
    PyObject *value = PyDict_GetItemString(dict, "learns");
    const char *text = value ? PyUnicode_AsUTF8(value) : "";
    if (!text) {
        return -1;
    }
    if (strlen(text) >= sizeof mode->learns) {
        PyErr_Format(PyExc_ValueError, "'%s' is too long for the names of weights that learn",
                     text);
        return -1;
    }
    strcpy(mode->learns, text);
    return 0;
}

static int parse_mode(PyObject *dict, mdmt_mode *mode)
{
    memset(mode, 0, sizeof *mode);
    mode->batch = flag(dict, "batch");
    mode->height = flag(dict, "height");
    mode->width = flag(dict, "width");
    mode->training = flag(dict, "training");
    mode->want_gradients = flag(dict, "gradients");
    mode->from_store = flag(dict, "from_store");
    mode->augment = flag(dict, "augment");
    mode->colour = flag(dict, "colour");
    mode->target_width = flag(dict, "target_width");
    if (PyErr_Occurred() || parse_floats(dict, "mean", mode->mean) < 0 ||
        parse_floats(dict, "std", mode->std) < 0 || parse_learns(dict, mode) < 0) {
        return -1;
    }
    return mode->want_gradients ? parse_tasks(dict, mode) : 0;
}

static PyObject *read_named(mdmt_program *program, PyObject *names)
{
    PyObject *dict = PyDict_New();
    for (Py_ssize_t i = 0; dict && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        const char *text = PyUnicode_AsUTF8(name);
        int t = text ? mdmt_graph_find(program->graph, text) : -1;
        PyObject *array = NULL;
        if (t >= 0) {
            array = mdmt_py_read(program, t);
        } else {
            PyErr_Format(PyExc_KeyError, "the network has no output named %S", name);
        }
        if (!array || PyDict_SetItem(dict, name, array) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(array);
    }
    return dict;
}

/* The loss of the run that just ended must be a number, or the weights would be
 * lost with the next update. */
static mdmt_status check_loss(mdmt_program *program, const mdmt_mode *mode, const mdmt_step *step)
{
    float loss, per_task[2 * MDMT_MAX_TASKS];
    MDMT_TRY(mdmt_program_read(program, MDMT_NAME_LOSS, &loss));
    MDMT_TRY(mdmt_program_read(program, MDMT_NAME_PER_TASK, per_task));
    if (isfinite(loss)) {
        return MDMT_OK;
    }
    return mdmt_loss_not_finite(mode, per_task, step->step);
}

/* Of a step in parts, one of them; the last one updates. */
static mdmt_status run_step(py_network *self, mdmt_program *program, const mdmt_mode *mode,
                            const mdmt_py_step *s, const mdmt_adam *adam, double *norm,
                            double *seconds)
{
    const mdmt_parts *parts = &s->parts;
    mdmt_step step = s->step;
    step.step = mdmt_part_step(step.step, parts->first);
    MDMT_TRY(seconds ? mdmt_program_profile(program, &step, seconds)
                     : mdmt_program_run(program, &step));
    if (mode->want_gradients) {
        MDMT_TRY(check_loss(program, mode, &s->step));
    }
    if (parts->count > 1) {
        MDMT_TRY(mdmt_network_accumulate(self->network, mode, parts->first, parts->count,
                                         parts->scale[0]));
        adam = parts->first == parts->count - 1 ? adam : NULL;
    }
    return adam ? mdmt_network_adam(self->network, mode, adam, norm) : MDMT_OK;
}

static int prepare(py_network *self, PyObject *dict, PyObject *feeds, mdmt_mode *mode,
                   mdmt_program **program)
{
    if (parse_mode(dict, mode) < 0 || refresh(self) < 0) {
        return -1;
    }
    mdmt_status status = mdmt_network_program(self->network, mode, program);
    if (status != MDMT_OK) {
        mdmt_py_raise(status);
        return -1;
    }
    return mdmt_py_feed(*program, feeds);
}

static int parse_adam(PyObject *tuple, mdmt_adam *adam)
{
    long long step;
    adam->clip = 0;
    if (!PyArg_ParseTuple(tuple, "dddddpL|d", &adam->lr, &adam->beta1, &adam->beta2, &adam->eps,
                          &adam->weight_decay, &adam->decoupled, &step, &adam->clip)) {
        return -1;
    }
    adam->step = step;
    return 0;
}

/* out[MDMT_PY_NORM] = norm, where it was clipped. */
static PyObject *with_norm(PyObject *out, const mdmt_adam *adam, double norm)
{
    PyObject *value = out && adam && adam->clip > 0 ? PyFloat_FromDouble(norm) : NULL;
    if (value && PyDict_SetItemString(out, MDMT_PY_NORM, value) < 0) {
        Py_CLEAR(out);
    }
    Py_XDECREF(value);
    if (PyErr_Occurred()) {
        Py_CLEAR(out);
    }
    return out;
}

/* numbers[name] of each parameter of the graph, into number (tensors). */
static int parse_numbers(const mdmt_graph *graph, PyObject *numbers, int count, uint8_t *number)
{
    for (int t = 0; t < graph->tensors; t++) {
        if (graph->tensor[t].role != MDMT_ROLE_PARAM) {
            continue;
        }
        PyObject *item = PyDict_GetItemString(numbers, graph->tensor[t].name);
        long group = item ? PyLong_AsLong(item) : -1;
        if (PyErr_Occurred()) {
            return -1;
        }
        if (group < 0 || group >= count) {
            PyErr_Format(PyExc_ValueError, "%s must be of one of %d groups", graph->tensor[t].name,
                         count);
            return -1;
        }
        number[t] = (uint8_t)group;
    }
    return 0;
}

static PyObject *network_set_groups(PyObject *object, PyObject *args)
{
    py_network *self = (py_network *)object;
    const mdmt_graph *graph = mdmt_network_graph(self->network);
    PyObject *factors, *numbers;
    mdmt_group group[MDMT_MAX_GROUPS] = {{0}};
    mdmt_status status = MDMT_OK;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &factors, &PyDict_Type, &numbers)) {
        return NULL;
    }
    if (PyList_GET_SIZE(factors) > MDMT_MAX_GROUPS) {
        return PyErr_Format(PyExc_ValueError, "there may be at most %d groups of parameters",
                            (int)MDMT_MAX_GROUPS);
    }
    int count = (int)PyList_GET_SIZE(factors);
    for (int i = 0; i < count; i++) {
        if (!PyArg_ParseTuple(PyList_GET_ITEM(factors, i), "dd", &group[i].lr,
                              &group[i].weight_decay)) {
            return NULL;
        }
    }
    uint8_t *number = PyMem_Calloc((size_t)graph->tensors, 1);
    if (!number) {
        return PyErr_NoMemory();
    }
    int failed = count && parse_numbers(graph, numbers, count, number) < 0;
    if (!failed) {
        status = mdmt_network_set_groups(self->network, group, count, number);
    }
    PyMem_Free(number);
    if (failed || status != MDMT_OK) {
        return failed ? NULL : mdmt_py_raise(status);
    }
    Py_RETURN_NONE;
}

static PyObject *network_run(PyObject *object, PyObject *args, PyObject *keywords)
{
    py_network *self = (py_network *)object;
    PyObject *dict, *feeds, *names, *tuple = Py_None;
    mdmt_mode mode;
    mdmt_program *program;
    mdmt_py_step s;
    mdmt_adam numbers, *adam = NULL;
    double norm = 0;
    if (!PyArg_ParseTuple(args, "O!O!O!|O", &PyDict_Type, &dict, &PyDict_Type, &feeds,
                          &PyTuple_Type, &names, &tuple) ||
        (tuple != Py_None && parse_adam(tuple, adam = &numbers) < 0) ||
        prepare(self, dict, feeds, &mode, &program) < 0 || mdmt_py_step_parse(&s, keywords) < 0) {
        return NULL;
    }
    if (mode.from_store && (s.samples != mode.batch || s.batches != 1)) {
        PyErr_SetString(PyExc_ValueError, "a batch needs a data set and an index per sample");
        mdmt_py_step_free(&s);
        return NULL;
    }
    mdmt_status status;
    Py_BEGIN_ALLOW_THREADS status =
        run_step(self, program, &mode, &s, adam, &norm, NULL);
    Py_END_ALLOW_THREADS mdmt_py_step_free(&s);
    return status == MDMT_OK ? with_norm(read_named(program, names), adam, norm)
                             : mdmt_py_raise(status);
}

static PyObject *network_series(PyObject *object, PyObject *args, PyObject *keywords)
{
    py_network *self = (py_network *)object;
    PyObject *dict, *feeds, *names, *tuple = Py_None;
    mdmt_mode mode;
    mdmt_py_step s;
    mdmt_adam adam;
    self->done = 0;
    if (!PyArg_ParseTuple(args, "O!O!O!|O", &PyDict_Type, &dict, &PyDict_Type, &feeds,
                          &PyTuple_Type, &names, &tuple) ||
        (tuple != Py_None && parse_adam(tuple, &adam) < 0) || parse_mode(dict, &mode) < 0 ||
        refresh(self) < 0 || mdmt_py_step_parse(&s, keywords) < 0) {
        return NULL;
    }
    PyObject *out = mdmt_py_series(self->network, &mode, feeds, names,
                                   tuple == Py_None ? NULL : &adam, &s, &self->done);
    mdmt_py_step_free(&s);
    return out;
}

static PyObject *network_steps_done(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLong(((py_network *)object)->done);
}

static PyObject *network_recordings(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLong(mdmt_network_recordings(((py_network *)object)->network));
}

static PyObject *network_profile(PyObject *object, PyObject *args, PyObject *keywords)
{
    py_network *self = (py_network *)object;
    PyObject *dict, *feeds, *list = NULL;
    mdmt_mode mode;
    mdmt_program *program;
    mdmt_py_step s;
    if (!PyArg_ParseTuple(args, "O!O!", &PyDict_Type, &dict, &PyDict_Type, &feeds) ||
        prepare(self, dict, feeds, &mode, &program) < 0 || mdmt_py_step_parse(&s, keywords) < 0) {
        return NULL;
    }
    double *seconds = PyMem_Calloc((size_t)program->graph->ops + 1, sizeof *seconds);
    mdmt_status status = seconds ? MDMT_OK : mdmt_fail(MDMT_NO_MEMORY, "out of memory");
    if (seconds) {
        Py_BEGIN_ALLOW_THREADS status = run_step(self, program, &mode, &s, NULL, NULL, seconds);
        Py_END_ALLOW_THREADS
    }
    mdmt_py_step_free(&s);
    list = status == MDMT_OK ? mdmt_py_kernels(program, seconds, 1) : mdmt_py_raise(status);
    PyMem_Free(seconds);
    return list;
}

static PyObject *network_describe(PyObject *object, PyObject *dict)
{
    py_network *self = (py_network *)object;
    mdmt_mode mode;
    mdmt_program *program;
    if (!PyDict_Check(dict) || parse_mode(dict, &mode) < 0 || refresh(self) < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "describe takes a mode");
    }
    mdmt_status status = mdmt_network_look(self->network, &mode, &program);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    PyObject *list = mdmt_py_describe(program->graph, program->kernel);
    mdmt_program_close(program);
    return list;
}

static PyObject *network_memory(PyObject *object, PyObject *dict)
{
    py_network *self = (py_network *)object;
    mdmt_mode mode;
    mdmt_memory m;
    if (!PyDict_Check(dict) || parse_mode(dict, &mode) < 0 || refresh(self) < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "memory takes a mode");
    }
    mdmt_status status = mdmt_network_memory(self->network, &mode, &m);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L}", "parameters", (long long)m.parameters,
                         "gradients", (long long)m.gradients, "optimizer", (long long)m.optimizer,
                         "activations", (long long)m.activations, "workspace",
                         (long long)m.workspace);
}

static PyObject *network_forget_images(PyObject *object, PyObject *unused)
{
    (void)unused;
    mdmt_backend *backend = ((py_network *)object)->backend.backend;
    if (backend->forget_images) {
        backend->forget_images(backend);
    }
    Py_RETURN_NONE;
}

ALONE(network_get)
ALONE(network_set)
ALONE(network_set_groups)
ALONE_NAMED(network_run)
ALONE_NAMED(network_series)
ALONE_NAMED(network_profile)
ALONE(network_describe)
ALONE(network_memory)
ALONE(network_forget_images)

static PyMethodDef network_methods[] = {
    {"get", network_get_alone, METH_VARARGS,
     "get($self, name, what='weight', /)\n--\n\n"
     "Returns array"},
    {"set", network_set_alone, METH_VARARGS, "set($self, name, array, what='weight', /)\n--\n\n"},
    {"names", network_names, METH_NOARGS,
     "names($self)\n--\n\n"
     "Returns [(name, is_parameter)]"},
    {"run", (PyCFunction)(void (*)(void))network_run_alone, METH_VARARGS | METH_KEYWORDS,
     "run($self, mode, feeds, outputs, adam=None, /, **step)\n--\n\n"
     "Returns {output: array}"},
    {"series", (PyCFunction)(void (*)(void))network_series_alone, METH_VARARGS | METH_KEYWORDS,
     "series($self, mode, feeds, outputs, adam=None, /, **step)\n--\n\n"
     "Returns {output: array (batches, ...)}: as run with from_store, for the rows of dataset\n"
     "and index (batches, batch)."},
    {"set_groups", network_set_groups_alone, METH_VARARGS,
     "set_groups($self, factors, numbers, /)\n--\n\n"
     "Groups of parameters, [(of lr, of weight_decay)], and which each is of; []: none"},
    {"steps_done", network_steps_done, METH_NOARGS,
     "steps_done($self)\n--\n\n"
     "Returns steps of the last series that took effect, also where it failed"},
    {"recordings", network_recordings, METH_NOARGS,
     "recordings($self)\n--\n\n"
     "Returns how many kinds of batches are recorded on the device"},
    {"profile", (PyCFunction)(void (*)(void))network_profile_alone, METH_VARARGS | METH_KEYWORDS,
     "profile($self, mode, feeds, /, **step)\n--\n\n"
     "Returns [(op, kernel, seconds)]"},
    {"describe", network_describe_alone, METH_O,
     "describe($self, mode, /)\n--\n\n"
     "Returns list of dicts, one per op"},
    {"forget_images", network_forget_images_alone, METH_NOARGS,
     "forget_images($self)\n--\n\n"
     "Frees the backend's copies of the attached images"},
    {"memory", network_memory_alone, METH_O,
     "memory($self, mode, /)\n--\n\n"
     "Returns planned bytes"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot network_slots[] = {{Py_tp_new, network_new},
                                      {Py_tp_dealloc, network_dealloc},
                                      {Py_tp_methods, network_methods},
                                      {Py_tp_doc, "A network with its training state."},
                                      {0, NULL}};
PyType_Spec mdmt_py_network_spec = {"mdmt._core.Network", sizeof(py_network), 0, Py_TPFLAGS_DEFAULT,
                                    network_slots};
