/* Maximum pooling over 3 x 3 with stride 1 or 2, the pooling that networks consist of: pool.cu has
 * the same for any window. A thread makes neighbouring pixels, so that what their windows share is
 * loaded (and, of a lazy map, activated) once. */
#ifndef MDMT_CUDA_POOL3_CUH
#define MDMT_CUDA_POOL3_CUH

#include "divisor.cuh"
#include "geometry.cuh"

/* Threads by pack, then by cell (a few pixels) of a row, row of cells and sample. */
struct mdmt_cells {
    enum { THREADS = 128, PHASES = 1 };
    typedef mdmt_nothing shared_type;
    mdmt_divisor packs, wide, high;
    uint32_t count;

    struct place {
        int n, y, x, pack;
    };
    /* 0: there is no such thread. */
    MDMT_HD int find(size_t block, int thread, place *p) const
    {
        uint32_t i = (uint32_t)block * THREADS + (uint32_t)thread;
        if (i >= count) {
            return 0;
        }
        uint32_t cell = packs.split(&i), row = wide.split(&cell);
        p->pack = (int)i;
        p->x = (int)cell;
        p->n = (int)high.split(&row);
        p->y = (int)row;
        return 1;
    }
    size_t blocks() const
    {
        return mdmt_ceil_div(count, THREADS);
    }
    /* 0: too many for the divisors. */
    int set(int samples, size_t cells_high, size_t cells_wide, int each)
    {
        size_t all = (size_t)samples * cells_high * cells_wide * (size_t)each;
        packs = mdmt_divisor_of((size_t)each);
        wide = mdmt_divisor_of(cells_wide);
        high = mdmt_divisor_of(cells_high);
        count = (uint32_t)all;
        return all < 0x7fffff00;
    }
};

template <class T>
MDMT_HD void mdmt_store_kept(const mdmt_map<T> &map, size_t pixel, int pack, const mdmt_pack &value)
{
    if ((pack + 1) * MDMT_PACK > map.c) {
        map.store(pixel, pack, value); /* clears channels beyond the last */
    } else {
        mdmt_store_pack(map.data + map.at(pixel, pack), value);
    }
}

