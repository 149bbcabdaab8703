/* Depthwise convolutions of bfloat16 maps with square kernels of 3 and 5, not dilated, on tensor
 * cores (fragments.cuh): one instruction adds two taps of 16 pixels and 8 channels.
 *
 * A block goes over the tiles of a part, 32 channels of each. The tile of inputs is in shared
 * memory as bfloat16, activated, each of its four packs in a plane of its own, so that the eight
 * pixels that a warp reads at once lie side by side; of stride 2, even columns before odd ones. A
 * warp has one pack, and every other 16 outputs of the tile. */
#ifndef MDMT_CUDA_DEPTH_TENSOR_CUH
#define MDMT_CUDA_DEPTH_TENSOR_CUH

#include "divisor.cuh"
#include "fragments.cuh"

enum {
    DEPTH_THREADS = 256,
    DEPTH_GROUP = 16, /* outputs of one instruction */
    DEPTH_SHARES = DEPTH_THREADS / 32 / MDMT_TILE_PACKS,
    DEPTH_SLOTS = 49152 / 16,
    DEPTH_SM = 132 /* multiprocessors that launches are made for: those of an H100 */
};

/* The pixels of a tile, numbered line by line. */
struct depth_grid {
    int samples, high, wide;
    mdmt_divisor by_high, by_wide;

    MDMT_HD int count() const
    {
        return samples * high * wide;
    }
    MDMT_HD mdmt_corner at(int i) const
    {
        uint32_t x = (uint32_t)i, y = by_wide.split(&x), n = by_high.split(&y);
        mdmt_corner c = {(int)n, (int)y, (int)x};
        return c;
    }
};

static inline depth_grid depth_grid_of(int samples, int high, int wide)
{
    depth_grid g = {samples, high, wide, mdmt_divisor_of((size_t)high),
                    mdmt_divisor_of((size_t)wide)};
    return g;
}

/* Tiles, and parts of `per_part` tiles. */
struct depth_plan {
    depth_grid out, in;
    int tiles_y, tiles_x, tiles, chunks, per_part, parts;
    int half, pitch; /* slots of 16 bytes: from even to odd columns, from line to line */
    int plane_in, plane_out;

    MDMT_HD mdmt_corner corner(int tile) const
    {
        mdmt_corner c;
        c.x = tile % tiles_x * out.wide;
        c.y = tile / tiles_x % tiles_y * out.high;
        c.n = tile / tiles_x / tiles_y * out.samples;
        return c;
    }
};

/* What a plan is for. */
struct depth_wish {
    int n, h, w, packs; /* outputs */
    int kernel, stride;
    int resident; /* blocks on a multiprocessor */
};

/* So that four planes lie on different banks. */
static inline int depth_plane(int slots)
{
    return slots + (10 - slots % 8) % 8;
}

/* Sets what depends on the tile, and says what a multiprocessor's time would be, in instructions of
 * a warp; negative where there is no room. */
static inline double depth_price(depth_plan *p, const depth_wish &k, int samples, int high,
                                 int wide)
{
    int in_high = k.stride * (high - 1) + k.kernel, in_wide = k.stride * (wide - 1) + k.kernel;
    int outputs = samples * high * wide, groups = (outputs + DEPTH_GROUP - 1) / DEPTH_GROUP;
    p->half = (in_wide + 1) / 2;
    p->pitch = k.stride == 2 ? 2 * p->half : in_wide;
    p->plane_in = depth_plane(samples * in_high * p->pitch);
    p->plane_out = depth_plane(groups * DEPTH_GROUP);
    /* Statistics are merged where the inputs were: 512 slots. */
    int room = MDMT_TILE_PACKS * p->plane_in > 512 ? MDMT_TILE_PACKS * p->plane_in : 512;
    if (room + MDMT_TILE_PACKS * p->plane_out > DEPTH_SLOTS) {
        return -1;
    }
    p->tiles_y = (k.h + high - 1) / high;
    p->tiles_x = (k.w + wide - 1) / wide;
    p->tiles = p->tiles_y * p->tiles_x * ((k.n + samples - 1) / samples);
    p->chunks = (k.packs + MDMT_TILE_PACKS - 1) / MDMT_TILE_PACKS;
    double steps = (k.kernel * k.kernel + 1) / 2;
    double fill = 75.0 * MDMT_TILE_PACKS / 32 * samples * in_high * in_wide;
    double work = MDMT_TILE_PACKS * groups * (50 + 3 * steps);
    double store = 30.0 * MDMT_TILE_PACKS / 32 * outputs;
    double most = ((double)p->tiles * p->chunks + DEPTH_SM - 1) / DEPTH_SM;
    most = most < 8 ? (double)(int)most : most;
    /* A tile's wait for memory, for all blocks at once. */
    return most * (fill + work + store + 2000 + 6000.0 / k.resident);
}

