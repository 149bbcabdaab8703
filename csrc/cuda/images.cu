/* From resident images (uint8) to network input: training augmentation,
 * resampling, normalisation. The map, the elastic field and every random number
 * are those of cpu/images.h, which explains them. Where some images are in colour,
 * each plane of a sample is as an image by itself, with a plan of its own. */
#include "divisor.cuh"
#include "tiles.cuh"
#include "tone.cuh"

enum { TAPS_MAX = 40 }; /* 2 * ceil(3 * 6) + 1 = 37: sigma / step is below 6 */

/* What was drawn for a sample, or one of its planes, and what follows from it. */
struct alignas(16) image_plan {
    const uint8_t *pixels, *masks;   /* masks NULL: there is none */
    int sh, sw;                      /* of the source */
    int flip, elastic, plain;        /* plain: pixels are copied, perhaps flipped */
    int grey;                        /* grey values change (tone.cuh) */
    float xx, xy, yx, yy, x0, y0;    /* source position = linear (q + u) + offset */
    int step, rows, columns, radius; /* of the grid of nodes; its kernel */
    float noise_unit;
    uint64_t noise_key;
    float tap[TAPS_MAX];
};

/* Sizes for one output size, whatever is drawn. */
struct image_room {
    int height, width;
    size_t noise, field;

    MDMT_HD int nodes_high() const
    {
        return height + 1 + TAPS_MAX;
    }
    MDMT_HD int nodes_wide() const
    {
        return width + 1 + TAPS_MAX;
    }
};

static image_room room_of(int height, int width)
{
    image_room r = {height, width, 0, 0};
    /* whole packs of eight */
    r.noise = (size_t)r.nodes_high() * (size_t)r.nodes_wide() / 8 * 8 + 16;
    r.field = (size_t)(height + 1) * (size_t)(width + 1);
    return r;
}

/* ---- plans: a block per plan; its first thread draws, each thread makes a tap ---- */

struct make_plans {
    enum { THREADS = 64, PHASES = 3 };
    static_assert((int)THREADS >= (int)TAPS_MAX, "a thread for every tap");
    struct shared_type {
        float tap[TAPS_MAX];
    };
    const mdmt_gpu_step *step;
    image_plan *plan;
    mdmt_grey *grey; /* of each plan */
    int height, width, augment;
    int copies; /* plans of a sample: 1, or one for each channel */