/* LAZY: a ReLU of scale x + shift. */
template <class T, class F, int STRIDE, bool LAZY> struct mdmt_max3 : mdmt_cells {
    enum { OUT = 2, IN = STRIDE + 3 }; /* pixels side by side */
    F any;                             /* x, y, where, g, note(pixel, pack, index) */

    /* What the taps of a row do to the best so far. A NaN in `bad` says that a NaN (or an
     * infinity) came by. */
    MDMT_HD void row(const place &p, int h, int w, int tap, const mdmt_pack &scale,
                     const mdmt_pack &shift, mdmt_pack *best, int (*index)[MDMT_PACK],
                     float *bad) const
    {
        const mdmt_map<T> &map = any.x.map;
        const T *at = map.data + map.at(map.pixel(p.n, h, 0), p.pack);
        mdmt_raw<T> raw[IN];
        for (int c = 0; c < IN; c++) {
            int near = w + c < 0 ? 0 : w + c < map.w ? w + c : map.w - 1;
            raw[c] = mdmt_load_raw(at + near * map.pitch);
        }
        for (int c = 0; c < IN; c++) {
            bool inside = w + c >= 0 && w + c < map.w;
            for (int i = 0; i < MDMT_PACK; i++) {
                float v = mdmt_to_float(raw[c].v[i]);
                v = LAZY ? scale.v[i] * v + shift.v[i] : v;
                /* the ReLU below drops a NaN, the comparison too */
                *bad += v * 0.0f;
                v = LAZY ? fmaxf(v, 0.0f) : v;
                for (int o = 0; o < OUT; o++) {
                    int s = c - o * STRIDE;
                    if (s >= 0 && s < 3) {
                        bool more = inside & (v > best[o].v[i]);
                        best[o].v[i] = more ? v : best[o].v[i];
                        index[o][i] = more ? tap + s : index[o][i];
                    }
                }
            }
        }
    }

    /* One pixel where NaN may be: it beats everything, the last one wins. */
    MDMT_HD void careful(const place &p, int out, const mdmt_pack &scale,
                         const mdmt_pack &shift) const
    {
        mdmt_pack best = mdmt_zero_pack();
        int index[MDMT_PACK], any_yet = 0;
        MDMT_ROLLED
        for (int tap = 0; tap < 9; tap++) {
            int h = mdmt_tap_at(p.y, STRIDE, any.g.pt, tap / 3, 1, any.x.map.h);
            int w = mdmt_tap_at(out, STRIDE, any.g.pl, tap % 3, 1, any.x.map.w);
            if (h < 0 || w < 0) {
                continue;
            }
            mdmt_pack v = any.x.map.load(any.x.map.pixel(p.n, h, w), p.pack);
            for (int i = 0; i < MDMT_PACK; i++) {
                if (LAZY) {
                    v.v[i] = mdmt_act_of(MDMT_ACT_RELU, scale.v[i] * v.v[i] + shift.v[i]);
                }
                if (!any_yet || v.v[i] > best.v[i] || v.v[i] != v.v[i]) {
                    best.v[i] = v.v[i];
                    index[i] = tap;
                }
            }
            any_yet = 1;
        }
        finish(any.y.pixel(p.n, p.y, out), p.pack, best, index);
    }
    MDMT_HD void finish(size_t pixel, int pack, const mdmt_pack &best, const int *index) const
    {
        mdmt_store_kept(any.y, pixel, pack, best);
        if (any.where.data) {
            any.note(pixel, pack, index);
        }
    }

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        place p;
        if (!find(block, thread, &p)) {
            return;
        }
        int top = p.y * STRIDE - any.g.pt, left = p.x * OUT * STRIDE - any.g.pl;
        mdmt_pack scale = mdmt_zero_pack(), shift = scale, best[OUT];
        int index[OUT][MDMT_PACK];
        float bad = 0;
        if (LAZY) {
            scale = mdmt_load_pack(any.x.scale + p.pack * MDMT_PACK);
            shift = mdmt_load_pack(any.x.shift + p.pack * MDMT_PACK);
        }
        for (int o = 0; o < OUT; o++) {
            /* the first tap inside the map, should all be -infinity */
            int w = left + o * STRIDE, first = (top < 0 ? -top : 0) * 3 + (w < 0 ? -w : 0);
            for (int i = 0; i < MDMT_PACK; i++) {
                best[o].v[i] = -INFINITY;
                index[o][i] = first;
            }
        }
        MDMT_ROLLED
        for (int r = 0; r < 3; r++) {
            if (top + r >= 0 && top + r < any.x.map.h) {
                row(p, top + r, left, r * 3, scale, shift, best, index, &bad);
            }
        }
        int left_over = any.y.w - p.x * OUT, outputs = left_over < OUT ? left_over : OUT;
        if (bad != 0) {
            MDMT_ROLLED
            for (int o = 0; o < outputs; o++) {
                careful(p, p.x * OUT + o, scale, shift);
            }
            return;
        }
        for (int o = 0; o < OUT; o++) {
            if (o < outputs) {
                finish(any.y.pixel(p.n, p.y, p.x * OUT + o), p.pack, best[o], index[o]);
            }
        }
    }
};

/* dy of a window, and the tap of its maximum. */
template <class T> struct mdmt_hit {
    mdmt_raw<T> d;
    uint32_t taps[2]; /* a byte per channel */

    MDMT_HD int is(int i, int tap) const
    {
        return (int)(taps[i / 4] >> 8 * (i % 4) & 0xFF) == tap;
    }
    MDMT_HD float of(int i) const
    {
        return mdmt_to_float(d.v[i]);
    }
};