static inline int depth_even_cut(int size, int most)
{
    int pieces = (size + most - 1) / most;
    return (size + pieces - 1) / pieces;
}

/* The cheapest plan; by shape alone. Blocks are two waves at most, so that none of a third one
 * comes late. */
static inline depth_plan depth_plan_of(const depth_wish &k)
{
    static const int sizes[] = {3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 19, 20, 24, 28, 32, 56};
    enum { SIZES = sizeof sizes / sizeof *sizes, MOST_SAMPLES = 16 };
    depth_plan best, p;
    int chosen[3] = {0, 0, 0};
    double least = -1;
    memset((void *)&best, 0, sizeof best);
    p = best;
    for (int i = 0; i < SIZES * SIZES; i++) {
        int high = depth_even_cut(k.h, sizes[i % SIZES]), wide = depth_even_cut(k.w, sizes[i / SIZES]);
        int whole = high == k.h && wide == k.w;
        for (int samples = 1; samples <= (whole ? MOST_SAMPLES : 1); samples++) {
            double price = depth_price(&p, k, samples, high, wide);
            if (price >= 0 && (least < 0 || price < least)) {
                best = p;
                least = price;
                chosen[0] = samples;
                chosen[1] = high;
                chosen[2] = wide;
            }
        }
    }
    best.out = depth_grid_of(chosen[0], chosen[1], chosen[2]);
    best.in = depth_grid_of(chosen[0], k.stride * (chosen[1] - 1) + k.kernel,
                            k.stride * (chosen[2] - 1) + k.kernel);
    int parts = 2 * DEPTH_SM * k.resident / best.chunks;
    parts = parts > 1 ? parts : 1;
    best.per_part = (best.tiles + parts - 1) / parts;
    best.parts = (best.tiles + best.per_part - 1) / best.per_part;
    return best;
}

