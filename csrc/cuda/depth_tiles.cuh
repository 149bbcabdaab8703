/* Depthwise convolutions with square kernels of 3 and 5, stride 1 or 2, not dilated.
 *
 * A block makes a tile of outputs for 32 channels from a tile of inputs in shared memory. Half a
 * warp makes a strip of a row: a thread has two channels, goes along the strip column by column
 * and keeps in registers what the next columns add to. */
#ifndef MDMT_CUDA_DEPTH_TILES_CUH
#define MDMT_CUDA_DEPTH_TILES_CUH

#include "tiles.cuh"

enum {
    DEPTH_LANES = MDMT_TILE_CHANNELS / 2, /* threads of a strip */
    DEPTH_BLOCKS = 1056                   /* of weight gradients: 8 for each SM of an H100 */
};

/* Tiles of rows x columns outputs of `samples` samples, cut into strips of `length`. */
struct depth_tiling {
    int samples, rows, columns;
    int length, segments;
    int tiles_y, tiles_x, tiles, chunks;
    mdmt_box box;   /* of what the outputs are made from           */
    mdmt_box other; /* of the outputs, for gradients of weights    */

    MDMT_HD int strips() const
    {
        return samples * segments * rows;
    }
    /* The first output of a tile. */
    MDMT_HD mdmt_corner corner(int tile) const
    {
        mdmt_corner c;
        c.x = tile % tiles_x * columns;
        c.y = tile / tiles_x % tiles_y * rows;
        c.n = tile / tiles_x / tiles_y * samples;
        return c;
    }
};

/* A strip of a tile; its neighbour in the warp is of the next row. */
struct depth_strip {
    int sample, row, column, length;
};

MDMT_HD depth_strip depth_strip_of(const depth_tiling &t, int i)
{
    depth_strip s;
    s.row = i % t.rows;
    s.column = i / t.rows % t.segments * t.length;
    s.sample = i / t.rows / t.segments;
    s.length = t.columns - s.column < t.length ? t.columns - s.column : t.length;
    return s;
}

/* What a tiling is for. */
struct depth_walk {
    int n, h, w, packs; /* outputs, or groups of stride x stride of them */
    int kernel, stride; /* of the walk over the tile of inputs           */
    int both;           /* the tile of outputs is in shared memory too   */
    int strips;         /* made at once                                  */
    size_t slots;       /* pixels that shared memory has room for        */
};

/* Instructions of a thread for all tiles; sets what depends on the tile alone. */
static inline double depth_cost(depth_tiling *t, const depth_walk &k)
{
    int depth = (k.kernel + k.stride - 1) / k.stride, s = k.stride;
    t->box = mdmt_box_of(t->samples, s * (t->rows - 1) + k.kernel, s * (t->columns + depth - 1), s);
    t->other = mdmt_box_of(t->samples, t->rows, t->columns, 1);
    size_t slots = (size_t)t->box.slots() + (size_t)(k.both ? t->other.slots() : 0);
    if (slots > k.slots) {
        return -1;
    }
    t->tiles_y = (k.h + t->rows - 1) / t->rows;
    t->tiles_x = (k.w + t->columns - 1) / t->columns;
    t->tiles = t->tiles_y * t->tiles_x * ((k.n + t->samples - 1) / t->samples);
    double turns = (t->strips() + k.strips - 1) / k.strips;
    double work = turns * (t->length + depth - 1) * (2.3 * k.kernel * k.kernel + 20);
    double load = 32.0 / k.strips * (double)slots;
    return t->tiles * (work + load + 300);
}

static inline int depth_even(int size, int most)
{
    int pieces = (size + most - 1) / most;
    return (size + pieces - 1) / pieces;
}

