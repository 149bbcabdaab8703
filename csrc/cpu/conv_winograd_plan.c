/* Plans and costs of the Winograd convolutions. See conv_winograd_plan.h. */
#include "conv_winograd_plan.h"

enum {
    CHUNK_BYTES = 600 << 10,  /* transformed input of a chunk: stays in the L2       */
    GROUP_BYTES = 24 << 20,   /* transformed maps of a group of images                */
    RANGE_BYTES = 1200 << 10, /* by output: transformed weights: stay in the L2 */
    PAST_BYTES = 4 << 20,     /* an output of so much, as floats, goes past the caches */
    SPAN_TILES = 64,          /* tiles of one round of small GEMMs                    */
    TASKS = 32,               /* aimed at                                             */
    LEAST_TILES = 14,         /* of a chunk: as many as the widest tile of the GEMMs  */
    MOST_TILES = 64,
    SUM_BYTES = 640 << 10,    /* bwd_weight by rows: sums of a thread: stay in the L2 */
    PART_BYTES = 10 << 20,    /* or of all parts, where they are larger               */
    PART_TILES = 49,          /* tiles that a part is worth                           */
    FEW_TILES = 512,          /* bwd_weight by output: so few, or large sums          */
    WEIGHT_BYTES = 12 << 20,  /* by output: weights of so much are transformed first  */
    POINT_BYTES = 4 << 20,    /* bwd_weight by output: sums of so much by points      */
    BY_OUTPUT_CHANNELS = 192  /* more input channels than this: by output             */
};

int mdmt_wino_supports(const mdmt_site *site, int points)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    return site->winograd >= (points == 6 ? 2 : 1) && !g.plain && g.groups == 1 && g.kh == 3 &&
           g.kw == 3 && g.sh == 1 && g.sw == 1 && g.dh == 1 && g.dw == 1 && g.pt >= 0 &&
           g.pt <= 2 && g.pl >= 0 && g.pl <= 2 && g.pb >= 0 && g.pb <= 2 && g.pr >= 0 && g.pr <= 2;
}

/* Tiles of 4 and narrow ones, of `rest`, that cover `size`. */
static void tile_counts(int size, int points, int *full, int *narrow, int *rest)
{
    *full = points == 4 ? 0 : size / 4;
    *rest = points == 4 || size % 4 < 3 ? 2 : 3;
    *narrow = (size - 4 * *full + *rest - 1) / *rest;
}

static int tiles_of_rows(const mdmt_wino_plan *p, int rows)
{
    return rows * p->row_tiles;
}

/* A stride of an odd number of cache lines: the points of a tile then lie in
 * different cache sets. */
static size_t odd_lines(size_t floats)
{
    return (floats / 16 | 1) * 16;
}

static int at_least_one(int value)
{
    return value < 1 ? 1 : value;
}

static void plan_rows(mdmt_wino_plan *p)
{
    int pp = p->points * p->points, rows = p->n * p->rows;
    int blocks = p->pass == MDMT_WINO_WEIGHT ? p->cb + p->kb : p->cb;
    int tiles = CHUNK_BYTES / (pp * blocks * 64);
    tiles = tiles > MOST_TILES ? MOST_TILES : tiles;
    if (p->pass != MDMT_WINO_WEIGHT) { /* enough chunks for many threads */
        int share = tiles_of_rows(p, rows) / TASKS;
        tiles = tiles > share ? share : tiles;
    }
    tiles = tiles < LEAST_TILES ? LEAST_TILES : tiles;
    int step = at_least_one(tiles / p->row_tiles);
    if (p->pass == MDMT_WINO_WEIGHT) {
        size_t sum = (size_t)pp * p->cb * p->kb * 1024;
        int parts = sum > SUM_BYTES ? (int)(PART_BYTES / sum) : TASKS;
        int tiles_each = (rows * p->row_tiles + PART_TILES - 1) / PART_TILES;
        parts = parts > TASKS ? TASKS : parts;
        parts = at_least_one(parts > tiles_each ? tiles_each : parts);
        p->part_sums = sum > SUM_BYTES;
        int most = (rows + step - 1) / step;
        p->chunks = parts > most ? most : parts;
        p->row_step = step;
        int part_rows = (rows + p->chunks - 1) / p->chunks;
        p->span_tiles = tiles_of_rows(p, step < part_rows ? step : part_rows);
    } else {
        p->chunks = (rows + step - 1) / step;
        p->span_tiles = tiles_of_rows(p, (rows + p->chunks - 1) / p->chunks);
    }
    p->set_tiles = p->span_tiles;
    p->groups = 1;
    p->spans = 1;
}