/* What all passes have in common. */
template <int K, int S> struct depth_tensor {
    enum { THREADS = DEPTH_THREADS, TAPS = K * K, STEPS = (TAPS + 1) / 2 };
    typedef mdmt_map<mdmt_bf16> map_type;
    depth_plan t;
    mdmt_source<mdmt_bf16> x; /* what the windows lie on */
    int top, left;

    MDMT_HD int chunk(size_t block) const
    {
        return (int)(block % (size_t)t.chunks);
    }
    MDMT_HD int part(size_t block) const
    {
        return (int)(block / (size_t)t.chunks);
    }
    MDMT_HD int rounds(size_t block) const
    {
        int left_over = t.tiles - part(block) * t.per_part;
        return left_over < t.per_part ? left_over : t.per_part;
    }
    MDMT_HD mdmt_corner corner(int round, size_t block) const
    {
        return t.corner(part(block) * t.per_part + round);
    }
    /* The first input of a tile. */
    MDMT_HD mdmt_corner corner_in(int round, size_t block) const
    {
        mdmt_corner c = corner(round, block);
        c.y = S * c.y - top;
        c.x = S * c.x - left;
        return c;
    }
    /* Where input i of the tile lies in its plane. */
    MDMT_HD int slot_in(const mdmt_corner &p) const
    {
        int line = (p.n * t.in.high + p.y) * t.pitch;
        return line + (S == 2 ? p.x % 2 * t.half + p.x / 2 : p.x);
    }
    /* Where the first tap of output i lies, and from there the others. */
    MDMT_HD int slot_of(int i) const
    {
        mdmt_corner p = t.out.at(i);
        return i < t.out.count() ? (p.n * t.in.high + S * p.y) * t.pitch + p.x : 0;
    }
    MDMT_HD int tap_slot(int tap) const
    {
        int at = tap < TAPS ? tap : TAPS - 1, r = at / K, s = at % K;
        return r * t.pitch + (S == 2 ? s % 2 * t.half + s / 2 : s);
    }
    static MDMT_HD int inside(const map_type &map, const mdmt_corner &at)
    {
        return at.n < map.n && (unsigned)at.y < (unsigned)map.h && (unsigned)at.x < (unsigned)map.w;
    }
    /* Elements of a map have numbers below 2^32 pixels (depth_fits). */
    static MDMT_HD size_t element(const map_type &map, const mdmt_corner &at, int pack)
    {
        uint32_t line = (uint32_t)at.n * (uint32_t)map.h + (uint32_t)at.y;
        uint32_t pixel = line * (uint32_t)map.w + (uint32_t)at.x;
        return (size_t)((uint64_t)pixel * (uint32_t)map.pitch) + (size_t)(pack * MDMT_PACK);
    }
    static MDMT_HD mdmt_corner from(const mdmt_corner &corner, mdmt_corner p)
    {
        p.n += corner.n;
        p.y += corner.y;
        p.x += corner.x;
        return p;
    }

    /* The thread's inputs of a tile on their way to shared memory: four threads have a pixel. */
    MDMT_HD void copy_in(mdmt_bf16 *tile, int round, size_t block, int thread) const
    {
        int lane = thread % MDMT_TILE_PACKS, pack = chunk(block) * MDMT_TILE_PACKS + lane;
        int count = pack < x.map.packs ? t.in.count() : 0;
        mdmt_corner c = corner_in(round, block);
        MDMT_ROLLED
        for (int i = thread / MDMT_TILE_PACKS; i < count; i += THREADS / MDMT_TILE_PACKS) {
            mdmt_corner p = t.in.at(i), at = from(c, p);
            int here = inside(x.map, at);
            mdmt_copy_async(tile + (lane * t.plane_in + slot_in(p)) * MDMT_PACK,
                            x.map.data + (here ? element(x.map, at, pack) : 0), here);
        }
    }
    /* The same of a map of the outputs' size: zeros outside and up to the next group. */
    MDMT_HD void copy_out(mdmt_bf16 *tile, const map_type &map, int round, size_t block,
                          int thread) const
    {
        int lane = thread % MDMT_TILE_PACKS, pack = chunk(block) * MDMT_TILE_PACKS + lane;
        int count = (t.out.count() + DEPTH_GROUP - 1) / DEPTH_GROUP * DEPTH_GROUP;
        count = pack < map.packs ? count : 0;
        mdmt_corner c = corner(round, block);
        MDMT_ROLLED
        for (int i = thread / MDMT_TILE_PACKS; i < count; i += THREADS / MDMT_TILE_PACKS) {
            mdmt_corner at = from(c, t.out.at(i));
            int here = i < t.out.count() && inside(map, at);
            mdmt_copy_async(tile + (lane * t.plane_out + i) * MDMT_PACK,
                            map.data + (here ? element(map, at, pack) : 0), here);
        }
    }

    /* What the thread has copied becomes what x is read as. */
    MDMT_HD void activate(mdmt_bf16 *tile, int round, size_t block, int thread) const
    {
        if (!x.scale && !x.gate) {
            return;
        }
        if (x.gate) {
            return activate_as<-1>(tile, round, block, thread);
        }
        switch (x.act) {
        case MDMT_ACT_RELU:
            return activate_as<MDMT_ACT_RELU>(tile, round, block, thread);
        case MDMT_ACT_RELU6:
            return activate_as<MDMT_ACT_RELU6>(tile, round, block, thread);
        case MDMT_ACT_SILU:
            return activate_as<MDMT_ACT_SILU>(tile, round, block, thread);
        case MDMT_ACT_HARDSWISH:
            return activate_as<MDMT_ACT_HARDSWISH>(tile, round, block, thread);
        default:
            return activate_as<-1>(tile, round, block, thread);
        }
    }
    template <int ACT>
    MDMT_HD void activate_as(mdmt_bf16 *tile, int round, size_t block, int thread) const
    {
        int lane = thread % MDMT_TILE_PACKS, pack = chunk(block) * MDMT_TILE_PACKS + lane;
        int count = pack < x.map.packs ? t.in.count() : 0;
        mdmt_corner c = corner_in(round, block);
        mdmt_pack a = mdmt_zero_pack(), b = a;
        if (x.scale && count) {
            a = mdmt_load_pack(x.scale + pack * MDMT_PACK);
            b = mdmt_load_pack(x.shift + pack * MDMT_PACK);
        }
        MDMT_ROLLED
        for (int i = thread / MDMT_TILE_PACKS; i < count; i += THREADS / MDMT_TILE_PACKS) {
            mdmt_corner p = t.in.at(i), at = from(c, p);
            if (!inside(x.map, at)) {
                continue;
            }
            mdmt_bf16 *to = tile + (lane * t.plane_in + slot_in(p)) * MDMT_PACK;
            if (ACT < 0) {
                mdmt_store_pack(to, mdmt_lazy_pack(x, mdmt_load_pack(to), a, b, pack, at.n));
                continue;
            }
            struct alignas(16) four {
                uint32_t v[MDMT_PACK / 2];
            } bits = *(const four *)(const void *)to;
            MDMT_UNROLL
            for (int k = 0; k < MDMT_PACK / 2; k++) {
                mdmt_pair v = mdmt_pair_of(bits.v[k]);
                bits.v[k] = mdmt_rounded_act<ACT>(a.v[2 * k] * v.a + b.v[2 * k],
                                                  a.v[2 * k + 1] * v.b + b.v[2 * k + 1]);
            }
            *(four *)(void *)to = bits;
        }
    }
};

