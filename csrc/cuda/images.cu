/* From resident grey images (uint8) to network input: training augmentation,
 * resampling, normalisation. The map, the elastic field and every random number
 * are those of cpu/images.h, which explains them. */
#include "backend.cuh"

enum { TAPS_MAX = 40 }; /* 2 * ceil(3 * 6) + 1 = 37: sigma / step is below 6 */

/* What was drawn for a sample, and what follows from it. */
struct image_plan {
    const uint8_t *pixels;
    int sh, sw;                      /* of the source */
    int flip, elastic, plain;        /* plain: pixels are copied, perhaps flipped */
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
    r.noise = (size_t)r.nodes_high() * (size_t)r.nodes_wide() + 8;
    r.field = (size_t)(height + 1) * (size_t)(width + 1);
    return r;
}

MDMT_HD float spread(uint32_t bits, float range)
{
    return range * (2 * mdmt_uniform(bits) - 1);
}

/* ---- plans: one thread per sample ---- */

struct make_plans {
    const mdmt_gpu_step *step;
    image_plan *plan;
    int height, width, augment;

    MDMT_HD void make_grid(image_plan *p, float sigma) const
    {
        p->step = sigma >= 6 ? (int)fminf(sigma / 3, 4096) : 1;
        p->rows = (height - 1) / p->step + 2;
        p->columns = (width - 1) / p->step + 2;
        double s = fmax(fmin((double)sigma / p->step, 6.0), 0.01), sum = 0;
        p->radius = (int)ceil(3 * s);
        for (int t = 0; t < TAPS_MAX; t++) {
            p->tap[t] = 0.0f;
        }
        for (int t = -p->radius; t <= p->radius; t++) {
            p->tap[t + p->radius] = (float)exp(-0.5 * t * t / (s * s));
            sum += p->tap[t + p->radius];
        }
        for (int t = 0; t <= 2 * p->radius; t++) {
            p->tap[t] = (float)(p->tap[t] / sum);
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
            shift[0] = spread(bits[5], a->shift);
            shift[1] = spread(bits[6], a->shift);
        }
        if (mdmt_uniform(bits[1]) < chance) {
            *zoom = 1 + spread(bits[7], a->zoom);
        }
        p->flip = a->flip > 0 && mdmt_uniform(bits[2]) < chance;
        if (mdmt_uniform(bits[3]) < chance) {
            *angle = spread(bits[8], a->rotation);
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
    MDMT_HD void at(uint32_t sample, int unused) const
    {
        (void)unused;
        image_plan *p = &plan[sample];
        int data_set = step->sample_source[sample];
        int64_t index = step->sample_index[sample];
        const mdmt_gpu_source *source = &step->source[data_set];
        float shift[2] = {0, 0}, zoom = 1, angle = 0;
        p->sh = source->height;
        p->sw = source->width;
        p->pixels = source->pixels ? source->pixels + (size_t)index * (size_t)p->sh * (size_t)p->sw
                                   : step->streamed + (size_t)sample * step->stride;
        p->flip = p->elastic = 0;
        p->step = 1;
        if (augment) {
            draw(p, data_set, index, shift, &zoom, &angle);
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
    const image_plan *plan;
    image_room room;
    float *noise, *smoothed, *field; /* (samples, 2, room.noise), the same, room.field */
};

/* A thread draws eight numbers. */
struct draw_noise : elastic {
    MDMT_HD void at(uint32_t plane, int eighth) const
    {
        const image_plan &p = plan[plane / 2];
        size_t at = (size_t)eighth * 8;
        if (!p.elastic ||
            at >= (size_t)(p.columns + 2 * p.radius) * (size_t)(p.rows + 2 * p.radius)) {
            return;
        }
        float *to = noise + (size_t)plane * room.noise + at;
        mdmt_philox4 four = mdmt_philox(p.noise_key, (uint64_t)eighth, plane % 2);
        for (int i = 0; i < 4; i++) {
            /* the middle of each of 65536 intervals: no bias */
            to[2 * i] = ((float)(int)(four.v[i] & 0xFFFF) - 32767.5f) * p.noise_unit;
            to[2 * i + 1] = ((float)(int)(four.v[i] >> 16) - 32767.5f) * p.noise_unit;
        }
    }
};

/* sum_t tap[t] in[t * stride], four taps at a time. */
MDMT_HD float smooth(const image_plan &p, const float *in, size_t stride)
{
    float sum = 0;
    int last = 2 * p.radius;
    for (int t = 0; t <= last; t += 4) {
        float a = in[(size_t)t * stride];
        float b = t + 1 <= last ? in[(size_t)(t + 1) * stride] : a;
        float c = t + 2 <= last ? in[(size_t)(t + 2) * stride] : a;
        float d = t + 3 <= last ? in[(size_t)(t + 3) * stride] : a;
        sum += p.tap[t] * a + p.tap[t + 1] * b + p.tap[t + 2] * c + p.tap[t + 3] * d;
    }
    return sum;
}

struct smooth_rows : elastic {
    MDMT_HD void at(uint32_t line, int x) const
    {
        uint32_t high = (uint32_t)room.nodes_high(), plane = line / high;
        const image_plan &p = plan[plane / 2];
        int y = (int)(line % high), wide = p.columns + 2 * p.radius;
        if (p.elastic && y < p.rows && x < wide) {
            size_t from = (size_t)plane * room.noise;
            size_t here = (size_t)y * (size_t)wide + (size_t)x;
            smoothed[from + here] = smooth(p, noise + from + here, (size_t)wide);
        }
    }
};

struct smooth_columns : elastic {
    MDMT_HD void at(uint32_t line, int x) const
    {
        uint32_t high = (uint32_t)room.height + 1, plane = line / high;
        const image_plan &p = plan[plane / 2];
        int y = (int)(line % high), wide = p.columns + 2 * p.radius;
        if (p.elastic && y < p.rows && x < p.columns) {
            const float *in = smoothed + (size_t)plane * room.noise + (size_t)y * (size_t)wide;
            field[(size_t)plane * room.field + (size_t)y * (size_t)p.columns + (size_t)x] =
                smooth(p, in + x, 1);
        }
    }
};

/* ---- sampling: one thread per pixel of the output ---- */

MDMT_HD float mirrored(float x, float last)
{
    x = fabsf(x);
    x = x > last ? 2 * last - x : x;
    return x > 0 ? x : 0;
}

MDMT_HD float bilinear(const image_plan &p, float x, float y)
{
    float px = mirrored(x, (float)(p.sw - 1)), py = mirrored(y, (float)(p.sh - 1));
    int x0 = (int)px, y0 = (int)py;
    int right = x0 + 1 < p.sw, down = y0 + 1 < p.sh ? p.sw : 0;
    float fx = px - (float)x0, fy = py - (float)y0;
    const uint8_t *at = p.pixels + (size_t)y0 * (size_t)p.sw + (size_t)x0;
    float top = (float)at[0] + fx * (float)((int)at[right] - (int)at[0]);
    float bottom = (float)at[down] + fx * (float)((int)at[down + right] - (int)at[down]);
    return top + fy * (bottom - top);
}

struct sample_images : elastic {
    float *out; /* (N, C, H, W) */
    int channels;
    float mean[4], deviation[4];

    /* The displacement at pixel (y, x), from the nodes around it. */
    MDMT_HD float displacement(const image_plan &p, const float *nodes, int y, int x) const
    {
        int above = y / p.step, left = x / p.step;
        float fy = (float)(y - above * p.step) / (float)p.step;
        const float *top = nodes + (size_t)above * (size_t)p.columns + (size_t)left;
        const float *bottom = top + p.columns;
        float a = top[0] + fy * (bottom[0] - top[0]), b = top[1] + fy * (bottom[1] - top[1]);
        return a + (b - a) / (float)p.step * (float)(x - left * p.step);
    }
    MDMT_HD float grey(const image_plan &p, const float *nodes, int y, int x) const
    {
        if (p.plain) {
            return (float)p.pixels[y * p.sw + (p.flip ? p.sw - 1 - x : x)];
        }
        float qx = (float)x, qy = (float)y;
        if (p.elastic) {
            qx += displacement(p, nodes, y, x);
            qy += displacement(p, nodes + room.field, y, x);
        }
        return bilinear(p, p.x0 + p.xx * qx + p.xy * qy, p.y0 + p.yx * qx + p.yy * qy);
    }
    MDMT_HD void at(uint32_t line, int x) const
    {
        uint32_t sample = line / (uint32_t)room.height;
        int y = (int)(line % (uint32_t)room.height);
        size_t area = (size_t)room.height * (size_t)room.width;
        const float *nodes = field + (size_t)sample * 2 * room.field;
        float v = grey(plan[sample], nodes, y, x) / 255.0f;
        float *to = out + (size_t)sample * (size_t)channels * area;
        for (int c = 0; c < channels; c++) {
            to[(size_t)c * area + (size_t)y * (size_t)room.width + (size_t)x] =
                (v - mean[c]) / deviation[c];
        }
    }
};

static mdmt_status images(const mdmt_cuda_site *site, const mdmt_cuda_call *call)
{
    const mdmt_images_attrs *a = MDMT_ATTRS(mdmt_images_attrs, site->op);
    mdmt_gpu *gpu = site->gpu;
    if (a->want_mask) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED, "masks are not on the GPU yet; train on the CPU");
    }
    if (!call->step || !call->step->sources) {
        return mdmt_lent->fail(MDMT_BAD_ARGUMENT, "no images are attached: attach data sets first");
    }
    MDMT_TRY(mdmt_gpu_take_step(gpu, call->step, a->batch, a->augment));
    image_room room = room_of(a->size[0], a->size[1]);
    image_plan *plan = (image_plan *)(void *)call->workspace;
    size_t planes = 2 * (size_t)a->batch;
    make_plans plans = {&gpu->state->step, plan, room.height, room.width, a->augment};
    MDMT_TRY(mdmt_count_over(site->stream, (size_t)a->batch, plans));
    sample_images f;
    memset((void *)&f, 0, sizeof f);
    f.plan = plan;
    f.room = room;
    f.noise = (float *)(void *)(plan + a->batch);
    f.smoothed = f.noise + planes * room.noise;
    f.field = f.smoothed + planes * room.noise;
    f.out = (float *)call->out[0];
    f.channels = a->channels;
    memcpy(f.mean, a->mean, sizeof f.mean);
    memcpy(f.deviation, a->std, sizeof f.deviation);
    if (a->augment) {
        draw_noise noise;
        smooth_rows rows;
        smooth_columns columns;
        (elastic &)noise = (elastic &)rows = (elastic &)columns = f;
        MDMT_TRY(mdmt_walk_over(site->stream, planes, (int)(room.noise / 8), noise));
        MDMT_TRY(mdmt_walk_over(site->stream, planes * (size_t)room.nodes_high(), room.nodes_wide(),
                                rows));
        MDMT_TRY(mdmt_walk_over(site->stream, planes * (size_t)(room.height + 1), room.width + 1,
                                columns));
    }
    return mdmt_walk_over(site->stream, (size_t)a->batch * (size_t)room.height, room.width, f);
}

static mdmt_status images_needs(const mdmt_cuda_site *site, mdmt_cuda_needs *needs)
{
    const mdmt_images_attrs *a = MDMT_ATTRS(mdmt_images_attrs, site->op);
    image_room room = room_of(a->size[0], a->size[1]);
    size_t planes = a->augment ? 2 * (size_t)a->batch : 0;
    needs->workspace_bytes = sizeof(image_plan) * (size_t)a->batch +
                             sizeof(float) * planes * (2 * room.noise + room.field);
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

mdmt_status mdmt_gpu_check_augmentation(const mdmt_augmentation *a)
{
    MDMT_TRY(mdmt_lent->check_augmentation(a));
    if (a->gamma > 0 || a->contrast > 0 || a->brightness > 0 || a->invert > 0 || a->noise > 0) {
        return mdmt_lent->fail(MDMT_UNSUPPORTED,
                               "gamma, contrast, brightness, invert and noise of the "
                               "augmentation are not on the GPU yet; train on the CPU");
    }
    return MDMT_OK;
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
            MDMT_TRY(mdmt_gpu_check_augmentation(&step->augmentation));
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