    MDMT_HD static double spread_of(float sigma, int step)
    {
        return fmax(fmin((double)sigma / step, 6.0), 0.01);
    }
    MDMT_HD void make_grid(image_plan *p, float sigma) const
    {
        p->step = sigma >= 6 ? (int)fminf(sigma / 3, 4096) : 1;
        p->rows = (height - 1) / p->step + 2;
        p->columns = (width - 1) / p->step + 2;
        p->radius = (int)ceil(3 * spread_of(sigma, p->step));
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        image_plan *p = &plan[block];
        if (phase == 0) {
            if (thread == 0) {
                make((uint32_t)block);
            }
        } else if (p->elastic && thread < TAPS_MAX) {
            int taps = 2 * p->radius + 1, t = thread - p->radius;
            double s = spread_of(step->augmentation.elastic_sigma, p->step), sum = 0;
            if (phase == 1) {
                shared.tap[thread] = thread < taps ? (float)exp(-0.5 * t * t / (s * s)) : 0.0f;
                return;
            }
            for (int i = 0; i < taps; i++) {
                sum += shared.tap[i];
            }
            p->tap[thread] = (float)(shared.tap[thread] / sum);
        }
    }
    MDMT_HD void draw(image_plan *p, int data_set, int64_t index, float *shift, float *zoom,
                      float *angle) const
    {
        const mdmt_augmentation *a = &step->augmentation;
        uint64_t high = step->epoch << 32 | (uint64_t)(uint32_t)data_set << 8;
        uint32_t bits[12];
        for (int block = 0; block < 3; block++) {
            mdmt_philox4 four =
                mdmt_philox(step->augment_key, (uint64_t)index, high | (uint64_t)block);
            for (int i = 0; i < 4; i++) {
                bits[4 * block + i] = four.v[i];
            }
        }
        float chance = a->probability;
        if (mdmt_uniform(bits[0]) < chance) {
            shift[0] = mdmt_spread(bits[5], a->shift);
            shift[1] = mdmt_spread(bits[6], a->shift);
        }
        if (mdmt_uniform(bits[1]) < chance) {
            *zoom = 1 + mdmt_spread(bits[7], a->zoom);
        }
        p->flip = a->flip > 0 && mdmt_uniform(bits[2]) < chance;
        if (mdmt_uniform(bits[3]) < chance) {
            *angle = mdmt_spread(bits[8], a->rotation);
        }
        if (mdmt_uniform(bits[4]) < chance && a->elastic_sigma > 0) {
            float low = a->elastic_alpha[0], range = a->elastic_alpha[1] - low;
            float alpha = low + range * mdmt_uniform(bits[9]);
            mdmt_philox4 four = mdmt_philox(step->elastic_key, (uint64_t)index, high);
            p->noise_key = (uint64_t)four.v[0] | (uint64_t)four.v[1] << 32;
            make_grid(p, a->elastic_sigma);
            p->elastic = alpha > 0;
            p->noise_unit = alpha / (float)p->step / 32768;
        }
    }
    MDMT_HD void make(uint32_t number) const
    {
        image_plan *p = &plan[number];
        uint32_t sample = number / (uint32_t)copies;
        int data_set = step->sample_source[sample];
        int64_t index = step->sample_index[sample];
        const mdmt_gpu_source *source = &step->source[data_set];
        float shift[2] = {0, 0}, zoom = 1, angle = 0;
        p->sh = source->height;
        p->sw = source->width;
        size_t size = (size_t)p->sh * (size_t)p->sw, image = (size_t)source->planes * size;
        int plane = source->planes > 1 ? (int)(number % (uint32_t)copies) : 0;
        const uint8_t *here = step->streamed + (size_t)sample * step->stride;
        p->pixels = source->pixels ? source->pixels + (size_t)index * image : here;
        p->pixels += (size_t)plane * size;
        p->masks = source->masks ? source->masks + (size_t)index * size
                                 : here + (source->pixels ? 0 : image);
        p->masks = source->masked ? p->masks : NULL;
        p->flip = p->elastic = p->grey = 0;
        p->step = 1;
        p->rows = p->columns = p->radius = 0;
        if (augment) {
            draw(p, data_set, index, shift, &zoom, &angle);
            grey[number] = mdmt_grey_drawn(step, data_set, index, plane);
            p->grey = grey[number].changes != 0;
        }
        p->plain = !p->elastic && p->sh == height && p->sw == width && zoom == 1 && angle == 0 &&
                   shift[0] == 0 && shift[1] == 0;
        double turn = (double)angle * 3.14159265358979323846 / 180, c = cos(turn), s = sin(turn);
        double sx = (double)p->sw / width / (double)zoom,
               sy = (double)p->sh / height / (double)zoom;
        double f = p->flip ? -1 : 1;
        p->xx = (float)(f * sx * c);
        p->xy = (float)(f * sx * s);
        p->yx = (float)(-sy * s);
        p->yy = (float)(sy * c);
        /* of output pixel (0, 0), measured from the centre, less the shift */
        double qx = 0.5 - 0.5 * width - (double)shift[0] * width;
        double qy = 0.5 - 0.5 * height - (double)shift[1] * height;
        p->x0 = (float)(f * sx * (c * qx + s * qy) + 0.5 * p->sw - 0.5);
        p->y0 = (float)(sy * (c * qy - s * qx) + 0.5 * p->sh - 0.5);
    }
};

/* ---- the elastic field: noise, smoothed along y, then along x ---- */

