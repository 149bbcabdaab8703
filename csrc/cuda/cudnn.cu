/* Loads cuDNN, describes convolutions to it, keeps its plans. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "cudnn.cuh"
#include "cudnn_api.h"

static mdmt_cudnn_api api;
static int loaded; /* its version, 91002 for 9.10.2; 0: none */

/* ---- the library ---- */

static int find_functions(void *library, mdmt_cudnn_api *found)
{
    struct {
        const char *name;
        void *slot;
    } const wanted[] = {
        {"cudnnGetVersion", &found->version},
        {"cudnnGetErrorString", &found->error},
        {"cudnnCreate", &found->create},
        {"cudnnDestroy", &found->destroy},
        {"cudnnSetStream", &found->set_stream},
        {"cudnnBackendCreateDescriptor", &found->make},
        {"cudnnBackendDestroyDescriptor", &found->drop},
        {"cudnnBackendSetAttribute", &found->set},
        {"cudnnBackendGetAttribute", &found->get},
        {"cudnnBackendFinalize", &found->finish},
        {"cudnnBackendExecute", &found->execute},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *address = dlsym(library, wanted[i].name);
        if (!address) {
            return 0;
        }
        memcpy(wanted[i].slot, &address, sizeof address);
    }
    return 1;
}

/* Loads libcublasLt.so.MAJOR for a cuDNN in `folder`. Without it cuDNN ends the process when it is
 * first asked for an engine; once it is loaded, from wherever, cuDNN finds it by its name. Tried
 * are the folders of pip's packages, cuDNN's own, a toolkit's, and those of the system's loader. */
static int load_companion(const char *folder, int major)
{
    const char *home = getenv("CUDA_HOME"), *toolkit = home ? home : getenv("CUDA_PATH");
    const char *const before[] = {folder, folder, folder, toolkit, toolkit, ""};
    const char *const after[] = {
        "/../../cu13/lib/", "/../../cublas/lib/", "/", "/lib64/", "/lib/", ""};
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        char path[4096];
        int length = before[i] ? snprintf(path, sizeof path, "%s%slibcublasLt.so.%d", before[i],
                                          after[i], major)
                               : 0;
        if (length > 0 && (size_t)length < sizeof path && dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
            return 1;
        }
    }
    return 0;
}

/* The same for the library that has this function; 0 with why not in `text`. */
static int find_companion(const char *path, void *library, const void *function, char *text,
                          size_t room)
{
    size_t (*runtime)(void) = NULL;
    void *address = dlsym(library, "cudnnGetCudartVersion");
    Dl_info info;
    char folder[4096] = ".";
    memcpy((void *)&runtime, &address, sizeof address);
    int major = runtime ? (int)(runtime() / 1000) : 0;
    if (dladdr(function, &info) && info.dli_fname && strrchr(info.dli_fname, '/')) {
        snprintf(folder, sizeof folder, "%.*s",
                 (int)(strrchr(info.dli_fname, '/') - info.dli_fname), info.dli_fname);
    }
    if (!major || load_companion(folder, major)) {
        return 1;
    }
    snprintf(text, room,
             "%s needs libcublasLt.so.%d, which is not found: pip install nvidia-cublas%s, or put "
             "its folder into LD_LIBRARY_PATH",
             path, major, major == 12 ? "-cu12" : "");
    return 0;
}

/* Tries one file; its version, or 0 with why not in `text`. */
static int load_one(const char *path, char *text, size_t room)
{
    mdmt_cudnn_api found;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        snprintf(text, room, "%s", why ? why : "it cannot be loaded");
        return 0;
    }
    if (!find_functions(library, &found)) {
        snprintf(text, room, "%s is no cuDNN with a graph API", path);
        dlclose(library);
        return 0;
    }
    int version = (int)found.version();
    if (version < 90100 || version >= 100000) {
        snprintf(text, room, "%s is cuDNN %d, but 9.1 or a later 9 is needed", path, version);
        dlclose(library);
        return 0;
    }
    void *function;
    memcpy(&function, (void *)&found.version, sizeof function);
    if (!find_companion(path, library, function, text, room)) {
        dlclose(library);
        return 0;
    }
    api = found;
    return version;
}

