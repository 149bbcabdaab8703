/* Linear layers. Included once by each rows_<isa>.c.
 *
 * forward: dot products of rows, four samples by four outputs at a time.
 * Both gradients are c[m][j] = sum_k a(m, k) b[k][j] with b row-major:
 *   bwd_data    m sample,  k output, j input: a = dy,           b = w
 *   bwd_weight  m output,  k sample, j input: a = dy transposed, b = x */
#include "access.h"
#include "kernels.h"
#include "vec.h"

enum {
    DOT_N = 4,        /* samples of a tile               */
    DOT_O = 4,        /* outputs of a tile               */
    DOT_TASK = 8,     /* outputs of a task               */
    AXPY_M = 4,       /* rows of a tile                  */
    AXPY_V = VEC > 4 ? 3 : 6, /* vectors of a tile       */
    AXPY_TASK = 96,   /* columns of a task: whole tiles  */
    SMALL = 64 * 1024 /* multiply-adds that are not worth waking another thread for */
};

typedef struct {
    const float *x, *w, *bias;
    float *y;
    int n, i, o, task_o;
} dot_job;

MDMT_INLINE void dot_tile(const dot_job *job, int n, int o, int rows, int columns)
{
    const size_t width = (size_t)job->i;
    const float *x = job->x + (size_t)n * width, *w = job->w + (size_t)o * width;
    vec sum[DOT_N][DOT_O];
    for (int a = 0; a < rows; a++) {
        for (int b = 0; b < columns; b++) {
            sum[a][b] = vec_set(0.0f);
        }
    }
    for (int i = 0; i < job->i; i += VEC) {
        vec_mask mask = vec_first(job->i - i < VEC ? job->i - i : VEC);
        vec wv[DOT_O];
        for (int b = 0; b < columns; b++) {
            wv[b] = vec_load(mask, w + (size_t)b * width + i);
        }
        for (int a = 0; a < rows; a++) {
            vec xv = vec_load(mask, x + (size_t)a * width + i);
            for (int b = 0; b < columns; b++) {
                sum[a][b] = vec_fma(xv, wv[b], sum[a][b]);
            }
        }
    }
    for (int a = 0; a < rows; a++) {
        for (int b = 0; b < columns; b++) {
            float bias = job->bias ? job->bias[o + b] : 0.0f;
            job->y[(size_t)(n + a) * (size_t)job->o + (size_t)(o + b)] = vec_sum(sum[a][b]) + bias;
        }
    }
}

/* Task: task_o outputs of all samples. The sum of an output does not depend on
 * the tile that it falls into. */
static void dot_task(void *context, int task, int thread)
{
    const dot_job *job = context;
    (void)thread;
    int end = (task + 1) * job->task_o < job->o ? (task + 1) * job->task_o : job->o;
    for (int o = task * job->task_o; o < end; o += DOT_O) {
        for (int n = 0; n < job->n; n += DOT_N) {
            if (o + DOT_O <= end && n + DOT_N <= job->n) {
                dot_tile(job, n, o, DOT_N, DOT_O);
                continue;
            }
            for (int a = n; a < n + DOT_N && a < job->n; a++) {
                for (int b = o; b < o + DOT_O && b < end; b++) {
                    dot_tile(job, a, b, 1, 1);
                }
            }
        }
    }
}

static mdmt_status linear_forward(const mdmt_site *site, const mdmt_call *call)
{
    dot_job job = {.x = call->in[0].data,
                   .w = call->in[1].data,
                   .bias = mdmt_optional_in(site, call, 2),
                   .y = call->out[0],
                   .n = site->in[0]->dim[0],
                   .i = site->in[1]->dim[1],
                   .o = site->in[1]->dim[0]};
    job.task_o = (int64_t)job.n * job.i * job.o <= SMALL ? job.o : DOT_TASK;
    mdmt_parallel(site->pool, (job.o + job.task_o - 1) / job.task_o, dot_task, &job);
    return MDMT_OK;
}