struct elastic {
    const image_plan *plan; /* (samples, copies) */
    int copies;
    image_room room;
    float *noise;     /* (samples, 2, room.noise)                              */
    mdmt_pair *field; /* (samples, room.field): displacement along x, along y  */
};

/* A thread draws eight numbers at a time. How many are wanted is known on the GPU alone: SHARES
 * blocks have a plane between them. */
struct draw_noise : elastic {
    enum { THREADS = 256, PHASES = 1, SHARES = 8 };
    typedef mdmt_nothing shared_type;

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        uint32_t plane = (uint32_t)block / SHARES;
        const image_plan &p = plan[plane / 2 * (uint32_t)copies];
        if (!p.elastic) {
            return;
        }
        uint32_t count = (uint32_t)(p.columns + 2 * p.radius) * (uint32_t)(p.rows + 2 * p.radius);
        uint32_t eighth = (uint32_t)block % SHARES * THREADS + (uint32_t)thread;
        uint64_t key = p.noise_key;
        float unit = p.noise_unit, *to = noise + (size_t)plane * room.noise;
        for (; eighth * 8 < count; eighth += SHARES * THREADS) {
            mdmt_philox4 four = mdmt_philox(key, (uint64_t)eighth, plane % 2);
            mdmt_pack made;
            for (int i = 0; i < 4; i++) {
                /* the middle of each of 65536 intervals: no bias */
                made.v[2 * i] = ((float)(int)(four.v[i] & 0xFFFF) - 32767.5f) * unit;
                made.v[2 * i + 1] = ((float)(int)(four.v[i] >> 16) - 32767.5f) * unit;
            }
            mdmt_store_pack(to + (size_t)eighth * 8, made);
        }
    }
};

/* A block makes HIGH x WIDE nodes of a plane: along y into shared memory, from there along x; a
 * thread makes eight in a row of either. */
struct smooth_noise : elastic {
    enum { THREADS = 288, PHASES = 3, RESIDENT = 3, HIGH = 16, WIDE = 128, EIGHT = 8 };
    enum { PITCH = WIDE + TAPS_MAX + 1 /* odd: rows begin on different banks */ };
    static_assert(TAPS_MAX % EIGHT == 0, "taps come in eights");
    struct shared_type {
        alignas(16) float tap[TAPS_MAX]; /* zeros behind the last one */
        float down[HIGH][PITCH];
    };

