/* Direct convolution: the load stage. Pads a row of the input, applies batch norm
 * and activation, and sorts its columns by their phase of the stride. */
#include "conv_direct.h"

#include <string.h>

#include "../base/memory.h"

enum { SEGMENT = 8, FETCH_COLUMNS = 64, PAST_BYTES = 4 << 20, PAST_TERMS = 48 };

int mdmt_conv_is_past(const mdmt_tensor *y, const mdmt_conv_micro *micro, const float *data,
                      int terms)
{
    size_t words = (size_t)y->dim[0] * (size_t)mdmt_blocks(y->dim[1]) * (size_t)y->dim[2] *
                   (size_t)y->dim[3] * (size_t)micro->pixel;
    return terms <= PAST_TERMS && words * sizeof(float) >= PAST_BYTES &&
           (uintptr_t)data % MDMT_ALIGN == 0;
}

int mdmt_conv_phase_is_read(int phase, int first, int kernel, int d, int s)
{
    for (int k = 0; k < kernel; k++) {
        if ((first + k * d - phase) % s == 0) {
            return 1;
        }
    }
    return 0;
}

mdmt_conv_load mdmt_conv_load_of(const mdmt_value *x, int n, int block, int channels, float *gate)
{
    mdmt_conv_load load = {.act = MDMT_ACT_NONE};
    if (x->scale) {
        load.scale = x->scale + block * MDMT_BLOCK;
        load.shift = x->shift + block * MDMT_BLOCK;
        load.act = x->act;
    }
    if (x->gate) {
        const float *from = x->gate + (size_t)n * (size_t)channels + block * MDMT_BLOCK;
        int lanes = mdmt_min(MDMT_BLOCK, channels - block * MDMT_BLOCK);
        memcpy(gate, from, (size_t)lanes * sizeof(float));
        memset(gate + lanes, 0, (size_t)(MDMT_BLOCK - lanes) * sizeof(float));
        load.gate = gate;
    }
    return load;
}

/* How far ahead to fetch. What follows in memory is the next row: of no use where columns, and with
 * them rows, are left out. */
static ptrdiff_t fetch_distance(const mdmt_conv_row *row)
{
    const uint32_t all = row->step < 32 ? ((uint32_t)1 << row->step) - 1 : ~(uint32_t)0;
    return row->read == all ? FETCH_COLUMNS * MDMT_BLOCK : row->next;
}

void mdmt_conv_stage_row(const mdmt_conv_micro *micro, const mdmt_conv_row *row, float *dst,
                         const float *src, const mdmt_conv_load *load)
{
    const int step = row->step, any = load->act > MDMT_ACT_RELU || load->gate;
    const int pixel = micro->pixel;
    /* All phases of a segment before the next, so that lines are met in order. */
    const int several = (row->read & (row->read - 1)) != 0;
    const int segment = several ? SEGMENT : row->columns;
    const ptrdiff_t fetch = fetch_distance(row);
    for (int from = 0; from < row->columns; from += segment) {
        const int to = mdmt_min(row->columns, from + segment);
        for (int f = 0; f < step; f++) {
            if (f < 32 && !(row->read >> f & 1)) {
                continue;
            }
            const int first = row->column_min + f; /* column of position 0 */
            int left = first < 0 ? mdmt_ceil_div(-first, step) : 0;
            int end = first < row->width ? (row->width - 1 - first) / step + 1 : 0;
            left = mdmt_min(mdmt_max(left, from), to);
            end = mdmt_min(mdmt_max(end, left), to);
            float *at = dst + (size_t)f * row->columns * pixel;
            memset(at + from * pixel, 0, (size_t)(left - from) * pixel * sizeof(float));
            const float *from = src + (first + left * step) * pixel;
            if (any) {
                micro->stage_any(at + left * pixel, from, end - left, (ptrdiff_t)step * pixel,
                                 fetch, load);
            } else {
                micro->stage(at + left * pixel, from, end - left, (ptrdiff_t)step * pixel, fetch,
                             load->scale, load->shift, load->act);
            }
            memset(at + end * pixel, 0, (size_t)(to - end) * pixel * sizeof(float));
        }
    }
}

void mdmt_conv_stage_pairs(const mdmt_conv_micro *micro, const mdmt_conv_row *row, int every,
                           float *dst, const float *src, const mdmt_conv_load *load)
{
    const int step = row->step;
    const ptrdiff_t fetch = fetch_distance(row);
    for (int f = 0; f < step; f++, dst += (size_t)row->columns * MDMT_BLOCK) {
        if (f < 32 && !(row->read >> f & 1)) {
            continue;
        }
        const int first = row->column_min + f; /* column of position 0 */
        const int left = first < 0 ? mdmt_ceil_div(-first, step) : 0;
        const int right = first < row->width ? (row->width - 1 - first) / step + 1 : 0;
        micro->stage_pairs(dst, src + (ptrdiff_t)first * micro->pixel, row->columns, every, left,
                           right, (ptrdiff_t)step * micro->pixel, fetch, load);
    }
}
