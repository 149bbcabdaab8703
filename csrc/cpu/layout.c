#include "layout.h"

#include <string.h>

#include "access.h"
#include "copies.h"

size_t mdmt_storage_elements(const mdmt_tensor *tensor)
{
    if (tensor->lazy_source >= 0) {
        return 0;
    }
    const int *dim = tensor->dim;
    size_t count = 1;
    for (int i = 0; i < tensor->dims; i++) {
        count *= (size_t)dim[i];
    }
    switch (tensor->kind) {
    case MDMT_MAP: {
        mdmt_view v = mdmt_view_of(tensor);
        return (size_t)v.n * v.sample;
    }
    case MDMT_VECTOR:
        return mdmt_round_up((size_t)dim[0], MDMT_BLOCK);
    case MDMT_W_DENSE:
    case MDMT_W_STEM:
    case MDMT_W_DEPTH: {
        mdmt_weight_view v = mdmt_weight_view_of(tensor);
        return (size_t)mdmt_blocks(v.o) * v.o_block;
    }
    case MDMT_STATS:
        return (size_t)dim[0] * (size_t)dim[1] * mdmt_round_up((size_t)dim[2], MDMT_BLOCK);
    default:
        return count;
    }
}

static size_t element_bytes(const mdmt_tensor *tensor)
{
    return tensor->dtype == MDMT_U8 ? 1 : 4;
}

size_t mdmt_storage_bytes(const mdmt_tensor *tensor)
{
    return mdmt_storage_elements(tensor) * element_bytes(tensor);
}

size_t mdmt_storage_bytes_bf16(const mdmt_tensor *tensor)
{
    return mdmt_storage_elements(tensor) *
           (mdmt_is_float_map(tensor) ? sizeof(uint16_t) : element_bytes(tensor));
}

/* Copies elements one by one between two walks; strides in elements. */
static void copy_elements(char *to, size_t to_stride, const char *from, size_t from_stride,
                          size_t count, size_t bytes)
{
    if (bytes == 1) {
        for (size_t i = 0; i < count; i++) {
            to[i * to_stride] = from[i * from_stride];
        }
        return;
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(to + i * to_stride * 4, from + i * from_stride * 4, 4);
    }
}

/* A run of elements that are evenly spaced on both sides. */
typedef struct {
    size_t packed_at, packed_stride, plain_at, count;
} run_of_elements;

static size_t run_count(const mdmt_tensor *tensor)
{
    const int *dim = tensor->dim;
    switch (tensor->kind) {
    case MDMT_MAP:
        return (size_t)dim[0] * (size_t)dim[1];
    case MDMT_W_DENSE:
    case MDMT_W_STEM:
    case MDMT_W_DEPTH:
        return (size_t)dim[0] * (size_t)dim[1];
    case MDMT_STATS:
        return (size_t)dim[0] * (size_t)dim[1];
    default:
        return 1;
    }
}

/* Runs are planes (h, w) of a channel, taps (kh, kw) of a pair of channels,
 * rows of statistics, or the whole of an unpadded tensor. */
static run_of_elements run_at(const mdmt_tensor *tensor, size_t index)
{
    const int *dim = tensor->dim;
    int first = tensor->dims > 1 ? (int)(index / (size_t)dim[1]) : 0;
    int second = tensor->dims > 1 ? (int)(index % (size_t)dim[1]) : 0;
    switch (tensor->kind) {
    case MDMT_MAP: {
        mdmt_view v = mdmt_view_of(tensor);
        size_t area = (size_t)v.h * (size_t)v.w;
        return (run_of_elements){mdmt_at(&v, first, second, 0, 0), v.column, index * area, area};
    }
    case MDMT_W_DENSE:
    case MDMT_W_STEM:
    case MDMT_W_DEPTH: {
        mdmt_weight_view v = mdmt_weight_view_of(tensor);
        size_t taps = (size_t)v.kh * (size_t)v.kw;
        return (run_of_elements){mdmt_weight_at(&v, first, second, 0, 0), v.tap, index * taps,
                                 taps};
    }
    case MDMT_STATS: {
        size_t channels = (size_t)dim[2];
        return (run_of_elements){index * mdmt_round_up(channels, MDMT_BLOCK), 1, index * channels,
                                 channels};
    }
    default:
        return (run_of_elements){0, 1, 0, (size_t)mdmt_tensor_elements(tensor)};
    }
}

int mdmt_layout_is_plain(const mdmt_tensor *tensor)
{
    return (size_t)mdmt_tensor_elements(tensor) == mdmt_storage_elements(tensor) &&
           run_count(tensor) == 1;
}

