/* The extension module mdmt._cuda: hands its backend to mdmt._core in a capsule
 * (cuda/services.h). It imports without a driver. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../../cuda/services.h"

static mdmt_cuda_module handed;

static int module_exec(PyObject *module)
{
    handed.shape = MDMT_CUDA_SHAPE;
    handed.open = mdmt_cuda_open;
    PyObject *capsule = PyCapsule_New(&handed, MDMT_CUDA_CAPSULE, NULL);
    int failed = !capsule || PyModule_AddObjectRef(module, "module", capsule) < 0;
    Py_XDECREF(capsule);
    if (failed || PyModule_AddIntConstant(module, "emulated", mdmt_cuda_emulated()) < 0 ||
        PyModule_AddStringConstant(module, "build", mdmt_cuda_build()) < 0) {
        return -1;
    }
    return 0;
}

static PyObject *devices(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    char text[512];
    int count = mdmt_cuda_probe(text, sizeof text);
    return Py_BuildValue("(is)", count, text);
}

static PyObject *load_cudnn(PyObject *self, PyObject *path)
{
    (void)self;
    char text[512] = "";
    const char *name = PyUnicode_AsUTF8(path);
    return name ? Py_BuildValue("(is)", mdmt_cuda_load_library(name, text, sizeof text), text)
                : NULL;
}

static PyObject *tuning(PyObject *self, PyObject *ordinal)
{
    (void)self;
    char identity[320];
    int measured = 0, device = (int)PyLong_AsLong(ordinal);
    if (PyErr_Occurred()) {
        return NULL;
    }
    size_t room = (size_t)mdmt_cuda_tuning(device, identity, sizeof identity, NULL, 0, &measured);
    room = 512 * (room + 1);
    char *text = PyMem_Malloc(room);
    if (!text) {
        return PyErr_NoMemory();
    }
    mdmt_cuda_tuning(device, identity, sizeof identity, text, room, &measured);
    PyObject *found = Py_BuildValue("(ssi)", identity, text, measured);
    PyMem_Free(text);
    return found;
}

static PyObject *take_tuning(PyObject *self, PyObject *args)
{
    (void)self;
    int device;
    const char *text;
    return PyArg_ParseTuple(args, "is", &device, &text)
               ? PyLong_FromLong(mdmt_cuda_take_tuning(device, text))
               : NULL;
}

static PyMethodDef functions[] = {
    {"load_cudnn", load_cudnn, METH_O,
     "load_cudnn(path) -> (version, text): loads cuDNN; version 0: text says why not."},
    {"tuning", tuning, METH_O,
     "tuning(ordinal) -> (identity, text, measured): the choices of engines that were measured on "
     "a device,\nwhat they depend on, and how many this process measured."},
    {"take_tuning", take_tuning, METH_VARARGS,
     "take_tuning(ordinal, text) -> choices taken over, or -1 where the text is damaged."},
    {"devices", devices, METH_NOARGS,
     "devices() -> (count, text): the GPUs that can be used, or 0 and why there is none."},
    {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)module_exec}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "_cuda",
                                        .m_doc = "The CUDA backend of mdmt.",
                                        .m_methods = functions,
                                        .m_slots = slots};

PyMODINIT_FUNC PyInit__cuda(void)
{
    return PyModuleDef_Init(&definition);
}