    MDMT_HD int tiles() const
    {
        return (room.width + WIDE) / WIDE;
    }
    MDMT_HD int strips() const
    {
        return (room.height + HIGH) / HIGH;
    }
    /* made[i] = sum_t tap[t] in[(i + t) * stride]; in has `count` numbers. */
    MDMT_HD static void smooth(const float *tap, int last, const float *in, int stride, int count,
                               float *made)
    {
        float here[EIGHT], next[EIGHT];
        MDMT_UNROLL
        for (int i = 0; i < EIGHT; i++) {
            made[i] = 0;
            here[i] = i < count ? in[i * stride] : 0.0f;
        }
        MDMT_ROLLED
        for (int t = 0; t <= last; t += EIGHT) {
            mdmt_pack taps = mdmt_load_pack(tap + t);
            in += EIGHT * stride;
            count -= EIGHT;
            MDMT_UNROLL
            for (int i = 0; i < EIGHT; i++) {
                next[i] = i < count ? in[i * stride] : 0.0f;
            }
            MDMT_UNROLL
            for (int k = 0; k < EIGHT; k++) {
                MDMT_UNROLL
                for (int i = 0; i < EIGHT; i++) {
                    made[i] +=
                        taps.v[k] * (i + k < EIGHT ? here[(i + k) % EIGHT] : next[(i + k) % EIGHT]);
                }
            }
            MDMT_UNROLL
            for (int i = 0; i < EIGHT; i++) {
                here[i] = next[i];
            }
        }
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int tile = (int)((uint32_t)block % (uint32_t)tiles());
        uint32_t rest = (uint32_t)block / (uint32_t)tiles();
        int strip = (int)(rest % (uint32_t)strips());
        uint32_t plane = rest / (uint32_t)strips();
        const image_plan &p = plan[plane / 2 * (uint32_t)copies];
        int x0 = tile * WIDE, y0 = strip * HIGH;
        if (!p.elastic || x0 >= p.columns || y0 >= p.rows) {
            return;
        }
        int high = p.rows - y0 < HIGH ? p.rows - y0 : HIGH, last = 2 * p.radius;
        int wide = p.columns - x0 < WIDE ? p.columns - x0 : WIDE, pitch = p.columns + last;
        float made[EIGHT];
        if (phase == 0) {
            if (thread < TAPS_MAX) {
                shared.tap[thread] = p.tap[thread];
            }
        } else if (phase == 1) {
            const float *in = noise + (size_t)plane * room.noise + (size_t)y0 * (size_t)pitch + x0;
            for (int i = thread; i < HIGH / EIGHT * (wide + last); i += THREADS) {
                int y = i / (wide + last) * EIGHT, x = i % (wide + last);
                smooth(shared.tap, last, in + y * pitch + x, pitch, high + last - y, made);
                MDMT_UNROLL
                for (int k = 0; k < EIGHT; k++) {
                    shared.down[y + k][x] = made[k];
                }
            }
        } else {
            mdmt_pair *to = field + (size_t)(plane / 2) * room.field;
            for (int i = thread; i < HIGH * (WIDE / EIGHT); i += THREADS) {
                int y = i % HIGH, x = i / HIGH * EIGHT;
                if (y < high && x < wide) {
                    smooth(shared.tap, last, &shared.down[y][x], 1, wide + last - x, made);
                    put(to + (y0 + y) * p.columns + x0 + x, (int)(plane % 2), wide - x, made);
                }
            }
        }
    }
    MDMT_HD static void put(mdmt_pair *to, int second, int count, const float *made)
    {
        MDMT_UNROLL
        for (int k = 0; k < EIGHT; k++) {
            if (k < count) {
                *(second ? &to[k].b : &to[k].a) = made[k];
            }
        }
    }
};

/* ---- sampling: a thread makes FEW pixels of each of ROWS rows ---- */

/* x mirrored at 0 and at `last`, once; twice = 2 last. */
MDMT_HD float mirrored(float x, float twice)
{
    x = fabsf(x);
    return fmaxf(fminf(x, twice - x), 0.0f);
}

/* The whole part of 0 <= x < 2^23, twice. */
MDMT_HD float whole_of(float x, int *whole)
{
#ifdef __CUDA_ARCH__
    const float large = 8388608; /* 2^23: what is added to it is rounded to a whole number */
    float sum = __fadd_rz(x, large);
    *whole = (int)(__float_as_uint(sum) & 0x7fffffu);
    return sum - large;
#else
    *whole = (int)x;
    return (float)*whole;
#endif
}

struct sampling : elastic {
    enum { FEW = 4, ROWS = 4 };
    float *out; /* (N, C, H, W) */
    int samples, channels; /* in colour: N C of one channel */
    int of_masks; /* their masks, moved alike, instead of the images; zeros where there is none */
    float mean[4], scale[4]; /* 1 / deviation */
    mdmt_divisor by_each, by_fews;

    uint32_t fews() const
    {
        return (uint32_t)(room.width + FEW - 1) / FEW;
    }
    uint32_t strips() const
    {
        return (uint32_t)(room.height + ROWS - 1) / ROWS;
    }
};