void mdmt_layout_pack(const mdmt_tensor *tensor, void *packed, const void *plain)
{
    size_t bytes = element_bytes(tensor), runs = run_count(tensor);
    if (mdmt_layout_is_plain(tensor)) {
        memcpy(packed, plain, mdmt_storage_bytes(tensor));
        return;
    }
    memset(packed, 0, mdmt_storage_bytes(tensor));
    for (size_t i = 0; i < runs; i++) {
        run_of_elements run = run_at(tensor, i);
        copy_elements((char *)packed + run.packed_at * bytes, run.packed_stride,
                      (const char *)plain + run.plain_at * bytes, 1, run.count, bytes);
    }
}

void mdmt_layout_unpack(const mdmt_tensor *tensor, void *plain, const void *packed)
{
    size_t bytes = element_bytes(tensor), runs = run_count(tensor);
    for (size_t i = 0; i < runs; i++) {
        run_of_elements run = run_at(tensor, i);
        copy_elements((char *)plain + run.plain_at * bytes, 1,
                      (const char *)packed + run.packed_at * bytes, run.packed_stride, run.count,
                      bytes);
    }
}

void mdmt_layout_pack_bf16(const mdmt_tensor *tensor, uint16_t *packed, const float *plain)
{
    memset(packed, 0, mdmt_storage_bytes_bf16(tensor));
    for (size_t i = 0; i < run_count(tensor); i++) {
        run_of_elements run = run_at(tensor, i);
        for (size_t k = 0; k < run.count; k++) {
            mdmt_narrow(packed + run.packed_at + k * run.packed_stride, plain + run.plain_at + k,
                        1);
        }
    }
}

void mdmt_layout_unpack_bf16(const mdmt_tensor *tensor, float *plain, const uint16_t *packed)
{
    for (size_t i = 0; i < run_count(tensor); i++) {
        run_of_elements run = run_at(tensor, i);
        for (size_t k = 0; k < run.count; k++) {
            mdmt_widen(plain + run.plain_at + k, packed + run.packed_at + k * run.packed_stride, 1);
        }
    }
}

mdmt_geometry mdmt_conv_geometry(const mdmt_site *site)
{
    const mdmt_conv_attrs *a = MDMT_ATTRS(mdmt_conv_attrs, site->op);
    const mdmt_tensor *x = site->in[0], *w = site->in[1], *y = site->out[0];
    if (site->op->record == &mdmt_op_conv2d_bwd_data) {
        x = site->out[0];
        y = site->in[0];
    } else if (site->op->record == &mdmt_op_conv2d_bwd_weight) {
        w = site->out[0];
        y = site->in[1];
    }
    return (mdmt_geometry){.n = x->dim[0],
                           .c = x->dim[1],
                           .h = x->dim[2],
                           .w = x->dim[3],
                           .k = y->dim[1],
                           .oh = y->dim[2],
                           .ow = y->dim[3],
                           .kh = w->dim[2],
                           .kw = w->dim[3],
                           .sh = a->stride[0],
                           .sw = a->stride[1],
                           .pt = a->pad[0],
                           .pl = a->pad[1],
                           .pb = a->pad[2],
                           .pr = a->pad[3],
                           .dh = a->dilation[0],
                           .dw = a->dilation[1],
                           .groups = a->groups,
                           .plain = x->kind == MDMT_IMAGE};
}

mdmt_geometry mdmt_pool_geometry(const mdmt_site *site)
{
    const mdmt_pool_attrs *a = MDMT_ATTRS(mdmt_pool_attrs, site->op);
    const mdmt_tensor *x = site->in[0], *y = site->out[0];
    if (site->op->record == &mdmt_op_max_pool_bwd || site->op->record == &mdmt_op_avg_pool_bwd) {
        x = site->out[0];
        y = site->in[0];
    }
    int dilated =
        site->op->record == &mdmt_op_max_pool || site->op->record == &mdmt_op_max_pool_bwd;
    return (mdmt_geometry){.n = x->dim[0],
                           .c = x->dim[1],
                           .h = x->dim[2],
                           .w = x->dim[3],
                           .k = y->dim[1],
                           .oh = y->dim[2],
                           .ow = y->dim[3],
                           .kh = a->kernel[0],
                           .kw = a->kernel[1],
                           .sh = a->stride[0],
                           .sw = a->stride[1],
                           .pt = a->pad[0],
                           .pl = a->pad[1],
                           .pb = a->pad[2],
                           .pr = a->pad[3],
                           .dh = dilated ? a->dilation[0] : 1,
                           .dw = dilated ? a->dilation[1] : 1,
                           .groups = 1,
                           .plain = x->kind == MDMT_IMAGE};
}