/* The cheapest tiling; by shape alone. */
static inline depth_tiling depth_tiling_of(const depth_walk &k)
{
    static const int sizes[] = {4, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32};
    enum { SIZES = sizeof sizes / sizeof *sizes, MOST_SEGMENTS = 4, MOST_SAMPLES = 16 };
    depth_tiling best;
    double least = -1;
    memset((void *)&best, 0, sizeof best);
    for (int i = 0; i < SIZES * SIZES * MOST_SEGMENTS; i++) {
        depth_tiling t = best;
        int row = i % SIZES, column = i / SIZES % SIZES, segments = i / SIZES / SIZES + 1;
        t.rows = depth_even(k.h, sizes[row]);
        t.columns = depth_even(k.w, sizes[column]);
        if ((row && t.rows == depth_even(k.h, sizes[row - 1])) ||
            (column && t.columns == depth_even(k.w, sizes[column - 1]))) {
            continue; /* seen */
        }
        t.length = (t.columns + segments - 1) / segments;
        t.segments = (t.columns + t.length - 1) / t.length;
        int whole = t.rows == k.h && t.columns == k.w;
        for (t.samples = 1; t.samples <= (whole ? MOST_SAMPLES : 1); t.samples++) {
            double cost = depth_cost(&t, k);
            if (cost >= 0 && (least < 0 || cost < least)) {
                best = t;
                least = cost;
            }
        }
    }
    best.chunks = (k.packs + MDMT_TILE_PACKS - 1) / MDMT_TILE_PACKS;
    return best;
}

/* The weights of two channels, [tap]. */
template <int TAPS>
MDMT_HD void depth_weights(mdmt_pair *to, const float *w, int channels_up, int channel)
{
    MDMT_UNROLL
    for (int tap = 0; tap < TAPS; tap++) {
        to[tap] = mdmt_load_pair(w + (size_t)tap * (size_t)channels_up + (size_t)channel);
    }
}

/* To element `at` of the map; channels beyond c become zero. */
template <class T>
MDMT_HD void depth_store(const mdmt_map<T> &to, size_t at, int channel, mdmt_pair p)
{
    p.a = channel < to.c ? p.a : 0.0f;
    p.b = channel + 1 < to.c ? p.b : 0.0f;
    mdmt_store_pair(to.data + at, p);
}

/* What forward and data gradient have in common: one tile of elements U a block. */
template <class T, class U, int K> struct depth_once {
    /* By registers, of which a thread of kernel 5 takes 96, and shared memory. */
    enum { STRIPS = K == 3 ? 16 : 10, RESIDENT = 4, LEAVES = 0 };
    enum { THREADS = STRIPS * DEPTH_LANES, SLOTS = 49152 / MDMT_TILE_CHANNELS / sizeof(U) };
    struct shared_type {
        alignas(16) U tile[SLOTS * MDMT_TILE_CHANNELS];
    };
    typedef mdmt_nothing own_type;
    depth_tiling t;
    mdmt_source<T> x; /* what the tile holds */
    mdmt_map<T> y;    /* what is made        */
    const float *w;
    int top, left; /* of the map that is made, in its own numbers */

    MDMT_HD int rounds(size_t block) const
    {
        (void)block;
        return 1;
    }
    MDMT_HD void begin(size_t block, int thread, own_type &own) const
    {
        (void)block;
        (void)thread;
        (void)own;
    }
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        (void)phase;
        (void)block;
        (void)thread;
        (void)shared;
        (void)own;
    }
    MDMT_HD int chunk(size_t block) const
    {
        return (int)(block % (size_t)t.chunks);
    }
    MDMT_HD mdmt_corner corner(size_t block) const
    {
        return t.corner((int)(block / (size_t)t.chunks));
    }
};

/* ---- forward: output column q - d gets the taps S d ... of the columns S q ... ---- */

