/* Kernels that bring a part of a map into shared memory, lazy values computed once,
 * and then read it many times; and the walker for them. */
#ifndef MDMT_CUDA_TILES_CUH
#define MDMT_CUDA_TILES_CUH

#include "geometry.cuh"

/* ---- rounds ----
 * A kernel of rounds is a struct with
 *   enum { THREADS, RESIDENT, LEAVES };  typedef ... shared_type, own_type;
 *   void begin(size_t block, int thread, own_type &own) const;
 *   int rounds(size_t block) const;
 *   void load(int round, size_t block, int thread, shared_type &shared) const;
 *   void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const;
 *   void leave(int phase, size_t block, int thread, shared_type &shared, own_type &own) const;
 * In every round all threads load, then all work; LEAVES phases follow the last one. `own` is
 * a thread's and stays in registers from the first round to the last phase. RESIDENT blocks
 * are to fit on a multiprocessor. */
#ifdef __CUDACC__
template <class K>
__global__ void __launch_bounds__(K::THREADS, K::RESIDENT)
    mdmt_rounds_entry(const __grid_constant__ K kernel)
{
    __shared__ typename K::shared_type shared;
    typename K::own_type own;
    int thread = (int)threadIdx.x, rounds = kernel.rounds(blockIdx.x);
    mdmt_await_kernel_before();
    kernel.begin(blockIdx.x, thread, own);
    MDMT_ROLLED
    for (int round = 0; round < rounds; round++) {
        if (round) {
            __syncthreads();
        }
        kernel.load(round, blockIdx.x, thread, shared);
        __syncthreads();
        kernel.work(round, blockIdx.x, thread, shared, own);
    }
    MDMT_UNROLL
    for (int phase = 0; phase < K::LEAVES; phase++) {
        __syncthreads();
        kernel.leave(phase, blockIdx.x, thread, shared, own);
    }
}
#else
template <class K> void mdmt_walk_rounds(const void *started)
{
    const mdmt_started<K> &s = *(const mdmt_started<K> *)started;
    typename K::shared_type shared;
    typename K::own_type own[K::THREADS];
    fake_watch_launch(__PRETTY_FUNCTION__, &s, sizeof s);
    for (size_t i = 0; i < s.blocks; i++) {
        size_t block = fake_place(i, s.blocks);
        memset((void *)&shared, 0xFF, sizeof shared);
        fake_watch_block(block, &shared, sizeof shared);
        int rounds = s.kernel.rounds(block);
        for (int phase = 0; phase <= 2 * rounds + K::LEAVES; phase++) {
            for (int n = 0; n < K::THREADS; n++) {
                int t = (int)fake_place((size_t)n, K::THREADS);
                fake_watch_thread(phase, t);
                if (phase == 0) {
                    s.kernel.begin(block, t, own[t]);
                } else if (phase > 2 * rounds) {
                    s.kernel.leave(phase - 2 * rounds - 1, block, t, shared, own[t]);
                } else if (phase % 2) {
                    s.kernel.load(phase / 2, block, t, shared);
                } else {
                    s.kernel.work(phase / 2 - 1, block, t, shared, own[t]);
                }
            }
        }
    }
    fake_watch_end();
}
#endif

template <class K>
mdmt_status mdmt_launch_rounds(mdmt_stream_handle stream, size_t blocks, const K &kernel)
{
    if (blocks == 0) {
        return MDMT_OK;
    }
    if (blocks > 0x7fffffff) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "a tensor is too large for one launch on a GPU");
    }
#ifdef __CUDACC__
    return mdmt_start(mdmt_rounds_entry<K>, stream, blocks, kernel);
#else
    mdmt_started<K> s = {kernel, blocks};
    fake_launch(stream, mdmt_walk_rounds<K>, &s, sizeof s, mdmt_device_overlaps(stream));
    return mdmt_device_check("the start of a kernel");
#endif
}

/* ---- two channels: what a thread computes with ---- */

struct mdmt_pair {
    float a, b;
};

MDMT_HD mdmt_pair mdmt_zero_pair()
{
    mdmt_pair p = {0.0f, 0.0f};
    return p;
}