/* GREY: some images' grey values change after it. COLOUR: a plan for each plane. */
template <bool GREY, bool COLOUR> struct sample_images : sampling {
    enum { THREADS = 128, PHASES = 1, RESIDENT = 8 };
    typedef mdmt_nothing shared_type;
    /* What a thread makes. */
    struct piece {
        uint32_t sample; /* in colour: and plane */
        int x, y, end; /* rows y ... end - 1 */
    };

    /* Blocks of one sample each. */
    size_t prepare()
    {
        size_t each = mdmt_ceil_div((size_t)fews() * strips(), THREADS);
        by_each = mdmt_divisor_of(each);
        by_fews = mdmt_divisor_of(fews());
        return (size_t)samples * each;
    }
    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        (void)phase;
        (void)shared;
        piece at;
        uint32_t rest = (uint32_t)block;
        at.sample = by_each.split(&rest);
        uint32_t few = rest * THREADS + (uint32_t)thread;
        at.y = (int)by_fews.split(&few) * ROWS;
        at.x = (int)few * FEW;
        at.end = at.y + ROWS < room.height ? at.y + ROWS : room.height;
        const image_plan &p = plan[COLOUR && of_masks ? at.sample * (uint32_t)copies : at.sample];
        const uint8_t *pixels = of_masks ? p.masks : p.pixels;
        int grey = GREY && p.grey;
        if (!pixels) {
            const float none[FEW] = {0, 0, 0, 0};
            for (; at.y < at.end; at.y++) {
                put(at, none, grey);
            }
        } else if (p.plain) {
            copied(p, pixels, at, grey);
        } else {
            moved(p, pixels, at, grey);
        }
    }
    /* Pixels as they are, perhaps flipped. */
    MDMT_HD void copied(const image_plan &p, const uint8_t *pixels, piece at, int grey) const
    {
        for (; at.y < at.end; at.y++) {
            const uint8_t *row = pixels + (size_t)at.y * (size_t)p.sw;
            float v[FEW];
            MDMT_UNROLL
            for (int k = 0; k < FEW; k++) {
                int x = at.x + k < room.width ? at.x + k : at.x;
                v[k] = (float)row[p.flip ? p.sw - 1 - x : x];
            }
            put(at, v, grey);
        }
    }
    /* Nodes of the field from one on: that one's displacement, fy of the way to the row below. */
    struct nodes {
        const mdmt_pair *top;
        int columns;
        float fy;

        MDMT_HD mdmt_pair of(int node) const
        {
            mdmt_pair a = mdmt_load_pair(&top[node].a);
            mdmt_pair b = mdmt_load_pair(&top[node + columns].a);
            mdmt_pair between = {a.a + fy * (b.a - a.a), a.b + fy * (b.b - a.b)};
            return between;
        }
    };
    /* Displacements of `count` pixels in a row, FEW at most; the first is `after` pixels behind
     * node 0. The others' mean nothing. */
    MDMT_HD static void displace(const nodes &n, int after, int step, float per_step, int count,
                                 mdmt_pair *moved)
    {
        mdmt_pair left = n.of(0), right = n.of(1);
        int node = 1;
        MDMT_UNROLL
        for (int k = 0; k < FEW; k++) {
            float fx = (float)after * per_step;
            moved[k].a = left.a + (right.a - left.a) * fx;
            moved[k].b = left.b + (right.b - left.b) * fx;
            if (++after == step && k + 1 < FEW && k + 1 < count) {
                after = 0;
                left = right;
                right = n.of(++node);
            }
        }
    }
    MDMT_HD void moved(const image_plan &p, const uint8_t *pixels, piece at, int grey) const
    {
        const float twice_x = 2 * (float)(p.sw - 1), twice_y = 2 * (float)(p.sh - 1);
        const float x0 = p.x0, y0 = p.y0, xx = p.xx, xy = p.xy, yx = p.yx, yy = p.yy;
        const int sw = p.sw, sh = p.sh, step = p.step, is_elastic = p.elastic;
        int node = at.x / step, above = at.y / step, below = at.y - above * step;
        int after = at.x - node * step;
        float per_step = 1 / (float)step;
        size_t sample = COLOUR && !of_masks ? at.sample / (uint32_t)copies : at.sample;
        nodes n = {field + sample * room.field + above * p.columns + node, p.columns, 0};
        MDMT_ROLLED
        for (; at.y < at.end; at.y++) {
            mdmt_pair u[FEW];
            float v[FEW], fx[FEW], fy[FEW];
            uint8_t four[FEW][4];
            MDMT_UNROLL
            for (int k = 0; k < FEW; k++) {
                u[k] = mdmt_zero_pair();
            }
            if (is_elastic) {
                n.fy = (float)below * per_step;
                displace(n, after, step, per_step, room.width - at.x, u);
            }
            MDMT_UNROLL
            for (int k = 0; k < FEW; k++) {
                float qx = (float)(at.x + k) + u[k].a, qy = (float)at.y + u[k].b;
                float px = mirrored(x0 + xx * qx + xy * qy, twice_x);
                float py = mirrored(y0 + yx * qx + yy * qy, twice_y);
                int column, row;
                fx[k] = px - whole_of(px, &column);
                fy[k] = py - whole_of(py, &row);
                const uint8_t *from = pixels + (size_t)row * (size_t)sw + (size_t)column;
                int right = column + 1 < sw, down = row + 1 < sh ? sw : 0;
                four[k][0] = from[0];
                four[k][1] = from[right];
                four[k][2] = from[down];
                four[k][3] = from[down + right];
            }
            MDMT_UNROLL
            for (int k = 0; k < FEW; k++) {
                const uint8_t *of = four[k];
                float top = (float)of[0] + fx[k] * (float)((int)of[1] - (int)of[0]);
                float bottom = (float)of[2] + fx[k] * (float)((int)of[3] - (int)of[2]);
                v[k] = top + fy[k] * (bottom - top);
            }
            put(at, v, grey);
            if (++below == step) {
                below = 0;
                n.top += n.columns;
            }
        }
    }
    MDMT_HD void put(const piece &at, const float *grey_values, int grey) const
    {
        struct alignas(16) few {
            float v[FEW];
        };
        size_t area = (size_t)room.height * (size_t)room.width;
        float *to =
            out + (size_t)at.sample * (size_t)channels * area + (size_t)(at.y * room.width + at.x);
        MDMT_UNROLL
        for (int c = 0; c < 4; c++) {
            if (c >= (grey ? 1 : channels)) { /* those that change do so in the first plane */
                break;
            }
            few made;
            MDMT_UNROLL
            for (int k = 0; k < FEW; k++) {
                float v = grey_values[k];
                int of = COLOUR && !of_masks ? (int)(at.sample % (uint32_t)copies) : c;
                made.v[k] = grey ? v : (v * (1 / 255.0f) - mean[of]) * scale[of];
            }
            float *there = to + (size_t)c * area;
            if (room.width % FEW == 0) {
                *(few *)(void *)there = made;
                continue;
            }
            MDMT_UNROLL
            for (int k = 0; k < FEW; k++) {
                if (at.x + k < room.width) {
                    there[k] = made.v[k];
                }
            }
        }
    }
};

