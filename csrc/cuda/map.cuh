/* Feature maps as kernels see them, and the two ways to walk over them. */
#ifndef MDMT_CUDA_MAP_CUH
#define MDMT_CUDA_MAP_CUH

#include "act.cuh"
#include "layout.h"

/* A stored MAP. A pixel is numbered (n * h + y) * w + x, a pack holds 8 channels. */
template <class T> struct mdmt_map {
    T *data;
    int n, c, h, w;
    int pitch, packs;

    MDMT_HD size_t at(size_t pixel, int pack) const
    {
        return pixel * (size_t)pitch + (size_t)(pack * MDMT_PACK);
    }
    MDMT_HD size_t pixel(int sample, int y, int x) const
    {
        return ((size_t)sample * (size_t)h + (size_t)y) * (size_t)w + (size_t)x;
    }
    size_t pixels() const
    {
        return (size_t)n * (size_t)h * (size_t)w;
    }
    MDMT_HD mdmt_raw<T> raw(size_t pixel, int pack) const
    {
        return mdmt_load_raw(data + at(pixel, pack));
    }
    MDMT_HD mdmt_pack load(size_t pixel, int pack) const
    {
        return mdmt_load_pack(data + at(pixel, pack));
    }
    /* Channels beyond c become zero. */
    MDMT_HD void store(size_t pixel, int pack, mdmt_pack value) const
    {
        for (int i = 0; pack * MDMT_PACK + MDMT_PACK > c && i < MDMT_PACK; i++) {
            value.v[i] = pack * MDMT_PACK + i < c ? value.v[i] : 0.0f;
        }
        mdmt_store_pack(data + at(pixel, pack), value);
    }
};

template <class T> mdmt_map<T> mdmt_map_of(const mdmt_tensor *t, const void *data)
{
    mdmt_map<T> m;
    m.data = (T *)(uintptr_t)data;
    m.n = t->dim[0];
    m.c = t->dim[1];
    m.h = t->dim[2];
    m.w = t->dim[3];
    m.pitch = mdmt_pitch(t);
    m.packs = mdmt_up(t->dim[1]) / MDMT_PACK;
    return m;
}

/* A pack of a row of ROWS, which has no padding: zeros beyond its `c` channels. */
MDMT_HD mdmt_pack mdmt_row_pack(const float *row, int c, int pack)
{
    if (c % MDMT_PACK == 0) { /* so that every row begins at a multiple of 16 bytes */
        return mdmt_load_pack(row + pack * MDMT_PACK);
    }
    mdmt_pack p = mdmt_zero_pack();
    for (int i = 0; i < MDMT_PACK; i++) {
        if (pack * MDMT_PACK + i < c) {
            p.v[i] = row[pack * MDMT_PACK + i];
        }
    }
    return p;
}

/* A MAP that may be lazy: act(scale x + shift) * gate on load. */
template <class T> struct mdmt_source {
    mdmt_map<T> map;
    const float *scale, *shift, *gate;
    int act;

    MDMT_HD mdmt_pack load(size_t pixel, int pack) const
    {
        mdmt_pack p = map.load(pixel, pack);
        if (scale) {
            mdmt_pack a = mdmt_load_pack(scale + pack * MDMT_PACK);
            mdmt_pack b = mdmt_load_pack(shift + pack * MDMT_PACK);
            for (int i = 0; i < MDMT_PACK; i++) {
                p.v[i] = mdmt_act_as<sizeof(T) == 2>(act, a.v[i] * p.v[i] + b.v[i]);
            }
        }
        if (gate) {
            size_t sample = pixel / ((size_t)map.h * (size_t)map.w);
            mdmt_pack g = mdmt_row_pack(gate + sample * (size_t)map.c, map.c, pack);
            for (int i = 0; i < MDMT_PACK; i++) {
                p.v[i] *= g.v[i];
            }
        }
        return p;
    }
    /* One channel alone. */
    MDMT_HD float one(size_t pixel, int c) const
    {
        float v = mdmt_to_float(map.data[pixel * (size_t)map.pitch + (size_t)c]);
        if (scale) {
            v = mdmt_act_as<sizeof(T) == 2>(act, scale[c] * v + shift[c]);
        }
        if (gate) {
            size_t sample = pixel / ((size_t)map.h * (size_t)map.w);
            v *= gate[sample * (size_t)map.c + (size_t)c];
        }
        return v;
    }
};