MDMT_HD mdmt_pair mdmt_load_pair(const float *at)
{
    struct alignas(8) raw {
        float a, b;
    } r = *(const raw *)(const void *)at;
    mdmt_pair p = {r.a, r.b};
    return p;
}

/* Two numbers of bfloat16, the first one in the low half. */
MDMT_HD mdmt_pair mdmt_pair_of(uint32_t bits)
{
    uint32_t low = bits << 16, high = bits & 0xffff0000u;
    mdmt_pair p;
    memcpy(&p.a, &low, sizeof low);
    memcpy(&p.b, &high, sizeof high);
    return p;
}

MDMT_HD mdmt_pair mdmt_load_pair(const mdmt_bf16 *at)
{
    return mdmt_pair_of(*(const uint32_t *)(const void *)at);
}

MDMT_HD void mdmt_store_pair(float *at, mdmt_pair p)
{
    struct alignas(8) raw {
        float a, b;
    } r = {p.a, p.b};
    *(raw *)(void *)at = r;
}

/* Two numbers as bfloat16 in one, the first one in the low half. */
MDMT_HD uint32_t mdmt_bf16_pair(float a, float b)
{
#ifdef __CUDA_ARCH__
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(b), "f"(a));
    return bits;
#else
    mdmt_bf16 low, high;
    mdmt_from_float(a, &low);
    mdmt_from_float(b, &high);
    return (uint32_t)low.bits | (uint32_t)high.bits << 16;
#endif
}

MDMT_HD void mdmt_store_pair(mdmt_bf16 *at, mdmt_pair p)
{
    *(uint32_t *)(void *)at = mdmt_bf16_pair(p.a, p.b);
}

MDMT_HD void mdmt_add_product(mdmt_pair *sum, mdmt_pair x, mdmt_pair y)
{
    sum->a += x.a * y.a;
    sum->b += x.b * y.b;
}

/* ---- lazy values, a pack at a time: the activation is looked up once for eight ---- */

template <int ACT, int QUICK> MDMT_HD void mdmt_act_all(mdmt_pack *p)
{
    const float sixth = 1.0f / 6;
    MDMT_UNROLL
    for (int i = 0; i < MDMT_PACK; i++) {
        float v = p->v[i];
        switch (ACT) {
        case MDMT_ACT_SILU:
            p->v[i] = v * mdmt_sigmoid_of<QUICK>(v);
            break;
        case MDMT_ACT_SIGMOID:
            p->v[i] = mdmt_sigmoid_of<QUICK>(v);
            break;
        case MDMT_ACT_HARDSWISH:
            p->v[i] = v <= -3 ? 0.0f : v >= 3 ? v : v * (v + 3) * sixth;
            break;
        case MDMT_ACT_HARDSIGMOID:
            p->v[i] = v <= -3 ? 0.0f : v >= 3 ? 1.0f : (v + 3) * sixth;
            break;
        default:
            p->v[i] = mdmt_act_of(ACT, v);
        }
    }
}

template <int QUICK> MDMT_HD void mdmt_act_pack(int act, mdmt_pack *p)
{
    switch (act) {
    case MDMT_ACT_RELU:
        return mdmt_act_all<MDMT_ACT_RELU, QUICK>(p);
    case MDMT_ACT_RELU6:
        return mdmt_act_all<MDMT_ACT_RELU6, QUICK>(p);
    case MDMT_ACT_SILU:
        return mdmt_act_all<MDMT_ACT_SILU, QUICK>(p);
    case MDMT_ACT_SIGMOID:
        return mdmt_act_all<MDMT_ACT_SIGMOID, QUICK>(p);
    case MDMT_ACT_HARDSWISH:
        return mdmt_act_all<MDMT_ACT_HARDSWISH, QUICK>(p);
    case MDMT_ACT_HARDSIGMOID:
        return mdmt_act_all<MDMT_ACT_HARDSIGMOID, QUICK>(p);
    default:
        return;
    }
}

struct alignas(16) mdmt_quad {
    float v[4];
};

