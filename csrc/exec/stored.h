/* Lazy tensors that several kernels would store, each for itself, before they read them. */
#ifndef MDMT_EXEC_STORED_H
#define MDMT_EXEC_STORED_H

#include "../backend.h"

/* Has each of them stored once, by an op of its own before the first such reader, and read from
 * there by all of them: memory until the last reader, for time. A convolution and the gradient of
 * its weights are the usual pair. */
mdmt_status mdmt_share_stored(mdmt_graph *graph, const mdmt_backend *backend);

#endif