template <class T> mdmt_source<T> mdmt_source_of(const mdmt_tensor *t, const mdmt_value &value)
{
    mdmt_source<T> s;
    s.map = mdmt_map_of<T>(t, value.data);
    s.scale = value.scale;
    s.shift = value.shift;
    s.gate = value.gate;
    s.act = value.act;
    return s;
}

/* ---- one thread for a pack of every pixel: f.at(pixel, pack) ---- */

template <class F> struct mdmt_walk {
    enum { THREADS = 256, PHASES = 1 };
    typedef mdmt_nothing shared_type;
    F f;
    uint32_t count, packs;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        size_t i = block * THREADS + (size_t)thread;
        if (i < count) {
            f.at((uint32_t)i / packs, (int)((uint32_t)i % packs));
        }
    }
};

template <class F>
mdmt_status mdmt_walk_over(mdmt_stream_handle stream, size_t pixels, int packs, const F &f)
{
    size_t count = pixels * (size_t)packs;
    if (count > 0xffffffffu) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED,
                               "a feature map of %zu packs is too large for one launch", count);
    }
    mdmt_walk<F> kernel = {f, (uint32_t)count, (uint32_t)packs};
    return mdmt_launch(stream, mdmt_ceil_div(count, mdmt_walk<F>::THREADS), kernel);
}

/* One thread for each of `count` numbers: f.at(i, 0). */
template <class F> mdmt_status mdmt_count_over(mdmt_stream_handle stream, size_t count, const F &f)
{
    return mdmt_walk_over(stream, count, 1, f);
}

/* ---- many pixels of one pack for a thread ----
 * What depends on the channels alone is fetched once, into F::constants by f.prepare(&constants,
 * pack); then f.read(pixel, pack) brings F::items of AHEAD pixels under way before
 * f.write(constants, items, pixel, pack) uses the first. A thread reads each of its elements before
 * it writes it, so that results may lie over inputs.
 *
 * A crew of blocks makes a stretch of pixels, a thread every `step`-th of one of its packs. Crews
 * follow each other through the map, so that the walk begins where mdmt_reduce has just ended,
 * with what is still in the cache. */
template <class F> struct mdmt_sweep {
    enum { THREADS = 256, PHASES = 1, AHEAD = F::AHEAD, RESIDENT = mdmt_resident<F>::blocks };
    typedef mdmt_nothing shared_type;
    F f;
    uint32_t pixels, packs, step, stretch; /* stretch: pixels of a crew */
    uint32_t crew;                         /* blocks */

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        uint32_t b = (uint32_t)block, i = b % crew * THREADS + (uint32_t)thread;
        uint32_t begins = b / crew * stretch, pixel = begins + i / packs;
        uint32_t end = pixels - begins < stretch ? pixels : begins + stretch;
        int pack = (int)(i % packs);
        if (i / packs >= step || pixel >= end) {
            return;
        }
        typename F::constants constants;
        f.prepare(&constants, pack);
        for (; pixel + (AHEAD - 1) * step < end; pixel += AHEAD * step) {
            typename F::items items[AHEAD];
            MDMT_UNROLL for (uint32_t k = 0; k < AHEAD; k++)
            {
                items[k] = f.read(pixel + k * step, pack);
            }
            MDMT_UNROLL for (uint32_t k = 0; k < AHEAD; k++)
            {
                f.write(constants, items[k], pixel + k * step, pack);
            }
        }
        for (; pixel < end; pixel += step) {
            f.write(constants, f.read(pixel, pack), pixel, pack);
        }
    }
};

