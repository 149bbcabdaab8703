/* _core.Graph: a network or a few ops, described from Python. */
#include "common.h"

#include <string.h>

PyTypeObject *mdmt_py_graph_type;

static PyObject *graph_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)args, (void)keywords;
    mdmt_py_graph *self = (mdmt_py_graph *)type->tp_alloc(type, 0);
    if (self && mdmt_graph_open(&self->graph) != MDMT_OK) {
        Py_DECREF(self);
        return mdmt_py_raise(MDMT_NO_MEMORY);
    }
    return (PyObject *)self;
}

static void graph_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    mdmt_graph_close(((mdmt_py_graph *)object)->graph);
    type->tp_free(object);
    Py_DECREF(type);
}

static int find_word(const char *const *names, int count, const char *name, const char *what)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    PyErr_Format(PyExc_ValueError, "there is no %s '%s'", what, name);
    return -1;
}

static PyObject *new_tensor(PyObject *object, PyObject *args, mdmt_role role)
{
    static const char *const kinds[] = {"image",     "map",     "rows",   "vector",
                                        "matrix",    "w_dense", "w_stem", "w_depth",
                                        "w_grouped", "stats",   "scalar"};
    static const char *const dtypes[] = {"f32", "i32", "u8"};
    const char *name, *kind, *dtype = "f32";
    PyObject *shape;
    if (!PyArg_ParseTuple(args, "ssO!|s", &name, &kind, &PyTuple_Type, &shape, &dtype)) {
        return NULL;
    }
    int k = find_word(kinds, MDMT_SCALAR + 1, kind, "kind of tensor");
    int d = k < 0 ? -1 : find_word(dtypes, 3, dtype, "type of element");
    if (d < 0) {
        return NULL;
    }
    int dims = (int)PyTuple_GET_SIZE(shape), dim[4] = {0}, index;
    for (int i = 0; i < dims && i < 4; i++) {
        dim[i] = mdmt_py_int(PyTuple_GET_ITEM(shape, i), "a dimension");
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    if (*name && mdmt_graph_find(graph, name) >= 0) {
        return PyErr_Format(PyExc_ValueError, "the graph has a tensor named %s already", name);
    }
    mdmt_status status =
        mdmt_graph_tensor(graph, name, (mdmt_kind)k, (mdmt_dtype)d, role, dims, dim, &index);
    return status == MDMT_OK ? PyLong_FromLong(index) : mdmt_py_raise(status);
}

static PyObject *graph_input(PyObject *self, PyObject *args)
{
    return new_tensor(self, args, MDMT_ROLE_INPUT);
}

static PyObject *graph_value(PyObject *self, PyObject *args)
{
    return new_tensor(self, args, MDMT_ROLE_VALUE);
}

static PyObject *graph_param(PyObject *self, PyObject *args)
{
    return new_tensor(self, args, MDMT_ROLE_PARAM);
}

static PyObject *graph_buffer(PyObject *self, PyObject *args)
{
    return new_tensor(self, args, MDMT_ROLE_BUFFER);
}

/* Tensor indices from a sequence; None means absent. Number of them, or -1. */
static int parse_inputs(PyObject *sequence, int *in)
{
    PyObject *list = PySequence_Fast(sequence, "the inputs must be a sequence of tensors");
    if (!list) {
        return -1;
    }
    Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
    if (count > MDMT_MAX_IN) {
        PyErr_Format(PyExc_ValueError, "an op has at most %d inputs", MDMT_MAX_IN);
    }
    for (Py_ssize_t i = 0; !PyErr_Occurred() && i < count; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        in[i] = item == Py_None ? -1 : mdmt_py_int(item, "a tensor");
    }
    Py_DECREF(list);
    return PyErr_Occurred() ? -1 : (int)count;
}

static PyObject *graph_add(PyObject *object, PyObject *args, PyObject *keywords)
{
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    const char *name;
    PyObject *inputs;
    _Alignas(8) unsigned char attrs[MDMT_ATTR_BYTES];
    int in[MDMT_MAX_IN], index;
    if (!PyArg_ParseTuple(args, "sO", &name, &inputs)) {
        return NULL;
    }
    const mdmt_op_record *record = mdmt_op_find(name);
    if (!record) {
        return PyErr_Format(PyExc_ValueError, "there is no op '%s'", name);
    }
    int count = parse_inputs(inputs, in);
    if (count < 0 || mdmt_py_attrs(record, keywords, attrs) < 0) {
        return NULL;
    }
    mdmt_status status = mdmt_graph_op(graph, record, attrs, count, in, &index);
    if (status != MDMT_OK) {
        return mdmt_py_raise(status);
    }
    const mdmt_op *op = &graph->op[index];
    PyObject *outputs = PyList_New(op->outputs);
    for (int i = 0; outputs && i < op->outputs; i++) {
        PyList_SET_ITEM(outputs, i, PyLong_FromLong(op->out[i]));
    }
    return outputs;
}

static int valid_tensor(const mdmt_graph *graph, int tensor)
{
    if (tensor < 0 || tensor >= graph->tensors) {
        PyErr_Format(PyExc_ValueError, "the graph has no tensor %d", tensor);
        return 0;
    }
    return 1;
}

static PyObject *graph_lazy(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"source", "scale", "shift", "act", "gate", NULL};
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    int source, scale, shift, act, index, gate = -1;
    PyObject *word;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iiiO|i", names, &source, &scale, &shift,
                                     &word, &gate) ||
        mdmt_py_word("act", word, &act) < 0 || !valid_tensor(graph, source) ||
        !valid_tensor(graph, scale) || !valid_tensor(graph, shift) ||
        (gate >= 0 && !valid_tensor(graph, gate))) {
        return NULL;
    }
    mdmt_status status = mdmt_graph_lazy(graph, source, scale, shift, (mdmt_act)act, gate, &index);
    return status == MDMT_OK ? PyLong_FromLong(index) : mdmt_py_raise(status);
}