static void plan_groups(mdmt_wino_plan *p)
{
    int pp = p->points * p->points, image = tiles_of_rows(p, p->rows);
    int blocks = p->pass == MDMT_WINO_WEIGHT ? p->cb + p->kb : p->cb;
    int images = (int)(GROUP_BYTES / ((int64_t)pp * image * blocks * 64));
    images = at_least_one(images > p->n ? p->n : images);
    p->groups = (p->n + images - 1) / images;
    p->set_tiles = image * ((p->n + p->groups - 1) / p->groups);
    int least = image * (p->n / p->groups);
    p->spans = at_least_one((least + SPAN_TILES / 2) / SPAN_TILES);
    p->span_tiles = (p->set_tiles + p->spans - 1) / p->spans;
    p->chunks = 1;
    int slices = (TASKS + blocks - 1) / blocks;
    p->slices = slices > least / p->row_tiles ? least / p->row_tiles : slices;
}

/* By output: how the products are cut. By points where their sums fit. */
static void plan_sums(mdmt_wino_plan *p)
{
    int pp = p->points * p->points, pairs = (p->kb + MDMT_WINO_PAIR - 1) / MDMT_WINO_PAIR;
    p->by_points = (int64_t)pp * p->cb * p->kb * 1024 <= POINT_BYTES;
    if (p->by_points) {
        p->range = p->cb;
        p->cuts = p->kb >= 8 || (pp < TASKS && p->kb > MDMT_WINO_PAIR) ? 2 : 1;
        p->in_cuts = (TASKS + p->kb - 1) / p->kb;
        p->in_cuts = p->in_cuts > p->cb ? p->cb : p->in_cuts;
        return;
    }
    int most = at_least_one(RANGE_BYTES / (pp * MDMT_WINO_PAIR * 1024));
    int ranges = (p->cb + most - 1) / most, more = (TASKS + pairs - 1) / pairs;
    ranges = ranges > more ? ranges : more;
    p->range = (p->cb + ranges - 1) / ranges;
}

