/* Outputs per pixel: up-sampling by two, the sums of masks, and their gradients. Which pixel takes
 * what, and what is summed: cpu/upsample_ref.c, cpu/mask.h. */
#include "divisor.cuh"
#include "geometry.cuh"

/* ---- up-sampling ---- */

/* Of a small map of h x w pixels. */
template <class T> struct upsampling {
    mdmt_map<T> small, large;
    mdmt_divisor by_width, by_lines; /* pixels of a line of units, lines of a sample */

    /* A unit is a pixel of a (N, lines, small.w) map. */
    MDMT_HD mdmt_place place(uint32_t unit) const
    {
        uint32_t x = unit, line = by_width.split(&x), y = line, n = by_lines.split(&y);
        mdmt_place p = {(int)n, (int)y, (int)x};
        return p;
    }
    mdmt_status set(const mdmt_tensor *s, const void *of_small, const mdmt_tensor *l,
                    const void *of_large, size_t lines)
    {
        small = mdmt_map_of<T>(s, of_small);
        large = mdmt_map_of<T>(l, of_large);
        by_width = mdmt_divisor_of((size_t)small.w);
        by_lines = mdmt_divisor_of(lines);
        return large.pixels() <= 0x7fffffff
                   ? MDMT_OK
                   : mdmt_lent->fail(MDMT_UNSUPPORTED,
                                     "a feature map of %zu pixels is too large for one launch",
                                     large.pixels());
    }
};

/* 3/4 near + 1/4 far */
MDMT_HD mdmt_pack blended(const mdmt_pack &near, const mdmt_pack &far)
{
    mdmt_pack p;
    for (int i = 0; i < MDMT_PACK; i++) {
        p.v[i] = 0.75f * near.v[i] + 0.25f * far.v[i];
    }
    return p;
}

/* A unit: two neighbours in a line of the large map, that of one pixel of the small one. */
template <class T, bool BILINEAR> struct upsample_forward : upsampling<T> {
    MDMT_HD void at(uint32_t unit, int pack) const
    {
        const mdmt_map<T> &x = this->small, &y = this->large;
        mdmt_place p = this->place(unit);
        int row = p.y / 2;
        size_t to = y.pixel(p.n, p.y, 2 * p.x), own = x.pixel(p.n, row, p.x);
        if (!BILINEAR) {
            mdmt_pack v = x.load(own, pack);
            y.store(to, pack, v);
            y.store(to + 1, pack, v);
            return;
        }
        int beside = p.y % 2 ? row + 1 : row - 1; /* where the line beside it lies */
        size_t far = beside < 0 || beside >= x.h ? own : x.pixel(p.n, beside, p.x);
        size_t left = p.x > 0 ? 1 : 0, right = p.x + 1 < x.w ? 1 : 0;
        mdmt_pack here = blended(x.load(own, pack), x.load(far, pack));
        mdmt_pack before = blended(x.load(own - left, pack), x.load(far - left, pack));
        mdmt_pack after = blended(x.load(own + right, pack), x.load(far + right, pack));
        y.store(to, pack, blended(here, before));
        y.store(to + 1, pack, blended(here, after));
    }
};

/* The shares of a pixel in the four of the large map around it, along one side, from the one
 * before its own two on. A border takes all of its own, and the one beyond counts nothing: in its
 * place stands the pixel's own. */
struct upsample_shares {
    float of[4];
    int step[4]; /* from the first of its own */

    MDMT_HD upsample_shares(int at, int size)
    {
        bool first = at == 0, last = at + 1 == size;
        of[0] = first ? 0.0f : 0.25f;
        of[1] = first ? 1.0f : 0.75f;
        of[2] = last ? 1.0f : 0.75f;
        of[3] = last ? 0.0f : 0.25f;
        step[0] = first ? 0 : -1;
        step[1] = 0;
        step[2] = 1;
        step[3] = last ? 1 : 2;
    }
};

/* A unit: a pixel of the small map, dx. */
template <class T, bool BILINEAR> struct upsample_backward : upsampling<T> {
    MDMT_HD void at(uint32_t unit, int pack) const
    {
        const mdmt_map<T> &dx = this->small, &dy = this->large;
        mdmt_place p = this->place(unit);
        size_t first = dy.pixel(p.n, 2 * p.y, 2 * p.x);
        mdmt_pack sum = mdmt_zero_pack();
        if (!BILINEAR) {
            for (int k = 0; k < 4; k++) {
                add(&sum, 1.0f, dy.load(first + (size_t)(k / 2 * dy.w + k % 2), pack));
            }
            dx.store(unit, pack, sum);
            return;
        }
        upsample_shares rows(p.y, dx.h), columns(p.x, dx.w);
        MDMT_UNROLL for (int r = 0; r < 4; r++)
        {
            const T *line =
                dy.data + dy.at(first, pack) + (ptrdiff_t)rows.step[r] * dy.w * dy.pitch;
            mdmt_pack along = mdmt_zero_pack();
            MDMT_UNROLL for (int c = 0; c < 4; c++)
            {
                add(&along, columns.of[c], mdmt_load_pack(line + columns.step[c] * dy.pitch));
            }
            add(&sum, rows.of[r], along);
        }
        dx.store(unit, pack, sum);
    }
    MDMT_HD static void add(mdmt_pack *sum, float share, const mdmt_pack &v)
    {
        for (int i = 0; i < MDMT_PACK; i++) {
            sum->v[i] += share * v.v[i];
        }
    }
};

