/* The convolution of an image of one to three channels by 3 x 3 taps in steps of 2, and the
 * gradient of its weights.
 *
 * A block makes tiles of outputs for 32 channels, each from a tile of the image in shared memory; a
 * warp makes 16 pixels of a row at once. Thread 4 g + t of a warp has the eight channels of pack t:
 * forward of pixels g and g + 8, in the gradient of taps g, g + 8, g + 16 and g + 24. In bfloat16
 * these are what the tensor cores' product of 16 x 16 by 16 x 8 leaves in that thread, if the
 * columns of four products stand for the channels in the right order; in float the thread adds the
 * products up itself. */
#ifndef MDMT_CUDA_STEM_TILES_CUH
#define MDMT_CUDA_STEM_TILES_CUH

#include "divisor.cuh"
#include "tiles.cuh"

enum {
    STEM_KERNEL = 3,
    STEM_STEP = 2,
    STEM_INPUTS = 3,                        /* at most                                      */
    STEM_LINES = STEM_INPUTS * STEM_KERNEL, /* of the tile under a row of outputs           */
    STEM_TAPS = STEM_LINES * STEM_KERNEL,   /* at most                                      */
    STEM_COLUMNS = 4,                       /* under an output: the taps', and one of zeros,
                                             * so that pairs of columns begin at even ones   */
    STEM_SLICES = 3,                        /* LINES * COLUMNS in sixteens                  */
    STEM_RUN = 16,                          /* pixels of a warp                             */
    STEM_CHANNELS = 32,                     /* of a block                                   */
    STEM_PACKS = STEM_CHANNELS / MDMT_PACK,
    STEM_WARPS = 4,
    STEM_MOST_RUNS = 8, /* of a row of a tile */
    STEM_MOST = 32,     /* of a tile          */
    STEM_CELLS = 7040,  /* of a tile's image  */
    STEM_BLOCKS = 660   /* five for each multiprocessor of an H100 */
};

/* ---- tiles: `rows` of `runs` times 16 outputs; a part is some tiles, and a block's ---- */

struct stem_tiling {
    int rows, runs;
    int tiles_y, tiles_x, tiles;
    int parts, per_part, chunks;
    int lines, pitch; /* of each channel's tile of the image; cells of a line              */
    int top, lead;    /* lines and columns of it that lie before the first output's pixel  */
    int base, shift;  /* tap s of the first output is in column base + shift + s, base even */
    mdmt_divisor by_quads, by_runs;

    /* The first output of a tile. */
    MDMT_HD mdmt_corner corner(int tile) const
    {
        mdmt_corner c;
        c.x = tile % tiles_x * runs * STEM_RUN;
        c.y = tile / tiles_x % tiles_y * rows;
        c.n = tile / tiles_x / tiles_y;
        return c;
    }
    /* Line of the tile under tap row i % 3 of channel i / 3. */
    MDMT_HD int line(int i) const
    {
        return i / STEM_KERNEL * lines + i % STEM_KERNEL;
    }
};

/* Of a result (n, up, h, w). */
static inline stem_tiling stem_tiling_of(int n, int up, int h, int w, int top, int left)
{
    stem_tiling t;
    memset((void *)&t, 0, sizeof t);
    int runs = (w + STEM_RUN - 1) / STEM_RUN;
    int pieces = (runs + STEM_MOST_RUNS - 1) / STEM_MOST_RUNS;
    t.runs = (runs + pieces - 1) / pieces;
    t.tiles_x = (runs + t.runs - 1) / t.runs;
    int most = STEM_MOST / t.runs;
    pieces = (h + most - 1) / most;
    t.rows = (h + pieces - 1) / pieces;
    t.tiles_y = (h + t.rows - 1) / t.rows;
    t.tiles = n * t.tiles_y * t.tiles_x;
    t.chunks = (up + STEM_CHANNELS - 1) / STEM_CHANNELS;
    int parts = (STEM_BLOCKS + t.chunks - 1) / t.chunks;
    t.per_part = (t.tiles + parts - 1) / parts;
    t.parts = (t.tiles + t.per_part - 1) / t.per_part;
    t.lines = STEM_STEP * (t.rows - 1) + STEM_KERNEL;
    t.top = top;
    t.lead = (left + 3) / 4 * 4; /* whole quads of the image */
    t.shift = left % 2;
    t.base = t.lead - left - t.shift;
    int quads = (t.base + STEM_STEP * STEM_RUN * t.runs + STEM_COLUMNS - STEM_STEP + 3) / 4;
    t.pitch = 4 * quads;
    t.by_quads = mdmt_divisor_of((size_t)quads);
    t.by_runs = mdmt_divisor_of((size_t)t.runs);
    return t;
}

