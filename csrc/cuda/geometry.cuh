/* Windows of convolutions and pooling. */
#ifndef MDMT_CUDA_GEOMETRY_CUH
#define MDMT_CUDA_GEOMETRY_CUH

#include "site.cuh"

struct mdmt_window_geometry {
    int kh, kw, sh, sw; /* kernel, stride */
    int pt, pl, pb, pr; /* padding        */
    int dh, dw;         /* dilation       */
    int groups;
};

/* Position in the input of a window's tap, or -1 where it falls on padding. */
MDMT_HD int mdmt_tap_at(int out, int stride, int pad, int tap, int dilation, int size)
{
    int at = out * stride - pad + tap * dilation;
    return at >= 0 && at < size ? at : -1;
}

/* The window whose tap lies on input position `in`, or -1. */
MDMT_HD int mdmt_window_at(int in, int stride, int pad, int tap, int dilation, int windows)
{
    int at = in + pad - tap * dilation;
    return at >= 0 && at % stride == 0 && at / stride < windows ? at / stride : -1;
}

/* Sample, row and column of a pixel. */
struct mdmt_place {
    int n, y, x;
};

MDMT_HD mdmt_place mdmt_place_of(uint32_t pixel, int h, int w)
{
    mdmt_place p;
    uint32_t line = pixel / (uint32_t)w;
    p.x = (int)(pixel % (uint32_t)w);
    p.y = (int)(line % (uint32_t)h);
    p.n = (int)(line / (uint32_t)h);
    return p;
}

static inline mdmt_window_geometry mdmt_conv_window(const mdmt_conv_attrs *a, const mdmt_tensor *w)
{
    mdmt_window_geometry g = {w->dim[2],      w->dim[3],      a->stride[0], a->stride[1],
                              a->pad[0],      a->pad[1],      a->pad[2],    a->pad[3],
                              a->dilation[0], a->dilation[1], a->groups};
    return g;
}

static inline mdmt_window_geometry mdmt_pool_window(const mdmt_pool_attrs *a, int dilated)
{
    mdmt_window_geometry g = {a->kernel[0],
                              a->kernel[1],
                              a->stride[0],
                              a->stride[1],
                              a->pad[0],
                              a->pad[1],
                              a->pad[2],
                              a->pad[3],
                              dilated ? a->dilation[0] : 1,
                              dilated ? a->dilation[1] : 1,
                              1};
    return g;
}

#endif