void mdmt_wino_plan_make(const mdmt_site *site, mdmt_wino_pass pass, int points, mdmt_wino_plan *p)
{
    mdmt_geometry g = mdmt_conv_geometry(site);
    *p = (mdmt_wino_plan){.pass = pass, .points = points, .n = g.n};
    int data = pass == MDMT_WINO_DATA, pp = points * points;
    p->c = data ? g.k : g.c;
    p->k = data ? g.c : g.k;
    p->cb = mdmt_blocks(p->c);
    p->kb = mdmt_blocks(p->k);
    p->ih = data ? g.oh : g.h;
    p->iw = data ? g.ow : g.w;
    p->oh = data ? g.h : g.oh;
    p->ow = data ? g.w : g.ow;
    p->pt = data ? 2 - g.pt : g.pt;
    p->pl = data ? 2 - g.pl : g.pl;
    p->x_sample = mdmt_map_sample(site->in[0]);
    p->y_sample = mdmt_map_sample(pass == MDMT_WINO_WEIGHT ? site->in[1] : site->out[0]);
    tile_counts(p->oh, points, &p->full_h, &p->narrow_h, &p->rest_h);
    tile_counts(p->ow, points, &p->full_w, &p->narrow_w, &p->rest_w);
    p->rows = p->full_h + p->narrow_h;
    p->row_tiles = p->full_w + p->narrow_w;
    int weight = pass == MDMT_WINO_WEIGHT;
    int64_t image = (int64_t)pp * tiles_of_rows(p, p->rows) * (p->cb + (weight ? p->kb : 0)) * 64;
    int64_t sums = (int64_t)pp * p->cb * p->kb * 1024;
    int few = (int64_t)p->n * tiles_of_rows(p, p->rows) <= FEW_TILES;
    p->by_output =
        image <= GROUP_BYTES && (weight ? sums > SUM_BYTES || few : p->c > BY_OUTPUT_CHANNELS);
    if (p->by_output) {
        plan_groups(p);
    } else {
        plan_rows(p);
    }
    size_t set = (size_t)p->set_tiles * 16;
    p->v_point = odd_lines(set * p->cb);
    p->v = p->v_point * pp;
    /* In bfloat16 two pixels are a line: tiles begin with one where rows are even. */
    p->past =
        (int64_t)p->n * p->kb * p->oh * p->ow * 64 >= PAST_BYTES && (!site->bf16 || p->ow % 2 == 0);
    p->range = p->cb;
    if (p->by_output && weight) {
        plan_sums(p);
    } else if (p->by_output) {
        int most = at_least_one(RANGE_BYTES / (pp * MDMT_WINO_PAIR * 1024));
        int ranges = (p->cb + most - 1) / most;
        p->range = (p->cb + ranges - 1) / ranges;
        p->shared_weights = ranges == 1 && sums <= WEIGHT_BYTES;
    }
    int columns = p->by_output && !p->by_points ? MDMT_WINO_PAIR : p->kb;
    p->u_point = odd_lines((size_t)columns * p->range * 256);
    p->u = p->u_point * pp;
    if (weight) {
        p->d_point = odd_lines(set * p->kb);
        p->d = p->d_point * pp;
    } else {
        /* Where the sums of several ranges meet, those of all tiles are kept. */
        p->m_block = (size_t)(p->range < p->cb ? p->set_tiles : p->span_tiles) * 16;
        p->m_point = odd_lines(p->m_block * MDMT_WINO_PAIR);
        p->m = p->m_point * pp;
    }
}

void mdmt_wino_needs(const mdmt_site *site, mdmt_wino_pass pass, int points, mdmt_needs *needs)
{
    mdmt_wino_plan p;
    mdmt_wino_plan_make(site, pass, points, &p);
    size_t shared, thread;
    if (pass == MDMT_WINO_WEIGHT) {
        size_t parts = p.chunks * (size_t)p.cb * p.kb * 9 * 256;
        shared = p.by_output ? p.v + p.d : parts;
        shared += p.by_points ? p.u : p.part_sums ? p.u * p.chunks : 0;
        thread = p.by_output ? 0 : p.v + p.d;
        thread += p.by_points || p.part_sums ? 0 : p.u;
    } else {
        shared = !p.by_output ? p.u : p.v;
        thread = p.m + (p.by_output ? p.u : p.v);
        if (p.shared_weights) {
            shared += p.u * ((p.kb + 1) / MDMT_WINO_PAIR);
            thread -= p.u;
        }
    }
    needs->workspace_bytes =
        (shared + thread * (size_t)(site->threads > 0 ? site->threads : 1)) * sizeof(float);
    needs->stat_parts = p.by_output ? p.groups * p.spans : p.chunks;
    if (pass == MDMT_WINO_DATA) {
        needs->inplace_inputs = 1u << 2;
    }
}