/* What x is read as: `p` are stored numbers of sample n, `a` and `b` scale and shift of the pack.
 */
template <class T>
MDMT_HD mdmt_pack mdmt_lazy_pack(const mdmt_source<T> &x, mdmt_pack p, const mdmt_pack &a,
                                 const mdmt_pack &b, int pack, int n)
{
    if (x.scale) {
        MDMT_UNROLL
        for (int k = 0; k < MDMT_PACK; k++) {
            p.v[k] = a.v[k] * p.v[k] + b.v[k];
        }
        mdmt_act_pack<sizeof(T) == 2>(x.act, &p);
    }
    if (x.gate) {
        const float *gate = x.gate + (size_t)n * (size_t)x.map.c;
        MDMT_UNROLL
        for (int k = 0; k < MDMT_PACK; k++) {
            int c = pack * MDMT_PACK + k;
            p.v[k] *= c < x.map.c ? gate[c] : 0.0f;
        }
    }
    return p;
}

/* ---- a tile ---- */

/* Channels of a tile: 64 bytes of a bfloat16 map, which half a warp reads as pairs and four
 * threads fill. */
enum { MDMT_TILE_CHANNELS = 32, MDMT_TILE_PACKS = MDMT_TILE_CHANNELS / MDMT_PACK };

/* Where the pixels of a tile lie in shared memory: rows in groups of `fold` (1 or 2, the stride
 * of the rows that half warps read at once); `pitch` pixels from group to group, an odd number,
 * puts the two halves of a warp on different banks. */
struct mdmt_box {
    int samples, rows, columns;
    int fold, pitch;
    uint32_t share; /* 2^16 / rows, rounded up */

    MDMT_HD int groups() const
    {
        return fold == 2 ? (rows + 1) >> 1 : rows;
    }
    MDMT_HD int slots() const
    {
        return samples * groups() * pitch;
    }
    MDMT_HD int at(int sample, int row, int column) const
    {
        int group = fold == 2 ? row >> 1 : row, odd = fold == 2 ? row & 1 : 0;
        return (sample * groups() + group) * pitch + odd * columns + column;
    }
    /* line / rows; exact as line * rows < 2^16 */
    MDMT_HD int sample_of(int line) const
    {
        return (int)((uint32_t)line * share >> 16);
    }
};

static inline mdmt_box mdmt_box_of(int samples, int rows, int columns, int fold)
{
    mdmt_box b;
    b.samples = samples;
    b.rows = rows;
    b.columns = columns;
    b.fold = fold;
    b.pitch = fold * columns | 1;
    b.share = (uint32_t)(0xffff / rows + 1);
    return b;
}

/* Where a tile begins in its map: pixels outside of the map are zeros of the tile. */
struct mdmt_corner {
    int n, y, x;
};

/* 16 bytes into shared memory, zeros where not `here`; there after mdmt_copies_done. */
MDMT_HD void mdmt_copy_async(void *to, const void *from, int here)
{
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(here ? 16 : 0)
                 : "memory");
#else
    typedef mdmt_raw<uint16_t> sixteen; /* aligned as the GPU wants it */
    const sixteen zero = {{0, 0, 0, 0, 0, 0, 0, 0}};
    *(sixteen *)to = here ? *(const sixteen *)from : zero;
#endif
}