template <class T, int K, int S> struct depth_forward_tiles : depth_once<T, float, K> {
    enum { DEPTH = (K + S - 1) / S };
    typedef depth_once<T, float, K> base;
    typedef typename base::shared_type shared_type;
    typedef typename base::own_type own_type;
    const float *bias; /* or NULL */

    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        (void)round;
        mdmt_corner c = this->corner(block);
        c.y = S * c.y - this->top;
        c.x = S * c.x - this->left;
        mdmt_filler<T, float, base::THREADS> f(shared.tile, this->t.box, this->x, c,
                                               this->chunk(block), thread);
        f.copy();
        mdmt_copies_done();
        f.compute();
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        (void)round;
        (void)own;
        int channel = this->chunk(block) * MDMT_TILE_CHANNELS + thread % DEPTH_LANES * 2;
        int up = this->y.packs * MDMT_PACK;
        if (channel >= up) {
            return;
        }
        mdmt_corner c = this->corner(block);
        mdmt_pair w[K * K], start = bias ? mdmt_load_pair(bias + channel) : mdmt_zero_pair();
        depth_weights<K * K>(w, this->w, up, channel);
        MDMT_ROLLED
        for (int i = thread / DEPTH_LANES; i < this->t.strips(); i += base::STRIPS) {
            depth_strip s = depth_strip_of(this->t, i);
            int n = c.n + s.sample, y = c.y + s.row, x = c.x + s.column;
            if (n < this->y.n && y < this->y.h) {
                const float *from =
                    shared.tile +
                    this->t.box.at(s.sample, S * s.row, S * s.column) * MDMT_TILE_CHANNELS;
                int length = this->y.w - x < s.length ? this->y.w - x : s.length;
                strip(from + thread % DEPTH_LANES * 2, w, start, this->y.pixel(n, y, x), channel,
                      length);
            }
        }
    }
    MDMT_HD void strip(const float *from, const mdmt_pair *w, mdmt_pair start, size_t pixel,
                       int channel, int length) const
    {
        mdmt_pair sums[DEPTH];
        size_t to = pixel * (size_t)this->y.pitch + (size_t)channel;
        MDMT_UNROLL
        for (int d = 0; d < DEPTH; d++) {
            sums[d] = start;
        }
        MDMT_ROLLED
        for (int q = 0; q < length + DEPTH - 1; q++, from += S * MDMT_TILE_CHANNELS) {
            MDMT_UNROLL
            for (int j = 0; j < S; j++) {
                column(sums, from + j * MDMT_TILE_CHANNELS, w, start, j);
            }
            if (q >= DEPTH - 1) {
                depth_store(this->y, to, channel, sums[DEPTH - 1]);
                to += (size_t)this->y.pitch;
            }
        }
    }
    /* The first column of a group moves the sums on. */
    MDMT_HD void column(mdmt_pair *sums, const float *from, const mdmt_pair *w, mdmt_pair start,
                        int j) const
    {
        mdmt_pair v[K];
        MDMT_UNROLL
        for (int r = 0; r < K; r++) {
            v[r] = mdmt_load_pair(from + this->t.box.at(0, r, 0) * MDMT_TILE_CHANNELS);
        }
        MDMT_UNROLL
        for (int d = DEPTH - 1; d >= 0; d--) {
            mdmt_pair sum = j ? sums[d] : d ? sums[d - 1] : start;
            MDMT_UNROLL
            for (int r = 0; r < K; r++) {
                if (j + S * d < K) {
                    mdmt_add_product(&sum, v[r], w[r * K + j + S * d]);
                }
            }
            sums[d] = sum;
        }
    }
};

/* ---- data gradient: S x S pixels of dx at once, from the gradients of DEPTH x DEPTH windows.
 * Pixel i of group p (in padded coordinates S p + i) has tap i + S d of window p - d. ---- */

