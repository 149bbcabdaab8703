/* Sums over the pixels of each sample, and lazy maps of a pack whose channels stay. */
#ifndef MDMT_CUDA_SAMPLES_CUH
#define MDMT_CUDA_SAMPLES_CUH

#include "site.cuh"

/* a / b within 2 units of the last place; zero where b is above 2^126. */
MDMT_HD float mdmt_ratio(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

/* ACT: an activation known to the compiler, or MDMT_ACT_ANY, which says that there may be a gate,
 * too. */
enum { MDMT_ACT_ANY = -1 };

/* What a source does to a pack of channels: act(scale x + shift). */
template <class T> struct mdmt_loader {
    mdmt_pack scale, shift;

    MDMT_HD mdmt_loader(const mdmt_source<T> &x, int pack)
    {
        shift = mdmt_zero_pack();
        for (int i = 0; i < MDMT_PACK; i++) {
            scale.v[i] = 1.0f;
        }
        if (x.scale) {
            scale = mdmt_load_pack(x.scale + pack * MDMT_PACK);
            shift = mdmt_load_pack(x.shift + pack * MDMT_PACK);
        }
    }
    template <int ACT> MDMT_HD mdmt_pack of(const mdmt_raw<T> &raw) const
    {
        mdmt_pack p = mdmt_unpack(raw);
        for (int i = 0; i < MDMT_PACK; i++) {
            float v = scale.v[i] * p.v[i] + shift.v[i];
            if (ACT == MDMT_ACT_SILU && sizeof(T) == 2) {
                p.v[i] = mdmt_act_as<1>(ACT, v);
            } else if (ACT == MDMT_ACT_SILU) {
                p.v[i] = mdmt_ratio(v, 1 + expf(-v));
            } else if (ACT == MDMT_ACT_HARDSWISH) {
                float middle = mdmt_ratio(v * (v + 3), 6), up = v >= 3 ? v : middle;
                p.v[i] = v <= -3 ? 0.0f : up;
            } else {
                p.v[i] = mdmt_act_of(ACT, v);
            }
        }
        return p;
    }
};

/* The ACT that serves this source. */
template <class T> int mdmt_act_known(const mdmt_source<T> &x)
{
    int act = x.scale ? x.act : MDMT_ACT_NONE;
    int known = act == MDMT_ACT_NONE || act == MDMT_ACT_RELU || act == MDMT_ACT_SILU ||
                act == MDMT_ACT_HARDSWISH;
    return known && !x.gate ? act : MDMT_ACT_ANY;
}

/* y[n][c] = sum over the pixels of x [times dy] / divisor. A block has some packs of one sample;
 * its threads share out the pixels, several of which a thread has under way at once. */
template <class T, bool TIMES> struct mdmt_sample_sums {
    enum { THREADS = 256, PHASES = 3, AHEAD = TIMES ? 2 : 3, SHARES = 8 };
    struct shared_type {
        float sum[THREADS][MDMT_PACK];
    };
    mdmt_source<T> x;
    mdmt_map<T> dy;
    float *y, divisor;
    uint32_t groups; /* blocks of a sample */
    int bits, act;   /* a block has 2^bits packs; mdmt_act_known */

    /* Element (row, lane) of shared.sum: rows of pixels, a lane per channel. */
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int sample = (int)((uint32_t)block / groups), group = (int)((uint32_t)block % groups);
        if (phase == 0) {
            gather(sample, group, thread, shared);
            return;
        }
        float *sum = &shared.sum[0][0];
        int lanes = MDMT_PACK << bits, each = (THREADS >> bits) / SHARES;
        for (int i = thread; phase == 1 && i < lanes * SHARES; i += THREADS) {
            float *from = sum + (i >> bits) / MDMT_PACK * each * lanes + (i & (lanes - 1));
            float total = 0;
            for (int r = 0; r < each; r++) {
                total += from[r * lanes];
            }
            from[0] = total;
        }
        int c = group * lanes + thread;
        if (phase == 2 && thread < lanes && c < x.map.c) {
            float total = 0;
            for (int s = 0; s < SHARES; s++) {
                total += sum[s * each * lanes + thread];
            }
            y[(size_t)sample * (size_t)x.map.c + (size_t)c] = total / divisor;
        }
    }

    MDMT_HD void gather(int sample, int group, int thread, shared_type &shared) const
    {
        int pack = (group << bits) + (thread & ((1 << bits) - 1)), row = thread >> bits;
        mdmt_pack sum = mdmt_zero_pack();
        if (pack < x.map.packs) {
            switch (act) {
            case MDMT_ACT_NONE:
                add_pixels<MDMT_ACT_NONE>(&sum, sample, pack, row);
                break;
            case MDMT_ACT_RELU:
                add_pixels<MDMT_ACT_RELU>(&sum, sample, pack, row);
                break;
            case MDMT_ACT_SILU:
                add_pixels<MDMT_ACT_SILU>(&sum, sample, pack, row);
                break;
            case MDMT_ACT_HARDSWISH:
                add_pixels<MDMT_ACT_HARDSWISH>(&sum, sample, pack, row);
                break;
            default:
                add_any(&sum, sample, pack, row);
            }
        }
        for (int i = 0; i < MDMT_PACK; i++) {
            shared.sum[thread][i] = sum.v[i];
        }
    }
    template <int ACT> MDMT_HD void add_pixels(mdmt_pack *sum, int sample, int pack, int row) const
    {
        int area = x.map.h * x.map.w, rows = THREADS >> bits;
        mdmt_loader<T> loader(x, pack);
        size_t first = (size_t)sample * (size_t)area;
        const T *a = x.map.data + x.map.at(first, pack);
        const T *b = TIMES ? dy.data + dy.at(first, pack) : a;
        for (int p = row; p < area; p += AHEAD * rows) {
            mdmt_raw<T> u[AHEAD], v[AHEAD];
            MDMT_UNROLL for (int k = 0; k < AHEAD; k++)
            {
                int at = p + k * rows < area ? p + k * rows : p;
                u[k] = mdmt_load_raw(a + (size_t)at * (size_t)x.map.pitch);
                v[k] = TIMES ? mdmt_load_raw(b + (size_t)at * (size_t)dy.pitch) : u[k];
            }
            MDMT_UNROLL for (int k = 0; k < AHEAD; k++)
            {
                if (p + k * rows < area) {
                    add(sum, loader.template of<ACT>(u[k]), v[k]);
                }
            }
        }
    }
    MDMT_HD void add_any(mdmt_pack *sum, int sample, int pack, int row) const
    {
        size_t area = (size_t)x.map.h * (size_t)x.map.w, first = (size_t)sample * area;
        size_t rows = THREADS >> bits;
        for (size_t p = first + (size_t)row; p < first + area; p += rows) {
            mdmt_raw<T> raw = mdmt_load_raw(TIMES ? dy.data + dy.at(p, pack) : x.map.data);
            add(sum, x.load(p, pack), raw);
        }
    }
    MDMT_HD static void add(mdmt_pack *sum, const mdmt_pack &u, const mdmt_raw<T> &raw)
    {
        mdmt_pack v = TIMES ? mdmt_unpack(raw) : u;
        for (int i = 0; i < MDMT_PACK; i++) {
            sum->v[i] += TIMES ? u.v[i] * v.v[i] : u.v[i];
        }
    }
};

/* TIMES: y sums x dy; else dy is not looked at. The packs of a block follow from the shape alone:
 * few where a sample has many pixels, so that small batches fill a GPU, many where it has few. */
template <bool TIMES, class T>
mdmt_status mdmt_sum_samples(mdmt_stream_handle stream, const mdmt_source<T> &x,
                             const mdmt_map<T> &dy, float divisor, float *y)
{
    int area = x.map.h * x.map.w, bits = area <= 100 ? 4 : area <= 1000 ? 3 : area <= 5000 ? 2 : 1;
    uint32_t groups = (uint32_t)mdmt_ceil_div((size_t)x.map.packs, (size_t)1 << bits);
    mdmt_sample_sums<T, TIMES> kernel = {x, dy, y, divisor, groups, bits, mdmt_act_known(x)};
    return mdmt_launch(stream, (size_t)x.map.n * (size_t)groups, kernel);
}

#endif