/* For the copies of this thread. */
MDMT_HD void mdmt_copies_done()
{
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* A thread's part of filling a tile with channels 32 chunk ... of x: first `copy`, and after
 * mdmt_copies_done `compute`, for the thread's own packs. Packs that x does not have stay as they
 * are. The elements U of the tile are those of the map or floats. */
template <class T, class U, int THREADS> struct mdmt_filler {
    /* A pack of floats has room for two of bfloat16; neighbours among the threads use another
     * half, and so other banks. */
    enum { WIDENS = sizeof(U) > sizeof(T) };
    U *tile;
    const mdmt_box &box;
    const mdmt_source<T> &x;
    mdmt_corner from;
    int pack, lane, across, warp;

    MDMT_HD mdmt_filler(U *to, const mdmt_box &in, const mdmt_source<T> &of, mdmt_corner corner,
                        int chunk, int thread)
        : tile(to), box(in), x(of), from(corner)
    {
        lane = thread % MDMT_TILE_PACKS;
        across = thread / MDMT_TILE_PACKS % 8;
        warp = thread / 32;
        pack = chunk * MDMT_TILE_PACKS + lane;
    }
    /* Rows of all samples; a warp fills 8 pixels of one at once. */
    MDMT_HD int lines() const
    {
        return pack < x.map.packs ? box.samples * box.rows : 0;
    }
    /* Where this thread's first pixel of the line lies, in the map and (the result) in the tile;
     * at->x is where the map has ended for lines that it does not have. */
    MDMT_HD int start(int line, mdmt_corner *at) const
    {
        int sample = box.sample_of(line), row = line - sample * box.rows;
        at->n = from.n + sample;
        at->y = from.y + row;
        at->x = at->n < x.map.n && (unsigned)at->y < (unsigned)x.map.h ? from.x + across : x.map.w;
        return box.at(sample, row, across);
    }
    MDMT_HD int inside(int column) const
    {
        return (unsigned)column < (unsigned)x.map.w;
    }
    MDMT_HD U *stored(int slot) const
    {
        return tile + slot * MDMT_TILE_CHANNELS + lane * MDMT_PACK;
    }
    MDMT_HD T *copied(int slot) const
    {
        return (T *)(void *)stored(slot) + (WIDENS ? across % 2 * MDMT_PACK : 0);
    }
    MDMT_HD void copy() const
    {
        enum { SIXTEENTH = 16 / sizeof(T) };
        MDMT_ROLLED
        for (int line = warp, end = lines(); line < end; line += THREADS / 32) {
            mdmt_corner at;
            int slot = start(line, &at), last = slot - across + box.columns;
            size_t element = x.map.at(x.map.pixel(at.n, at.y, at.x), pack);
            MDMT_ROLLED
            for (; slot < last; slot += 8, at.x += 8, element += (size_t)(8 * x.map.pitch)) {
                const T *data = x.map.data + (inside(at.x) ? element : 0);
                MDMT_UNROLL
                for (int k = 0; k < MDMT_PACK; k += SIXTEENTH) {
                    mdmt_copy_async(copied(slot) + k, data + k, inside(at.x));
                }
            }
        }
    }
    MDMT_HD void store(int slot, const mdmt_pack &p) const
    {
        if (!WIDENS) {
            mdmt_store_pack(stored(slot), p);
            return;
        }
        mdmt_quad first, second;
        int odd = across % 2;
        MDMT_UNROLL
        for (int k = 0; k < 4; k++) {
            first.v[k] = odd ? p.v[k + 4] : p.v[k];
            second.v[k] = odd ? p.v[k] : p.v[k + 4];
        }
        *(mdmt_quad *)(void *)(stored(slot) + 4 * odd) = first;
        *(mdmt_quad *)(void *)(stored(slot) + 4 * !odd) = second;
    }
    MDMT_HD void compute() const
    {
        if (!WIDENS && !x.scale && !x.gate) {
            return;
        }
        mdmt_pack a = mdmt_zero_pack(), b = a;
        if (x.scale && pack < x.map.packs) {
            a = mdmt_load_pack(x.scale + pack * MDMT_PACK);
            b = mdmt_load_pack(x.shift + pack * MDMT_PACK);
        }
        MDMT_ROLLED
        for (int line = warp, end = lines(); line < end; line += THREADS / 32) {
            mdmt_corner at;
            int slot = start(line, &at), last = slot - across + box.columns;
            MDMT_ROLLED
            for (; slot < last; slot += 8, at.x += 8) {
                mdmt_pack p = mdmt_load_pack((const T *)copied(slot));
                if (inside(at.x)) {
                    p = mdmt_lazy_pack(x, p, a, b, pack, at.n);
                }
                if (WIDENS || inside(at.x)) {
                    store(slot, p);
                }
            }
        }
    }
};

#endif
