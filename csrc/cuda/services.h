/* The seam between the extension modules mdmt._core and mdmt._cuda.
 *
 * _cuda holds no copy of the engine: it fills an mdmt_backend whose functions
 * _core calls, and calls back the few functions below. Both modules are built
 * from one source tree; `shape` refuses a pair that is not. _cuda hands out one
 * mdmt_cuda_module, in a capsule named MDMT_CUDA_CAPSULE, whose `open` _core
 * calls with its services. */
#ifndef MDMT_CUDA_SERVICES_H
#define MDMT_CUDA_SERVICES_H

#ifdef __cplusplus
#ifndef _Alignas
#define _Alignas(bytes) alignas(bytes)
#endif
extern "C" {
#include "../backend.h"
}
#else
#include "../backend.h"
#endif

#define MDMT_CUDA_CAPSULE "mdmt._cuda.module"

/* What _core lends. The sentence of a failure is kept by _core, per thread. */
typedef struct {
    uint64_t shape; /* MDMT_CUDA_SHAPE of the lender */
    mdmt_status (*fail)(mdmt_status code, const char *format, ...);
    void *(*acquire)(size_t count, size_t size);
    void (*release)(void *block);
    mdmt_status (*check_augmentation)(const mdmt_augmentation *augmentation);
} mdmt_cuda_services;

typedef enum {
    MDMT_CUDA_FP32, /* float32 throughout, no TF32           */
    MDMT_CUDA_TF32, /* float32 stored, products in TF32       */
    MDMT_CUDA_BF16  /* feature maps in bfloat16; weights, statistics and sums in float32 */
} mdmt_cuda_precision;

typedef struct {
    int device; /* ordinal */
    mdmt_cuda_precision precision;
    int library;       /* 0: own kernels only, 1: cuDNN where it is there */
    int deterministic; /* only engines that give the same bits every time */
} mdmt_cuda_options;

typedef struct {
    uint64_t shape;
    /* Checks device and driver, makes the backend. */
    mdmt_status (*open)(mdmt_backend **backend, const mdmt_cuda_services *services,
                        const mdmt_cuda_options *options);
} mdmt_cuda_module;

/* Changes whenever a struct that crosses the seam changes its size. */
#define MDMT_CUDA_SHAPE                                                                            \
    ((uint64_t)sizeof(mdmt_backend) << 48 ^ (uint64_t)sizeof(mdmt_tensor) << 36 ^                  \
     (uint64_t)sizeof(mdmt_op) << 24 ^ (uint64_t)sizeof(mdmt_step) << 12 ^                         \
     (uint64_t)sizeof(mdmt_kernel) << 6 ^ (uint64_t)sizeof(mdmt_value) ^                           \
     (uint64_t)sizeof(mdmt_graph) << 18 ^ (uint64_t)sizeof(mdmt_series) << 30 ^                    \
     (uint64_t)sizeof(mdmt_cuda_options))

#ifdef __cplusplus
extern "C" {
#endif
/* device.cu: those lent by _core; set when a backend is opened. */
extern const mdmt_cuda_services *mdmt_lent;
/* backend.cu */
mdmt_status mdmt_cuda_open(mdmt_backend **backend, const mdmt_cuda_services *services,
                           const mdmt_cuda_options *options);
/* device.cu: whether this build runs its kernels on the processor; "CUDA 13.0, ..." */
int mdmt_cuda_emulated(void);
const char *mdmt_cuda_build(void);
/* cudnn.cu: loads cuDNN from the file; its version (91002: 9.10.2), or 0; what was found, or
 * why not, in `text`. Once one is loaded, it stays. */
int mdmt_cuda_load_library(const char *path, char *text, size_t room);
/* tune.cu: measured choices of engines on a device, as text of at most `room` bytes (0: none), and
 * what they depend on; their number, and how many this process measured. */
int mdmt_cuda_tuning(int ordinal, char *identity, size_t identity_room, char *text, size_t room,
                     int *measured);
/* Takes over such a text, for what is not known yet; the number of choices taken, or -1 (and
 * nothing taken) where it is none. */
int mdmt_cuda_take_tuning(int ordinal, const char *text);
/* The number of usable GPUs; their names, or why there is none, in `text`. */
int mdmt_cuda_probe(char *text, size_t room);
#ifdef __cplusplus
}
#endif

#endif