double mdmt_wino_cost(const mdmt_site *site, mdmt_wino_pass pass, int points, mdmt_isa isa)
{
    mdmt_wino_plan p;
    mdmt_wino_plan_make(site, pass, points, &p);
    int wide = isa == MDMT_ISA_AVX512, weight = pass == MDMT_WINO_WEIGHT;
    double rows = (p.rest_h + 2.0) * p.narrow_h + 6.0 * p.full_h;
    double columns = (p.rest_w + 2.0) * p.narrow_w + 6.0 * p.full_w;
    double pointed = p.n * rows * columns; /* points of all tiles */
    double vectors = (double)p.cb * p.kb * 16 * p.points * p.points;
    double in = weight ? 6 : 7, out = weight ? 6 : 12; /* cycles a point and block, measured */
    double products = pointed * (weight ? p.cb * 16 : p.c) * p.kb * 16 / (wide ? 32 : 16);
    double turned = p.by_output ? 4.0 * p.groups : 1.25 * p.chunks;
    double transforms = pointed * (p.cb * in + p.kb * out) + vectors * (weight ? turned : 10.0);
    return products * (weight ? 1.3 : 1.2) + transforms * (wide ? 1.0 : 1.6) + 6000;
}

mdmt_wino_tiles mdmt_wino_tiles_of(const mdmt_wino_plan *p, int row0, int row1)
{
    mdmt_wino_tiles t = {.row0 = row0, .row1 = row1};
    int n0 = row0 / p->rows, r0 = row0 % p->rows, n1 = row1 / p->rows, r1 = row1 % p->rows;
    int over0 = r0 > p->full_h ? r0 - p->full_h : 0, over1 = r1 > p->full_h ? r1 - p->full_h : 0;
    t.full0 = n0 * p->full_h + r0 - over0;
    t.narrow0 = n0 * p->narrow_h + over0;
    int full = n1 * p->full_h + r1 - over1 - t.full0;
    int narrow = n1 * p->narrow_h + over1 - t.narrow0;
    t.first[0] = 0;
    t.first[1] = narrow * p->full_w;
    t.first[2] = t.first[1] + full * p->full_w;
    t.first[3] = t.first[2] + full * p->narrow_w;
    t.total = t.first[3] + narrow * p->narrow_w;
    return t;
}

mdmt_wino_tile mdmt_wino_tile_at(const mdmt_wino_plan *p, const mdmt_wino_tiles *t, int q)
{
    mdmt_wino_tile tile;
    int full_h = q >= t->first[1] && q < t->first[3], full_w = q < t->first[2];
    int at = q - t->first[full_h ? (full_w ? 1 : 2) : (full_w ? 0 : 3)];
    int columns = full_w ? p->full_w : p->narrow_w, rows = full_h ? p->full_h : p->narrow_h;
    int row = at / columns + (full_h ? t->full0 : t->narrow0), column = at % columns;
    tile.n = row / rows;
    row %= rows;
    tile.high = full_h ? 4 : p->rest_h;
    tile.wide = full_w ? 4 : p->rest_w;
    tile.y = full_h ? 4 * row : 4 * p->full_h + p->rest_h * row;
    tile.x = full_w ? 4 * column : 4 * p->full_w + p->rest_w * column;
    return tile;
}

/* Whether narrow tiles of `rest` have point i. */
static int has_point(const mdmt_wino_plan *p, int rest, int i)
{
    return p->points == 4 || i < 3 || i == 5 || (i == 3 && rest == 3);
}

void mdmt_wino_range(const mdmt_wino_plan *p, const mdmt_wino_tiles *t, int i, int j, int *lo,
                     int *hi)
{
    int row_everywhere = has_point(p, p->rest_h, i);
    int column_everywhere = has_point(p, p->rest_w, j);
    int first = row_everywhere ? 0 : t->first[1];
    int last = column_everywhere ? (row_everywhere ? t->total : t->first[3]) : t->first[2];
    *lo = *lo > first ? *lo : first;
    *hi = *hi < last ? *hi : last;
}