template <class T, int K, int S> struct depth_data_tiles : depth_once<T, T, K> {
    enum { DEPTH = (K + S - 1) / S };
    typedef depth_once<T, T, K> base;
    typedef typename base::shared_type shared_type;
    typedef typename base::own_type own_type;
    mdmt_map<T> addend; /* data: or NULL; dx may lie in its memory */

    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        (void)round;
        mdmt_corner c = this->corner(block);
        c.y += this->top / S - (DEPTH - 1);
        c.x += this->left / S - (DEPTH - 1);
        mdmt_filler<T, T, base::THREADS> f(shared.tile, this->t.box, this->x, c, this->chunk(block),
                                           thread);
        f.copy();
        mdmt_copies_done();
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        (void)round;
        (void)own;
        int channel = this->chunk(block) * MDMT_TILE_CHANNELS + thread % DEPTH_LANES * 2;
        int up = this->y.packs * MDMT_PACK;
        if (channel >= up) {
            return;
        }
        mdmt_corner c = this->corner(block);
        mdmt_pair w[K * K];
        depth_weights<K * K>(w, this->w, up, channel);
        MDMT_ROLLED
        for (int i = thread / DEPTH_LANES; i < this->t.strips(); i += base::STRIPS) {
            depth_strip s = depth_strip_of(this->t, i);
            mdmt_corner at = {c.n + s.sample, (c.y + s.row + this->top / S) * S - this->top,
                              (c.x + s.column + this->left / S) * S - this->left};
            if (at.n < this->y.n && at.y < this->y.h) {
                const T *from =
                    shared.tile + this->t.box.at(s.sample, s.row, s.column) * MDMT_TILE_CHANNELS;
                strip(from + thread % DEPTH_LANES * 2, w, at, channel, s.length);
            }
        }
    }
    /* Element numbers of pixels outside of dx mean nothing and are not used. */
    MDMT_HD void strip(const T *from, const mdmt_pair *w, mdmt_corner at, int channel,
                       int length) const
    {
        mdmt_pair sums[S][K + S];
        MDMT_UNROLL
        for (int i = 0; i < S * (K + S); i++) {
            sums[i / (K + S)][i % (K + S)] = mdmt_zero_pair();
        }
        const mdmt_map<T> &dx = this->y;
        /* Columns of dx from `low`, on `width` of them, are the strip's; of no line outside. The
         * last tile may have strips that begin where the map has ended: none. */
        int low = at.x > 0 ? at.x : 0, wide = dx.w > low ? dx.w - low : 0, width[S];
        MDMT_UNROLL
        for (int i = 0; i < S; i++) {
            width[i] = (unsigned)(at.y + i) < (unsigned)dx.h ? wide : 0;
        }
        int x = at.x - S * (DEPTH - 1);
        size_t pixel = dx.pixel(at.n, at.y, x);
        size_t to = pixel * (size_t)dx.pitch + (size_t)channel;
        size_t of = pixel * (size_t)addend.pitch + (size_t)channel;
        size_t line = (size_t)dx.w * (size_t)dx.pitch, more = (size_t)dx.w * (size_t)addend.pitch;
        MDMT_ROLLED
        for (int q = 0; q < length + DEPTH - 1; q++) {
            mdmt_pair plus[S * S];
            MDMT_UNROLL
            for (int i = 0; i < S * S; i++) {
                plus[i] = mdmt_zero_pair();
                if (addend.data && (unsigned)(x + i % S - low) < (unsigned)width[i / S]) {
                    size_t a = of + (i / S ? more : 0) + (i % S ? (size_t)addend.pitch : 0);
                    plus[i] = mdmt_load_pair(addend.data + a);
                }
            }
            column(sums, from, w);
            MDMT_UNROLL
            for (int i = 0; i < S * S; i++) {
                if ((unsigned)(x + i % S - low) < (unsigned)width[i / S]) {
                    plus[i].a += sums[i / S][i % S].a;
                    plus[i].b += sums[i / S][i % S].b;
                    depth_store(dx, to + (i / S ? line : 0) + (i % S ? (size_t)dx.pitch : 0),
                                channel, plus[i]);
                }
            }
            from += MDMT_TILE_CHANNELS;
            x += S;
            to += (size_t)(S * dx.pitch);
            of += (size_t)(S * addend.pitch);
        }
    }
    /* Moves the sums on by a group and adds a column of windows. */
    MDMT_HD void column(mdmt_pair (*sums)[K + S], const T *from, const mdmt_pair *w) const
    {
        mdmt_pair v[DEPTH]; /* [d]: the window d rows up */
        MDMT_UNROLL
        for (int d = 0; d < DEPTH; d++) {
            v[d] = mdmt_load_pair(from + this->t.box.at(0, DEPTH - 1 - d, 0) * MDMT_TILE_CHANNELS);
        }
        MDMT_UNROLL
        for (int i = 0; i < S; i++) {
            MDMT_UNROLL
            for (int s = 0; s < K; s++) {
                mdmt_pair sum = s + S < K ? sums[i][s + S] : mdmt_zero_pair();
                MDMT_UNROLL
                for (int d = 0; d < DEPTH; d++) {
                    if (i + S * d < K) {
                        mdmt_add_product(&sum, v[d], w[(i + S * d) * K + s]);
                    }
                }
                sums[i][s] = sum;
            }
        }
    }
};

/* ---- weight gradient: sums of two channels for every tap, over the tiles of a part ---- */