static int copies_of(const mdmt_images_attrs *a)
{
    return a->colour ? a->channels : 1;
}

/* Of plans, and of what grey values need. */
static size_t plan_bytes(const mdmt_images_attrs *a)
{
    int plans = a->batch * copies_of(a);
    size_t grey = a->augment ? mdmt_grey_images::bytes(plans) : 0;
    return sizeof(image_plan) * (size_t)plans + mdmt_round_up(grey, 16);
}

static mdmt_status change_grey(const mdmt_cuda_site *site, const mdmt_cuda_call *call,
                               const sampling &sampled, const mdmt_grey *grey)
{
    mdmt_grey_images g;
    memset((void *)&g, 0, sizeof g);
    g.grey = grey;
    g.sums = (double *)(uintptr_t)(grey + sampled.samples);
    g.images = sampled.out;
    g.samples = sampled.samples;
    g.channels = sampled.channels;
    g.copies = sampled.copies;
    g.area = (uint32_t)sampled.room.height * (uint32_t)sampled.room.width;
    memcpy(g.mean, sampled.mean, sizeof g.mean);
    memcpy(g.scale, sampled.scale, sizeof g.scale);
    return mdmt_grey_launch(site->stream, &call->step->augmentation, g);
}

template <bool GREY, bool COLOUR>
static mdmt_status launch_sampling(const mdmt_cuda_site *site, const sampling &f)
{
    sample_images<GREY, COLOUR> kernel;
    (sampling &)kernel = f;
    size_t blocks = kernel.prepare();
    return mdmt_launch(site->stream, blocks, kernel);
}

