/* Products of small float32 matrices: what linear layers are made of. */
#ifndef MDMT_CUDA_PRODUCT_CUH
#define MDMT_CUDA_PRODUCT_CUH

#include "site.cuh"

template <int COUNT> struct alignas(4 * COUNT) mdmt_few {
    float v[COUNT];
};

/* The numbers (row, k) of a factor. ALONG: a row's numbers lie side by side, k counting them;
 * else those of one k do, `stride` being the distance of what does not. */
template <bool ALONG> struct mdmt_factor {
    const float *data;
    int rows, stride;

    int wide() const
    {
        return stride % 4 == 0 && (uintptr_t)data % 16 == 0;
    }
    /* Four k of COUNT rows. Rows beyond the last repeat it (nobody asks for their products);
     * numbers from k = end on are zero. WIDE: `wide`, and both row and k are multiples. */
    template <int COUNT, bool WIDE>
    MDMT_HD void load(int row, int k, int end, float (&to)[4][COUNT]) const
    {
        if constexpr (ALONG) {
            for (int r = 0; r < COUNT; r++) {
                int at = row + r < rows ? row + r : rows - 1;
                const float *from = data + (size_t)at * (size_t)stride + (size_t)k;
                mdmt_few<4> few = {{0, 0, 0, 0}};
                if (WIDE && k < end) {
                    few = *(const mdmt_few<4> *)(const void *)from;
                }
                for (int i = 0; i < 4; i++) {
                    to[i][r] = WIDE ? few.v[i] : k + i < end ? from[i] : 0.0f;
                }
            }
        } else {
            for (int i = 0; i < 4; i++) {
                const float *from = data + (size_t)(k + i) * (size_t)stride;
                mdmt_few<COUNT> few;
                if (WIDE && k + i < end) {
                    int at = row + COUNT <= rows ? row : rows - COUNT;
                    few = *(const mdmt_few<COUNT> *)(const void *)(from + at);
                }
                for (int r = 0; r < COUNT; r++) {
                    int at = row + r < rows ? row + r : rows - 1;
                    to[i][r] = k + i >= end ? 0.0f : WIDE ? few.v[r] : from[at];
                }
            }
        }
    }
};

/* c[m][n] = start[n] + sum_k a(m, k) b(n, k). A block makes a tile. Its warps share out k, so that
 * every number of a and b is loaded by one warp and small products keep many warps busy; the
 * slices' sums are added in their order. A thread makes M x N numbers of its slice. */
template <bool A_ALONG, bool B_ALONG, bool WIDE, int M, int N, int SLICES> struct mdmt_product {
    enum { LANES = 32, HIGH = 8, ACROSS = 4, THREADS = LANES * SLICES, PHASES = 2 };
    enum { TILE_M = HIGH * M, TILE_N = ACROSS * N, PITCH = TILE_N + 1 };
    enum { AHEAD = M * N < 8 ? 4 : 2 }; /* quadruples of k loaded at once */
    struct shared_type {
        float sum[SLICES][TILE_M * PITCH];
    };
    mdmt_factor<A_ALONG> a;
    mdmt_factor<B_ALONG> b;
    const float *start; /* or NULL: zeros */
    float *c;
    int length, slice; /* of k; a slice is a multiple of 4 */
    uint32_t tiles;    /* side by side */

    MDMT_HD void run(int phase, size_t block, int thread, shared_type &shared) const
    {
        int m = (int)((uint32_t)block / tiles) * TILE_M;
        int n = (int)((uint32_t)block % tiles) * TILE_N;
        if (phase == 0) {
            multiply(m, n, thread, shared);
            return;
        }
        for (int i = thread; i < TILE_M * TILE_N; i += THREADS) {
            int y = i / TILE_N, x = i % TILE_N;
            if (m + y < a.rows && n + x < b.rows) {
                float total = start ? start[n + x] : 0.0f;
                for (int s = 0; s < SLICES; s++) {
                    total += shared.sum[s][y * PITCH + x];
                }
                c[(size_t)(m + y) * (size_t)b.rows + (size_t)(n + x)] = total;
            }
        }
    }

    MDMT_HD void multiply(int m, int n, int thread, shared_type &shared) const
    {
        int lane = thread % LANES, from = thread / LANES * slice;
        int y = lane / ACROSS * M, x = lane % ACROSS * N;
        int end = from + slice < length ? from + slice : length;
        float acc[M][N];
        for (int i = 0; i < M * N; i++) {
            acc[i / N][i % N] = 0;
        }
        for (int k = from; k < end; k += 4 * AHEAD) {
            float u[AHEAD][4][M], v[AHEAD][4][N];
            for (int q = 0; q < AHEAD; q++) {
                a.template load<M, WIDE>(m + y, k + 4 * q, end, u[q]);
                b.template load<N, WIDE>(n + x, k + 4 * q, end, v[q]);
            }
            for (int i = 0; i < 4 * AHEAD * M * N; i++) {
                int j = i / (M * N), row = i / N % M, column = i % N;
                acc[row][column] += u[j / 4][j % 4][row] * v[j / 4][j % 4][column];
            }
        }
        for (int i = 0; i < M * N; i++) {
            shared.sum[thread / LANES][(y + i / N) * PITCH + x + i % N] = acc[i / N][i % N];
        }
    }
};

template <bool A_ALONG, bool B_ALONG, bool WIDE, int M, int N, int SLICES>
mdmt_status mdmt_multiply_by(mdmt_stream_handle stream, const mdmt_factor<A_ALONG> &a,
                             const mdmt_factor<B_ALONG> &b, int length, const float *start,
                             float *c)
{
    typedef mdmt_product<A_ALONG, B_ALONG, WIDE, M, N, SLICES> kernel;
    size_t high = mdmt_ceil_div((size_t)a.rows, kernel::TILE_M);
    size_t across = mdmt_ceil_div((size_t)b.rows, kernel::TILE_N);
    int slice = (int)mdmt_ceil_div((size_t)length, 4 * SLICES) * 4;
    kernel k = {a, b, start, c, length, slice, (uint32_t)across};
    return mdmt_launch(stream, high * across, k);
}

/* Tiles of 16 x 16 where they make enough blocks for a large GPU, else, and where rows are not of
 * whole quadruples, of 8 x 8. */
template <bool A_ALONG, bool B_ALONG>
mdmt_status mdmt_multiply(mdmt_stream_handle stream, const mdmt_factor<A_ALONG> &a,
                          const mdmt_factor<B_ALONG> &b, int length, const float *start, float *c)
{
    size_t tiles = mdmt_ceil_div((size_t)a.rows, 16) * mdmt_ceil_div((size_t)b.rows, 16);
    mdmt_status (*multiply)(mdmt_stream_handle, const mdmt_factor<A_ALONG> &,
                            const mdmt_factor<B_ALONG> &, int, const float *, float *);
    multiply = !a.wide() || !b.wide() ? mdmt_multiply_by<A_ALONG, B_ALONG, false, 1, 2, 16>
               : tiles < 128          ? mdmt_multiply_by<A_ALONG, B_ALONG, true, 1, 2, 16>
                                      : mdmt_multiply_by<A_ALONG, B_ALONG, true, 2, 4, 8>;
    return multiply(stream, a, b, length, start, c);
}

#endif