/* ---- forward, and of stride 1 the data gradient: a convolution with the taps in reverse ---- */

/* Of the values of one channel in one thread: about its first one. */
struct alignas(16) depth_share {
    float count, pivot, sum, square;
};

template <int K, int S> struct depth_forward_tensor : depth_tensor<K, S> {
    enum { RESIDENT = K == 3 ? 4 : 2, LEAVES = 2 };
    typedef depth_tensor<K, S> base;
    using base::STEPS;
    using base::t;
    using base::TAPS;
    using base::THREADS;
    struct shared_type {
        alignas(16) mdmt_bf16 tile[DEPTH_SLOTS * MDMT_PACK];
    };
    struct own_type {
        int count; /* pixels in the statistics */
        mdmt_pair pivot, sum, square;
    };
    /* What two channels' outputs are made with. A weight is the sum of two numbers of bfloat16, so
     * that the inputs and the outputs alone are rounded. */
    struct factors {
        uint32_t w[2 * STEPS], rest[2 * STEPS];
        mdmt_pair bias;
    };
    mdmt_map<mdmt_bf16> y, addend; /* addend.data: or NULL; y may lie in its memory */
    const float *w, *bias;         /* bias: or NULL */
    float *stats;                  /* (parts, MDMT_STATS_ROWS, channels); or NULL */
    int reverse;

    MDMT_HD mdmt_bf16 *outputs(shared_type &shared) const
    {
        return shared.tile + (DEPTH_SLOTS - MDMT_TILE_PACKS * t.plane_out) * MDMT_PACK;
    }
    MDMT_HD int pack_of(size_t block, int thread) const
    {
        return this->chunk(block) * MDMT_TILE_PACKS + thread / 32 % MDMT_TILE_PACKS;
    }
    MDMT_HD void begin(size_t block, int thread, own_type &own) const
    {
        (void)block;
        (void)thread;
        own.count = 0;
        own.pivot = own.sum = own.square = mdmt_zero_pair();
    }
    MDMT_HD void fetch(factors &f, int channel, int lane) const
    {
        int up = y.packs * MDMT_PACK;
        MDMT_UNROLL
        for (int tap = 0; tap < 2 * STEPS; tap++) {
            int row = reverse ? TAPS - 1 - tap : tap;
            mdmt_pair v = tap < TAPS ? mdmt_load_pair(w + row * up + channel) : mdmt_zero_pair();
            mdmt_pair most = mdmt_pair_of(mdmt_bf16_pair(v.a, v.b));
            mdmt_pair rest = {v.a - most.a, v.b - most.b};
            f.w[tap] = mdmt_diagonal_of(most, lane);
            f.rest[tap] = mdmt_diagonal_of(rest, lane);
        }
        f.bias = bias ? mdmt_load_pair(bias + channel) : mdmt_zero_pair();
    }
    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        this->copy_in(shared.tile, round, block, thread);
        if (round) {
            store(round - 1, block, thread, shared);
        }
        if (addend.data) {
            /* What a thread has just stored from here, it alone overwrites. */
            this->copy_out(outputs(shared), addend, round, block, thread);
        }
        mdmt_copies_done();
        this->activate(shared.tile, round, block, thread);
    }
    MDMT_HD void store(int round, size_t block, int thread, shared_type &shared) const
    {
        int lane = thread % MDMT_TILE_PACKS;
        int pack = this->chunk(block) * MDMT_TILE_PACKS + lane;
        int count = pack < y.packs ? t.out.count() : 0;
        mdmt_corner c = this->corner(round, block);
        const mdmt_bf16 *tile = outputs(shared) + lane * t.plane_out * MDMT_PACK;
        MDMT_ROLLED
        for (int i = thread / MDMT_TILE_PACKS; i < count; i += THREADS / MDMT_TILE_PACKS) {
            mdmt_corner at = base::from(c, t.out.at(i));
            if (base::inside(y, at)) {
                *(mdmt_raw<mdmt_bf16> *)(void *)(y.data + base::element(y, at, pack)) =
                    mdmt_load_raw(tile + i * MDMT_PACK);
            }
        }
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        if (pack_of(block, thread) >= y.packs) {
            return;
        }
        int lane = thread % 32, plane = thread / 32 % MDMT_TILE_PACKS, count = t.out.count();
        factors f;
        fetch(f, pack_of(block, thread) * MDMT_PACK + lane % 4 * 2, lane);
        mdmt_corner c = this->corner(round, block);
        int whole = c.n + t.out.samples <= y.n && c.y + t.out.high <= y.h && c.x + t.out.wide <= y.w;
        const mdmt_bf16 *in = shared.tile + plane * t.plane_in * MDMT_PACK;
        mdmt_bf16 *out = outputs(shared) + plane * t.plane_out * MDMT_PACK + lane % 4 * 2;
        MDMT_ROLLED
        for (int first = thread / 32 / MDMT_TILE_PACKS * DEPTH_GROUP; first < count;
             first += DEPTH_SHARES * DEPTH_GROUP) {
            float sums[4];
            MDMT_UNROLL
            for (int i = 0; i < 2; i++) {
                mdmt_pair start = f.bias;
                if (addend.data) {
                    start = mdmt_load_pair(out + (first + lane / 4 + 8 * i) * MDMT_PACK);
                }
                sums[2 * i] = start.a;
                sums[2 * i + 1] = start.b;
            }
            group(sums, in, first, lane, f);
            MDMT_UNROLL
            for (int i = 0; i < 2; i++) {
                int at = first + lane / 4 + 8 * i;
                uint32_t bits = mdmt_bf16_pair(sums[2 * i], sums[2 * i + 1]);
                *(uint32_t *)(void *)(out + at * MDMT_PACK) = bits;
                if (stats && at < count &&
                    (whole || base::inside(y, base::from(c, t.out.at(at))))) {
                    note(own, mdmt_pair_of(bits));
                }
            }
        }
    }
    /* Adds all taps of 16 outputs. */
    MDMT_HD void group(float *sums, const mdmt_bf16 *in, int first, int lane,
                       const factors &f) const
    {
        MDMT_UNROLL
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[4];
            mdmt_load_rows(a, lane, [&](int i) {
                int slot = this->slot_of(first + i % DEPTH_GROUP);
                int even = this->tap_slot(2 * step), odd = this->tap_slot(2 * step + 1);
                return in + (slot + (i < DEPTH_GROUP ? even : odd)) * MDMT_PACK;
            });
            mdmt_add_scaled(sums, a, f.w[2 * step], f.w[2 * step + 1]);
            mdmt_add_scaled(sums, a, f.rest[2 * step], f.rest[2 * step + 1]);
        }
    }
    static MDMT_HD void note(own_type &own, mdmt_pair v)
    {
        own.pivot = own.count ? own.pivot : v;
        own.count++;
        float a = v.a - own.pivot.a, b = v.b - own.pivot.b;
        own.sum.a += a;
        own.sum.b += b;
        own.square.a += a * a;
        own.square.b += b * b;
    }
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        depth_share *shares = (depth_share *)(void *)shared.tile; /* [2 x 8][32] */
        if (phase == 0) {
            store(this->rounds(block) - 1, block, thread, shared);
        }
        if (!stats) {
            return;
        }
        if (phase == 0) {
            int row = thread / 32 / MDMT_TILE_PACKS * 8 + thread % 32 / 4;
            int lane = thread / 32 % MDMT_TILE_PACKS * MDMT_PACK + thread % 4 * 2;
            float n = (float)own.count;
            depth_share a = {n, own.pivot.a, own.sum.a, own.square.a};
            depth_share b = {n, own.pivot.b, own.sum.b, own.square.b};
            shares[row * MDMT_TILE_CHANNELS + lane] = a;
            shares[row * MDMT_TILE_CHANNELS + lane + 1] = b;
        } else if (thread < MDMT_TILE_CHANNELS) {
            merge(shares + thread, part_at(block),
                  this->chunk(block) * MDMT_TILE_CHANNELS + thread);
        }
    }
    MDMT_HD float *part_at(size_t block) const
    {
        size_t row = (size_t)(y.packs * MDMT_PACK);
        return stats + (size_t)this->part(block) * MDMT_STATS_ROWS * row;
    }
    /* A channel's threads; the sums about a thread's own pivot become sums about the part's. */
    MDMT_HD void merge(const depth_share *shares, float *to, int channel) const
    {
        int row = y.packs * MDMT_PACK;
        if (channel >= row) {
            return;
        }
        depth_share all = {0, 0, 0, 0};
        for (int i = 0; i < DEPTH_SHARES * 8; i++) {
            depth_share s = shares[i * MDMT_TILE_CHANNELS];
            all.pivot = all.count > 0 ? all.pivot : s.pivot;
            float away = s.count > 0 ? s.pivot - all.pivot : 0.0f;
            all.count += s.count;
            all.sum += s.sum + s.count * away;
            all.square += s.square + away * (2 * s.sum + s.count * away);
        }
        int live = channel < y.c;
        to[MDMT_STATS_COUNT * row + channel] = live ? all.count : 0.0f;
        to[MDMT_STATS_PIVOT * row + channel] = live ? all.pivot : 0.0f;
        to[MDMT_STATS_SUM * row + channel] = all.sum;
        to[MDMT_STATS_SQUARE * row + channel] = all.square;
    }
};