static int is_bilinear(const mdmt_cuda_site *site)
{
    return MDMT_ATTRS(mdmt_upsample_attrs, site->op)->mode == MDMT_UPSAMPLE_BILINEAR;
}

template <class F> static mdmt_status up(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    F f;
    size_t lines = 2 * (size_t)site->in[0]->dim[2];
    MDMT_TRY(f.set(site->in[0], call->in[0].data, site->out[0], call->out[0], lines));
    return mdmt_walk_over(site->stream, 2 * f.small.pixels(), f.small.packs, f);
}

template <class F> static mdmt_status down(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    F f;
    size_t lines = (size_t)site->out[0]->dim[2];
    MDMT_TRY(f.set(site->out[0], call->out[0], site->in[0], call->in[0].data, lines));
    return mdmt_walk_over(site->stream, f.small.pixels(), f.small.packs, f);
}

template <class T>
static mdmt_status upsample_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return is_bilinear(site) ? up<upsample_forward<T, true>>(site, call)
                             : up<upsample_forward<T, false>>(site, call);
}

static mdmt_status upsample(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(upsample_of, site, call);
}

template <class T>
static mdmt_status upsample_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return is_bilinear(site) ? down<upsample_backward<T, true>>(site, call)
                             : down<upsample_backward<T, false>>(site, call);
}

static mdmt_status upsample_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(upsample_bwd_of, site, call);
}

/* ---- sums of a mask ---- */

/* Of a logit z and the truth t in 0..1; a NaN among them makes the entropy one. */
struct mask_pixel {
    float entropy; /* -t log s(z) - (1 - t) log s(-z) */
    float p;       /* s(z) = 1 / (1 + exp(-z))        */
    float slope;   /* d p / d z = p (1 - p)           */

    MDMT_HD mask_pixel(float z, float t)
    {
        float small = expf(-fabsf(z)), inverse = 1 / (1 + small); /* of the less likely side */
        entropy = (z > 0 ? z : 0.0f) - z * t + log1pf(small);
        p = z >= 0 ? inverse : small * inverse;
        slope = small * inverse * inverse;
    }
};

/* A thread adds its pixels in float, the threads' sums and those of the parts are added in double;
 * which pixels, and in what order, follows from the shape alone. */
enum { MASK_THREADS = 256, MASK_LEAST = 8 * MASK_THREADS, MASK_PARTS = 256, MASK_LANES = 32 };

static int mask_parts(const mdmt_tensor *z)
{
    size_t area = (size_t)z->dim[2] * (size_t)z->dim[3], parts = mdmt_ceil_div(area, MASK_LEAST);
    return (int)(parts < (size_t)MASK_PARTS ? parts : (size_t)MASK_PARTS);
}

/* A block has a part of a sample's pixels. */
template <class T> struct mask_sums_part {
    enum { THREADS = MASK_THREADS, PHASES = 3, AHEAD = 4, EACH = THREADS / MASK_LANES };
    struct shared_type {
        double sum[MDMT_MASK_SUMS][THREADS];
    };
    mdmt_map<T> z;
    const float *mask;
    double *partial; /* (N, parts, MDMT_MASK_SUMS) */
    uint32_t area, parts, per_part;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int k = thread / MASK_LANES, lane = thread % MASK_LANES;
        double total = 0;
        if (phase == 0) {
            gather((uint32_t)block / parts, (uint32_t)block % parts, thread, shared);
        } else if (phase == 1 && k < MDMT_MASK_SUMS) {
            for (int i = 0; i < EACH; i++) {
                total += shared.sum[k][lane * EACH + i];
            }
            shared.sum[k][lane * EACH] = total;
        } else if (phase == 2 && thread < MDMT_MASK_SUMS) {
            for (int i = 0; i < MASK_LANES; i++) {
                total += shared.sum[thread][i * EACH];
            }
            partial[block * MDMT_MASK_SUMS + (size_t)thread] = total;
        }
    }
    MDMT_HD void gather(uint32_t sample, uint32_t part, int thread, shared_type &shared) const
    {
        uint32_t first = part * per_part, end = area - first < per_part ? area : first + per_part;
        size_t from = (size_t)sample * area;
        const T *logit = z.data + z.at(from, 0);
        const float *truth = mask + from;
        float sum[MDMT_MASK_SUMS] = {0, 0, 0, 0};
        for (uint32_t i = first + (uint32_t)thread; i < end; i += AHEAD * THREADS) {
            float v[AHEAD], t[AHEAD];
            MDMT_UNROLL for (uint32_t k = 0; k < AHEAD; k++)
            {
                uint32_t at = i + k * THREADS < end ? i + k * THREADS : i;
                v[k] = mdmt_to_float(logit[(size_t)at * (size_t)z.pitch]);
                t[k] = truth[at];
            }
            MDMT_UNROLL for (uint32_t k = 0; k < AHEAD; k++)
            {
                if (i + k * THREADS < end) {
                    mask_pixel pixel(v[k], t[k]);
                    sum[MDMT_MASK_ENTROPY] += pixel.entropy;
                    sum[MDMT_MASK_BOTH] += pixel.p * t[k];
                    sum[MDMT_MASK_GUESSED] += pixel.p;
                    sum[MDMT_MASK_TRUE] += t[k];
                }
            }
        }
        for (int k = 0; k < MDMT_MASK_SUMS; k++) {
            shared.sum[k][thread] = (double)sum[k];
        }
    }
};

