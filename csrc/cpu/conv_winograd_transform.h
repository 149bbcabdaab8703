/* The Winograd transforms, vectorised over the channels of a block. */
#ifndef MDMT_CPU_CONV_WINOGRAD_TRANSFORM_H
#define MDMT_CPU_CONV_WINOGRAD_TRANSFORM_H

#include "conv_winograd_plan.h"
#include "conv_winograd_vector.h"

#define RT2 1.41421356237309505f /* sqrt(2)     */
#define RH2 0.70710678118654752f /* 1 / sqrt(2) */

/* Constants of the narrow tile; in F(4x4) scaled so that it takes the weights
 * of the full tile's points 0, +-a, infinity. */
typedef struct {
    float n0, n2, q, qa, aa, a;
} narrow_points;

INLINE narrow_points narrow_of(int points)
{
    return points == 6 ? (narrow_points){1, -2, -1.5f, -1.5f * RH2, 0.5f, RH2}
                       : (narrow_points){1, -1, 1, 1, 1, 1};
}

/* Place of point i of a tile of `size` rows or columns among those of the family. */
INLINE int place_of(int points, int size, int i)
{
    return points == 6 && size < 4 && i == size + 1 ? 5 : i;
}

/* B^T d, full tile. */
INLINE void input_full(const vec *d, vec *r)
{
    vec v1 = nmadd(set1(2), d[2], d[4]), w1 = nmadd(set1(2), d[1], d[3]);
    vec v2 = nmadd(set1(0.5f), d[2], d[4]), w2 = nmadd(set1(0.5f), d[1], d[3]);
    r[0] = add(nmadd(set1(2.5f), d[2], d[0]), d[4]);
    r[1] = madd(set1(RH2), w1, v1);
    r[2] = nmadd(set1(RH2), w1, v1);
    r[3] = madd(set1(RT2), w2, v2);
    r[4] = nmadd(set1(RT2), w2, v2);
    r[5] = add(nmadd(set1(2.5f), d[3], d[1]), d[5]);
}

/* B^T d, narrow tile. */
INLINE void input_narrow(const narrow_points *c, const vec *d, vec *r)
{
    vec e = mul(set1(c->q), d[2]);
    r[0] = madd(set1(c->n2), d[2], mul(set1(c->n0), d[0]));
    r[1] = madd(set1(c->qa), d[1], e);
    r[2] = nmadd(set1(c->qa), d[1], e);
    r[3] = nmadd(set1(c->aa), d[1], d[3]);
}

/* B^T d, tile of 3: the points 0, +-1/sqrt(2), sqrt(2), infinity, scaled likewise. */
INLINE void input_three(const vec *d, vec *r)
{
    vec e = nmadd(set1(RH2), d[2], d[3]), o = nmadd(set1(3 * RH2), d[2], d[3]);
    r[0] = madd(set1(RT2), d[3], nmadd(set1(2), d[2], nmadd(set1(RH2), d[1], d[0])));
    r[1] = mul(set1(3 * RH2), sub(e, d[1]));
    r[2] = mul(set1(RH2), add(o, d[1]));
    r[3] = mul(set1(2 * RT2), nmadd(set1(0.5f), d[1], d[3]));
    r[4] = madd(set1(RH2), d[1], nmadd(set1(0.5f), d[2], nmadd(set1(RT2), d[3], d[4])));
}

INLINE void input_of(int size, const narrow_points *c, const vec *d, vec *r)
{
    if (size == 4) {
        input_full(d, r);
    } else if (size == 3) {
        input_three(d, r);
    } else {
        input_narrow(c, d, r);
    }
}

/* A y, full and narrow tile: the transpose of the output transform. */
INLINE void spread_full(const vec *y, vec *r)
{
    vec e1 = madd(set1(0.5f), y[2], y[0]), o1 = madd(set1(0.5f), y[3], y[1]);
    vec e2 = madd(set1(2), y[2], y[0]), o2 = madd(set1(2), y[3], y[1]);
    r[0] = y[0];
    r[1] = madd(set1(RH2), o1, e1);
    r[2] = nmadd(set1(RH2), o1, e1);
    r[3] = madd(set1(RT2), o2, e2);
    r[4] = nmadd(set1(RT2), o2, e2);
    r[5] = y[3];
}