struct stem_image {
    const float *data; /* (N, c, h, w) */
    int c, h, w;

    /* Four or two columns from x on of a line, zeros outside. WHOLE: x and w are multiples of 4, so
     * that the columns lie in the line, or outside, as a whole. */
    template <bool WHOLE> MDMT_HD mdmt_quad quad(const float *line, int x) const
    {
        mdmt_quad q = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if constexpr (WHOLE) {
            return (unsigned)x < (unsigned)w ? *(const mdmt_quad *)(const void *)(line + x) : q;
        } else {
            MDMT_UNROLL
            for (int k = 0; k < 4; k++) {
                q.v[k] = (unsigned)(x + k) < (unsigned)w ? line[x + k] : 0.0f;
            }
            return q;
        }
    }
    template <bool WHOLE> MDMT_HD mdmt_pair pair(const float *line, int x) const
    {
        mdmt_pair p = mdmt_zero_pair();
        if constexpr (WHOLE) {
            return (unsigned)x < (unsigned)w ? mdmt_load_pair(line + x) : p;
        } else {
            p.a = (unsigned)x < (unsigned)w ? line[x] : 0.0f;
            p.b = (unsigned)(x + 1) < (unsigned)w ? line[x + 1] : 0.0f;
            return p;
        }
    }
};

/* What both kernels have in common. */
struct stem_kernel {
    enum { THREADS = 32 * STEM_WARPS, RESIDENT = 5 };
    stem_tiling t;
    stem_image x;

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
        int left_over = t.tiles - part(block) * t.per_part;
        return left_over < t.per_part ? left_over : t.per_part;
    }
    MDMT_HD mdmt_corner corner(int round, size_t block) const
    {
        return t.corner(part(block) * t.per_part + round);
    }
    MDMT_HD int units() const
    {
        return t.rows * t.runs;
    }
    /* The tile's lines one after the other, as F::store(where columns 4 q ... have their place,
     * pitch, q, those columns, the two behind them) puts them there. */
    template <class F, class U> MDMT_HD void fill(U *tile, const mdmt_corner &c, int thread) const
    {
        if (x.w % 4 == 0) {
            fill_as<F, true>(tile, c, thread);
        } else {
            fill_as<F, false>(tile, c, thread);
        }
    }
    template <class F, bool WHOLE, class U>
    MDMT_HD void fill_as(U *tile, const mdmt_corner &c, int thread) const
    {
        enum { AHEAD = WHOLE ? 4 : 1 };
        int count = x.c * t.lines * (t.pitch / 4);
        const float *sample = x.data + (size_t)c.n * (size_t)x.c * (size_t)x.h * (size_t)x.w;
        MDMT_ROLLED
        for (int first = thread; first < count; first += AHEAD * THREADS) {
            mdmt_quad quad[AHEAD];
            mdmt_pair behind[AHEAD];
            int q[AHEAD];
            MDMT_UNROLL
            for (int k = 0; k < AHEAD; k++) {
                uint32_t rest = (uint32_t)(first + k * THREADS);
                int line = (int)t.by_quads.split(&rest);
                q[k] = (int)rest;
                int i = (line >= t.lines) + (line >= 2 * t.lines);
                int row = STEM_STEP * c.y - t.top + line - i * t.lines;
                int in = first + k * THREADS < count && (unsigned)row < (unsigned)x.h;
                int column = in ? STEM_STEP * c.x - t.lead + 4 * q[k] : -2 * STEM_COLUMNS;
                const float *from = sample + (size_t)(in ? i * x.h + row : 0) * (size_t)x.w;
                quad[k] = x.quad<WHOLE>(from, column);
                behind[k] = F::BEHIND ? x.pair<WHOLE>(from, column + 4) : mdmt_zero_pair();
            }
            MDMT_UNROLL
            for (int k = 0; k < AHEAD; k++) {
                if (first + k * THREADS < count) {
                    F::store(tile + 4 * (first + k * THREADS), t.pitch, q[k], quad[k], behind[k]);
                }
            }
        }
    }
};

