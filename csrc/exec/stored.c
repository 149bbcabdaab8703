#include "stored.h"

#include "../base/memory.h"
#include "../ops/attrs.h"

/* A lazy tensor and those that read it. */
typedef struct {
    int readers, first; /* ops whose kernels would store it; the first of them */
    int op, stored;     /* what stores it for them all, or -1; its result      */
} use;

static int would_store(const mdmt_graph *graph, const mdmt_backend *backend, const mdmt_op *op,
                       int input)
{
    int t = op->in[input];
    return t >= 0 && graph->tensor[t].lazy_source >= 0 &&
           backend->stores_lazy(backend, graph, op, input);
}

static void count_readers(const mdmt_graph *graph, const mdmt_backend *backend, use *of)
{
    for (int i = 0; i < graph->ops; i++) {
        const mdmt_op *op = &graph->op[i];
        for (int j = 0; j < op->inputs; j++) {
            if (would_store(graph, backend, op, j)) {
                use *u = &of[op->in[j]];
                u->first = u->readers++ ? u->first : i;
            }
        }
    }
}

/* Adds an op that stores lazy tensor `t`, for now at the end of the graph. */
static mdmt_status add_store(mdmt_graph *graph, int t, use *u)
{
    mdmt_tensor lazy = graph->tensor[t];
    if (lazy.lazy_gate < 0) {
        int in[3] = {lazy.lazy_source, lazy.lazy_scale, lazy.lazy_shift};
        mdmt_act_attrs attrs = {.act = (int)lazy.lazy_act};
        MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_norm_act, &attrs, 3, in, &u->op));
    } else {
        int in[2] = {-1, lazy.lazy_gate};
        MDMT_TRY(mdmt_graph_lazy(graph, lazy.lazy_source, lazy.lazy_scale, lazy.lazy_shift,
                                 lazy.lazy_act, -1, &in[0]));
        MDMT_TRY(mdmt_graph_op(graph, &mdmt_op_gate, NULL, 2, in, &u->op));
    }
    u->stored = graph->op[u->op].out[0];
    return MDMT_OK;
}

/* Moves every op from number `ops` on to before the first reader of what it stores. */
static mdmt_status sort_in(mdmt_graph *graph, int ops, const use *of, int tensors)
{
    mdmt_op *sorted = mdmt_acquire((size_t)graph->ops, sizeof *sorted);
    int count = 0;
    if (!sorted) {
        return MDMT_NO_MEMORY;
    }
    for (int i = 0; i < ops; i++) {
        for (int t = 0; t < tensors; t++) {
            if (of[t].op >= 0 && of[t].first == i) {
                sorted[count++] = graph->op[of[t].op];
            }
        }
        sorted[count++] = graph->op[i];
    }
    for (int i = 0; i < count; i++) {
        graph->op[i] = sorted[i];
        for (int j = 0; j < sorted[i].outputs; j++) {
            if (sorted[i].out[j] >= 0) {
                graph->tensor[sorted[i].out[j]].producer = i;
            }
        }
    }
    mdmt_release(sorted);
    return MDMT_OK;
}

static mdmt_status share(mdmt_graph *graph, const mdmt_backend *backend, use *of)
{
    int ops = graph->ops, tensors = graph->tensors;
    count_readers(graph, backend, of);
    for (int t = 0; t < tensors; t++) {
        of[t].op = -1;
        if (of[t].readers > 1) {
            MDMT_TRY(add_store(graph, t, &of[t]));
        }
    }
    for (int i = 0; i < ops; i++) {
        for (int j = 0; j < graph->op[i].inputs; j++) {
            int t = graph->op[i].in[j];
            if (t >= 0 && of[t].op >= 0 && would_store(graph, backend, &graph->op[i], j)) {
                graph->op[i].in[j] = of[t].stored;
            }
        }
    }
    return sort_in(graph, ops, of, tensors);
}

mdmt_status mdmt_share_stored(mdmt_graph *graph, const mdmt_backend *backend)
{
    if (!backend->stores_lazy) {
        return MDMT_OK;
    }
    use *of = mdmt_acquire((size_t)graph->tensors, sizeof *of);
    if (!of) {
        return MDMT_NO_MEMORY;
    }
    mdmt_status status = share(graph, backend, of);
    mdmt_release(of);
    return status;
}