template <class F>
mdmt_status mdmt_sweep_over(mdmt_stream_handle stream, size_t pixels, int packs, const F &f)
{
    enum { THREADS = mdmt_sweep<F>::THREADS, AHEAD = mdmt_sweep<F>::AHEAD };
    size_t count = pixels * (size_t)packs;
    /* One crew for a small map; in a large one steps of 256, so that a crew has no idle threads,
     * and two rounds of AHEAD pixels where there are waves of blocks enough. */
    size_t step = mdmt_ceil_div(pixels, AHEAD), rounds = count / THREADS > 16384 ? 2 : 1;
    if (pixels >= (size_t)16 * AHEAD * THREADS) {
        step = THREADS;
    }
    size_t stretch = step * AHEAD * (step == THREADS ? rounds : 1);
    /* Sums of the indices stay within 32 bits. */
    if (count + stretch + 4 * AHEAD * step > 0xffffffffu) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED,
                               "a feature map of %zu packs is too large for one launch", count);
    }
    size_t crew = mdmt_ceil_div(step * (size_t)packs, THREADS);
    mdmt_sweep<F> kernel = {f, (uint32_t)pixels, (uint32_t)packs, (uint32_t)step, (uint32_t)stretch,
                            (uint32_t)crew};
    return mdmt_launch(stream, crew * mdmt_ceil_div(pixels, stretch), kernel);
}

/* ---- sums over pixels ----
 * The pixels are cut into `parts` ranges of `per_part`; z counts jobs that read
 * the same maps (groups of kernel taps). For every (z, part, pack of channels)
 *   f.add(sums, pixel, pack, z, first)   adds one pixel's terms to SUMS packs,
 *                                        `first` being the part's first pixel
 *       (or, as in mdmt_sweep, where F has constants: f.prepare, f.read and
 *       f.take(sums, constants, items, pixel, pack), which may store what it makes of the pixel);
 *   f.done(k, part, c, z, total)         receives sum k of channel c, c < 8 packs.
 * F::AHEAD (4 where it has none): pixels of a thread whose loads are under way at once.
 * The order of the additions follows from the shape alone. Blocks come from the end of the map to
 * its beginning, as their pixels do: what was written just before is read while its end is still in
 * the cache, and what walks over the map next, from its beginning, finds that there. */
template <class F, class = void> struct mdmt_ahead {
    enum { pixels = 4 };
};
template <class F> struct mdmt_ahead<F, std::void_t<decltype(F::AHEAD)>> {
    enum { pixels = F::AHEAD };
};

template <class F, class = void> struct mdmt_prepares {
    enum { does = 0 };
};
template <class F> struct mdmt_prepares<F, std::void_t<typename F::constants>> {
    enum { does = 1 };
};

template <class F, int SUMS> struct mdmt_reduce {
    enum { COLUMNS = 4, ROWS = 64, THREADS = COLUMNS * ROWS, PHASES = 3 };
    enum { RESIDENT = mdmt_resident<F>::blocks };
    enum { LANES = COLUMNS * MDMT_PACK, AHEAD = mdmt_ahead<F>::pixels };
    enum { ITEMS = SUMS * LANES, SHARES = THREADS / ITEMS, SHARE = ROWS / SHARES };
    struct shared_type {
        float sum[SUMS][ROWS][LANES];
    };
    F f;
    size_t pixels, per_part;
    int parts, packs, groups;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int group = (int)(block % (size_t)groups);
        int part = parts - 1 - (int)(block / (size_t)groups % (size_t)parts);
        int z = (int)(block / (size_t)groups / (size_t)parts);
        if (phase == 0) {
            gather(group, part, z, thread, shared);
            return;
        }
        /* Rows are summed in SHARES shares, each into its own first row; then the shares. */
        int item = thread % ITEMS, share = thread / ITEMS;
        int k = item / LANES, lane = item % LANES, c = group * LANES + lane;
        float total = 0;
        if (phase == 1) {
            for (int row = 0; row < SHARE; row++) {
                total += shared.sum[k][share * SHARE + row][lane];
            }
            shared.sum[k][share * SHARE][lane] = total;
        } else if (share == 0 && c < packs * MDMT_PACK) {
            for (int s = 0; s < SHARES; s++) {
                total += shared.sum[k][s * SHARE][lane];
            }
            f.done(k, part, c, z, total);
        }
    }

    MDMT_HD void gather(int group, int part, int z, int thread, shared_type &shared) const
    {
        int column = thread % COLUMNS, row = thread / COLUMNS;
        int pack = group * COLUMNS + column;
        size_t first = (size_t)part * per_part;
        size_t end = first + per_part < pixels ? first + per_part : pixels;
        mdmt_pack sums[SUMS];
        for (int k = 0; k < SUMS; k++) {
            sums[k] = mdmt_zero_pack();
        }
        size_t count = end - first, i = (size_t)row, last = end - 1;
        if (pack >= packs) {
            count = 0;
        }
        if constexpr (mdmt_prepares<F>::does) {
            typename F::constants constants;
            if (i < count) {
                f.prepare(&constants, pack);
            }
            for (; i + (AHEAD - 1) * ROWS < count; i += AHEAD * ROWS) {
                typename F::items items[AHEAD];
                MDMT_UNROLL for (size_t k = 0; k < AHEAD; k++)
                {
                    items[k] = f.read((uint32_t)(last - (i + k * ROWS)), pack);
                }
                MDMT_UNROLL for (size_t k = 0; k < AHEAD; k++)
                {
                    f.take(sums, constants, items[k], (uint32_t)(last - (i + k * ROWS)), pack);
                }
            }
            for (; i < count; i += ROWS) {
                uint32_t pixel = (uint32_t)(last - i);
                f.take(sums, constants, f.read(pixel, pack), pixel, pack);
            }
        } else {
            /* Nothing is stored here, so that loads of several pixels can be under way at once. */
            for (; i + (AHEAD - 1) * ROWS < count; i += AHEAD * ROWS) {
                MDMT_UNROLL for (size_t k = 0; k < AHEAD; k++)
                {
                    f.add(sums, last - (i + k * ROWS), pack, z, first);
                }
            }
            for (; i < count; i += ROWS) {
                f.add(sums, last - i, pack, z, first);
            }
        }
        for (int k = 0; k < SUMS; k++) {
            for (int i = 0; i < MDMT_PACK; i++) {
                shared.sum[k][row][column * MDMT_PACK + i] = sums[k].v[i];
            }
        }
    }
};

