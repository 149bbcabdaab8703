/* The extension module mdmt._core. */
#define MDMT_IMPORTS_NUMPY
#include "common.h"

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **keep)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!type) {
        return -1;
    }
    if (keep) {
        *keep = (PyTypeObject *)Py_NewRef(type);
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static int module_exec(PyObject *module)
{
    import_array1(-1);
    if (add_type(module, &mdmt_py_graph_spec, &mdmt_py_graph_type) < 0 ||
        add_type(module, &mdmt_py_program_spec, NULL) < 0 ||
        add_type(module, &mdmt_py_network_spec, NULL) < 0) {
        return -1;
    }
    int (*const adders[])(PyObject *) = {
        mdmt_py_add_backend,
        mdmt_py_add_bench,
        mdmt_py_add_train,
    };
    for (size_t i = 0; i < sizeof adders / sizeof *adders; i++) {
        if (adders[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)module_exec}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "_core",
                                        .m_doc = "The engine of mdmt.",
                                        .m_slots = slots};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
