/* Opens the backend of mdmt._cuda and lends it what it calls of the engine. */
#include "common.h"

#include <string.h>

#include "../cpu/images.h"
#include "../cuda/services.h"

static const mdmt_cuda_services services = {.shape = MDMT_CUDA_SHAPE,
                                            .fail = mdmt_fail,
                                            .acquire = mdmt_acquire,
                                            .release = mdmt_release,
                                            .check_augmentation = mdmt_augmentation_check};

static mdmt_status precision_of(const char *name, mdmt_cuda_precision *precision)
{
    static const char *const names[] = {"fp32", "tf32", "bf16"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(names[i], name) == 0) {
            *precision = (mdmt_cuda_precision)i;
            return MDMT_OK;
        }
    }
    return mdmt_fail(MDMT_BAD_ARGUMENT,
                     "the precision on a GPU must be fp32, tf32 or bf16, not '%s'", name);
}

static mdmt_status open_module(mdmt_py_backend *b, PyObject *capsule,
                               const mdmt_cuda_options *options)
{
    const mdmt_cuda_module *module = PyCapsule_GetPointer(capsule, MDMT_CUDA_CAPSULE);
    if (!module) {
        PyErr_Clear();
        return mdmt_fail(MDMT_BAD_ARGUMENT, "a device is named by the capsule of mdmt._cuda");
    }
    if (module->shape != services.shape) {
        return mdmt_fail(MDMT_INTERNAL,
                         "mdmt._cuda was built from other sources than mdmt._core: build both");
    }
    MDMT_TRY(module->open(&b->backend, &services, options));
    b->module = Py_NewRef(capsule);
    return MDMT_OK;
}

mdmt_status mdmt_py_backend_open(mdmt_py_backend *b, const mdmt_py_choice *choice)
{
    PyObject *capsule;
    const char *precision;
    mdmt_cuda_options options = {.library = 1, .deterministic = 1};
    if (choice->device == Py_None) {
        return mdmt_py_backend_open_cpu(b, choice);
    }
    memset(b, 0, sizeof *b);
    if (!PyTuple_Check(choice->device) ||
        !PyArg_ParseTuple(choice->device, "Ois|pp", &capsule, &options.device, &precision,
                          &options.library, &options.deterministic)) {
        PyErr_Clear();
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "a device is None or (capsule, ordinal, precision, libraries, "
                         "deterministic)");
    }
    MDMT_TRY(precision_of(precision, &options.precision));
    return open_module(b, capsule, &options);
}
