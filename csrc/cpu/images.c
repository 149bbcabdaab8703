#include "images.h"

#include <math.h>
#include <string.h>

#include "../base/philox.h"
#include "tone.h"

enum { TAPS_MAX = 40 }; /* 2 * ceil(3 * 6) + 1 = 37: sigma / step is below 6 */

static const double pi = 3.14159265358979323846;

mdmt_warp mdmt_warp_identity(void)
{
    mdmt_warp warp;
    memset(&warp, 0, sizeof warp);
    warp.zoom = 1;
    return warp;
}

/* Uniform in -range .. range. */
static float spread(uint32_t bits, float range)
{
    return range * (2 * mdmt_uniform(bits) - 1);
}

mdmt_warp mdmt_warp_draw(const mdmt_augmentation *a, uint64_t seed, uint64_t epoch, int data_set,
                         int64_t index)
{
    mdmt_warp warp = mdmt_warp_identity();
    uint64_t key = mdmt_stream_key(seed, MDMT_STREAM_AUGMENT);
    uint64_t high = epoch << 32 | (uint64_t)(uint32_t)data_set << 8;
    uint32_t bits[12];
    for (int block = 0; block < 3; block++) {
        mdmt_philox4 four = mdmt_philox(key, (uint64_t)index, high | (uint64_t)block);
        memcpy(bits + 4 * block, four.v, sizeof four.v);
    }
    float p = a->probability;
    if (mdmt_uniform(bits[0]) < p) {
        warp.shift[0] = spread(bits[5], a->shift);
        warp.shift[1] = spread(bits[6], a->shift);
    }
    if (mdmt_uniform(bits[1]) < p) {
        warp.zoom = 1 + spread(bits[7], a->zoom);
    }
    warp.flip = a->flip > 0 && mdmt_uniform(bits[2]) < p;
    if (mdmt_uniform(bits[3]) < p) {
        warp.angle = spread(bits[8], a->rotation);
    }
    if (mdmt_uniform(bits[4]) < p && a->elastic_sigma > 0) {
        float low = a->elastic_alpha[0], range = a->elastic_alpha[1] - low;
        warp.alpha = low + range * mdmt_uniform(bits[9]);
        warp.sigma = a->elastic_sigma;
        mdmt_philox4 four =
            mdmt_philox(mdmt_stream_key(seed, MDMT_STREAM_ELASTIC), (uint64_t)index, high);
        warp.noise_key = (uint64_t)four.v[0] | (uint64_t)four.v[1] << 32;
    }
    return warp;
}

mdmt_status mdmt_augmentation_check(const mdmt_augmentation *a)
{
    if (!(a->probability >= 0 && a->probability <= 1)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the probability of an augmentation must be within 0 to 1, not %g",
                         (double)a->probability);
    }
    if (!(a->zoom >= 0 && a->zoom < 1)) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "the zoom range of the augmentation must be at least 0 and below 1 "
                         "(0.1: factors 0.9 to 1.1), not %g",
                         (double)a->zoom);
    }
    const float others[] = {a->shift, a->rotation, a->elastic_alpha[0], a->elastic_alpha[1],
                            a->elastic_sigma};
    const char *const names[] = {"shift", "rotation", "lower elastic_alpha", "upper elastic_alpha",
                                 "elastic_sigma"};
    for (int i = 0; i < 5; i++) {
        if (!(others[i] >= 0 && others[i] < 1e6f)) {
            return mdmt_fail(MDMT_BAD_ARGUMENT,
                             "the %s of the augmentation must be a number of at least 0, not %g",
                             names[i], (double)others[i]);
        }
    }
    if (a->elastic_alpha[1] < a->elastic_alpha[0]) {
        return mdmt_fail(MDMT_BAD_ARGUMENT,
                         "elastic_alpha must be a lower and an upper value, not %g and %g",
                         (double)a->elastic_alpha[0], (double)a->elastic_alpha[1]);
    }
    return mdmt_tone_check(a);
}

