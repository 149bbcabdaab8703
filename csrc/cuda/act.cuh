/* Activations and their slopes. */
#ifndef MDMT_CUDA_ACT_CUH
#define MDMT_CUDA_ACT_CUH

#include "services.h"
#include "target.cuh"

/* NaN passes through, as in PyTorch. */
MDMT_HD float mdmt_act_of(int act, float x)
{
    switch (act) {
    case MDMT_ACT_RELU:
        return x <= 0 ? 0.0f : x;
    case MDMT_ACT_RELU6:
        return x <= 0 ? 0.0f : x >= 6 ? 6.0f : x;
    case MDMT_ACT_SILU:
        return x / (1 + expf(-x));
    case MDMT_ACT_SIGMOID:
        return 1 / (1 + expf(-x));
    case MDMT_ACT_HARDSWISH:
        return x <= -3 ? 0.0f : x >= 3 ? x : x * (x + 3) / 6;
    case MDMT_ACT_HARDSIGMOID:
        return x <= -3 ? 0.0f : x >= 3 ? 1.0f : (x + 3) / 6;
    default:
        return x;
    }
}

MDMT_HD int mdmt_slope_reads_input(int act)
{
    return act == MDMT_ACT_SILU || act == MDMT_ACT_HARDSWISH;
}

/* act' from x where mdmt_slope_reads_input, else from act(x); at the kinks as PyTorch. */
MDMT_HD float mdmt_slope_of(int act, float v)
{
    float e, s;
    switch (act) {
    case MDMT_ACT_RELU:
        return v > 0 ? 1.0f : 0.0f;
    case MDMT_ACT_RELU6:
        return v > 0 && v < 6 ? 1.0f : 0.0f;
    case MDMT_ACT_SILU:
        e = expf(-v);
        s = 1 / (1 + e);
        return s * (1 + v * (v > 0 ? e * s : 1 - s)); /* e s = 1 - s without cancellation */
    case MDMT_ACT_SIGMOID:
        return v * (1 - v);
    case MDMT_ACT_HARDSWISH:
        return v <= -3 ? 0.0f : v >= 3 ? 1.0f : (2 * v + 3) / 6;
    case MDMT_ACT_HARDSIGMOID:
        return v > 0 && v < 1 ? 1.0f / 6 : 0.0f;
    default:
        return 1.0f;
    }
}

/* 1 / (1 + exp(-x)), without the code for every special case of a division. QUICK: to 2^-20 of
 * it, which bfloat16 does not show. */
template <int QUICK> MDMT_HD float mdmt_sigmoid_of(float x)
{
#ifdef __CUDA_ARCH__
    float e, s;
    if (QUICK) {
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
    } else {
        e = expf(-x);
    }
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1 + e));
    return s;
#else
    return 1 / (1 + expf(-x));
#endif
}

/* mdmt_act_of and mdmt_slope_of. QUICK: as exactly as bfloat16 shows, where the exact way costs
 * more instructions than memory leaves time for. */
template <int QUICK> MDMT_HD float mdmt_act_as(int act, float x)
{
    if (QUICK && act == MDMT_ACT_SILU) {
        return x * mdmt_sigmoid_of<QUICK>(x);
    }
    return mdmt_act_of(act, x);
}

template <int QUICK> MDMT_HD float mdmt_slope_as(int act, float v)
{
    if (QUICK && act == MDMT_ACT_SILU) {
        float s = mdmt_sigmoid_of<QUICK>(v);
        return s * (1 + v * (1 - s));
    }
    return mdmt_slope_of(act, v);
}

#endif
