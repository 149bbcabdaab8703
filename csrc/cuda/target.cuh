/* Kernels that run on a GPU, and the same code run on the processor.
 *
 * A kernel is a struct with
 *   enum { THREADS, PHASES };  typedef ... shared_type;
 *   void run(int phase, size_t block, int thread, shared_type &shared) const;
 * A block's threads run phase 0, then, when all have ended it, phase 1, and so
 * on; they share `shared`, nothing else. Compiled by nvcc, mdmt_launch starts it
 * on a stream, with __syncthreads between phases; compiled by any C++ compiler,
 * beside a stand-in for the CUDA runtime (tests/c/fake_cuda), it walks through
 * blocks, phases and threads. The arithmetic and every index are therefore the
 * same code in both. */
#ifndef MDMT_CUDA_TARGET_CUH
#define MDMT_CUDA_TARGET_CUH

#include <math.h>
#include <string.h>

#include <type_traits>

#include "../base/philox.h"
#include "device.cuh"

#ifdef __CUDACC__
#define MDMT_HD __host__ __device__ inline
#else
#define MDMT_HD inline
#endif
/* Before a loop; for the GPU alone: other compilers do not know them. */
#ifdef __CUDA_ARCH__
#define MDMT_UNROLL _Pragma("unroll")
#define MDMT_ROLLED _Pragma("unroll 1")
#else
#define MDMT_UNROLL
#define MDMT_ROLLED
#endif

/* A kernel without shared memory. */
struct mdmt_nothing {
    int unused;
};

/* K::RESIDENT (1 where it has none): blocks of a kernel that are to fit on a multiprocessor at
 * once; the compiler gives a thread no more registers than that allows. */
template <class K, class = void> struct mdmt_resident {
    enum { blocks = 1 };
};
template <class K> struct mdmt_resident<K, std::void_t<decltype(K::RESIDENT)>> {
    enum { blocks = K::RESIDENT };
};

#ifdef __CUDACC__
/* Where starts overlap, a kernel's blocks come onto the multiprocessors while the kernel before it
 * ends, and wait here until all that it wrote can be seen: every kernel begins with this. Kernels
 * after this one may come as soon as all of its blocks are there. */
static __device__ __forceinline__ void mdmt_await_kernel_before()
{
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
#endif
}

template <class K>
static mdmt_status mdmt_start(void (*entry)(K), mdmt_stream_handle stream, size_t blocks,
                              const K &kernel)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3(K::THREADS);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = mdmt_device_overlaps(stream) ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, entry, kernel); /* the check below finds its error */
    return mdmt_device_check("the start of a kernel");
}

template <class K>
__global__ void __launch_bounds__(K::THREADS, mdmt_resident<K>::blocks)
    mdmt_kernel_entry(const __grid_constant__ K kernel)
{
    __shared__ typename K::shared_type shared;
    mdmt_await_kernel_before();
#pragma unroll
    for (int phase = 0; phase < K::PHASES; phase++) {
        if (phase) {
            __syncthreads();
        }
        kernel.run(phase, blockIdx.x, (int)threadIdx.x, shared);
    }
}

template <class K>
mdmt_status mdmt_launch(mdmt_stream_handle stream, size_t blocks, const K &kernel)
{
    if (blocks == 0) {
        return MDMT_OK;
    }
    if (blocks > 0x7fffffff) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "a tensor is too large for one launch on a GPU");
    }
    return mdmt_start(mdmt_kernel_entry<K>, stream, blocks, kernel);
}
#else
template <class K> struct mdmt_started {
    K kernel;
    size_t blocks;
};

template <class K> void mdmt_walk_blocks(const void *started)
{
    const mdmt_started<K> &s = *(const mdmt_started<K> *)started;
    typename K::shared_type shared;
    fake_watch_launch(__PRETTY_FUNCTION__, &s, sizeof s);
    for (size_t i = 0; i < s.blocks; i++) {
        size_t block = fake_place(i, s.blocks);
        /* What a block finds in shared memory is undefined on a GPU. */
        memset((void *)&shared, 0xFF, sizeof shared);
        fake_watch_block(block, &shared, sizeof shared);
        for (int phase = 0; phase < K::PHASES; phase++) {
            for (int n = 0; n < K::THREADS; n++) {
                int t = (int)fake_place((size_t)n, K::THREADS);
                fake_watch_thread(phase, t);
                s.kernel.run(phase, block, t, shared);
            }
        }
    }
    fake_watch_end();
}