/* ---- weight gradient: for every tap the product, over the pixels, of inputs and gradients ---- */

template <int K, int S> struct depth_weight_tensor : depth_tensor<K, S> {
    enum { RESIDENT = K == 3 ? 4 : 2, LEAVES = 2 };
    typedef depth_tensor<K, S> base;
    using base::STEPS;
    using base::t;
    using base::TAPS;
    using base::THREADS;
    union shared_type {
        alignas(16) mdmt_bf16 tile[DEPTH_SLOTS * MDMT_PACK];
        float sum[TAPS][DEPTH_SHARES][4][MDMT_TILE_CHANNELS];
    };
    struct own_type {
        float sums[STEPS][4];
    };
    mdmt_map<mdmt_bf16> dy;
    float *partial; /* (parts, taps, O up) */

    MDMT_HD mdmt_bf16 *gradients(shared_type &shared) const
    {
        return shared.tile + (DEPTH_SLOTS - MDMT_TILE_PACKS * t.plane_out) * MDMT_PACK;
    }
    MDMT_HD void begin(size_t block, int thread, own_type &own) const
    {
        (void)block;
        (void)thread;
        MDMT_UNROLL
        for (int i = 0; i < 4 * STEPS; i++) {
            own.sums[i / 4][i % 4] = 0.0f;
        }
    }
    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        this->copy_in(shared.tile, round, block, thread);
        this->copy_out(gradients(shared), dy, round, block, thread);
        mdmt_copies_done();
        this->activate(shared.tile, round, block, thread);
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        (void)round;
        int lane = thread % 32, plane = thread / 32 % MDMT_TILE_PACKS, count = t.out.count();
        if (this->chunk(block) * MDMT_TILE_PACKS + plane >= dy.packs) {
            return;
        }
        const mdmt_bf16 *in = shared.tile + plane * t.plane_in * MDMT_PACK;
        const mdmt_bf16 *out = gradients(shared) + plane * t.plane_out * MDMT_PACK;
        MDMT_ROLLED
        for (int first = thread / 32 / MDMT_TILE_PACKS * DEPTH_GROUP; first < count;
             first += DEPTH_SHARES * DEPTH_GROUP) {
            uint32_t b[2];
            mdmt_load_columns<2>(b, lane, [&](int i) { return out + (first + i) * MDMT_PACK; });
            MDMT_UNROLL
            for (int step = 0; step < STEPS; step++) {
                uint32_t a[4];
                mdmt_load_columns<4>(a, lane, [&](int i) {
                    int slot = this->slot_of(first + i / 16 * 8 + i % 8);
                    int even = this->tap_slot(2 * step), odd = this->tap_slot(2 * step + 1);
                    return in + (slot + (i / 8 % 2 ? odd : even)) * MDMT_PACK;
                });
                mdmt_add_dots(own.sums[step], a, b);
            }
        }
    }
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        if (phase == 0) {
            int lane = thread % 32, share = thread / 32 / MDMT_TILE_PACKS;
            int channel = thread / 32 % MDMT_TILE_PACKS * MDMT_PACK + lane / 4;
            MDMT_UNROLL
            for (int tap = 0; tap < TAPS; tap++) {
                shared.sum[tap][share][lane % 4][channel] =
                    mdmt_dot_of(own.sums[tap / 2], tap % 2, lane);
            }
            return;
        }
        int up = dy.packs * MDMT_PACK;
        for (int i = thread; i < TAPS * MDMT_TILE_CHANNELS; i += THREADS) {
            int tap = i / MDMT_TILE_CHANNELS, lane = i % MDMT_TILE_CHANNELS;
            int channel = this->chunk(block) * MDMT_TILE_CHANNELS + lane;
            float total = 0;
            for (int k = 0; k < DEPTH_SHARES * 4; k++) {
                total += shared.sum[tap][k / 4][k % 4][lane];
            }
            if (channel < up) {
                partial[((size_t)this->part(block) * TAPS + (size_t)tap) * (size_t)up +
                        (size_t)channel] = total;
            }
        }
    }
};

#endif