/* ---- elastic field ---- */

/* The grid of nodes at every step-th pixel, and the kernel on it. */
typedef struct {
    int step, rows, columns; /* of nodes: they reach beyond the last pixel */
    int radius;              /* of the Gaussian, in nodes */
    float tap[TAPS_MAX];
} elastic_grid;

static elastic_grid grid_of(float sigma, int height, int width)
{
    elastic_grid grid;
    memset(&grid, 0, sizeof grid);
    grid.step = sigma >= 6 ? (int)fminf(sigma / 3, 4096) : 1;
    grid.rows = (height - 1) / grid.step + 2;
    grid.columns = (width - 1) / grid.step + 2;
    double s = fmax(fmin((double)sigma / grid.step, 6), 0.01), sum = 0;
    grid.radius = (int)ceil(3 * s);
    for (int t = -grid.radius; t <= grid.radius; t++) {
        grid.tap[t + grid.radius] = (float)exp(-0.5 * t * t / (s * s));
        sum += grid.tap[t + grid.radius];
    }
    for (int t = 0; t <= 2 * grid.radius; t++) {
        grid.tap[t] = (float)(grid.tap[t] / sum);
    }
    return grid;
}

/* Nodes of the noise, at most: the grid with a radius of at most 18 around it. */
static size_t noise_nodes(int height, int width)
{
    return (size_t)(height + 1 + TAPS_MAX) * (size_t)(width + 1 + TAPS_MAX);
}

size_t mdmt_warp_scratch(int height, int width)
{
    /* two fields, the noise (drawn by eights), and a row of it smoothed along y */
    return 2 * (size_t)(height + 1) * (size_t)(width + 1) + noise_nodes(height, width) + 8 +
           (size_t)(width + 1 + TAPS_MAX);
}

/* count numbers, uniform in -scale .. scale, 16 bits each. */
static void draw_noise(uint64_t key, uint64_t stream, float scale, float *noise, size_t count)
{
    float unit = scale / 32768;
    for (size_t at = 0; at < count; at += 8) {
        mdmt_philox4 four = mdmt_philox(key, at / 8, stream);
        for (int i = 0; i < 4; i++) {
            /* the middle of each of 65536 intervals: no bias */
            noise[at + 2 * i] = ((float)(int)(four.v[i] & 0xFFFF) - 32767.5f) * unit;
            noise[at + 2 * i + 1] = ((float)(int)(four.v[i] >> 16) - 32767.5f) * unit;
        }
    }
}

/* out[i] = sum_t tap[t] in[t * stride + i], i < count; four taps at a time. */
static void smooth_line(const elastic_grid *grid, const float *restrict in, size_t stride,
                        float *restrict out, int count)
{
    memset(out, 0, sizeof(float) * (size_t)count);
    for (int t = 0; t < 2 * grid->radius + 1; t += 4) {
        const float *tap = grid->tap + t; /* zeros follow the last one */
        const float *a = in + (size_t)t * stride;
        const float *b = t + 1 <= 2 * grid->radius ? a + stride : a;
        const float *c = t + 2 <= 2 * grid->radius ? b + stride : a;
        const float *d = t + 3 <= 2 * grid->radius ? c + stride : a;
        for (int i = 0; i < count; i++) {
            out[i] += tap[0] * a[i] + tap[1] * b[i] + tap[2] * c[i] + tap[3] * d[i];
        }
    }
}

/* One component of the displacement, pixels, at the nodes: field (rows, columns). */
static void make_field(const mdmt_warp *warp, const elastic_grid *grid, uint64_t component,
                       float *field, float *noise, float *smoothed)
{
    int wide = grid->columns + 2 * grid->radius, high = grid->rows + 2 * grid->radius;
    size_t nodes = (size_t)wide * (size_t)high;
    draw_noise(warp->noise_key, component, warp->alpha / (float)grid->step, noise, nodes);
    for (int y = 0; y < grid->rows; y++) {
        smooth_line(grid, noise + (size_t)y * (size_t)wide, (size_t)wide, smoothed, wide);
        smooth_line(grid, smoothed, 1, field + (size_t)y * (size_t)grid->columns, grid->columns);
    }
}