template <bool GREY> static mdmt_status sample(const mdmt_cuda_site *site, const sampling &f)
{
    return f.copies > 1 ? launch_sampling<GREY, true>(site, f)
                        : launch_sampling<GREY, false>(site, f);
}

static mdmt_status check_planes(const mdmt_step *step, const mdmt_images_attrs *a)
{
    for (int i = 0; i < step->source_count; i++) {
        int planes = step->sources[i].planes;
        if (planes != 1 && (planes != a->channels || !a->colour)) {
            return mdmt_lent->fail(
                MDMT_BAD_ARGUMENT,
                "the images of data set %d have %d channels, the network takes %d%s", i, planes,
                a->channels, a->colour ? "" : " of grey images");
        }
    }
    return MDMT_OK;
}

/* The masks as the images of `f`, of values in 0..1. */
static mdmt_status sample_masks(const mdmt_cuda_site *site, const mdmt_cuda_call *call, sampling f)
{
    f.out = (float *)call->out[1];
    f.of_masks = f.channels = 1;
    f.samples = MDMT_ATTRS(mdmt_images_attrs, site->op)->batch;
    f.mean[0] = 0;
    f.scale[0] = 1;
    return sample<false>(site, f);
}

static mdmt_status images(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_images_attrs *a = MDMT_ATTRS(mdmt_images_attrs, site->op);
    mdmt_gpu *gpu = site->gpu;
    if (!call->step || !call->step->sources) {
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT, "no images are attached: attach data sets first");
    }
    MDMT_TRY(check_planes(call->step, a));
    MDMT_TRY(mdmt_gpu_take_step(gpu, call->step, a->batch, a->augment));
    int copies = copies_of(a), count = a->batch * copies;
    image_room room = room_of(a->size[0], a->size[1]);
    image_plan *plan = (image_plan *)(void *)call->workspace;
    size_t planes = 2 * (size_t)a->batch;
    mdmt_grey *grey = (mdmt_grey *)(void *)(plan + count);
    make_plans plans = {&gpu->state->step, plan, grey, room.height, room.width, a->augment, copies};
    MDMT_TRY(mdmt_launch(site->stream, (size_t)count, plans));
    sampling f;
    memset((void *)&f, 0, sizeof f);
    f.plan = plan;
    f.copies = copies;
    f.room = room;
    f.noise = (float *)(void *)(call->workspace + plan_bytes(a));
    f.field = (mdmt_pair *)(void *)(f.noise + planes * room.noise);
    f.out = (float *)call->out[0];
    f.samples = count;
    f.channels = a->channels / copies;
    memcpy(f.mean, a->mean, sizeof f.mean);
    for (int c = 0; c < a->channels; c++) {
        f.scale[c] = 1 / a->std[c];
    }
    if (a->augment) {
        draw_noise noise;
        smooth_noise smoothed;
        (elastic &)noise = (elastic &)smoothed = f;
        MDMT_TRY(mdmt_launch(site->stream, planes * draw_noise::SHARES, noise));
        size_t each = (size_t)smoothed.strips() * (size_t)smoothed.tiles();
        MDMT_TRY(mdmt_launch(site->stream, planes * each, smoothed));
    }
    if (!a->augment || !(mdmt_augmentation_kinds(&call->step->augmentation) & MDMT_AUGMENTS_GREY)) {
        MDMT_TRY(sample<false>(site, f));
    } else {
        MDMT_TRY(sample<true>(site, f));
        MDMT_TRY(change_grey(site, call, f, grey));
    }
    return a->want_mask ? sample_masks(site, call, f) : MDMT_OK;
}