template <class K>
mdmt_status mdmt_launch(mdmt_stream_handle stream, size_t blocks, const K &kernel)
{
    if (blocks == 0) {
        return MDMT_OK;
    }
    mdmt_started<K> s = {kernel, blocks};
    fake_launch(stream, mdmt_walk_blocks<K>, &s, sizeof s, mdmt_device_overlaps(stream));
    return mdmt_device_check("the start of a kernel");
}
#endif

MDMT_HD size_t mdmt_ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* bfloat16: the upper half of a float, rounded to nearest even. */
struct mdmt_bf16 {
    uint16_t bits;
};

MDMT_HD float mdmt_to_float(float v)
{
    return v;
}

MDMT_HD float mdmt_to_float(mdmt_bf16 v)
{
    uint32_t bits = (uint32_t)v.bits << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

MDMT_HD void mdmt_from_float(float f, float *to)
{
    *to = f;
}

MDMT_HD void mdmt_from_float(float f, mdmt_bf16 *to)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        bits |= 0x00400000u; /* a NaN stays one */
    } else {
        bits += 0x7fffu + (bits >> 16 & 1u);
    }
    to->bits = (uint16_t)(bits >> 16);
}

/* Eight channels of a pixel: what a thread loads and stores at once. */
enum { MDMT_PACK = 8 };
struct mdmt_pack {
    float v[MDMT_PACK];
};

template <class T>
struct alignas(sizeof(T) * MDMT_PACK < 16 ? sizeof(T) * MDMT_PACK : 16) mdmt_raw {
    T v[MDMT_PACK];
};

/* As it lies in memory: half the registers of a pack, where many are on their way.
 * `at` is aligned to 8 elements, at most 16 bytes. */
template <class T> MDMT_HD mdmt_raw<T> mdmt_load_raw(const T *at)
{
    return *(const mdmt_raw<T> *)(const void *)at;
}

template <class T> MDMT_HD mdmt_pack mdmt_unpack(const mdmt_raw<T> &raw)
{
    mdmt_pack p;
    for (int i = 0; i < MDMT_PACK; i++) {
        p.v[i] = mdmt_to_float(raw.v[i]);
    }
    return p;
}

template <class T> MDMT_HD mdmt_pack mdmt_load_pack(const T *at)
{
    return mdmt_unpack(mdmt_load_raw(at));
}

MDMT_HD void mdmt_round_pack(const mdmt_pack &p, mdmt_raw<float> *raw)
{
    for (int i = 0; i < MDMT_PACK; i++) {
        raw->v[i] = p.v[i];
    }
}

MDMT_HD void mdmt_round_pack(const mdmt_pack &p, mdmt_raw<mdmt_bf16> *raw)
{
#ifdef __CUDA_ARCH__
    uint32_t pair[MDMT_PACK / 2]; /* one instruction rounds two numbers */
    for (int i = 0; i < MDMT_PACK / 2; i++) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair[i]) : "f"(p.v[2 * i + 1]), "f"(p.v[2 * i]));
    }
    memcpy((void *)raw, pair, sizeof *raw);
#else
    for (int i = 0; i < MDMT_PACK; i++) {
        mdmt_from_float(p.v[i], &raw->v[i]);
    }
#endif
}

template <class T> MDMT_HD void mdmt_store_pack(T *at, const mdmt_pack &p)
{
    mdmt_raw<T> raw;
    mdmt_round_pack(p, &raw);
    *(mdmt_raw<T> *)(void *)at = raw;
}

MDMT_HD mdmt_pack mdmt_zero_pack()
{
    mdmt_pack p;
    for (int i = 0; i < MDMT_PACK; i++) {
        p.v[i] = 0.0f;
    }
    return p;
}

#endif