struct alignas(8) stem_words {
    uint32_t a, b;
};
struct alignas(16) stem_four {
    uint32_t v[4];
};

MDMT_HD mdmt_pair stem_pair_of(uint32_t word)
{
    return mdmt_load_pair((const mdmt_bf16 *)(const void *)&word);
}

/* ---- the product of a warp: a (16 x 16) by b (16 x 8), both of bfloat16, for `M` times 16 rows
 * and 32 columns. Thread 4 g + t brings of a the rows g and g + 8, of b the columns g, each time
 * the elements 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; it gets of rows g and g + 8 the columns 2 t and 2
 * t + 1. F::a(lane, m) and F::b(lane) are what a thread brings; column 2 t + j of the n-th eight is
 * added to element n * EIGHTS + j * PAIRS of the pack of its row. ---- */

struct stem_b {
    uint32_t v[4][2];
};

#ifdef __CUDA_ARCH__
static __device__ __forceinline__ void stem_multiply_add(float *s0, float *s1, float *s2, float *s3,
                                                         const stem_four &a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(*s0), "+f"(*s1), "+f"(*s2), "+f"(*s3)
                 : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b[0]), "r"(b[1]));
}
#else
MDMT_HD float stem_dot(uint32_t a, uint32_t b)
{
    mdmt_pair x = stem_pair_of(a), y = stem_pair_of(b);
    return x.a * y.a + x.b * y.b;
}
#endif

template <int M, int EIGHTS, int PAIRS, class F>
MDMT_HD void stem_multiply(const F &f, int lane, mdmt_pack *sums)
{
#ifdef __CUDA_ARCH__
    __syncwarp(); /* the product is one instruction of all its threads */
    stem_b b = f.b(lane);
    MDMT_UNROLL
    for (int m = 0; m < M; m++) {
        stem_four a = f.a(lane, m);
        float *low = sums[2 * m].v, *high = sums[2 * m + 1].v;
        MDMT_UNROLL
        for (int n = 0; n < 4; n++) {
            int i = n * EIGHTS, j = i + PAIRS;
            stem_multiply_add(low + i, low + j, high + i, high + j, a, b.v[n]);
        }
    }
#else
    /* What the threads of the warp bring that this one's results are made of. */
    for (int s = 0; s < 4; s++) {
        stem_b b[2] = {f.b(lane % 4 * 8 + s), f.b(lane % 4 * 8 + 4 + s)};
        for (int m = 0; m < M; m++) {
            stem_four a = f.a(lane / 4 * 4 + s, m);
            for (int i = 0; i < 16; i++) {
                const uint32_t *column = b[i % 2].v[i / 4];
                float *sum = &sums[2 * m + i / 2 % 2].v[i / 4 * EIGHTS + i % 2 * PAIRS];
                *sum += stem_dot(a.v[i / 2 % 2], column[0]);
                *sum += stem_dot(a.v[i / 2 % 2 + 2], column[1]);
            }
        }
    }
#endif
}

/* ---- forward: rows of the product are pixels, between them and the channels stand the LINES times
 * COLUMNS elements of the image under a pixel ---- */