static mdmt_status images_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    const mdmt_images_attrs *a = MDMT_ATTRS(mdmt_images_attrs, site->op);
    image_room room = room_of(a->size[0], a->size[1]);
    size_t planes = a->augment ? 2 * (size_t)a->batch : 0;
    needs->workspace_bytes = plan_bytes(a) + sizeof(float) * planes * (room.noise + room.field);
    return mdmt_gpu_sample_room(site->gpu, a->batch);
}

/* ---- the step ---- */

mdmt_status mdmt_gpu_sample_room(mdmt_gpu *gpu, int samples)
{
    if (samples <= gpu->sample_room) {
        return MDMT_OK;
    }
    void *index, *source;
    MDMT_TRY(mdmt_device_alloc(&index, sizeof(int64_t) * (size_t)samples, "batch's positions"));
    mdmt_status status =
        mdmt_device_alloc(&source, sizeof(int32_t) * (size_t)samples, "batch's positions");
    if (status != MDMT_OK) {
        mdmt_device_free(index);
        return status;
    }
    mdmt_device_free(gpu->sample_index);
    mdmt_device_free(gpu->sample_source);
    gpu->sample_index = (int64_t *)index;
    gpu->sample_source = (int32_t *)source;
    gpu->sample_room = samples;
    return MDMT_OK;
}

static mdmt_status take_samples(mdmt_gpu *gpu, const mdmt_step *step, int samples,
                                mdmt_gpu_step *next)
{
    size_t stride;
    MDMT_TRY(mdmt_gpu_check_samples(step, (size_t)samples));
    MDMT_TRY(mdmt_gpu_take_sources(gpu, step, next, &stride));
    next->stride = stride;
    if (stride) {
        MDMT_TRY(mdmt_gpu_slot_room(gpu, (size_t)samples, stride));
        MDMT_TRY(mdmt_gpu_stage(gpu, step, samples, stride, next, &next->streamed));
    }
    next->sample_source = gpu->sample_source;
    next->sample_index = gpu->sample_index;
    MDMT_TRY(mdmt_device_write(gpu->stream, gpu->sample_source, step->sample_source,
                               sizeof(int32_t) * (size_t)samples));
    return mdmt_device_write(gpu->stream, gpu->sample_index, step->sample_index,
                             sizeof(int64_t) * (size_t)samples);
}

mdmt_status mdmt_gpu_take_step(mdmt_gpu *gpu, const mdmt_step *step, int samples, int augment)
{
    if (gpu->in_series) {
        return MDMT_OK;
    }
    mdmt_gpu_step next = gpu->written;
    uint64_t seed = step ? step->seed : 0;
    next.step = step ? step->step : 0;
    next.epoch = step ? step->epoch : 0;
    next.dropout_key = mdmt_stream_key(seed, MDMT_STREAM_DROPOUT);
    next.augment_key = mdmt_stream_key(seed, MDMT_STREAM_AUGMENT);
    next.elastic_key = mdmt_stream_key(seed, MDMT_STREAM_ELASTIC);
    if (samples) {
        next.augmentation = step->augmentation;
        if (augment) {
            MDMT_TRY(mdmt_lent->check_augmentation(&step->augmentation));
        }
        MDMT_TRY(take_samples(gpu, step, samples, &next));
    }
    if (gpu->written_valid && memcmp(&next, &gpu->written, sizeof next) == 0) {
        return MDMT_OK;
    }
    MDMT_TRY(mdmt_device_write(gpu->stream, &gpu->state->step, &next, sizeof next));
    gpu->written = next;
    gpu->written_valid = 1;
    return MDMT_OK;
}

const mdmt_cuda_impl mdmt_cuda_images[] = {{"images", "cuda_images", NULL, images_needs, images},
                                           {NULL, NULL, NULL, NULL, NULL}};