template <class T, int K, int S> struct depth_weight_tiles {
    enum { DEPTH = (K + S - 1) / S, TAPS = K * K };
    enum { STRIPS = K == 3 ? 12 : 8, RESIDENT = K == 3 ? 4 : 5, LEAVES = 2 };
    enum { THREADS = STRIPS * DEPTH_LANES };
    enum { SLOTS = (K == 3 ? 49152 : 45056) / MDMT_TILE_CHANNELS / sizeof(T) };
    union shared_type {
        alignas(16) T tile[SLOTS * MDMT_TILE_CHANNELS];
        float sum[STRIPS][TAPS][MDMT_TILE_CHANNELS];
    };
    struct own_type {
        mdmt_pair sum[TAPS];
    };
    depth_tiling t;
    mdmt_source<T> x, dy; /* dy: plain */
    float *partial;       /* (parts, taps, O up) */
    int parts, per_part;  /* tiles */
    int top, left;

    MDMT_HD int part(size_t block) const
    {
        return (int)(block / (size_t)t.chunks);
    }
    MDMT_HD int chunk(size_t block) const
    {
        return (int)(block % (size_t)t.chunks);
    }
    MDMT_HD int rounds(size_t block) const
    {
        int left_over = t.tiles - part(block) * per_part;
        return left_over < per_part ? left_over : per_part;
    }
    MDMT_HD void begin(size_t block, int thread, own_type &own) const
    {
        (void)block;
        (void)thread;
        MDMT_UNROLL
        for (int tap = 0; tap < TAPS; tap++) {
            own.sum[tap] = mdmt_zero_pair();
        }
    }
    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        mdmt_corner c = t.corner(part(block) * per_part + round), in = c;
        in.y = S * c.y - top;
        in.x = S * c.x - left;
        T *other = shared.tile + t.box.slots() * MDMT_TILE_CHANNELS;
        mdmt_filler<T, T, THREADS> f(shared.tile, t.box, x, in, chunk(block), thread);
        mdmt_filler<T, T, THREADS> g(other, t.other, dy, c, chunk(block), thread);
        f.copy();
        g.copy();
        mdmt_copies_done();
        f.compute();
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        (void)round;
        int lane = thread % DEPTH_LANES * 2;
        if (chunk(block) * MDMT_TILE_CHANNELS + lane >= dy.map.packs * MDMT_PACK) {
            return;
        }
        const T *other = shared.tile + t.box.slots() * MDMT_TILE_CHANNELS;
        MDMT_ROLLED
        for (int i = thread / DEPTH_LANES; i < t.strips(); i += STRIPS) {
            depth_strip s = depth_strip_of(t, i);
            int in = t.box.at(s.sample, S * s.row, S * s.column);
            int out = t.other.at(s.sample, s.row, s.column);
            strip(own, shared.tile + in * MDMT_TILE_CHANNELS + lane,
                  other + out * MDMT_TILE_CHANNELS + lane, s.length);
        }
    }
    /* Column S q + j of x meets output q - d at tap j + S d. */
    MDMT_HD void strip(own_type &own, const T *in, const T *out, int length) const
    {
        mdmt_pair grad[DEPTH];
        MDMT_UNROLL
        for (int d = 0; d < DEPTH; d++) {
            grad[d] = mdmt_zero_pair();
        }
        MDMT_ROLLED
        for (int q = 0; q < length + DEPTH - 1; q++, in += S * MDMT_TILE_CHANNELS) {
            MDMT_UNROLL
            for (int d = DEPTH - 1; d > 0; d--) {
                grad[d] = grad[d - 1];
            }
            grad[0] = q < length ? mdmt_load_pair(out + q * MDMT_TILE_CHANNELS) : mdmt_zero_pair();
            MDMT_UNROLL
            for (int j = 0; j < S; j++) {
                column(own, in + j * MDMT_TILE_CHANNELS, grad, j);
            }
        }
    }
    MDMT_HD void column(own_type &own, const T *in, const mdmt_pair *grad, int j) const
    {
        MDMT_UNROLL
        for (int r = 0; r < K; r++) {
            mdmt_pair v = mdmt_load_pair(in + t.box.at(0, r, 0) * MDMT_TILE_CHANNELS);
            MDMT_UNROLL
            for (int d = 0; d < DEPTH; d++) {
                if (j + S * d < K) {
                    mdmt_add_product(&own.sum[r * K + j + S * d], v, grad[d]);
                }
            }
        }
    }
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        if (phase == 0) {
            MDMT_UNROLL
            for (int tap = 0; tap < TAPS; tap++) {
                float *to = shared.sum[thread / DEPTH_LANES][tap] + thread % DEPTH_LANES * 2;
                mdmt_store_pair(to, own.sum[tap]);
            }
            return;
        }
        int up = dy.map.packs * MDMT_PACK;
        for (int i = thread; i < TAPS * MDMT_TILE_CHANNELS; i += THREADS) {
            int tap = i / MDMT_TILE_CHANNELS, lane = i % MDMT_TILE_CHANNELS;
            int channel = chunk(block) * MDMT_TILE_CHANNELS + lane;
            float total = 0;
            for (int strip = 0; strip < STRIPS; strip++) {
                total += shared.sum[strip][tap][lane];
            }
            if (channel < up) {
                partial[((size_t)part(block) * TAPS + (size_t)tap) * (size_t)up + (size_t)channel] =
                    total;
            }
        }
    }
};

#endif