int mdmt_cuda_load_library(const char *path, char *text, size_t room)
{
    if (!loaded) {
        loaded = load_one(path, text, room);
    }
    if (loaded) {
        snprintf(text, room, "cuDNN %d.%d.%d", loaded / 10000, loaded / 100 % 100, loaded % 100);
    }
    return loaded;
}

int mdmt_cudnn_version(void)
{
    return loaded;
}

int mdmt_cudnn_ready(mdmt_gpu *gpu)
{
    if (!loaded || !gpu->options.library) {
        return 0;
    }
    if (!gpu->cudnn && !gpu->cudnn_refused) {
        gpu->cudnn_refused = api.create(&gpu->cudnn) != CUDNN_SUCCESS ||
                             api.set_stream(gpu->cudnn, (void *)gpu->stream) != CUDNN_SUCCESS;
    }
    return !gpu->cudnn_refused;
}

mdmt_status mdmt_cudnn_follow(mdmt_gpu *gpu, mdmt_stream_handle stream)
{
    if (gpu->cudnn && api.set_stream(gpu->cudnn, (void *)stream) != CUDNN_SUCCESS) {
        return mdmt_lent->fail(MDMT_INTERNAL, "cuDNN does not take another stream");
    }
    return MDMT_OK;
}

/* ---- descriptors; a failed step makes all later ones do nothing ---- */

enum { KEPT = 64 };
struct workshop {
    void *kept[KEPT];
    int count, failed;
};

static void *make(workshop *shop, int kind)
{
    void *descriptor = NULL;
    if (shop->failed || shop->count == KEPT || api.make(kind, &descriptor) != CUDNN_SUCCESS) {
        shop->failed = 1;
        return NULL;
    }
    shop->kept[shop->count++] = descriptor;
    return descriptor;
}

static void set(workshop *shop, void *to, int name, int type, int64_t count, const void *values)
{
    shop->failed = shop->failed || api.set(to, name, type, count, values) != CUDNN_SUCCESS;
}

static void finish(workshop *shop, void *descriptor)
{
    shop->failed = shop->failed || api.finish(descriptor) != CUDNN_SUCCESS;
}

static void drop_all(workshop *shop)
{
    while (shop->count) {
        api.drop(shop->kept[--shop->count]);
    }
}

/* Channels last: dim (N, C, H, W), `pitch` elements from a pixel to the next. */
static void *tensor(workshop *shop, int64_t id, int type, const int *dim, int pitch)
{
    void *t = make(shop, CUDNN_IS_TENSOR);
    int64_t size[4] = {dim[0], dim[1], dim[2], dim[3]}, alignment = 16;
    int64_t stride[4] = {(int64_t)dim[2] * dim[3] * pitch, 1, (int64_t)dim[3] * pitch, pitch};
    set(shop, t, CUDNN_TENSOR_TYPE, CUDNN_AS_DATA_TYPE, 1, &type);
    set(shop, t, CUDNN_TENSOR_DIMENSIONS, CUDNN_AS_INT64, 4, size);
    set(shop, t, CUDNN_TENSOR_STRIDES, CUDNN_AS_INT64, 4, stride);
    set(shop, t, CUDNN_TENSOR_ID, CUDNN_AS_INT64, 1, &id);
    set(shop, t, CUDNN_TENSOR_ALIGNMENT, CUDNN_AS_INT64, 1, &alignment);
    finish(shop, t);
    return t;
}

enum { ID_X = 'x', ID_W = 'w', ID_Y = 'y' };

static void *convolution(workshop *shop, const mdmt_conv_key *key)
{
    void *c = make(shop, CUDNN_IS_CONVOLUTION);
    int type = CUDNN_FLOAT, mode = CUDNN_CROSS_CORRELATION_MODE;
    int64_t spatial = 2, stride[2], dilation[2], before[2], after[2];
    for (int i = 0; i < 2; i++) {
        stride[i] = key->stride[i];
        dilation[i] = key->dilation[i];
        before[i] = key->before[i];
        after[i] = key->after[i];
    }
    set(shop, c, CUDNN_CONV_COMPUTE_TYPE, CUDNN_AS_DATA_TYPE, 1, &type);
    set(shop, c, CUDNN_CONV_MODE, CUDNN_AS_CONV_MODE, 1, &mode);
    set(shop, c, CUDNN_CONV_SPATIAL_DIMS, CUDNN_AS_INT64, 1, &spatial);
    set(shop, c, CUDNN_CONV_DILATIONS, CUDNN_AS_INT64, 2, dilation);
    set(shop, c, CUDNN_CONV_STRIDES, CUDNN_AS_INT64, 2, stride);
    set(shop, c, CUDNN_CONV_PRE_PADDINGS, CUDNN_AS_INT64, 2, before);
    set(shop, c, CUDNN_CONV_POST_PADDINGS, CUDNN_AS_INT64, 2, after);
    finish(shop, c);
    return c;
}