/* A window that is not there has no tap; what is loaded in its stead is the nearest's. */
template <class F, class T>
MDMT_HD void mdmt_load_hit(const F &any, int n, int oh, int ow, int pack, mdmt_hit<T> *to)
{
    int near_h = oh < 0 ? 0 : oh < any.dy.h ? oh : any.dy.h - 1;
    int near_w = ow < 0 ? 0 : ow < any.dy.w ? ow : any.dy.w - 1;
    size_t from = any.dy.pixel(n, near_h, near_w);
    to->d = mdmt_load_raw(any.dy.data + any.dy.at(from, pack));
    mdmt_raw<uint8_t> taps = mdmt_load_raw(any.where.data + any.where.at(from, pack));
    memcpy(to->taps, &taps, sizeof to->taps);
    for (int i = 0; i < 2; i++) {
        to->taps[i] = near_h == oh && near_w == ow ? to->taps[i] : 0xFFFFFFFFu;
    }
}

/* dx of stride 2: a thread makes 2 x 2 pixels that the same four windows reach. */
template <class T, class F> struct mdmt_max3_back2 : mdmt_cells {
    F any; /* dy, dx, where, g */

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        place p;
        if (!find(block, thread, &p)) {
            return;
        }
        const mdmt_map<T> &dx = any.dx;
        mdmt_hit<T> hit[2][2];
        mdmt_pack sum[2][2];
        for (int k = 0; k < 4; k++) {
            mdmt_load_hit(any, p.n, p.y - 1 + k / 2, p.x - 1 + k % 2, p.pack, &hit[k / 2][k % 2]);
            sum[k / 2][k % 2] = mdmt_zero_pack();
        }
        for (int tap = 0; tap < 9; tap++) {
            int r = tap / 3, s = tap % 3;
            const mdmt_hit<T> &from = hit[r < 2][s < 2];
            for (int i = 0; i < MDMT_PACK; i++) {
                sum[r % 2][s % 2].v[i] += from.is(i, tap) ? from.of(i) : 0.0f;
            }
        }
        for (int k = 0; k < 4; k++) {
            int h = p.y * 2 - any.g.pt + k / 2, w = p.x * 2 - any.g.pl + k % 2;
            if (h >= 0 && h < dx.h && w >= 0 && w < dx.w) {
                mdmt_store_kept(dx, dx.pixel(p.n, h, w), p.pack, sum[k / 2][k % 2]);
            }
        }
    }
};

/* dx of stride 1: a thread makes two pixels side by side. */
template <class T, class F> struct mdmt_max3_back1 : mdmt_cells {
    F any;

    MDMT_HD void row(const place &p, int oh, int tap, mdmt_pack *sum) const
    {
        mdmt_hit<T> hit[4];
        for (int c = 0; c < 4; c++) {
            mdmt_load_hit(any, p.n, oh, p.x * 2 + any.g.pl - 2 + c, p.pack, &hit[c]);
        }
        for (int s = 0; s < 3; s++) {
            for (int i = 0; i < 2 * MDMT_PACK; i++) {
                int k = i / MDMT_PACK, c = i % MDMT_PACK;
                const mdmt_hit<T> &from = hit[k + 2 - s];
                sum[k].v[c] += from.is(c, tap + s) ? from.of(c) : 0.0f;
            }
        }
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        place p;
        if (!find(block, thread, &p)) {
            return;
        }
        mdmt_pack sum[2] = {mdmt_zero_pack(), mdmt_zero_pack()};
        MDMT_ROLLED
        for (int r = 0; r < 3; r++) {
            int oh = p.y + any.g.pt - r;
            if (oh >= 0 && oh < any.dy.h) {
                row(p, oh, r * 3, sum);
            }
        }
        for (int k = 0; k < 2; k++) {
            if (p.x * 2 + k < any.dx.w) {
                mdmt_store_kept(any.dx, any.dx.pixel(p.n, p.y, p.x * 2 + k), p.pack, sum[k]);
            }
        }
    }
};

#endif