typedef struct {
    const float *a, *b;
    float *c;
    size_t a_m, a_k; /* strides of a */
    int m, k, j, task_j;
} axpy_job;

MDMT_INLINE void axpy_tile(const axpy_job *job, int m, int j, int rows)
{
    const size_t width = (size_t)job->j;
    const float *a = job->a + (size_t)m * job->a_m, *b = job->b + j;
    float *c = job->c + (size_t)m * width + (size_t)j;
    vec_mask mask[AXPY_V];
    vec sum[AXPY_M][AXPY_V];
    for (int v = 0; v < AXPY_V; v++) {
        int left = job->j - j - v * VEC;
        mask[v] = vec_first(left < 0 ? 0 : left < VEC ? left : VEC);
        for (int r = 0; r < rows; r++) {
            sum[r][v] = vec_set(0.0f);
        }
    }
    for (int k = 0; k < job->k; k++) {
        vec bv[AXPY_V];
        for (int v = 0; v < AXPY_V; v++) {
            bv[v] = vec_load(mask[v], b + (size_t)k * width + v * VEC);
        }
        for (int r = 0; r < rows; r++) {
            vec av = vec_set(a[(size_t)r * job->a_m + (size_t)k * job->a_k]);
            for (int v = 0; v < AXPY_V; v++) {
                sum[r][v] = vec_fma(av, bv[v], sum[r][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < AXPY_V; v++) {
            vec_store(mask[v], c + (size_t)r * width + v * VEC, sum[r][v]);
        }
    }
}

/* Task: task_j columns of all rows. */
static void axpy_task(void *context, int task, int thread)
{
    const axpy_job *job = context;
    (void)thread;
    int end = (task + 1) * job->task_j < job->j ? (task + 1) * job->task_j : job->j;
    for (int j = task * job->task_j; j < end; j += AXPY_V * VEC) {
        int m = 0;
        for (; m + AXPY_M <= job->m; m += AXPY_M) {
            axpy_tile(job, m, j, AXPY_M);
        }
        for (; m < job->m; m++) {
            axpy_tile(job, m, j, 1);
        }
    }
}

static mdmt_status axpy_run(const mdmt_site *site, axpy_job *job)
{
    job->task_j = (int64_t)job->m * job->k * job->j <= SMALL ? job->j : AXPY_TASK;
    mdmt_parallel(site->pool, (job->j + job->task_j - 1) / job->task_j, axpy_task, job);
    return MDMT_OK;
}

static mdmt_status linear_bwd_data(const mdmt_site *site, const mdmt_call *call)
{
    int outputs = site->in[1]->dim[0];
    axpy_job job = {.a = call->in[0].data,
                    .b = call->in[1].data,
                    .c = call->out[0],
                    .a_m = (size_t)outputs,
                    .a_k = 1,
                    .m = site->in[0]->dim[0],
                    .k = outputs,
                    .j = site->in[1]->dim[1]};
    return axpy_run(site, &job);
}

static mdmt_status linear_bwd_weight(const mdmt_site *site, const mdmt_call *call)
{
    int outputs = site->in[1]->dim[1];
    axpy_job job = {.a = call->in[1].data,
                    .b = call->in[0].data,
                    .c = call->out[0],
                    .a_m = 1,
                    .a_k = (size_t)outputs,
                    .m = outputs,
                    .k = site->in[0]->dim[0],
                    .j = site->in[0]->dim[1]};
    return axpy_run(site, &job);
}

const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_linear_forward) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_linear_forward),
    .isa = MDMT_LANES_LEVEL,
    .run = linear_forward};
const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_linear_bwd_data) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_linear_bwd_data),
    .isa = MDMT_LANES_LEVEL,
    .run = linear_bwd_data};
const mdmt_cpu_impl MDMT_KERNEL(mdmt_f32_linear_bwd_weight) = {
    .name = MDMT_KERNEL_TEXT(mdmt_f32_linear_bwd_weight),
    .isa = MDMT_LANES_LEVEL,
    .run = linear_bwd_weight};