static void *graph_of(workshop *shop, void *handle, const mdmt_conv_key *key)
{
    static const int kinds[] = {CUDNN_IS_CONV_FORWARD, CUDNN_IS_CONV_WEIGHT, CUDNN_IS_CONV_DATA};
    static const int firsts[] = {CUDNN_FORWARD_FIRST, CUDNN_WEIGHT_FIRST, CUDNN_DATA_FIRST};
    int w_type = key->pass == MDMT_CONV_WEIGHT ? key->result_type : key->map_type;
    void *part[6], *op, *graph;
    part[2] = convolution(shop, key);
    part[3] = tensor(shop, ID_W, w_type, key->w, key->w[1]);
    part[4] = tensor(shop, ID_X, key->map_type, key->x, key->x_pitch);
    part[5] = tensor(shop, ID_Y, key->map_type, key->y, key->y_pitch);
    op = make(shop, kinds[key->pass]);
    float scale[2] = {1, key->accumulate ? 1.0f : 0.0f};
    for (int i = 0; i < 6; i++) {
        set(shop, op, firsts[key->pass] + i, i < 2 ? CUDNN_AS_FLOAT : CUDNN_AS_DESCRIPTOR, 1,
            i < 2 ? (const void *)&scale[i] : (const void *)&part[i]);
    }
    finish(shop, op);
    graph = make(shop, CUDNN_IS_GRAPH);
    set(shop, graph, CUDNN_GRAPH_OPS, CUDNN_AS_DESCRIPTOR, 1, &op);
    set(shop, graph, CUDNN_GRAPH_HANDLE, CUDNN_AS_HANDLE, 1, &handle);
    finish(shop, graph);
    return graph;
}

/* ---- the choice of an engine ---- */

/* Whether the engine of a configuration has a property that the key forbids. */
static int forbidden(const mdmt_conv_key *key, void *config)
{
    void *engine = NULL;
    int64_t count = 0;
    int note[32], bad = 0;
    if (api.make(CUDNN_IS_ENGINE, &engine) != CUDNN_SUCCESS) {
        return 1;
    }
    bad = api.get(config, CUDNN_CFG_ENGINE, CUDNN_AS_DESCRIPTOR, 1, &count, &engine) !=
              CUDNN_SUCCESS ||
          api.get(engine, CUDNN_ENGINE_NUMERICAL_NOTE, CUDNN_AS_NUMERICAL_NOTE, 32, &count, note) !=
              CUDNN_SUCCESS;
    for (int64_t i = 0; !bad && i < count && i < 32; i++) {
        bad |= key->deterministic && note[i] == CUDNN_NOTE_NONDETERMINISTIC;
        bad |= note[i] == CUDNN_NOTE_REDUCED_REDUCTION || note[i] == CUDNN_NOTE_FFT;
        bad |= key->exact && (note[i] == CUDNN_NOTE_TENSOR_CORE ||
                              note[i] == CUDNN_NOTE_DOWN_CONVERT || note[i] == CUDNN_NOTE_WINOGRAD);
    }
    api.drop(engine);
    return bad;
}

/* A finished plan of the configuration, or NULL. */
static void *plan_of(void *handle, void *config, size_t *workspace)
{
    void *plan = NULL;
    int64_t count = 0, bytes = 0;
    if (api.make(CUDNN_IS_PLAN, &plan) != CUDNN_SUCCESS) {
        return NULL;
    }
    if (api.set(plan, CUDNN_PLAN_HANDLE, CUDNN_AS_HANDLE, 1, &handle) != CUDNN_SUCCESS ||
        api.set(plan, CUDNN_PLAN_CFG, CUDNN_AS_DESCRIPTOR, 1, &config) != CUDNN_SUCCESS ||
        api.finish(plan) != CUDNN_SUCCESS ||
        api.get(plan, CUDNN_PLAN_WORKSPACE, CUDNN_AS_INT64, 1, &count, &bytes) != CUDNN_SUCCESS) {
        api.drop(plan);
        return NULL;
    }
    *workspace = (size_t)bytes;
    return plan;
}

