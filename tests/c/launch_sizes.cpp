/* Launches too large to run: chosen blocks of the walkers of csrc/cuda/map.cuh, pool3.cuh and
 * depth_tiles.cuh, whose work notes where it is asked for. Prints what is wrong, or nothing. */
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "csrc/cuda/depth_tensor.cuh"
#include "csrc/cuda/depth_tiles.cuh"
#include "csrc/cuda/pool3.cuh"

static const void *kernel_of_launch;
static int refused;

static mdmt_status say(mdmt_status status, const char *, ...)
{
    refused = 1;
    return status;
}

static mdmt_cuda_services services;
const mdmt_cuda_services *mdmt_lent = &services;
long fake_walk;

size_t fake_walked(size_t turn, size_t)
{
    return turn;
}

mdmt_status mdmt_device_check(const char *)
{
    return MDMT_OK;
}

int mdmt_device_overlaps(mdmt_stream_handle)
{
    return 0;
}

/* Does not run: the kernel (and its number of blocks behind it) is looked at below. */
static std::vector<char> copied;
cudaError_t fake_launch(cudaStream_t, void (*)(const void *), const void *kernel, size_t bytes, int)
{
    copied.assign((const char *)kernel, (const char *)kernel + bytes);
    kernel_of_launch = copied.data();
    return cudaSuccess;
}

