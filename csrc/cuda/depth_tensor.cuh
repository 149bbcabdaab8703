/* Depthwise convolutions of bfloat16 maps with square kernels of 3 and 5, not dilated, on tensor
 * cores (fragments.cuh): one instruction adds two taps of 16 pixels and 8 channels.
 *
 * A block goes over the tiles of a part, 32 channels of each. The tile of inputs is in shared
 * memory as bfloat16, activated, each of its four packs in a plane of its own, so that the eight
 * pixels of a line that a warp reads at once lie side by side; of stride 2, even columns before odd
 * ones. A warp has one pack, and every other pair of lines, eight columns of them at once. */
#ifndef MDMT_CUDA_DEPTH_TENSOR_CUH
#define MDMT_CUDA_DEPTH_TENSOR_CUH

#include "divisor.cuh"
#include "fragments.cuh"

enum {
    DEPTH_THREADS = 256,
    DEPTH_HIGH = 2, /* lines and columns of the outputs of one instruction */
    DEPTH_WIDE = 8,
    DEPTH_SHARES = DEPTH_THREADS / 32 / MDMT_TILE_PACKS,
    DEPTH_TAPS = 26, /* of kernel 5, and one more */
    DEPTH_SLOTS = 49152 / 16 - DEPTH_TAPS * MDMT_TILE_CHANNELS / 4,
    DEPTH_SM = 132 /* multiprocessors that launches are made for: those of an H100 */
};

/* The pixels of a tile. */
struct depth_grid {
    int samples, high, wide;
    mdmt_divisor by_high;
    /* Slots of 16 bytes: from line to line, from plane to plane, from even to odd columns. */
    int pitch, plane, half;
};

/* Tiles, and parts of `per_part` tiles. */
struct depth_plan {
    depth_grid out, in;
    mdmt_divisor tiles_y, tiles_x;
    int tiles, chunks, per_part, parts;