/* ---- candidates ---- */

enum { CONFIGS = 24 };

/* An engine of the heuristic `mode`, by its rank there. */
struct candidate {
    void *plan;
    size_t workspace;
    int mode, rank;
    int64_t engine;     /* its number in the library */
    float milliseconds; /* 0: not measured */
};

struct mdmt_conv_plan {
    mdmt_conv_key key;
    candidate chosen;        /* plan NULL: no engine does it */
    workshop graph, configs; /* what the plan was made from */
    mdmt_conv_plan *next;
};

static int64_t engine_number(void *config)
{
    void *engine = NULL;
    int64_t count = 0, number = -1;
    if (api.make(CUDNN_IS_ENGINE, &engine) != CUDNN_SUCCESS) {
        return -1;
    }
    if (api.get(config, CUDNN_CFG_ENGINE, CUDNN_AS_DESCRIPTOR, 1, &count, &engine) !=
            CUDNN_SUCCESS ||
        api.get(engine, CUDNN_ENGINE_GLOBAL_INDEX, CUDNN_AS_INT64, 1, &count, &number) !=
            CUDNN_SUCCESS) {
        number = -1;
    }
    api.drop(engine);
    return number;
}

/* Configurations in the order of the heuristic; their number. They stay in `shop`. */
static int64_t configs_of(workshop *shop, void *graph, int mode, void **config)
{
    int64_t count = 0;
    void *heuristic = make(shop, CUDNN_IS_HEURISTIC);
    set(shop, heuristic, CUDNN_HEUR_GRAPH, CUDNN_AS_DESCRIPTOR, 1, &graph);
    set(shop, heuristic, CUDNN_HEUR_MODE, CUDNN_AS_HEUR_MODE, 1, &mode);
    finish(shop, heuristic);
    for (int i = 0; i < CONFIGS; i++) {
        config[i] = make(shop, CUDNN_IS_ENGINECFG);
    }
    if (shop->failed || api.get(heuristic, CUDNN_HEUR_RESULTS, CUDNN_AS_DESCRIPTOR, CONFIGS, &count,
                                config) != CUDNN_SUCCESS) {
        return 0;
    }
    return count < (int64_t)CONFIGS ? count : (int64_t)CONFIGS;
}

/* Up to `most` allowed configurations that make a plan, from rank `first` on. */
static int candidates_of(mdmt_gpu *gpu, mdmt_conv_plan *p, void *graph, int mode, int first,
                         candidate *found, int most)
{
    void *config[CONFIGS];
    int made = 0;
    drop_all(&p->configs);
    p->configs.failed = 0;
    int64_t count = configs_of(&p->configs, graph, mode, config);
    for (int i = first; i < count && made < most; i++) {
        size_t workspace = 0;
        void *plan =
            forbidden(&p->key, config[i]) ? NULL : plan_of(gpu->cudnn, config[i], &workspace);
        if (plan) {
            candidate c = {plan, workspace, mode, i, engine_number(config[i]), 0};
            found[made++] = c;
        }
    }
    return made;
}

/* ---- the choice: what was measured before, or measured now, or the heuristic's first ---- */

static int kept_choice(mdmt_gpu *gpu, mdmt_conv_plan *p, void *graph)
{
    mdmt_tuned kept;
    candidate c;
    if (!mdmt_tuning_find(gpu->tuning, &p->key, &kept) ||
        !candidates_of(gpu, p, graph, kept.mode, kept.rank, &c, 1)) {
        return 0;
    }
    if (c.rank != kept.rank || c.engine != kept.engine) { /* another library than it says */
        api.drop(c.plan);
        return 0;
    }
    p->chosen = c;
    p->chosen.milliseconds = kept.milliseconds;
    return 1;
}