/* ---- sampling ---- */

/* A coordinate folded back into 0 .. last: mirrored at the border, once. */
static inline float mirror(float x, float last)
{
    x = fabsf(x);
    x = x > last ? 2 * last - x : x;
    return x > 0 ? x : 0;
}

void mdmt_sample_row__ref(const uint8_t *source, int sh, int sw, const float *x, const float *y,
                          float *out, int count)
{
    for (int i = 0; i < count; i++) {
        float px = mirror(x[i], (float)(sw - 1)), py = mirror(y[i], (float)(sh - 1));
        int x0 = (int)px, y0 = (int)py;
        int right = x0 + 1 < sw, down = y0 + 1 < sh ? sw : 0;
        float fx = px - (float)x0, fy = py - (float)y0;
        const uint8_t *at = source + (size_t)y0 * (size_t)sw + x0;
        float top = (float)at[0] + fx * (float)(at[right] - at[0]);
        float bottom = (float)at[down] + fx * (float)(at[down + right] - at[down]);
        out[i] = top + fy * (bottom - top);
    }
}

/* p = linear (q + u) + offset, row by row, in source pixels. */
typedef struct {
    float xx, xy, yx, yy, x0, y0;
} affine;

static affine inverse_map(const mdmt_warp *warp, int sh, int sw, int height, int width)
{
    double angle = warp->angle * pi / 180, c = cos(angle), s = sin(angle);
    double sx = (double)sw / width / warp->zoom, sy = (double)sh / height / warp->zoom;
    double f = warp->flip ? -1 : 1;
    affine map = {
        (float)(f * sx * c), (float)(f * sx * s), (float)(-sy * s), (float)(sy * c), 0, 0};
    /* of output pixel (0, 0), measured from the centre, less the shift */
    double qx = 0.5 - 0.5 * width - (double)warp->shift[0] * width;
    double qy = 0.5 - 0.5 * height - (double)warp->shift[1] * height;
    map.x0 = (float)(f * sx * (c * qx + s * qy) + 0.5 * sw - 0.5);
    map.y0 = (float)(sy * (c * qy - s * qx) + 0.5 * sh - 0.5);
    return map;
}

/* u at the pixels of row y, from the nodes; `line` holds a row of nodes. May
 * write one number beyond width. */
static void displacements(const elastic_grid *grid, const float *field, int y, int width,
                          float *restrict line, float *restrict u)
{
    int step = grid->step, above = y / step;
    float fy = (float)(y - above * step) / (float)step;
    const float *top = field + (size_t)above * (size_t)grid->columns;
    const float *bottom = top + grid->columns;
    for (int i = 0; i < grid->columns; i++) {
        line[i] = top[i] + fy * (bottom[i] - top[i]);
    }
    if (step == 2) { /* the paper's sigma at the paper's size: worth a loop of its own */
        for (int i = 0; i < grid->columns - 1; i++) {
            u[2 * i] = line[i];
            u[2 * i + 1] = line[i] + 0.5f * (line[i + 1] - line[i]);
        }
        return;
    }
    for (int i = 0; i < grid->columns - 1; i++) {
        float slope = (line[i + 1] - line[i]) / (float)step;
        for (int x = i * step; x < (i + 1) * step && x < width; x++) {
            u[x] = line[i] + slope * (float)(x - i * step);
        }
    }
}