static int wrong;
#define CHECK(what, ...)                                                                           \
    do {                                                                                           \
        if (!(what) && wrong++ < 20) {                                                             \
            printf("%s: ", #what);                                                                 \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

template <class K> static const mdmt_started<K> &launched()
{
    return *(const mdmt_started<K> *)kernel_of_launch;
}

/* The first, the last and some others. */
static std::vector<size_t> chosen(size_t blocks)
{
    std::vector<size_t> found = {0, blocks - 1, blocks / 2, blocks / 3};
    for (size_t i = 1; i < 8; i++) {
        found.push_back(blocks > i ? blocks - 1 - i : 0);
    }
    return found;
}

struct visit {
    size_t pixel;
    int pack;
};
static std::vector<visit> visits;

struct noted {
    enum { AHEAD = 4 };
    struct constants {};
    struct items {};
    void at(uint32_t pixel, int pack) const
    {
        visits.push_back({pixel, pack});
    }
    void prepare(constants *, int) const
    {
    }
    items read(uint32_t, int) const
    {
        return {};
    }
    void write(constants, items, uint32_t pixel, int pack) const
    {
        visits.push_back({pixel, pack});
    }
    void take(mdmt_pack *, constants, items, uint32_t pixel, int pack) const
    {
        visits.push_back({pixel, pack});
    }
    void done(int, int, int, int, float) const
    {
    }
};

/* What prepares nothing. */
struct added {
    void add(mdmt_pack *, size_t pixel, int pack, int, size_t) const
    {
        visits.push_back({pixel, pack});
    }
    void done(int, int, int, int, float) const
    {
    }
};

static void walk(size_t pixels, int packs)
{
    typedef mdmt_walk<noted> K;
    mdmt_nothing nothing;
    refused = 0;
    mdmt_walk_over(nullptr, pixels, packs, noted());
    CHECK(refused == (pixels * (size_t)packs > 0xffffffffu), "walk %zu %d", pixels, packs);
    if (refused) {
        return;
    }
    size_t blocks = launched<K>().blocks, count = pixels * (size_t)packs;
    K kernel = launched<K>().kernel;
    CHECK(blocks * K::THREADS >= count && blocks <= 0x7fffffff, "walk %zu %d", pixels, packs);
    for (size_t block : chosen(blocks)) {
        for (int t = 0; t < K::THREADS; t++) {
            size_t i = block * K::THREADS + (size_t)t;
            visits.clear();
            kernel.run(0, block, t, nothing);
            CHECK(visits.size() == (i < count), "walk %zu %d", pixels, packs);
            CHECK(visits.empty() || visits[0].pixel * (size_t)packs + (size_t)visits[0].pack == i,
                  "walk %zu %d", pixels, packs);
        }
    }
}

/* Every pack of every pixel by one thread alone: thread i of a crew has pack i % packs of the pixels
 * i / packs of its stretch, and so on in steps. */
static void sweep(size_t pixels, int packs)
{
    typedef mdmt_sweep<noted> K;
    mdmt_nothing nothing;
    refused = 0;
    mdmt_sweep_over(nullptr, pixels, packs, noted());
    if (refused) {
        CHECK(pixels * (size_t)packs > 0x50000000, "sweep %zu %d", pixels, packs);
        return;
    }
    size_t blocks = launched<K>().blocks;
    K kernel = launched<K>().kernel;
    size_t step = kernel.step, stretch = kernel.stretch, crew = kernel.crew;
    CHECK(stretch % step == 0 && crew * K::THREADS >= step * (size_t)packs, "sweep %zu %d", pixels,
          packs);
    CHECK(blocks / crew * stretch >= pixels && blocks % crew == 0 && blocks <= 0x7fffffff,
          "sweep %zu %d", pixels, packs);
    for (size_t block : chosen(blocks)) {
        for (int t = 0; t < K::THREADS; t++) {
            size_t i = block % crew * K::THREADS + (size_t)t, begins = block / crew * stretch;
            size_t first = begins + i / (size_t)packs;
            size_t end = begins + stretch < pixels ? begins + stretch : pixels;
            int has = i < step * (size_t)packs && first < end;
            size_t want = has ? (end - first + step - 1) / step : 0;
            visits.clear();
            kernel.run(0, block, t, nothing);
            CHECK(visits.size() == want, "sweep %zu %d: %zu of %zu", pixels, packs, visits.size(),
                  want);
            for (size_t k = 0; k < visits.size() && k < want; k++) {
                CHECK(visits[k].pixel == first + k * step &&
                          (size_t)visits[k].pack == i % (size_t)packs,
                      "sweep %zu %d", pixels, packs);
            }
        }
    }
}

template <class F> static void reduce(size_t pixels, int packs, int jobs)
{
    typedef mdmt_reduce<F, 1> K;
    static typename K::shared_type shared;
    int parts = mdmt_parts_of(pixels, packs, jobs);
    mdmt_reduce_over<1>(nullptr, pixels, packs, parts, jobs, F());
    K kernel = launched<K>().kernel;
    size_t blocks = launched<K>().blocks, per_part = kernel.per_part;
    CHECK(parts >= 1 && parts <= MDMT_PARTS_MOST && (size_t)(parts - 1) * per_part < pixels &&
              (size_t)parts * per_part >= pixels,
          "reduce %zu %d", pixels, packs);
    CHECK(blocks == (size_t)parts * (size_t)((packs + 3) / 4) * (size_t)jobs && blocks < 0x7fffffff,
          "reduce %zu %d", pixels, packs);
    for (size_t block : {(size_t)0, blocks - 1}) {
        for (int t : {0, 5, K::THREADS - 1}) {
            visits.clear();
            kernel.run(0, block, t, shared);
            for (const visit &v : {visits.empty() ? visit{0, 0} : visits[0],
                                   visits.empty() ? visit{0, 0} : visits.back()}) {
                CHECK(v.pixel < pixels && v.pack < packs, "reduce %zu %d", pixels, packs);
            }
        }
    }
}

static void divide(void)
{
    for (uint64_t seed = 1, i = 0; i < 3000000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint32_t by = (uint32_t)(seed >> 33) >> seed % 31, n = (uint32_t)(seed >> 20) & 0x7fffffff;
        by = by ? by : 1;
        n = i % 3 ? n : n / by * by - (i % 2 && n >= by);
        CHECK(mdmt_divisor_of(by).of(n) == n / by, "%u / %u", n, by);
        CHECK(mdmt_divisor_of(by).of(0x7fffffff) == 0x7fffffff / by, "the last / %u", by);
    }
}

static void cells(int samples, int high, int wide, int packs)
{
    mdmt_cells c;
    size_t all = (size_t)samples * (size_t)high * (size_t)wide * (size_t)packs;
    int taken = c.set(samples, (size_t)high, (size_t)wide, packs);
    CHECK(taken == (all < 0x7fffff00), "cells of %d %d %d %d", samples, high, wide, packs);
    if (!taken) {
        return;
    }
    for (size_t block : chosen(c.blocks())) {
        for (int t = 0; t < c.THREADS; t++) {
            mdmt_cells::place p;
            size_t i = block * c.THREADS + (size_t)t;
            int is = c.find(block, t, &p);
            CHECK(is == (i < all), "cells of %d %d %d %d", samples, high, wide, packs);
            CHECK(!is || (((size_t)p.n * (size_t)high + (size_t)p.y) * (size_t)wide + (size_t)p.x) *
                                     (size_t)packs +
                                 (size_t)p.pack ==
                             i,
                  "cells of %d %d %d %d", samples, high, wide, packs);
        }
    }
}

/* The strips of all tiles are all of the map, each pixel once; the tile has room. */
static void tiling(int n, int h, int w, int kernel, int stride, int both, int strips, size_t slots)
{
    depth_walk k = {n, h, w, 3, kernel, stride, both, strips, slots};
    depth_tiling t = depth_tiling_of(k);
    size_t pixels = 0;
    CHECK(t.samples >= 1, "no tiling of %d %d %d, kernel %d", n, h, w, kernel);
    if (t.samples < 1) {
        return;
    }
    for (int tile = 0; tile < t.tiles; tile++) {
        mdmt_corner c = t.corner(tile);
        for (int i = 0; i < t.strips(); i++) {
            depth_strip s = depth_strip_of(t, i);
            int left = w - c.x - s.column, length = left < s.length ? left : s.length;
            if (c.n + s.sample < n && c.y + s.row < h && length > 0) {
                pixels += (size_t)length;
            }
        }
    }
    CHECK(pixels == (size_t)n * (size_t)h * (size_t)w, "tiling of %d %d %d", n, h, w);
    size_t room = (size_t)t.box.slots() + (size_t)(both ? t.other.slots() : 0);
    CHECK(room <= slots, "tiling of %d %d %d", n, h, w);
    for (int line = 0; line < t.box.samples * t.box.rows; line++) {
        CHECK(t.box.sample_of(line) == line / t.box.rows, "line %d of %d", line, t.box.rows);
    }
}

/* The tiles of all parts are all of the map, each pixel once; the tile has room, and its windows
 * lie in the inputs; blocks are two waves at most. */
static void plan(int n, int h, int w, int packs, int kernel, int stride, int resident)
{
    depth_wish k = {n, h, w, packs, kernel, stride, resident};
    depth_plan p = depth_plan_of(k);
    CHECK(p.parts >= 1, "no plan of %d %d %d, kernel %d", n, h, w, kernel);
    if (p.parts < 1) {
        return;
    }
    size_t pixels = 0;
    for (int tile = 0; tile < p.tiles; tile++) {
        mdmt_corner c = p.corner(tile);
        int samples = n - c.n < p.out.samples ? n - c.n : p.out.samples;
        int high = h - c.y < p.out.high ? h - c.y : p.out.high;
        int wide = w - c.x < p.out.wide ? w - c.x : p.out.wide;
        CHECK(samples > 0 && high > 0 && wide > 0, "tile %d of %d %d %d", tile, n, h, w);
        pixels += (size_t)samples * (size_t)high * (size_t)wide;
    }
    CHECK(pixels == (size_t)n * (size_t)h * (size_t)w, "plan of %d %d %d", n, h, w);
    CHECK(p.out.high % DEPTH_HIGH == 0 && p.out.wide % DEPTH_WIDE == 0, "plan of %d %d", h, w);
    int last = (p.in.samples - 1) * p.in.high + stride * (p.out.high - 1) + kernel - 1;
    int odd = stride == 2 ? p.in.half + p.out.wide + kernel / 2 - 2 : 0;
    int even = stride == 2 ? p.out.wide + kernel / 2 - 1 : p.out.wide + kernel - 2;
    CHECK(last < p.in.samples * p.in.high && even < (stride == 2 ? p.in.half : p.in.pitch) &&
              odd < p.in.pitch && p.in.samples * p.in.high * p.in.pitch <= p.in.plane,
          "windows of %d %d %d", n, h, w);
    CHECK(MDMT_TILE_PACKS * (p.in.plane + p.out.plane) <= DEPTH_SLOTS &&
              p.out.samples * p.out.high * p.out.wide <= p.out.plane,
          "room of %d %d %d", n, h, w);
    CHECK((p.parts - 1) * p.per_part < p.tiles && p.parts * p.per_part >= p.tiles &&
              (p.parts == 1 || p.parts * p.chunks <= 2 * DEPTH_SM * resident),
          "parts of %d %d %d", n, h, w);
}

int main()
{
    services.fail = say;
    for (size_t pixels :
         {(size_t)1, (size_t)1023, (size_t)512 * 224 * 224, (size_t)128 * 512 * 512,
          (size_t)512 * 512 * 512, (size_t)0x7fffffff, (size_t)0xffffffff, (size_t)0x100000001}) {
        for (int packs : {1, 2, 3, 8, 33, 256}) {
            walk(pixels, packs);
            sweep(pixels, packs);
            reduce<noted>(pixels < 1000000 ? pixels : pixels / 64, packs, packs % 2 ? 3 : 1);
            reduce<added>(pixels < 1000000 ? pixels : pixels / 64, packs, packs % 2 ? 3 : 1);
        }
    }
    divide();
    for (int size : {1, 2, 57, 112, 256, 512}) {
        for (int samples : {1, 128, 511}) {
            cells(samples, size, size / 2 + 1, 8);
            cells(samples, size, size, 255);
            for (int stride = 1; stride < 3; stride++) {
                plan(samples, size, size, 1, 3, stride, 4);
                plan(samples, size, size + 3, 12, 5, stride, 2);
                plan(samples, 2 * size + 1, size, 600, 3, stride, 3);
                tiling(samples, size, size, 3, stride, 0, 16, 384);
                tiling(samples, size, size, 5, stride, 0, 10, 768);
                tiling(samples, size, size + 3, 5, stride, 1, 8, 352);
                tiling(samples, size, 2 * size + 1, 3, stride, 1, 12, 768);
            }
        }
    }
    return wrong != 0;
}