static void measured_choice(mdmt_gpu *gpu, mdmt_conv_plan *p, candidate *c, int count, float limit)
{
    void *plan[MDMT_TUNE_MOST];
    size_t workspace[MDMT_TUNE_MOST];
    float milliseconds = 0;
    int best = 0;
    for (int i = 0; i < count; i++) {
        plan[i] = c[i].plan;
        workspace[i] = c[i].workspace;
    }
    if (gpu->tune) {
        best = mdmt_tune(gpu, &p->key, plan, workspace, count, limit, &milliseconds);
    }
    for (int i = 0; i < count; i++) {
        if (i != best) {
            api.drop(c[i].plan);
        }
    }
    if (best >= 0) {
        p->chosen = c[best];
        p->chosen.milliseconds = milliseconds;
        mdmt_tuned t = {p->key, c[best].mode, c[best].rank, c[best].engine, milliseconds};
        if (milliseconds > 0) {
            mdmt_tuning_keep(gpu->tuning, &t);
        }
    }
}

static void make_plan(mdmt_gpu *gpu, mdmt_conv_plan *p, float limit)
{
    static const int modes[] = {CUDNN_HEUR_A, CUDNN_HEUR_FALLBACK};
    candidate c[MDMT_TUNE_MOST];
    void *graph = graph_of(&p->graph, gpu->cudnn, &p->key);
    if (p->graph.failed || (gpu->tune && kept_choice(gpu, p, graph))) {
        return;
    }
    for (int i = 0; i < 2 && !p->chosen.plan; i++) {
        int most = gpu->tune ? MDMT_TUNE_MOST : 1;
        int count = candidates_of(gpu, p, graph, modes[i], 0, c, most);
        if (count) {
            measured_choice(gpu, p, c, count, limit);
        }
    }
}

void *mdmt_cudnn_plan(mdmt_gpu *gpu, const mdmt_conv_key *key, float limit, size_t *workspace,
                      float *milliseconds)
{
    mdmt_conv_plan *p = gpu->plans;
    while (p && memcmp(&p->key, key, sizeof *key) != 0) {
        p = p->next;
    }
    if (!p) {
        p = (mdmt_conv_plan *)mdmt_lent->acquire(1, sizeof *p); /* zeroed */
        if (!p) {
            return NULL;
        }
        p->key = *key;
        make_plan(gpu, p, limit);
        p->next = gpu->plans;
        gpu->plans = p;
    }
    *workspace = p->chosen.workspace;
    *milliseconds = p->chosen.milliseconds;
    return p->chosen.plan;
}

mdmt_status mdmt_cudnn_run(mdmt_gpu *gpu, void *plan, void *x, void *w, void *y, void *workspace)
{
    workshop shop;
    memset(&shop, 0, sizeof shop);
    int64_t id[3] = {ID_X, ID_W, ID_Y};
    void *pointer[3] = {x, w, y};
    void *variants = make(&shop, CUDNN_IS_VARIANTS);
    set(&shop, variants, CUDNN_VARIANT_IDS, CUDNN_AS_INT64, 3, id);
    set(&shop, variants, CUDNN_VARIANT_POINTERS, CUDNN_AS_POINTER, 3, pointer);
    set(&shop, variants, CUDNN_VARIANT_WORKSPACE, CUDNN_AS_POINTER, 1, &workspace);
    finish(&shop, variants);
    int status = shop.failed ? -1 : api.execute(gpu->cudnn, plan, variants);
    drop_all(&shop);
    mdmt_device_library_ran(gpu->stream);
    return status == CUDNN_SUCCESS
               ? MDMT_OK
               : mdmt_lent->fail(MDMT_INTERNAL, "cuDNN refused a convolution: %s",
                                 status < 0 ? "its arguments" : api.error(status));
}

void mdmt_cudnn_close(mdmt_gpu *gpu)
{
    while (gpu->plans) {
        mdmt_conv_plan *next = gpu->plans->next;
        if (gpu->plans->chosen.plan) {
            api.drop(gpu->plans->chosen.plan);
        }
        drop_all(&gpu->plans->configs);
        drop_all(&gpu->plans->graph);
        mdmt_lent->release(gpu->plans);
        gpu->plans = next;
    }
    if (gpu->cudnn) {
        api.destroy(gpu->cudnn);
        gpu->cudnn = NULL;
    }
}