static PyObject *graph_view(PyObject *object, PyObject *args)
{
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    int root, from, channels, index;
    if (!PyArg_ParseTuple(args, "iii", &root, &from, &channels) || !valid_tensor(graph, root)) {
        return NULL;
    }
    mdmt_status status = mdmt_graph_view(graph, root, from, channels, &index);
    return status == MDMT_OK ? PyLong_FromLong(index) : mdmt_py_raise(status);
}

static PyObject *graph_place(PyObject *object, PyObject *args)
{
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    int tensor, root, from;
    if (!PyArg_ParseTuple(args, "iii", &tensor, &root, &from) || !valid_tensor(graph, tensor) ||
        !valid_tensor(graph, root)) {
        return NULL;
    }
    mdmt_status status = mdmt_graph_place(graph, tensor, root, from);
    return status == MDMT_OK ? Py_NewRef(Py_None) : mdmt_py_raise(status);
}

static PyObject *graph_numbers(PyObject *object, PyObject *sequence)
{
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    PyObject *list = PySequence_Fast(sequence, "numbers takes a sequence of integers");
    if (!list) {
        return NULL;
    }
    int at = graph->numbers;
    mdmt_status status = MDMT_OK;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list) && status == MDMT_OK; i++) {
        int where;
        int32_t number = mdmt_py_int(PySequence_Fast_GET_ITEM(list, i), "a number");
        status =
            PyErr_Occurred() ? MDMT_BAD_ARGUMENT : mdmt_graph_numbers(graph, &number, 1, &where);
    }
    Py_DECREF(list);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return status == MDMT_OK ? PyLong_FromLong(at) : mdmt_py_raise(status);
}

static PyObject *graph_output(PyObject *object, PyObject *args)
{
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    int tensor;
    const char *name;
    if (!PyArg_ParseTuple(args, "is", &tensor, &name) || !valid_tensor(graph, tensor)) {
        return NULL;
    }
    mdmt_tensor *t = &graph->tensor[tensor];
    int owner = mdmt_graph_find(graph, name);
    if ((owner >= 0 && owner != tensor) || t->is_output || strlen(name) >= MDMT_NAME_BYTES) {
        return PyErr_Format(PyExc_ValueError, "%s cannot be the name of this output", name);
    }
    t->is_output = 1;
    strcpy(t->name, name);
    Py_RETURN_NONE;
}

static PyObject *graph_shape(PyObject *object, PyObject *argument)
{
    mdmt_graph *graph = ((mdmt_py_graph *)object)->graph;
    int index = mdmt_py_int(argument, "a tensor");
    if (PyErr_Occurred() || !valid_tensor(graph, index)) {
        return NULL;
    }
    const mdmt_tensor *t = &graph->tensor[index];
    PyObject *shape = PyTuple_New(t->dims);
    for (int i = 0; shape && i < t->dims; i++) {
        PyTuple_SET_ITEM(shape, i, PyLong_FromLong(t->dim[i]));
    }
    return shape;
}

static PyObject *graph_describe(PyObject *object, PyObject *unused)
{
    (void)unused;
    return mdmt_py_describe(((mdmt_py_graph *)object)->graph, NULL);
}

static PyMethodDef graph_methods[] = {
    {"input", graph_input, METH_VARARGS, "input($self, name, kind, shape, dtype='f32', /)\n--\n\n"
     "Returns tensor"},
    {"param", graph_param, METH_VARARGS, "param($self, name, kind, shape, /)\n--\n\n"
     "Returns tensor"},
    {"buffer", graph_buffer, METH_VARARGS, "buffer($self, name, kind, shape, /)\n--\n\n"
     "Returns tensor"},
    {"add", (PyCFunction)(void (*)(void))graph_add, METH_VARARGS | METH_KEYWORDS,
     "add($self, op, inputs, /, **attributes)\n--\n\n"
     "Returns list of output tensors"},
    {"value", graph_value, METH_VARARGS,
     "value($self, name, kind, shape, /)\n--\n\n"
     "Returns tensor that ops fill through views of it"},
    {"lazy", (PyCFunction)(void (*)(void))graph_lazy, METH_VARARGS | METH_KEYWORDS,
     "lazy($self, source, scale, shift, act, gate=-1)\n--\n\n"
     "Returns tensor"},
    {"view", graph_view, METH_VARARGS, "view($self, root, start, channels, /)\n--\n\n"
     "Returns tensor"},
    {"place", graph_place, METH_VARARGS,
     "place($self, tensor, root, start, /)\n--\n\n"
     "Makes a tensor, an op's output, a view of root"},
    {"numbers", graph_numbers, METH_O, "numbers($self, integers, /)\n--\n\n"
     "Returns where they are kept"},
    {"output", graph_output, METH_VARARGS, "output($self, tensor, name, /)\n--\n\n"},
    {"shape", graph_shape, METH_O, "shape($self, tensor, /)\n--\n\n"
     "Returns tuple"},
    {"describe", graph_describe, METH_NOARGS, "describe($self)\n--\n\n"
     "Returns list of dicts, one per op"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot graph_slots[] = {{Py_tp_new, graph_new},
                                    {Py_tp_dealloc, graph_dealloc},
                                    {Py_tp_methods, graph_methods},
                                    {Py_tp_doc, "A graph of ops on tensors."},
                                    {0, NULL}};
PyType_Spec mdmt_py_graph_spec = {"mdmt._core.Graph", sizeof(mdmt_py_graph), 0, Py_TPFLAGS_DEFAULT,
                                  graph_slots};