/* The image as it is, in elements T. */
template <class T> struct stem_plain {
    enum { BEHIND = 0 };
    MDMT_HD static void store(float *at, int, int, const mdmt_quad &v, mdmt_pair)
    {
        *(mdmt_quad *)(void *)at = v;
    }
    MDMT_HD static void store(mdmt_bf16 *at, int, int, const mdmt_quad &v, mdmt_pair)
    {
        stem_words w = {mdmt_bf16_pair(v.v[0], v.v[1]), mdmt_bf16_pair(v.v[2], v.v[3])};
        *(stem_words *)(void *)at = w;
    }
};

/* Partial statistics of a thread's pack: sums about its first value. */
struct stem_stats {
    mdmt_pack pivot, sum, square;
    int count;

    MDMT_HD void begin(const mdmt_pack &v)
    {
        MDMT_UNROLL
        for (int k = 0; k < MDMT_PACK; k++) {
            pivot.v[k] = count ? pivot.v[k] : v.v[k];
        }
    }
    MDMT_HD void add(const mdmt_pack &v)
    {
        count++;
        MDMT_UNROLL
        for (int k = 0; k < MDMT_PACK; k++) {
            float d = v.v[k] - pivot.v[k];
            sum.v[k] += d;
            square.v[k] += d * d;
        }
    }
};

