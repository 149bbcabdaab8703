/* channel_gather on maps: y[:, k] = x_i[:, c] for any choice of (i, c). Included
 * once by each gather_<isa>.c, and by gather_bf16.c for maps of bfloat16.
 *
 * A register of output channels (a "part": half a block with AVX2) is put together
 * from the registers of the sources that hold some of its channels (its "picks"),
 * each one load and one permutation. Lazy sources are normalised afterwards, all
 * lanes of a part at once. */
#include <math.h>

#include "lanes_act.h"

enum {
    PICKS = 12,   /* of a part that are taken in one pass               */
    AT_ONCE = 64, /* pixels of all parts, so that sources are still near */
    TASK_PIXELS = 256,
    HALVES = MDMT_BLOCK / REG_FLOATS
};

/* lane[l] = REG_FLOATS + p: lane l comes from lane p of the source; l: it does not. */
typedef struct {
    const map_float *from; /* sample 0, pixel 0 */
    size_t sample;
    int32_t lane[REG_FLOATS];
} gather_pick;

/* Aligned like the picks, which follow the parts in the workspace. */
typedef struct {
    _Alignas(gather_pick) int first;
    int picks, lazy;
    float scale[REG_FLOATS], shift[REG_FLOATS];
    float least[REG_FLOATS]; /* 0 where ReLU applies, else -infinity */
} gather_part;

typedef struct {
    map_float *y;
    size_t y_sample, plane; /* plane: elements of a block */
    const gather_part *part;
    const gather_pick *pick;
    int parts, area, pieces, stream;
} gather_job;

#if defined(__AVX512F__)
typedef __m512i lane_choice;
MDMT_INLINE void gather_store(map_float *p, reg v, int stream)
{
    lanes_put(p, v, stream);
}
MDMT_INLINE lane_choice gather_choice(const int32_t *lane)
{
    return _mm512_loadu_si512(lane);
}
MDMT_INLINE reg gather_take(reg v, lane_choice choice, reg source)
{
    return _mm512_permutex2var_ps(v, choice, source);
}
#elif defined(__AVX2__)
typedef __m256i lane_choice;
/* Half a line: never past the caches. */
MDMT_INLINE void gather_store(float *p, reg v, int stream)
{
    (void)stream;
    _mm256_storeu_ps(p, v);
}
MDMT_INLINE lane_choice gather_choice(const int32_t *lane)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)lane);
}
MDMT_INLINE reg gather_take(reg v, lane_choice choice, reg source)
{
    __m256i taken = _mm256_cmpgt_epi32(choice, _mm256_set1_epi32(REG_FLOATS - 1));
    return _mm256_blendv_ps(v, _mm256_permutevar8x32_ps(source, choice),
                            _mm256_castsi256_ps(taken));
}
#elif defined(__aarch64__)
typedef uint8x16_t lane_choice; /* of the bytes of v and, behind them, of the source */
MDMT_INLINE void gather_store(float *p, reg v, int stream)
{
    (void)stream;
    reg_store(p, v);
}
MDMT_INLINE lane_choice gather_choice(const int32_t *lane)
{
    const uint32x4_t first = vreinterpretq_u32_s32(vshlq_n_s32(vld1q_s32(lane), 2));
    return vreinterpretq_u8_u32(
        vmlaq_u32(vdupq_n_u32(0x03020100), first, vdupq_n_u32(0x01010101)));
}
MDMT_INLINE reg gather_take(reg v, lane_choice choice, reg source)
{
    const uint8x16x2_t both = {{vreinterpretq_u8_f32(v), vreinterpretq_u8_f32(source)}};
    return vreinterpretq_f32_u8(vqtbl2q_u8(both, choice));
}
#endif

/* `count` picks over `pixels` pixels; `more`: y holds what earlier picks gave. */
MDMT_INLINE void gather_pixels(const gather_pick *pick, const int count, size_t n, size_t at,
                               int pixels, map_float *y, const gather_part *finish, int more,
                               int stream)
{
    const map_float *from[PICKS];
    lane_choice choice[PICKS];
    for (int i = 0; i < count; i++) {
        from[i] = pick[i].from + n * pick[i].sample + at;
        choice[i] = gather_choice(pick[i].lane);
    }
    const int lazy = finish && finish->lazy;
    const reg scale = lazy ? reg_load(finish->scale) : reg_set(1.0f);
    const reg shift = lazy ? reg_load(finish->shift) : reg_set(0.0f);
    const reg least = lazy ? reg_load(finish->least) : reg_set(0.0f);
    for (ptrdiff_t p = 0; p < (ptrdiff_t)pixels * MDMT_BLOCK; p += MDMT_BLOCK) {
        reg v = more ? reg_load_map(y + p) : reg_set(0.0f);
#pragma GCC unroll 12
        for (int i = 0; i < count; i++) {
            v = gather_take(v, choice[i], reg_load_map(from[i] + p));
        }
        if (lazy) {
            v = reg_max(least, reg_fma(v, scale, shift)); /* the order keeps a NaN */
        }
        gather_store(y + p, v, stream);
    }
}