/* A block has a sample. */
struct mask_sums_end {
    enum { THREADS = MDMT_MASK_SUMS * MASK_LANES, PHASES = 2 };
    struct shared_type {
        double sum[MDMT_MASK_SUMS][MASK_LANES];
    };
    const double *partial;
    float *sums; /* (N, MDMT_MASK_SUMS) */
    uint32_t area, parts;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int k = thread / MASK_LANES, lane = thread % MASK_LANES;
        double total = 0;
        if (phase == 0) {
            const double *from = partial + block * parts * MDMT_MASK_SUMS + k;
            for (uint32_t part = (uint32_t)lane; part < parts; part += MASK_LANES) {
                total += from[part * MDMT_MASK_SUMS];
            }
            shared.sum[k][lane] = total;
        } else if (thread < MDMT_MASK_SUMS) {
            for (int i = 0; i < MASK_LANES; i++) {
                total += shared.sum[thread][i];
            }
            total = thread == MDMT_MASK_ENTROPY ? total / area : total;
            sums[block * MDMT_MASK_SUMS + (size_t)thread] = (float)total;
        }
    }
};

static mdmt_status mask_sums_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    const mdmt_tensor *z = site->in[0];
    needs->workspace_bytes =
        sizeof(double) * MDMT_MASK_SUMS * (size_t)z->dim[0] * (size_t)mask_parts(z);
    return MDMT_OK;
}

template <class T>
static mdmt_status mask_sums_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_tensor *z = site->in[0];
    uint32_t area = (uint32_t)z->dim[2] * (uint32_t)z->dim[3], parts = (uint32_t)mask_parts(z);
    double *partial = (double *)(void *)call->workspace;
    mask_sums_part<T> f = {
        mdmt_map_of<T>(z, call->in[0].data), (const float *)call->in[1].data, partial, area, parts,
        (uint32_t)mdmt_ceil_div(area, parts)};
    mask_sums_end end = {partial, (float *)call->out[0], area, parts};
    MDMT_TRY(mdmt_launch(site->stream, (size_t)z->dim[0] * parts, f));
    return mdmt_launch(site->stream, (size_t)z->dim[0], end);
}

static mdmt_status mask_sums(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(mask_sums_of, site, call);
}

/* d loss / d z, from d loss / d sums. */
template <class T> struct mask_backward {
    mdmt_map<T> z, dz;
    const float *mask, *dsums;
    uint32_t area;

    MDMT_HD void at(uint32_t i, int pack) const
    {
        float t = mask[i], per_pixel = 1 / (float)area;
        const float *d = dsums + (size_t)(i / area) * MDMT_MASK_SUMS;
        mask_pixel pixel(mdmt_to_float(z.data[z.at(i, pack)]), t);
        mdmt_pack v = mdmt_zero_pack();
        v.v[0] = d[MDMT_MASK_ENTROPY] * per_pixel * (pixel.p - t) +
                 (d[MDMT_MASK_BOTH] * t + d[MDMT_MASK_GUESSED]) * pixel.slope;
        dz.store(i, pack, v);
    }
};

template <class T>
static mdmt_status mask_sums_bwd_of(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    mask_backward<T> f = {mdmt_map_of<T>(site->in[1], call->in[1].data),
                          mdmt_map_of<T>(site->out[0], call->out[0]),
                          (const float *)call->in[2].data, (const float *)call->in[0].data, 0};
    f.area = (uint32_t)f.z.h * (uint32_t)f.z.w;
    return mdmt_walk_over(site->stream, f.z.pixels(), 1, f);
}

static mdmt_status mask_sums_bwd(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    return MDMT_BY_PRECISION(mask_sums_bwd_of, site, call);
}

const mdmt_cuda_impl mdmt_cuda_dense[] = {
    {"upsample", "cuda_upsample", NULL, NULL, upsample},
    {"upsample_bwd", "cuda_upsample_bwd", NULL, NULL, upsample_bwd},
    {"mask_sums", "cuda_mask_sums", NULL, mask_sums_needs, mask_sums},
    {"mask_sums_bwd", "cuda_mask_sums_bwd", NULL, NULL, mask_sums_bwd},
    {NULL, NULL, NULL, NULL, NULL}};