template <class T> struct stem_forward : stem_kernel {
    enum { LEAVES = 3, SHARERS = 8 * STEM_WARPS /* of a pack */, ELEMENTS = 16 * STEM_SLICES };
    struct tile_type {
        alignas(16) T image[STEM_CELLS];
        union {
            float row[ELEMENTS][STEM_CHANNELS]; /* in float                                  */
            stem_four b[STEM_SLICES][2][32];    /* in bfloat16: what lanes bring, by halves   */
        } w;
    };
    struct stats_type {
        float count[SHARERS], pivot[SHARERS][STEM_CHANNELS];
        float sum[SHARERS][STEM_CHANNELS], square[SHARERS][STEM_CHANNELS];
        struct {
            float count, sum, square;
        } share[STEM_WARPS][STEM_CHANNELS];
    };
    union shared_type {
        tile_type tile;
        stats_type stats;
    };
    typedef stem_stats own_type;
    mdmt_map<T> y;
    const float *w, *bias; /* bias: or NULL */
    float *stats;          /* (parts, MDMT_STATS_ROWS, up), or NULL */

    MDMT_HD void begin(size_t block, int thread, own_type &own) const
    {
        (void)block;
        (void)thread;
        own.pivot = own.sum = own.square = mdmt_zero_pack();
        own.count = 0;
    }
    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        fill<stem_plain<T>>(shared.tile.image, corner(round, block), thread);
        if (round) {
            return;
        }
        int first = chunk(block) * STEM_CHANNELS;
        if constexpr (sizeof(T) == 2) {
            for (int i = thread; i < STEM_SLICES * 2 * 32; i += THREADS) {
                int slice = i / 64, half = i / 32 % 2, lane = i % 32;
                MDMT_UNROLL
                for (int k = 0; k < 4; k++) {
                    int e = 16 * slice + lane % 4 * 2 + k % 2 * 8, eight = 2 * half + k / 2;
                    int channel = first + lane / 8 * MDMT_PACK + 2 * eight + lane / 4 % 2;
                    shared.tile.w.b[slice][half][lane].v[k] =
                        mdmt_bf16_pair(weight(e, channel), weight(e + 1, channel));
                }
            }
        } else {
            for (int i = thread; i < ELEMENTS * STEM_CHANNELS; i += THREADS) {
                int e = i / STEM_CHANNELS, channel = i % STEM_CHANNELS;
                shared.tile.w.row[e][channel] = weight(e, first + channel);
            }
        }
    }
    /* Of element e under a pixel. */
    MDMT_HD float weight(int e, int channel) const
    {
        int line = e / STEM_COLUMNS, tap = e % STEM_COLUMNS - t.shift;
        int up = y.packs * MDMT_PACK;
        return line < x.c * STEM_KERNEL && (unsigned)tap < (unsigned)STEM_KERNEL && channel < up
                   ? w[(size_t)(line * STEM_KERNEL + tap) * (size_t)up + (size_t)channel]
                   : 0.0f;
    }
    /* What a thread brings to the product; elements of lines that the image does not have are those
     * of its first line, times zero. */
    struct brings {
        const stem_forward &k;
        const tile_type &tile;
        int at, slice; /* cell of the first element under pixel 0 */

        MDMT_HD stem_four a(int lane, int) const
        {
            const mdmt_bf16 *from = tile.image + at + lane / 4 * STEM_STEP + lane % 2 * 2;
            stem_four made;
            MDMT_UNROLL
            for (int i = 0; i < 2; i++) {
                int line = 4 * slice + lane % 4 / 2 + 2 * i;
                const mdmt_bf16 *of =
                    from + (line < k.x.c * STEM_KERNEL ? k.t.line(line) * k.t.pitch : 0);
                made.v[2 * i] = *(const uint32_t *)(const void *)of;
                made.v[2 * i + 1] = *(const uint32_t *)(const void *)(of + 8 * STEM_STEP);
            }
            return made;
        }
        MDMT_HD stem_b b(int lane) const
        {
            stem_b made;
            MDMT_UNROLL
            for (int half = 0; half < 2; half++) {
                stem_four four = tile.w.b[slice][half][lane];
                MDMT_UNROLL
                for (int i = 0; i < 4; i++) {
                    made.v[2 * half + i / 2][i % 2] = four.v[i];
                }
            }
            return made;
        }
    };
    MDMT_HD void products(const tile_type &tile, int at, int lane, mdmt_pack *sums) const
    {
        if constexpr (sizeof(T) == 2) {
            MDMT_UNROLL
            for (int slice = 0; slice < STEM_SLICES; slice++) {
                brings f = {*this, tile, at, slice};
                stem_multiply<1, 2, 1>(f, lane, sums);
            }
        } else {
            MDMT_ROLLED
            for (int i = 0; i < x.c * STEM_KERNEL; i++) {
                const T *from = tile.image + at + lane / 4 * STEM_STEP + t.line(i) * t.pitch;
                MDMT_ROLLED
                for (int j = 0; j < STEM_COLUMNS; j += 2) {
                    mdmt_pair a = mdmt_load_pair(from + j);
                    mdmt_pair b = mdmt_load_pair(from + 8 * STEM_STEP + j);
                    const float *row = tile.w.row[STEM_COLUMNS * i + j] + lane % 4 * MDMT_PACK;
                    mdmt_pack u = mdmt_load_pack(row), v = mdmt_load_pack(row + STEM_CHANNELS);
                    MDMT_UNROLL
                    for (int k = 0; k < MDMT_PACK; k++) {
                        sums[0].v[k] += a.a * u.v[k];
                        sums[0].v[k] += a.b * v.v[k];
                        sums[1].v[k] += b.a * u.v[k];
                        sums[1].v[k] += b.b * v.v[k];
                    }
                }
            }
        }
    }
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        mdmt_corner c = corner(round, block);
        int lane = thread % 32, pack = chunk(block) * STEM_PACKS + lane % 4;
        T *to = y.data + y.at(y.pixel(c.n, c.y, c.x), pack);
        MDMT_ROLLED
        for (int unit = thread / 32; unit < units(); unit += STEM_WARPS) {
            uint32_t rest = (uint32_t)unit;
            int row = (int)t.by_runs.split(&rest), run = (int)rest * STEM_RUN;
            if (c.y + row >= y.h) {
                break;
            }
            mdmt_pack sums[2];
            sums[0] =
                bias && pack < y.packs ? mdmt_load_pack(bias + pack * MDMT_PACK) : mdmt_zero_pack();
            sums[1] = sums[0];
            int at = STEM_STEP * row * t.pitch + t.base + STEM_STEP * run;
            products(shared.tile, at, lane, sums);
            int column = run + lane / 4, left_over = pack < y.packs ? y.w - c.x - column : 0;
            T *here = to + (size_t)(row * y.w + column) * (size_t)y.pitch;
            if (left_over > 0) {
                clip(pack, &sums[0]);
                mdmt_store_pack(here, sums[0]);
                if (stats) {
                    own.begin(sums[0]);
                    own.add(sums[0]);
                }
            }
            if (left_over > 8) {
                clip(pack, &sums[1]);
                mdmt_store_pack(here + (size_t)(8 * y.pitch), sums[1]);
                if (stats) {
                    own.add(sums[1]);
                }
            }
        }
    }
    /* Channels that y does not have become zero. */
    MDMT_HD void clip(int pack, mdmt_pack *v) const
    {
        if (pack * MDMT_PACK + MDMT_PACK > y.c) {
            MDMT_UNROLL
            for (int k = 0; k < MDMT_PACK; k++) {
                v->v[k] = pack * MDMT_PACK + k < y.c ? v->v[k] : 0.0f;
            }
        }
    }
    /* Sums about other pivots become sums about that of the first sharer, which has pixels in every
     * part. */
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        stats_type &s = shared.stats;
        int warp = thread / 32, lane = thread % 32;
        if (!stats) {
            return;
        }
        if (phase == 0) {
            int sharer = warp * 8 + lane / 4;
            if (lane % 4 == 0) { /* pixels are those of all packs that there are */
                s.count[sharer] = (float)own.count;
            }
            MDMT_UNROLL
            for (int k = 0; k < MDMT_PACK; k++) {
                int channel = lane % 4 * MDMT_PACK + k;
                s.pivot[sharer][channel] = own.pivot.v[k];
                s.sum[sharer][channel] = own.sum.v[k];
                s.square[sharer][channel] = own.square.v[k];
            }
        } else if (phase == 1) {
            share(s, warp, lane);
        } else if (warp == 0) {
            put(s, block, lane);
        }
    }
    MDMT_HD static void share(stats_type &s, int share, int channel)
    {
        float count = 0, sum = 0, square = 0;
        for (int i = share * 8; i < share * 8 + 8; i++) {
            float n = s.count[i], away = n > 0 ? s.pivot[i][channel] - s.pivot[0][channel] : 0.0f;
            float own = s.sum[i][channel];
            count += n;
            sum += own + n * away;
            square += s.square[i][channel] + away * (2 * own + n * away);
        }
        s.share[share][channel].count = count;
        s.share[share][channel].sum = sum;
        s.share[share][channel].square = square;
    }
    MDMT_HD void put(const stats_type &s, size_t block, int lane) const
    {
        int channel = chunk(block) * STEM_CHANNELS + lane, up = y.packs * MDMT_PACK;
        float count = 0, sum = 0, square = 0;
        for (int i = 0; i < STEM_WARPS; i++) {
            count += s.share[i][lane].count;
            sum += s.share[i][lane].sum;
            square += s.share[i][lane].square;
        }
        if (channel < up) {
            int there = channel < y.c;
            float *to = stats + (size_t)part(block) * MDMT_STATS_ROWS * (size_t)up + channel;
            to[MDMT_STATS_COUNT * up] = there ? count : 0.0f;
            to[MDMT_STATS_PIVOT * up] = there ? s.pivot[0][lane] : 0.0f;
            to[MDMT_STATS_SUM * up] = there ? sum : 0.0f;
            to[MDMT_STATS_SQUARE * up] = there ? square : 0.0f;
        }
    }
};