INLINE void spread_narrow(const narrow_points *c, const vec *y, vec *r)
{
    r[0] = y[0];
    r[1] = madd(set1(c->a), y[1], y[0]);
    r[2] = nmadd(set1(c->a), y[1], y[0]);
    r[3] = y[1];
}

INLINE void spread_three(const vec *y, vec *r)
{
    vec e = madd(set1(0.5f), y[2], y[0]);
    r[0] = y[0];
    r[1] = madd(set1(RH2), y[1], e);
    r[2] = nmadd(set1(RH2), y[1], e);
    r[3] = madd(set1(2), y[2], madd(set1(RT2), y[1], y[0]));
    r[4] = y[2];
}

INLINE void spread_of(int size, const narrow_points *c, const vec *y, vec *r)
{
    if (size == 4) {
        spread_full(y, r);
    } else if (size == 3) {
        spread_three(y, r);
    } else {
        spread_narrow(c, y, r);
    }
}

/* A^T m, full and narrow tile. */
INLINE void output_full(const vec *m, vec *y)
{
    vec s1 = add(m[1], m[2]), d1 = sub(m[1], m[2]), s2 = add(m[3], m[4]), d2 = sub(m[3], m[4]);
    y[0] = add(add(m[0], s1), s2);
    y[1] = madd(set1(RT2), d2, mul(set1(RH2), d1));
    y[2] = madd(set1(2), s2, mul(set1(0.5f), s1));
    y[3] = madd(set1(2 * RT2), d2, madd(set1(0.5f * RH2), d1, m[5]));
}

INLINE void output_narrow(const narrow_points *c, const vec *m, vec *y)
{
    y[0] = add(m[0], add(m[1], m[2]));
    y[1] = madd(set1(c->a), sub(m[1], m[2]), m[3]);
}

INLINE void output_three(const vec *m, vec *y)
{
    vec s = add(m[1], m[2]);
    y[0] = add(add(m[0], s), m[3]);
    y[1] = madd(set1(RT2), m[3], mul(set1(RH2), sub(m[1], m[2])));
    y[2] = madd(set1(2), m[3], madd(set1(0.5f), s, m[4]));
}

INLINE void output_of(int size, const narrow_points *c, const vec *m, vec *y)
{
    if (size == 4) {
        output_full(m, y);
    } else if (size == 3) {
        output_three(m, y);
    } else {
        output_narrow(c, m, y);
    }
}

/* G g. */
INLINE void weight_points(int points, const vec *g, vec *u)
{
    u[0] = g[0];
    if (points == 6) {
        vec e1 = mul(set1(-2.0f / 3), madd(set1(0.5f), g[2], g[0]));
        vec e2 = mul(set1(1.0f / 6), madd(set1(2), g[2], g[0]));
        u[1] = madd(set1(-2 * RH2 / 3), g[1], e1);
        u[2] = nmadd(set1(-2 * RH2 / 3), g[1], e1);
        u[3] = madd(set1(RT2 / 6), g[1], e2);
        u[4] = nmadd(set1(RT2 / 6), g[1], e2);
        u[5] = g[2];
    } else {
        vec e = mul(set1(0.5f), add(g[0], g[2]));
        u[1] = madd(set1(0.5f), g[1], e);
        u[2] = nmadd(set1(0.5f), g[1], e);
        u[3] = g[2];
    }
}

/* G^T u. */
INLINE void weight_taps(int points, const vec *u, vec *g)
{
    if (points == 6) {
        vec s1 = add(u[1], u[2]), d1 = sub(u[1], u[2]), s2 = add(u[3], u[4]), d2 = sub(u[3], u[4]);
        g[0] = madd(set1(-2.0f / 3), s1, madd(set1(1.0f / 6), s2, u[0]));
        g[1] = madd(set1(-2 * RH2 / 3), d1, mul(set1(RT2 / 6), d2));
        g[2] = madd(set1(-1.0f / 3), s1, madd(set1(1.0f / 3), s2, u[5]));
    } else {
        g[0] = madd(set1(0.5f), add(u[1], u[2]), u[0]);
        g[1] = mul(set1(0.5f), sub(u[1], u[2]));
        g[2] = madd(set1(0.5f), add(u[1], u[2]), u[3]);
    }
}