/* Both components of the field at the nodes; noise is spent. */
static elastic_grid make_fields(const mdmt_warp *warp, int height, int width, float *field[2],
                                float *noise)
{
    elastic_grid grid = grid_of(warp->sigma, height, width);
    float *smoothed = noise + noise_nodes(height, width) + 8;
    for (int component = 0; component < 2; component++) {
        make_field(warp, &grid, (uint64_t)component, field[component], noise, smoothed);
    }
    return grid;
}

static void copy_rows(const mdmt_warp *warp, const uint8_t *source, float *out, int rows, int width)
{
    for (int y = 0; y < rows; y++, source += width, out += width) {
        for (int x = 0; x < width; x++) {
            out[x] = (float)source[warp->flip ? width - 1 - x : x];
        }
    }
}

void mdmt_warp_apply(const mdmt_warp *warp, mdmt_sample_row_fn sample_row, const uint8_t *source,
                     int planes, int sh, int sw, float *out, int height, int width, float *scratch)
{
    int elastic = warp->alpha > 0;
    if (!elastic && sh == height && sw == width && warp->zoom == 1 && warp->angle == 0 &&
        warp->shift[0] == 0 && warp->shift[1] == 0) {
        copy_rows(warp, source, out, planes * height, width);
        return;
    }
    size_t field_size = (size_t)(height + 1) * (size_t)(width + 1);
    float *field[2] = {scratch, scratch + field_size}, *noise = scratch + 2 * field_size;
    float *ux = noise, *uy = ux + width + 1, *px = uy + width + 1, *py = px + width;
    float *line = py + width;
    affine map = inverse_map(warp, sh, sw, height, width);
    elastic_grid grid = {.step = 1};
    if (elastic) {
        grid = make_fields(warp, height, width, field, noise);
    }
    memset(ux, 0, sizeof(float) * 2 * (size_t)(width + 1));
    for (int y = 0; y < height; y++) {
        if (elastic) {
            displacements(&grid, field[0], y, width, line, ux);
            displacements(&grid, field[1], y, width, line, uy);
        }
        for (int x = 0; x < width; x++) {
            float qx = (float)x + ux[x], qy = (float)y + uy[x];
            px[x] = map.x0 + map.xx * qx + map.xy * qy;
            py[x] = map.y0 + map.yx * qx + map.yy * qy;
        }
        for (int p = 0; p < planes; p++) {
            sample_row(source + (size_t)p * (size_t)sh * (size_t)sw, sh, sw, px, py,
                       out + ((size_t)p * (size_t)height + (size_t)y) * (size_t)width, width);
        }
    }
}

static void augment_one(void *context, int i, int thread)
{
    const mdmt_augment_job *job = context;
    mdmt_warp warp = mdmt_warp_draw(&job->augmentation, job->seed, job->epoch,
                                    (int)job->data_set[i], job->index[i]);
    size_t pixels = (size_t)job->height * (size_t)job->width, image = (size_t)i * (size_t)job->planes;
    float *out = job->out + image * pixels;
    mdmt_warp_apply(&warp, mdmt_sample_row__ref,
                    job->images + image * (size_t)job->sh * (size_t)job->sw, job->planes, job->sh,
                    job->sw, out, job->height, job->width,
                    job->scratch + (size_t)thread * mdmt_warp_scratch(job->height, job->width));
    mdmt_tone tone = mdmt_tone_draw(&job->augmentation, job->seed, job->epoch,
                                    (int)job->data_set[i], job->index[i]);
    if (!mdmt_tone_changes(&tone) || job->masks) {
        return;
    }
    for (int p = 0; p < job->planes; p++, out += pixels) {
        for (size_t k = 0; k < pixels; k++) {
            out[k] /= 255.0f;
        }
        mdmt_tone_apply(&tone, p, out, pixels);
        for (size_t k = 0; k < pixels; k++) {
            out[k] *= 255.0f;
        }
    }
}

void mdmt_augment_images(mdmt_pool *pool, int n, mdmt_augment_job *job)
{
    mdmt_parallel(pool, n, augment_one, job);
}