/* ---- the gradient of the weights: rows of the product are taps, between them and the channels
 * stand pixels ---- */

/* Of each line the even columns, then the odd ones, a cell each: in bfloat16 with the next of its
 * kind in the upper half, what the neighbour to the right has under the same tap. */
template <class T> struct stem_split {
    enum { BEHIND = sizeof(T) == 2 };
    MDMT_HD static void store(float *at, int pitch, int q, const mdmt_quad &v, mdmt_pair)
    {
        mdmt_pair even = {v.v[0], v.v[2]}, odd = {v.v[1], v.v[3]};
        mdmt_store_pair(at - 2 * q, even);
        mdmt_store_pair(at - 2 * q + pitch / 2, odd);
    }
    MDMT_HD static void store(uint32_t *at, int pitch, int q, const mdmt_quad &v, mdmt_pair behind)
    {
        stem_words even = {mdmt_bf16_pair(v.v[0], v.v[2]), mdmt_bf16_pair(v.v[2], behind.a)};
        stem_words odd = {mdmt_bf16_pair(v.v[1], v.v[3]), mdmt_bf16_pair(v.v[3], behind.b)};
        *(stem_words *)(void *)(at - 2 * q) = even;
        *(stem_words *)(void *)(at - 2 * q + pitch / 2) = odd;
    }
};

