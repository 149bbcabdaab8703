/* NVIDIA's own cuDNN, asked on a machine without a GPU what it would do on one: the functions that
 * the backend calls go to the library named by REAL_CUDNN, and where that wants a handle it gets
 * the properties of the GPU that GPU_PROPERTIES describes (JSON; cuDNN 9.8 or newer). What is
 * started does nothing. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/cuda/cudnn_api.h"

/* Numbers of cudnn_graph.h that only this needs. */
enum {
    AS_CHAR = 24,
    IS_DEVICE = 38,
    HEUR_DEVICE = 204,
    PLAN_DEVICE = 407,
    DEVICE_JSON = 2702,
    FAILED = 1001
};

static void *address(const char *name)
{
    static void *library;
    const char *path = getenv("REAL_CUDNN");
    if (!library) {
        library = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
    }
    return library ? dlsym(library, name) : NULL;
}

#define REAL(result, name, types)                                                                  \
    static result(*real) types;                                                                    \
    if (!real) {                                                                                   \
        void *found = address(name);                                                               \
        memcpy((void *)&real, &found, sizeof found);                                               \
    }

size_t cudnnGetVersion(void)
{
    REAL(size_t, "cudnnGetVersion", (void))
    return real ? real() : 0;
}

const char *cudnnGetErrorString(int status)
{
    REAL(const char *, "cudnnGetErrorString", (int))
    return real(status);
}

int cudnnCreate(void **handle)
{
    *handle = malloc(1);
    return *handle ? CUDNN_SUCCESS : FAILED;
}

int cudnnDestroy(void *handle)
{
    free(handle);
    return CUDNN_SUCCESS;
}

int cudnnSetStream(void *handle, void *stream)
{
    (void)handle;
    (void)stream;
    return CUDNN_SUCCESS;
}

int cudnnBackendCreateDescriptor(int kind, void **made)
{
    REAL(int, "cudnnBackendCreateDescriptor", (int, void **))
    return real(kind, made);
}

int cudnnBackendDestroyDescriptor(void *d)
{
    REAL(int, "cudnnBackendDestroyDescriptor", (void *))
    return real(d);
}

int cudnnBackendFinalize(void *d)
{
    REAL(int, "cudnnBackendFinalize", (void *))
    return real(d);
}

int cudnnBackendGetAttribute(void *from, int name, int type, int64_t room, int64_t *count, void *to)
{
    REAL(int, "cudnnBackendGetAttribute", (void *, int, int, int64_t, int64_t *, void *))
    return real(from, name, type, room, count, to);
}

static int set(void *to, int name, int type, int64_t count, const void *from)
{
    REAL(int, "cudnnBackendSetAttribute", (void *, int, int, int64_t, const void *))
    return real(to, name, type, count, from);
}

/* The GPU of GPU_PROPERTIES as it is now; NULL: the library refuses the description. */
static void *device(void)
{
    static void *made;
    static char *of;
    const char *wish = getenv("GPU_PROPERTIES");
    if (!wish || (made && strcmp(of, wish) == 0)) {
        return wish ? made : NULL;
    }
    made = NULL;
    free(of);
    of = strdup(wish);
    if (!of || cudnnBackendCreateDescriptor(IS_DEVICE, &made) != CUDNN_SUCCESS ||
        set(made, DEVICE_JSON, AS_CHAR, (int64_t)strlen(of), of) != CUDNN_SUCCESS ||
        cudnnBackendFinalize(made) != CUDNN_SUCCESS) {
        made = NULL;
    }
    return made;
}

int cudnnBackendSetAttribute(void *to, int name, int type, int64_t count, const void *from)
{
    void *gpu = device();
    if (!gpu) {
        return FAILED;
    }
    if (name == CUDNN_GRAPH_HANDLE) {
        return CUDNN_SUCCESS;
    }
    if (name == CUDNN_PLAN_HANDLE) {
        return set(to, PLAN_DEVICE, CUDNN_AS_DESCRIPTOR, 1, (const void *)&gpu);
    }
    int status = set(to, name, type, count, from);
    return status == CUDNN_SUCCESS && name == CUDNN_HEUR_GRAPH
               ? set(to, HEUR_DEVICE, CUDNN_AS_DESCRIPTOR, 1, (const void *)&gpu)
               : status;
}

int cudnnBackendExecute(void *handle, void *plan, void *variants)
{
    (void)handle;
    (void)plan;
    (void)variants;
    return CUDNN_SUCCESS;
}