    MDMT_HD mdmt_corner corner(int tile) const
    {
        uint32_t x = (uint32_t)tile, y = tiles_x.split(&x), n = tiles_y.split(&y);
        mdmt_corner c = {(int)n * out.samples, (int)y * out.high, (int)x * out.wide};
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

/* A tile of outputs: the plan but for its parts. 0 where shared memory has no room. */
static inline int depth_cut(depth_plan *p, const depth_wish &k, int samples, int high, int wide)
{
    depth_grid out = {samples, high,
                      wide,    mdmt_divisor_of((size_t)high),
                      wide,    depth_plane(samples * high * wide),
                      0};
    int in_high = k.stride * (high - 1) + k.kernel, in_wide = k.stride * (wide - 1) + k.kernel;
    int half = (in_wide + 1) / 2 | 1, pitch = k.stride == 2 ? 2 * half : in_wide;
    depth_grid in = {samples, in_high,
                     in_wide, mdmt_divisor_of((size_t)in_high),
                     pitch,   depth_plane(samples * in_high * pitch),
                     half};
    p->in = in;
    p->out = out;
    int tiles_y = (k.h + high - 1) / high, tiles_x = (k.w + wide - 1) / wide;
    p->tiles_y = mdmt_divisor_of((size_t)tiles_y);
    p->tiles_x = mdmt_divisor_of((size_t)tiles_x);
    p->tiles = tiles_y * tiles_x * ((k.n + samples - 1) / samples);
    p->chunks = (k.packs + MDMT_TILE_PACKS - 1) / MDMT_TILE_PACKS;
    /* Statistics are merged where the inputs were: 512 slots. */
    int room = MDMT_TILE_PACKS * in.plane;
    return (room > 512 ? room : 512) + MDMT_TILE_PACKS * out.plane <= DEPTH_SLOTS;
}

/* A multiprocessor's time, in instructions of a warp. */
static inline double depth_price(const depth_plan &p, const depth_wish &k)
{
    double taps = k.kernel * k.kernel, lines = p.in.samples * p.in.high;
    double fill = lines * (60 + (p.in.wide + 7) / 8 * 50);
    /* Of eight warps. */
    double strips = p.out.samples * p.out.wide / DEPTH_WIDE;
    int turns = (p.out.high / DEPTH_HIGH + DEPTH_SHARES - 1) / DEPTH_SHARES;
    double work = 8 * (100 + 4 * taps + strips * (16 + turns * (55 + 2.5 * taps)));
    double store = p.out.samples * p.out.high * (40 + p.out.wide / 8 * 12);
    double most = ((double)p.tiles * p.chunks + DEPTH_SM - 1) / DEPTH_SM;
    most = most < 8 ? (double)(int)most : most;
    /* A tile's wait for memory, for all blocks at once. */
    return most * (fill + work + store + 1000 + 6000.0 / k.resident);
}

static inline int depth_even_cut(int size, int most, int unit)
{
    int pieces = (size + most - 1) / most;
    return ((size + pieces - 1) / pieces + unit - 1) / unit * unit;
}

/* The cheapest plan; by shape alone. Blocks are two waves at most, so that none of a third one
 * comes late. */
static inline depth_plan depth_plan_of(const depth_wish &k)
{
    enum { MOST_HIGH = 56, MOST_WIDE = 64, MOST_SAMPLES = 16 };
    depth_plan best;
    double least = -1;
    memset((void *)&best, 0, sizeof best);
    for (int i = 0; i < MOST_HIGH / DEPTH_HIGH * (MOST_WIDE / DEPTH_WIDE); i++) {
        int tall = (i % (MOST_HIGH / DEPTH_HIGH) + 1) * DEPTH_HIGH;
        int high = depth_even_cut(k.h, tall, DEPTH_HIGH);
        int wide = (i / (MOST_HIGH / DEPTH_HIGH) + 1) * DEPTH_WIDE;
        wide = depth_even_cut(k.w, wide, DEPTH_WIDE);
        int whole = high >= k.h && wide >= k.w;
        for (int samples = 1; samples <= (whole ? MOST_SAMPLES : 1); samples++) {
            depth_plan p = best;
            if (!depth_cut(&p, k, samples, high, wide)) {
                break;
            }
            double price = depth_price(p, k);
            if (least < 0 || price < least) {
                best = p;
                least = price;
            }
        }
    }
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
    /* The tap of a step that even (odd = 0) or odd rows of fragments are for; TAPS: none. Two of a
     * line, and at last two of the last column. */
    static MDMT_HD constexpr int tap_of(int step, int odd)
    {
        return step < K * (K - 1) / 2 ? step / ((K - 1) / 2) * K + step % ((K - 1) / 2) * 2 + odd
               : 2 * (step - K * (K - 1) / 2) + odd < K
                   ? (2 * (step - K * (K - 1) / 2) + odd) * K + K - 1
                   : TAPS;
    }
    /* Bytes of a plane from a window's first tap to a step's. */
    MDMT_HD int tap_bytes(int step, int odd) const
    {
        int even = tap_of(step, 0), r = even / K, s = even % K;
        int next = step < K * (K - 1) / 2 ? (S == 2 ? t.in.half : 1)
                   : step + 1 < STEPS     ? t.in.pitch
                                          : 0;
        return (r * t.in.pitch + (S == 2 ? s % 2 * t.in.half + s / 2 : s) + (odd ? next : 0)) * 16;
    }

    /* The first pair of lines of a thread's warp. */
    static MDMT_HD int first_row(int thread)
    {
        return thread / 32 / MDMT_TILE_PACKS * DEPTH_HIGH;
    }
    /* Where in its plane an output lies, and the first tap of its window. */
    MDMT_HD int bytes_out(int n, int row, int x) const
    {
        return ((n * t.out.high + row) * t.out.pitch + x) * 16;
    }
    MDMT_HD int bytes_in(int n, int row, int x) const
    {
        return ((n * t.in.high + S * row) * t.in.pitch + x) * 16;
    }

    /* A thread's way over a tile: every eighth pixel of every eighth line, one pack of them;
     * `fold` 2 where even columns lie before odd ones. */
    struct way {
        const map_type &map;
        const depth_grid &grid;
        mdmt_corner from;
        int pack, across, lines;

        /* What a line has: the first pixel's slot, the map's columns (none outside of it), and the
         * element of the first pixel, which means nothing where that is outside. */
        MDMT_HD int start(int line, int fold, uint32_t *columns, size_t *element, int *n) const
        {
            uint32_t y = (uint32_t)line, sample = grid.by_high.split(&y);
            int row = from.y + (int)y;
            *n = from.n + (int)sample;
            *columns = *n < map.n && (unsigned)row < (unsigned)map.h ? (uint32_t)map.w : 0;
            /* is_tensor: pixels have numbers of 31 bits */
            uint32_t pixel = ((uint32_t)*n * (uint32_t)map.h + (uint32_t)row) * (uint32_t)map.w;
            pixel += (uint32_t)(from.x + across);
            *element = (size_t)((int64_t)(int32_t)pixel * map.pitch) + (size_t)(pack * MDMT_PACK);
            return line * grid.pitch + (fold == 2 ? across % 2 * grid.half + across / 2 : across);
        }
    };
    MDMT_HD way way_of(const map_type &map, const depth_grid &grid, const mdmt_corner &from,
                       size_t block, int thread) const
    {
        int pack = chunk(block) * MDMT_TILE_PACKS + thread % MDMT_TILE_PACKS;
        way w = {map,
                 grid,
                 from,
                 pack,
                 thread / MDMT_TILE_PACKS % 8,
                 pack < map.packs ? grid.samples * grid.high : 0};
        return w;
    }

    /* The thread's pixels of a tile on their way to shared memory, zeros where the map has none. */
    template <int FOLD> static MDMT_HD void copy(mdmt_bf16 *tile, const way &w, int thread)
    {
        tile += thread % MDMT_TILE_PACKS * w.grid.plane * MDMT_PACK;
        MDMT_ROLLED
        for (int line = thread / 32; line < w.lines; line += THREADS / 32) {
            uint32_t columns;
            size_t element;
            int n, slot = w.start(line, FOLD, &columns, &element, &n);
            for (int x = w.across; x < w.grid.wide; x += 8) {
                int here = (unsigned)(w.from.x + x) < columns;
                mdmt_copy_async(tile + slot * MDMT_PACK, w.map.data + (here ? element : 0), here);
                slot += 8 / FOLD;
                element += (size_t)(8 * w.map.pitch);
            }
        }
    }
    MDMT_HD void copy_in(mdmt_bf16 *tile, int round, size_t block, int thread) const
    {
        copy<S>(tile, way_of(x.map, t.in, corner_in(round, block), block, thread), thread);
    }
    MDMT_HD void copy_out(mdmt_bf16 *tile, const map_type &map, int round, size_t block,
                          int thread) const
    {
        copy<1>(tile, way_of(map, t.out, corner(round, block), block, thread), thread);
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
        way w = way_of(x.map, t.in, corner_in(round, block), block, thread);
        mdmt_pack a = mdmt_zero_pack(), b = a;
        if (x.scale && w.lines) {
            a = mdmt_load_pack(x.scale + w.pack * MDMT_PACK);
            b = mdmt_load_pack(x.shift + w.pack * MDMT_PACK);
        }
        tile += thread % MDMT_TILE_PACKS * t.in.plane * MDMT_PACK;
        MDMT_ROLLED
        for (int line = thread / 32; line < w.lines; line += THREADS / 32) {
            uint32_t columns;
            size_t element;
            int n, slot = w.start(line, S, &columns, &element, &n);
            /* Of the map's columns alone; fewer than eight lie before it. */
            int at = w.across, end = (int)columns - w.from.x;
            end = end < t.in.wide ? end : t.in.wide;
            if (w.from.x + at < 0) {
                at += 8;
                slot += 8 / S;
            }
            for (; at < end; at += 8, slot += 8 / S) {
                activate_pack<ACT>(tile + slot * MDMT_PACK, a, b, w.pack, n);
            }
        }
    }
    template <int ACT>
    MDMT_HD void activate_pack(mdmt_bf16 *at, const mdmt_pack &a, const mdmt_pack &b, int pack,
                               int n) const
    {
        if (ACT < 0) {
            mdmt_store_pack(at, mdmt_lazy_pack(x, mdmt_load_pack(at), a, b, pack, n));
            return;
        }
        struct alignas(16) four {
            uint32_t v[MDMT_PACK / 2];
        } bits = *(const four *)(const void *)at;
        MDMT_UNROLL
        for (int k = 0; k < MDMT_PACK / 2; k++) {
            mdmt_pair v = mdmt_pair_of(bits.v[k]);
            bits.v[k] = mdmt_rounded_act<ACT>(a.v[2 * k] * v.a + b.v[2 * k],
                                              a.v[2 * k + 1] * v.b + b.v[2 * k + 1]);
        }
        *(four *)(void *)at = bits;
    }
};

/* ---- forward ---- */

/* Of the values of one channel in one thread: sums of what they are above a pivot, and of its
 * square. */
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
    /* A weight is the sum of two numbers of bfloat16, so that the inputs and the outputs alone are
     * rounded. */
    struct alignas(8) weight_pair {
        uint32_t most, rest;
    };
    struct shared_type {
        alignas(16) mdmt_bf16 tile[DEPTH_SLOTS * MDMT_PACK];
        weight_pair weights[DEPTH_TAPS][MDMT_TILE_CHANNELS / 2];
    };
    struct own_type {
        int count; /* pixels in the statistics */
        mdmt_pair pivot, sum, square;
    };
    /* What two channels' outputs are made with. */
    struct factors {
        uint32_t w[2 * STEPS], rest[2 * STEPS];
        mdmt_pair bias;
    };
    mdmt_map<mdmt_bf16> y;
    const float *w, *bias; /* bias: or NULL */
    float *stats;          /* (parts, MDMT_STATS_ROWS, channels); or NULL */

    MDMT_HD mdmt_bf16 *outputs(shared_type &shared) const
    {
        return shared.tile + (DEPTH_SLOTS - MDMT_TILE_PACKS * t.out.plane) * MDMT_PACK;
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
    /* By step and odd or even rows. */
    MDMT_HD void bring_weights(size_t block, int thread, shared_type &shared) const
    {
        enum { PAIRS = MDMT_TILE_CHANNELS / 2 };
        int up = y.packs * MDMT_PACK;
        for (int i = thread; i < 2 * STEPS * PAIRS; i += THREADS) {
            int at = base::tap_of(i / PAIRS / 2, i / PAIRS % 2);
            int channel = this->chunk(block) * MDMT_TILE_CHANNELS + i % PAIRS * 2;
            mdmt_pair v = at < TAPS && channel < up ? mdmt_load_pair(w + at * up + channel)
                                                    : mdmt_zero_pair();
            uint32_t most = mdmt_bf16_pair(v.a, v.b);
            mdmt_pair m = mdmt_pair_of(most);
            weight_pair p = {most, mdmt_bf16_pair(v.a - m.a, v.b - m.b)};
            shared.weights[i / PAIRS][i % PAIRS] = p;
        }
    }
    MDMT_HD void fetch(factors &f, size_t block, int thread, const shared_type &shared) const
    {
        uint32_t mask = mdmt_diagonal_mask(thread % 32);
        int pair = thread / 32 % MDMT_TILE_PACKS * 4 + thread % 4;
        MDMT_UNROLL
        for (int tap = 0; tap < 2 * STEPS; tap++) {
            weight_pair p = shared.weights[tap][pair];
            f.w[tap] = p.most & mask;
            f.rest[tap] = p.rest & mask;
        }
        int channel = this->chunk(block) * MDMT_TILE_CHANNELS + pair * 2;
        f.bias = bias ? mdmt_load_pair(bias + channel) : mdmt_zero_pair();
    }
    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        this->copy_in(shared.tile, round, block, thread);
        if (round) {
            store(round - 1, block, thread, shared);
        } else {
            bring_weights(block, thread, shared);
        }
        mdmt_copies_done();
        this->activate(shared.tile, round, block, thread);
    }
    MDMT_HD void store(int round, size_t block, int thread, shared_type &shared) const
    {
        mdmt_corner c = this->corner(round, block);
        typename base::way w = this->way_of(y, t.out, c, block, thread);
        const mdmt_bf16 *tile =
            outputs(shared) + thread % MDMT_TILE_PACKS * t.out.plane * MDMT_PACK;
        MDMT_ROLLED
        for (int line = thread / 32; line < w.lines; line += THREADS / 32) {
            uint32_t columns;
            size_t element;
            int n, slot = w.start(line, 1, &columns, &element, &n);
            for (int at = w.across; at < t.out.wide; at += 8, slot += 8) {
                if ((unsigned)(c.x + at) < columns) {
                    *(mdmt_raw<mdmt_bf16> *)(void *)(y.data + element) =
                        mdmt_load_raw(tile + slot * MDMT_PACK);
                }
                element += (size_t)(8 * y.pitch);
            }
        }
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        if (pack_of(block, thread) >= y.packs) {
            return;
        }
        int lane = thread % 32, plane = thread / 32 % MDMT_TILE_PACKS;
        factors f;
        fetch(f, block, thread, shared);
        mdmt_corner c = this->corner(round, block);
        const mdmt_bf16 *in = shared.tile + plane * t.in.plane * MDMT_PACK;
        mdmt_bf16 *out = outputs(shared) + plane * t.out.plane * MDMT_PACK + lane % 4 * 2;
        if (stats && round == 0) {
            float sums[4] = {f.bias.a, f.bias.b, f.bias.a, f.bias.b};
            group(sums, in, lane, f);
            own.pivot = mdmt_pair_of(mdmt_bf16_pair(sums[0], sums[1]));
        }
        int samples = y.n - c.n < t.out.samples ? y.n - c.n : t.out.samples;
        int high = y.h - c.y < t.out.high ? y.h - c.y : t.out.high;
        MDMT_ROLLED
        for (int n = 0; n < samples; n++) {
            MDMT_ROLLED
            for (int x = 0; x < t.out.wide; x += DEPTH_WIDE) {
                int live = c.x + x + lane / 4 < y.w;
                MDMT_ROLLED
                for (int row = this->first_row(thread); row < high;
                     row += DEPTH_SHARES * DEPTH_HIGH) {
                    finish(in + this->bytes_in(n, row, x) / 2,
                           out + (this->bytes_out(n, row, x) + lane / 4 * 16) / 2, lane, f, live,
                           live && row + 1 < high, own);
                }
            }
        }
    }
    /* 8 columns of two lines; `first` and `second`: whether the thread's pixel is the map's. */
    MDMT_HD void finish(const mdmt_bf16 *in, mdmt_bf16 *out, int lane, const factors &f, int first,
                        int second, own_type &own) const
    {
        mdmt_bf16 *next = out + t.out.pitch * MDMT_PACK;
        float sums[4] = {f.bias.a, f.bias.b, f.bias.a, f.bias.b};
        group(sums, in, lane, f);
        uint32_t above = mdmt_bf16_pair(sums[0], sums[1]);
        uint32_t below = mdmt_bf16_pair(sums[2], sums[3]);
        *(uint32_t *)(void *)out = above;
        *(uint32_t *)(void *)next = below;
        if (stats) {
            if (first) {
                note(own, mdmt_pair_of(above));
            }
            if (second) {
                note(own, mdmt_pair_of(below));
            }
        }
    }
    /* Adds all taps; what the rests of the weights add is summed by itself, so that fewer
     * instructions wait for each other. */
    MDMT_HD void group(float *sums, const mdmt_bf16 *in, int lane, const factors &f) const
    {
        float rests[4] = {0, 0, 0, 0};
        MDMT_UNROLL
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[4];
            mdmt_load_rows(a, in, lane, [&](int i) {
                return (i / 8 % 2 * S * t.in.pitch + i % 8) * 16 + this->tap_bytes(step, i / 16);
            });
            mdmt_add_scaled(sums, a, f.w[2 * step], f.w[2 * step + 1]);
            mdmt_add_scaled(rests, a, f.rest[2 * step], f.rest[2 * step + 1]);
        }
        MDMT_UNROLL
        for (int i = 0; i < 4; i++) {
            sums[i] += rests[i];
        }
    }
    static MDMT_HD void note(own_type &own, mdmt_pair v)
    {
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
        return shared.tile + (DEPTH_SLOTS - MDMT_TILE_PACKS * t.out.plane) * MDMT_PACK;
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
        int lane = thread % 32, plane = thread / 32 % MDMT_TILE_PACKS;
        if (this->chunk(block) * MDMT_TILE_PACKS + plane >= dy.packs) {
            return;
        }
        mdmt_corner c = this->corner(round, block);
        const mdmt_bf16 *in = shared.tile + plane * t.in.plane * MDMT_PACK;
        const mdmt_bf16 *out = gradients(shared) + plane * t.out.plane * MDMT_PACK;
        int samples = dy.n - c.n < t.out.samples ? dy.n - c.n : t.out.samples;
        int high = dy.h - c.y < t.out.high ? dy.h - c.y : t.out.high;
        MDMT_ROLLED
        for (int n = 0; n < samples; n++) {
            MDMT_ROLLED
            for (int x = 0; x < t.out.wide; x += DEPTH_WIDE) {
                int row = this->first_row(thread);
                const mdmt_bf16 *from = in + this->bytes_in(n, row, x) / 2;
                const mdmt_bf16 *of = out + this->bytes_out(n, row, x) / 2;
                MDMT_ROLLED
                for (; row < high; row += DEPTH_SHARES * DEPTH_HIGH) {
                    group(own, from, of, lane);
                    from += DEPTH_SHARES * DEPTH_HIGH * S * t.in.pitch * MDMT_PACK;
                    of += DEPTH_SHARES * DEPTH_HIGH * t.out.pitch * MDMT_PACK;
                }
            }
        }
    }
    /* 8 columns of two lines: zeros outside of the map, as gradients. */
    MDMT_HD void group(own_type &own, const mdmt_bf16 *in, const mdmt_bf16 *out, int lane) const
    {
        uint32_t b[2];
        mdmt_load_columns<2>(b, out, lane,
                             [&](int i) { return (i / 8 * t.out.pitch + i % 8) * 16; });
        MDMT_UNROLL
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[4];
            mdmt_load_columns<4>(a, in, lane, [&](int i) {
                return (i / 16 * S * t.in.pitch + i % 8) * 16 + this->tap_bytes(step, i / 8 % 2);
            });
            mdmt_add_dots(own.sums[step], a, b);
        }
    }
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        if (phase == 0) {
            int lane = thread % 32, share = thread / 32 / MDMT_TILE_PACKS;
            int channel = thread / 32 % MDMT_TILE_PACKS * MDMT_PACK + lane / 4;
            MDMT_UNROLL
            for (int i = 0; i < TAPS; i++) {
                shared.sum[base::tap_of(i / 2, i % 2)][share][lane % 4][channel] =
                    mdmt_dot_of(own.sums[i / 2], i % 2, lane);
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