template <class T> struct stem_weight : stem_kernel {
    enum { LEAVES = 2, SETS = 4 /* of eight taps */, EIGHT = 8 };
    typedef std::conditional_t<sizeof(T) == 2, uint32_t, float> cell;
    union shared_type {
        alignas(16) cell image[STEM_CELLS];
        float sum[STEM_WARPS][SETS * EIGHT][STEM_CHANNELS];
    };
    struct own_type {
        mdmt_pack sum[SETS]; /* of taps g, g + 8, ... */
    };
    mdmt_map<T> dy;
    float *partial; /* (parts, taps, up) */

    MDMT_HD void begin(size_t block, int thread, own_type &own) const
    {
        (void)block;
        (void)thread;
        MDMT_UNROLL
        for (int i = 0; i < SETS; i++) {
            own.sum[i] = mdmt_zero_pack();
        }
    }
    MDMT_HD void load(int round, size_t block, int thread, shared_type &shared) const
    {
        fill<stem_split<T>>(shared.image, corner(round, block), thread);
    }
    MDMT_HD int taps() const
    {
        return x.c * STEM_KERNEL * STEM_KERNEL;
    }
    /* Cell of a tap under the tile's first pixel; beyond the last tap, of the first one. */
    MDMT_HD int under(int tap) const
    {
        tap = tap < taps() ? tap : 0;
        int column = t.base + t.shift + tap % STEM_KERNEL;
        return t.line(tap / STEM_KERNEL) * t.pitch + column % 2 * (t.pitch / 2) + column / 2;
    }
    /* Sixteen pixels of a row. */
    struct run_type {
        int n, y, x; /* the first */
        int cell;    /* of it in a line under the tile's first row, relative to the tile's first */
    };
    MDMT_HD run_type run_of(int unit, const mdmt_corner &c) const
    {
        uint32_t rest = (uint32_t)unit;
        int row = (int)t.by_runs.split(&rest), run = (int)rest * STEM_RUN;
        run_type r = {c.n, c.y + row, c.x + run, STEM_STEP * row * t.pitch + run};
        return r;
    }
    /* Four channels of four pixels: what a lane reads for b. */
    struct four_pixels {
        stem_words p[4];
    };
    MDMT_HD four_pixels read(const run_type &r, int lane, int chunk) const
    {
        four_pixels four;
        int channel = chunk * STEM_CHANNELS + lane / 4 * 4, column = r.x + lane % 4 * 2;
        int there = r.y < dy.h && channel < dy.packs * MDMT_PACK;
        const T *from = dy.data + dy.at(dy.pixel(r.n, r.y, column), 0) + channel;
        MDMT_UNROLL
        for (int i = 0; i < 4; i++) {
            int step = i % 2 + i / 2 * 8;
            stem_words zero = {0, 0};
            four.p[i] = there && column + step < dy.w
                            ? *(const stem_words *)(const void *)(from + (size_t)(step * dy.pitch))
                            : zero;
        }
        return four;
    }
    struct brings {
        const stem_weight &k;
        const uint32_t *image; /* the run's first pixel in the first line */
        const run_type &run;
        int chunk, reader; /* the lane that has read already */
        const four_pixels &own;

        MDMT_HD stem_four a(int lane, int m) const
        {
            const uint32_t *from = image + lane % 4 * 2;
            stem_four made;
            MDMT_UNROLL
            for (int i = 0; i < 2; i++) {
                int cell = k.under(16 * m + 8 * i + lane / 4);
                made.v[i] = from[cell];
                made.v[i + 2] = from[cell + 8];
            }
            return made;
        }
        MDMT_HD stem_b b(int lane) const
        {
            four_pixels four = lane == reader ? own : k.read(run, lane, chunk);
            stem_b made;
            MDMT_UNROLL
            for (int i = 0; i < 2; i++) {
                const stem_words &p = four.p[2 * i], &q = four.p[2 * i + 1];
                made.v[0][i] = (p.a & 0xffffu) | q.a << 16;
                made.v[1][i] = p.a >> 16 | (q.a & 0xffff0000u);
                made.v[2][i] = (p.b & 0xffffu) | q.b << 16;
                made.v[3][i] = p.b >> 16 | (q.b & 0xffff0000u);
            }
            return made;
        }
    };
    MDMT_HD void work(int round, size_t block, int thread, shared_type &shared, own_type &own) const
    {
        mdmt_corner c = corner(round, block);
        int lane = thread % 32, warp = thread / 32;
        if constexpr (sizeof(T) == 2) {
            run_type run = run_of(warp, c);
            four_pixels four = read(run, lane, chunk(block));
            MDMT_ROLLED
            for (int unit = warp; unit < units(); unit += STEM_WARPS) {
                run_type next = run_of(unit + STEM_WARPS, c);
                if (unit + STEM_WARPS >= units()) {
                    next.y = dy.h; /* nothing */
                }
                four_pixels ahead = read(next, lane, chunk(block));
                brings f = {*this, shared.image + run.cell, run, chunk(block), lane, four};
                stem_multiply<2, 1, 4>(f, lane, own.sum);
                run = next;
                four = ahead;
            }
        } else {
            MDMT_ROLLED
            for (int unit = warp; unit < units(); unit += STEM_WARPS) {
                run_type run = run_of(unit, c);
                add(own, shared.image + run.cell, run, lane, chunk(block) * STEM_PACKS + lane % 4);
            }
        }
    }
    MDMT_HD void add(own_type &own, const float *image, const run_type &run, int lane,
                     int pack) const
    {
        const float *from[SETS];
        MDMT_UNROLL
        for (int i = 0; i < SETS; i++) {
            from[i] = image + under(EIGHT * i + lane / 4);
        }
        if (run.y >= dy.h || pack >= dy.packs) {
            return;
        }
        int count = dy.w - run.x < STEM_RUN ? dy.w - run.x : STEM_RUN;
        size_t pixel = dy.pixel(run.n, run.y, run.x);
        MDMT_ROLLED
        for (int p = 0; p < count; p++) {
            mdmt_pack d = dy.load(pixel + (size_t)p, pack);
            MDMT_UNROLL
            for (int i = 0; i < SETS; i++) {
                float v = from[i][p];
                MDMT_UNROLL
                for (int k = 0; k < MDMT_PACK; k++) {
                    own.sum[i].v[k] += v * d.v[k];
                }
            }
        }
    }
    MDMT_HD void leave(int phase, size_t block, int thread, shared_type &shared,
                       own_type &own) const
    {
        int warp = thread / 32, lane = thread % 32;
        if (phase == 0) {
            MDMT_UNROLL
            for (int i = 0; i < SETS; i++) {
                float *to = shared.sum[warp][EIGHT * i + lane / 4] + lane % 4 * MDMT_PACK;
                mdmt_store_pack(to, own.sum[i]);
            }
            return;
        }
        int channel = chunk(block) * STEM_CHANNELS + lane, up = dy.packs * MDMT_PACK;
        for (int tap = warp; tap < taps() && channel < up; tap += STEM_WARPS) {
            float total = 0;
            for (int i = 0; i < STEM_WARPS; i++) {
                total += shared.sum[i][tap][lane];
            }
            size_t row = (size_t)part(block) * (size_t)taps() + (size_t)tap;
            partial[row * (size_t)up + (size_t)channel] = total;
        }
    }
};

#endif