/* ---- weights ---------------------------------------------------------- */

/* U = G w G^T of one block: w (3, 3, 16 in, 16 out) to u[point * u_point + (in, out)]. */
INLINE void weight_block_points(int points, const float *w, float *u, size_t u_point)
{
    for (int at = 0; at < 256; at += VW) {
        vec rows[6][3];
#pragma GCC unroll 16
        for (int j = 0; j < 3; j++) {
            vec g[3], r[6];
#pragma GCC unroll 16
            for (int i = 0; i < 3; i++) {
                g[i] = load(w + (3 * i + j) * 256 + at);
            }
            weight_points(points, g, r);
#pragma GCC unroll 16
            for (int i = 0; i < points; i++) {
                rows[i][j] = r[i];
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < points; i++) {
            vec r[6];
            weight_points(points, rows[i], r);
#pragma GCC unroll 16
            for (int j = 0; j < points; j++) {
                store(u + (size_t)(i * points + j) * u_point + at, r[j]);
            }
        }
    }
}

/* Block (out, in) of the plan's convolution from the packed weights w. */
static void weight_block(const mdmt_wino_plan *p, const float *w, int out, int in, float *u)
{
    _Alignas(64) float turned[9 * 256];
    if (p->pass == MDMT_WINO_DATA) { /* w is [in][out]; turn the taps, exchange the channels */
        w += ((size_t)in * p->kb + out) * 9 * 256;
        for (int t = 0; t < 9; t++) {
            transpose(w + (8 - t) * 256, turned + t * 256);
        }
        w = turned;
    } else {
        w += ((size_t)out * p->cb + in) * 9 * 256;
    }
    if (p->points == 6) {
        weight_block_points(6, w, u, p->u_point);
    } else {
        weight_block_points(4, w, u, p->u_point);
    }
}

/* dw = G^T s G of one block. Meanwhile the block of dw after it is fetched, and
 * that of the sums `ahead` floats on (0: none). */
INLINE void weight_block_taps(int points, const float *s, size_t s_point, size_t ahead, float *dw,
                              int more)
{
    for (int at = 0; at < 256; at += VW) {
        vec rows[3][6];
#pragma GCC unroll 16
        for (int j = 0; j < points; j++) {
            vec u[6], r[3];
#pragma GCC unroll 16
            for (int i = 0; i < points; i++) {
                const float *from = s + (size_t)(i * points + j) * s_point + at;
                u[i] = load(from);
                if (ahead) {
                    __builtin_prefetch(from + ahead);
                }
            }
            weight_taps(points, u, r);
#pragma GCC unroll 16
            for (int i = 0; i < 3; i++) {
                rows[i][j] = r[i];
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < 3; i++) {
            vec r[3];
            weight_taps(points, rows[i], r);
#pragma GCC unroll 16
            for (int j = 0; j < 3; j++) {
                float *to = dw + (3 * i + j) * 256 + at;
                __builtin_prefetch(to + 9 * 256);
                store(to, more ? add(load(to), r[j]) : r[j]);
            }
        }
    }
}

/* ---- maps ------------------------------------------------------------- */

/* What to do with a value on load: act(scale * x + shift), or nothing. */
typedef struct {
    const float *scale, *shift; /* of the block, or NULL */
    int relu;
} loader;

INLINE vec loaded(const map_float *p, int lazy, int relu, vec scale, vec shift)
{
    vec x = load_map(p);
    if (lazy) {
        x = madd(scale, x, shift);
        x = relu ? max(zero(), x) : x; /* the order keeps a NaN */
    }
    return x;
}

/* A row of tiles of one block, as the transforms see it. */
typedef struct {
    const map_float *at[6]; /* the image rows that it takes                 */
    int valid;              /* bit i: row i is inside                       */
    int left, width;        /* columns outside on the left; those of the map */
    loader load;
    float *full, *narrow; /* first tiles of the two classes               */
    size_t v_point;
    const map_float *ahead; /* the rows that come next, to be prefetched    */
} tile_row;

/* First pass, down column x of the tiles: `taken` image rows to 6, 5 or 4 values. */
INLINE void down(int taken, int input, int lazy, int all, const narrow_points *c, const tile_row *t,
                 int x, vec scale, vec shift, float *to, int lane)
{
    vec d[6], r[6];
    int made = input ? taken : taken + 2;
    x -= t->left;
    if (x < 0 || x >= t->width) {
#pragma GCC unroll 16
        for (int i = 0; i < made; i++) {
            store(to + i * 16, zero());
        }
        return;
    }
    if (VW == 16 || lane == 0) {
        const map_float *ahead = t->ahead + (size_t)x * 16;
        size_t pitch = (size_t)t->width * 16;
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + pitch);
        __builtin_prefetch(ahead + 2 * pitch);
        __builtin_prefetch(ahead + 3 * pitch);
    }
#pragma GCC unroll 16
    for (int i = 0; i < taken; i++) {
        d[i] = zero();
        if (all || (t->valid >> i & 1)) {
            d[i] = loaded(t->at[i] + (size_t)x * 16 + lane, lazy, t->load.relu, scale, shift);
        }
    }
    if (input) {
        input_of(taken - 2, c, d, r);
    } else {
        spread_of(taken, c, d, r);
    }
#pragma GCC unroll 16
    for (int i = 0; i < made; i++) {
        store(to + i * 16, r[i]);
    }
}

/* Second pass, across one tile: row i of its columns, `half` of them at a and
 * the others at b, to the points of a row, v_point apart. These are more streams
 * than the processor follows: the tile after the next is fetched by hand. */
INLINE void across(int size, int input, int points, const narrow_points *c, const float *a,
                   const float *b, int half, float *to, size_t v_point)
{
    vec d[6], r[6];
    int taken = size + (input ? 2 : 0), made = size + 2;
#pragma GCC unroll 16
    for (int x = 0; x < taken; x++) {
        d[x] = load(x < half ? a + x * 96 : b + (x - half) * 96);
    }
    if (input) {
        input_of(size, c, d, r);
    } else {
        spread_of(size, c, d, r);
    }
#pragma GCC unroll 16
    for (int j = 0; j < made; j++) {
        float *at = to + place_of(points, size, j) * v_point;
        store(at, r[j]);
        __builtin_prefetch(at + 32);
    }
}

/* The tiles of one class of a row, `step` columns wide, from column x0 on. A ring of 2 * step
 * columns holds the first pass. */
INLINE void row_tiles(const mdmt_wino_plan *p, int step, int taken, int input, int lazy, int all,
                      const narrow_points *c, const tile_row *t, int x0, int count, float *to,
                      int lane)
{
    _Alignas(64) float ring[8 * 96];
    int points = p->points, halo = input ? 2 : 0, made = input ? taken : taken + 2;
    vec scale = lazy ? load(t->load.scale + lane) : zero();
    vec shift = lazy ? load(t->load.shift + lane) : zero();
    for (int x = 0; x < halo && count > 0; x++) {
        down(taken, input, lazy, all, c, t, x0 + x, scale, shift, ring + x * 96, lane);
    }
    for (int tile = 0; tile < count; tile++, x0 += step, to += 16) {
        float *a = ring + (tile & 1) * step * 96, *b = ring + (~tile & 1) * step * 96;
#pragma GCC unroll 16
        for (int x = 0; x < step; x++) {
            float *column = x + halo < step ? a + (x + halo) * 96 : b + (x + halo - step) * 96;
            down(taken, input, lazy, all, c, t, x0 + halo + x, scale, shift, column, lane);
        }
        for (int i = 0; i < made; i++) {
            int place = place_of(points, made - 2, i);
            across(step, input, points, c, a + i * 16, b + i * 16, step,
                   to + (size_t)place * points * t->v_point + lane, t->v_point);
        }
    }
}

INLINE void row_case(const mdmt_wino_plan *p, int taken, int input, int lazy, int all,
                     const tile_row *t)
{
    narrow_points c = narrow_of(p->points);
    for (int lane = 0; lane < 16; lane += VW) {
        row_tiles(p, 4, taken, input, lazy, all, &c, t, 0, p->full_w, t->full, lane);
        if (p->rest_w == 3) {
            row_tiles(p, 3, taken, input, lazy, all, &c, t, 4 * p->full_w, p->narrow_w, t->narrow,
                      lane);
        } else {
            row_tiles(p, 2, taken, input, lazy, all, &c, t, 4 * p->full_w, p->narrow_w, t->narrow,
                      lane);
        }
    }
}

static void input_row(const mdmt_wino_plan *p, int taken, const tile_row *t)
{
    int all = t->valid == 63, lazy = t->load.scale != NULL;
    if (taken == 6 && all) {
        if (lazy) {
            row_case(p, 6, 1, 1, 1, t);
        } else {
            row_case(p, 6, 1, 0, 1, t);
        }
    } else if (taken == 6) {
        if (lazy) {
            row_case(p, 6, 1, 1, 0, t);
        } else {
            row_case(p, 6, 1, 0, 0, t);
        }
    } else if (taken == 5) {
        if (lazy) {
            row_case(p, 5, 1, 1, 0, t);
        } else {
            row_case(p, 5, 1, 0, 0, t);
        }
    } else if (lazy) {
        row_case(p, 4, 1, 1, 0, t);
    } else {
        row_case(p, 4, 1, 0, 0, t);
    }
}

static void gradient_row(const mdmt_wino_plan *p, int taken, const tile_row *t)
{
    if (taken == 4) { /* full tiles lie inside */
        row_case(p, 4, 0, 0, 1, t);
    } else if (taken == 3) {
        row_case(p, 3, 0, 0, 1, t);
    } else {
        row_case(p, 2, 0, 0, 0, t);
    }
}

/* Transforms one row of tiles of one block: B^T X B, or A dY A^T where `input`
 * is 0. `map` is the block's plane of h x w pixels of the row's image, `sample`
 * elements before that of the next; its tiles go to v (tile numbers of `tiles`);
 * `row` counts tile rows over the batch. */
static void transform_row(const mdmt_wino_plan *p, const mdmt_wino_tiles *tiles, int input, int row,
                          const map_float *map, size_t sample, int h, int w, const loader *l,
                          float *v, size_t v_point)
{
    int n = row / p->rows, r = row % p->rows, narrow = r >= p->full_h;
    int top = narrow ? 4 * p->full_h + p->rest_h * (r - p->full_h) : 4 * r;
    int taken = (narrow ? p->rest_h : 4) + (input ? 2 : 0);
    int k = narrow ? n * p->narrow_h + r - p->full_h - tiles->narrow0
                   : n * p->full_h + r - tiles->full0;
    tile_row t = {.left = input ? p->pl : 0, .width = w, .load = *l, .v_point = v_point};
    t.full = v + (size_t)(tiles->first[narrow ? 0 : 1] + k * p->full_w) * 16;
    t.narrow = v + (size_t)(tiles->first[narrow ? 3 : 2] + k * p->narrow_w) * 16;
    top -= input ? p->pt : 0;
    for (int i = 0; i < taken; i++) {
        int y = top + i, inside = y >= 0 && y < h;
        t.at[i] = map + (inside ? (size_t)y * w * 16 : 0);
        t.valid |= inside << i;
    }
    int next = top + taken;
    t.ahead = map + (next + 4 <= h ? (size_t)next * w * 16 : sample);
    if (input) {
        input_row(p, taken, &t);
    } else {
        gradient_row(p, taken, &t);
    }
}

static void transform_input(const mdmt_wino_plan *p, const mdmt_wino_tiles *tiles, int row,
                            const mdmt_value *x, int block, float *v)
{
    loader l = {x->scale ? x->scale + block * 16 : NULL, x->shift ? x->shift + block * 16 : NULL,
                x->act == MDMT_ACT_RELU};
    const map_float *map = (const map_float *)x->data + (row / p->rows) * p->x_sample +
                           (size_t)block * p->ih * p->iw * 16;
    transform_row(p, tiles, 1, row, map, p->x_sample, p->ih, p->iw, &l, v, p->v_point);
}

static void transform_gradient(const mdmt_wino_plan *p, const mdmt_wino_tiles *tiles, int row,
                               const map_float *dy, int block, float *d)
{
    loader l = {NULL, NULL, 0};
    const map_float *map = dy + (row / p->rows) * p->y_sample + (size_t)block * p->oh * p->ow * 16;
    transform_row(p, tiles, 0, row, map, p->y_sample, p->oh, p->ow, &l, d, p->d_point);
}

#endif