enum { MDMT_PARTS_MOST = 512 };

/* Parts that keep a GPU busy, at least 512 pixels each; by shape alone. Every block begins with a
 * wait for memory and ends with a sum over its threads: a few waves of blocks are enough. */
static inline int mdmt_parts_of(size_t pixels, int packs, int jobs)
{
    size_t blocks = mdmt_ceil_div((size_t)packs, 4) * (size_t)jobs;
    size_t want = mdmt_ceil_div(1056, blocks), most = mdmt_ceil_div(pixels, 512);
    want = want < most ? want : most;
    want = want < (size_t)MDMT_PARTS_MOST ? want : (size_t)MDMT_PARTS_MOST;
    return (int)mdmt_ceil_div(pixels, mdmt_ceil_div(pixels, want));
}

template <int SUMS, class F>
mdmt_status mdmt_reduce_over(mdmt_stream_handle stream, size_t pixels, int packs, int parts,
                             int jobs, const F &f)
{
    mdmt_reduce<F, SUMS> kernel = {f,     pixels, mdmt_ceil_div(pixels, (size_t)parts),
                                   parts, packs,  (int)mdmt_ceil_div((size_t)packs, 4)};
    return mdmt_launch(stream, (size_t)kernel.groups * (size_t)parts * (size_t)jobs, kernel);
}

/* ---- sums over the rows of an array (count, stride), in double, in an order of its own ----
 * f.done(c, total) for each of `columns` numbers. 32 threads share the rows of a column. */
template <class F> struct mdmt_row_sums {
    enum { COLUMNS = 8, ROWS = 32, THREADS = COLUMNS * ROWS, PHASES = 2 };
    struct shared_type {
        double sum[ROWS][COLUMNS];
    };
    F f;
    const float *rows;
    size_t columns, stride;
    int count;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int column = thread % COLUMNS, row = thread / COLUMNS;
        size_t c = block * COLUMNS + (size_t)column;
        double total = 0;
        if (phase == 0) {
            for (int r = row; c < columns && r < count; r += ROWS) {
                total += (double)rows[(size_t)r * stride + c];
            }
            shared.sum[row][column] = total;
        } else if (row == 0 && c < columns) {
            for (int r = 0; r < ROWS; r++) {
                total += shared.sum[r][column];
            }
            f.done(c, total);
        }
    }
};

template <class F>
mdmt_status mdmt_sum_rows(mdmt_stream_handle stream, const float *rows, size_t columns,
                          size_t stride, int count, const F &f)
{
    mdmt_row_sums<F> kernel = {f, rows, columns, stride, count};
    return mdmt_launch(stream, mdmt_ceil_div(columns, mdmt_row_sums<F>::COLUMNS), kernel);
}

#endif