static void gather_some(const gather_pick *pick, int count, size_t n, size_t at, int pixels,
                        map_float *y, const gather_part *finish, int more, int stream)
{
#define COUNT(count)                                                                               \
    case count:                                                                                    \
        if (stream) {                                                                              \
            gather_pixels(pick, count, n, at, pixels, y, finish, 0, 1);                            \
        } else {                                                                                   \
            gather_pixels(pick, count, n, at, pixels, y, finish, more, 0);                         \
        }                                                                                          \
        break;
    switch (count) {
        COUNT(0)
        COUNT(1)
        COUNT(2)
        COUNT(3)
        COUNT(4)
        COUNT(5)
        COUNT(6)
        COUNT(7)
        COUNT(8)
        COUNT(9)
        COUNT(10)
        COUNT(11)
        COUNT(12)
    default:
        break;
    }
#undef COUNT
}

/* Task: some pixels of a sample, all channels. */
static void gather_task(void *context, int task, int thread)
{
    const gather_job *job = context;
    size_t n = (size_t)(task / job->pieces);
    int piece = task % job->pieces;
    int begin = (int)((int64_t)job->area * piece / job->pieces);
    int end = (int)((int64_t)job->area * (piece + 1) / job->pieces);
    (void)thread;
    for (int from = begin; from < end; from += AT_ONCE) {
        int pixels = end - from < AT_ONCE ? end - from : AT_ONCE;
        size_t at = (size_t)from * MDMT_BLOCK;
        for (int i = 0; i < job->parts; i++) {
            const gather_part *part = &job->part[i];
            map_float *y = job->y + n * job->y_sample + (size_t)(i / HALVES) * job->plane +
                           (size_t)(i % HALVES * REG_FLOATS) + at;
            int done = 0, stream = job->stream && part->picks <= PICKS;
            do {
                int left = part->picks - done, count = left < PICKS ? left : PICKS;
                gather_some(job->pick + part->first + done, count, n, at, pixels, y,
                            count == left ? part : NULL, done > 0, stream);
                done += count;
            } while (done < part->picks);
        }
    }
    if (job->stream) {
        mdmt_end_streams();
    }
}

/* The picks of REG_FLOATS output channels from channel k on, of which there are
 * `channels`; `pick` has room for one each. */
static void gather_plan(const mdmt_site *site, const mdmt_call *call, int k, int channels,
                        gather_pick *pick, gather_part *part)
{
    const int32_t *table = site->number + MDMT_ATTRS(mdmt_gather_attrs, site->op)->table;
    const size_t plane = mdmt_map_block(site->out[0]);
    *part = (gather_part){.picks = 0};
    for (int l = 0; l < REG_FLOATS; l++) {
        part->scale[l] = 1.0f;
        part->least[l] = -INFINITY;
        if (k + l >= channels || table[k + l] < 0) {
            continue;
        }
        int input = table[k + l] >> 16, c = table[k + l] & 0xffff, i = 0;
        const mdmt_value *x = &call->in[input];
        const map_float *from = (const map_float *)x->data + (size_t)(c / MDMT_BLOCK) * plane +
                                (size_t)(c % MDMT_BLOCK / REG_FLOATS * REG_FLOATS);
        while (i < part->picks && pick[i].from != from) {
            i++;
        }
        if (i == part->picks) {
            part->picks++;
            pick[i] = (gather_pick){.from = from, .sample = mdmt_map_sample(site->in[input])};
            for (int32_t lane = 0; lane < REG_FLOATS; lane++) {
                pick[i].lane[lane] = lane;
            }
        }
        pick[i].lane[l] = REG_FLOATS + c % REG_FLOATS;
        if (x->scale) {
            part->lazy = 1;
            part->scale[l] = x->scale[c];
            part->shift[l] = x->shift[c];
            part->least[l] = x->act == MDMT_ACT_RELU ? 0.0f : -INFINITY;
        }
    }
}

static int gather_parts(const mdmt_site *site)
{
    return mdmt_blocks(site->out[0]->dim[1]) * HALVES;
}

static mdmt_status gather_run(const mdmt_site *site, const mdmt_call *call)
{
    const mdmt_tensor *y = site->out[0];
    gather_part *part = call->workspace;
    gather_job job = {.y = call->out[0],
                      .y_sample = mdmt_map_sample(y),
                      .plane = mdmt_map_block(y),
                      .part = part,
                      .parts = gather_parts(site),
                      .area = y->dim[2] * y->dim[3]};
    gather_pick *pick = (gather_pick *)(void *)(part + job.parts);
    job.pick = pick;
    for (int i = 0, picks = 0; i < job.parts; i++) {
        gather_plan(site, call, i * REG_FLOATS, y->dim[1], pick + picks, &part[i]);
        part[i].first = picks;
        picks += part[i].picks;
    }
    job.pieces = (job.area + TASK_PIXELS - 1) / TASK_PIXELS;
    job.stream = (int)REG_FLOATS == (int)MDMT_BLOCK &&
                 lanes_streams((int64_t)y->dim[0] * job.parts * job.area, job.y);
    mdmt_parallel(site->pool, y->dim[0] * job.pieces, gather_task, &job);
    return MDMT_OK;
}

static void gather_needs(const mdmt_site *site, mdmt_needs *needs)
{
    size_t parts = (size_t)gather_parts(site);
    needs->workspace_bytes = parts * (sizeof(gather_part) + REG_FLOATS * sizeof(gather_pick));
}

const mdmt_cpu_impl MDMT_MAP_KERNEL(channel_gather) = {
    .name = MDMT_MAP_KERNEL_TEXT(channel_gather),
    .isa = MDMT_LANES_LEVEL,
    .bf16 = MDMT_MAPS_BF16,
    .needs = gather_needs,
    .run = gather_run,
    .accepts = MDMT_ACCEPTS_VIEWS,
};
