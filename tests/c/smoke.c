/* The engine without Python: one convolution, ReLU and pooling, against plain loops, on the best
 * path of whatever processor this runs on. Prints what it found; exit status 0 if all agree. */
#include <math.h>
#include <stdio.h>

#include "../../csrc/base/philox.h"
#include "../../csrc/cpu/cpu.h"
#include "../../csrc/exec/program.h"

enum { N = 2, C = 19, K = 20, H = 9, W = 7, TAPS = 3 };

static float x[N][C][H][W], w[K][C][TAPS][TAPS], got[N][K];
static double expected[N][K];
static _Alignas(64) char held[1 << 20];

static void *locate(void *context, const mdmt_tensor *tensor)
{
    (void)context;
    (void)tensor;
    return held; /* one parameter only */
}

static void fill(float *values, int count, uint64_t stream)
{
    for (int i = 0; i < count; i++) {
        values[i] = mdmt_uniform(mdmt_philox(1, (uint64_t)i, stream).v[0]) - 0.4f;
    }
}

static double conv_at(int n, int k, int i, int j)
{
    double sum = 0;
    for (int c = 0; c < C; c++) {
        for (int r = 0; r < TAPS; r++) {
            for (int s = 0; s < TAPS; s++) {
                int row = i + r - 1, column = j + s - 1;
                if (row >= 0 && row < H && column >= 0 && column < W) {
                    sum += (double)w[k][c][r][s] * x[n][c][row][column];
                }
            }
        }
    }
    return sum;
}

static void state(void)
{
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            for (int p = 0; p < H * W; p++) {
                expected[n][k] += fmax(conv_at(n, k, p / W, p % W), 0.0) / (H * W);
            }
        }
    }
}

static mdmt_status describe(mdmt_graph *graph)
{
    const int xs[4] = {N, C, H, W}, ws[4] = {K, C, TAPS, TAPS};
    mdmt_conv_attrs conv = {
        .stride = {1, 1}, .pad = {1, 1, 1, 1}, .dilation = {1, 1}, .groups = 1};
    mdmt_act_attrs relu = {.act = MDMT_ACT_RELU};
    int in[2], op;
    MDMT_TRY(mdmt_graph_tensor(graph, "x", MDMT_MAP, MDMT_F32, MDMT_ROLE_INPUT, 4, xs, &in[0]));
    MDMT_TRY(mdmt_graph_tensor(graph, "w", MDMT_W_DENSE, MDMT_F32, MDMT_ROLE_PARAM, 4, ws,
                               &in[1]));
    MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_conv2d, &conv, 2, in, &op));
    MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_act, &relu, 1, &graph->op[op].out[0], &op));
    MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_global_avg_pool, NULL, 1, &graph->op[op].out[0], &op));
    mdmt_tensor *out = &graph->tensor[graph->op[op].out[0]];
    out->is_output = 1;
    snprintf(out->name, sizeof out->name, "y");
    return MDMT_OK;
}

static mdmt_status run(mdmt_isa isa, int threads)
{
    mdmt_graph *graph;
    mdmt_pool *pool;
    mdmt_backend *backend;
    mdmt_program *program;
    mdmt_slab slab;
    mdmt_step step = {.seed = 1};
    MDMT_TRY(mdmt_graph_open(&graph));
    MDMT_TRY(describe(graph));
    MDMT_TRY(mdmt_pool_open(&pool, threads));
    MDMT_TRY(mdmt_cpu_open(&backend, pool, (mdmt_cpu_options){.isa = isa, .winograd = 2}));
    MDMT_TRY(mdmt_program_open(&program, graph, backend, NULL, locate, NULL));
    MDMT_TRY(mdmt_slab_open(&slab, (size_t)program->plan.total, "values"));
    mdmt_program_bind(program, slab.data);
    MDMT_TRY(mdmt_program_write(program, "x", x));
    MDMT_TRY(mdmt_program_write(program, "w", w));
    MDMT_TRY(mdmt_program_run(program, &step));
    MDMT_TRY(mdmt_program_read(program, "y", got));
    mdmt_program_close(program);
    mdmt_slab_close(&slab);
    backend->close(backend);
    mdmt_pool_close(pool);
    return MDMT_OK;
}

int main(void)
{
    fill(&x[0][0][0][0], N * C * H * W, 1);
    fill(&w[0][0][0][0], K * C * TAPS * TAPS, 2);
    state();
    mdmt_isa isa = mdmt_detect_isa();
    for (int threads = 1; threads <= 2; threads++) {
        double worst = 0;
        if (run(isa, threads) != MDMT_OK) {
            fprintf(stderr, "%s\n", mdmt_last_error());
            return 1;
        }
        for (int i = 0; i < N * K; i++) {
            worst = fmax(worst, fabs(got[i / K][i % K] - expected[i / K][i % K]));
        }
        printf("%s, %s, %d threads: worst error %.2g\n", mdmt_cpu_name(), mdmt_isa_name(isa),
               threads, worst);
        if (!(worst < 1e-5)) {
            return 1;
        }
    }
    return 0;
}
