/* The kernel records of one ISA; included once by each conv_winograd_<isa>.c, and by
 * conv_winograd_bf16.c for maps that are stored in bfloat16. */
#include <string.h>

#include "conv_winograd_run.h"
#include "conv_winograd_weight.h"

#define RUN_MDMT_WINO_FORWARD(points) run_conv(site, call, MDMT_WINO_FORWARD, points)
#define RUN_MDMT_WINO_DATA(points)    run_conv(site, call, MDMT_WINO_DATA, points)
#define RUN_MDMT_WINO_WEIGHT(points)  run_weight(site, call, points)

#define TEXT_(name) #name
#define TEXT(name)  TEXT_(name)

#define IMPL(label, pass, points, isa_id, isa_name)                                                \
    static int supports_##label(const mdmt_site *site)                                             \
    {                                                                                              \
        return mdmt_wino_supports(site, points);                                                   \
    }                                                                                              \
    static void needs_##label(const mdmt_site *site, mdmt_needs *needs)                            \
    {                                                                                              \
        mdmt_wino_needs(site, pass, points, needs);                                                \
    }                                                                                              \
    static double cost_##label(const mdmt_site *site)                                              \
    {                                                                                              \
        return mdmt_wino_cost(site, pass, points, isa_id);                                         \
    }                                                                                              \
    static mdmt_status run_##label(const mdmt_site *site, const mdmt_call *call)                   \
    {                                                                                              \
        return RUN_##pass(points);                                                                 \
    }                                                                                              \
    const mdmt_cpu_impl MDMT_MAP_NAME(MDMT_MAP_TYPE, label##__##isa_name) = {                      \
        .name = TEXT(MDMT_MAP_NAME(MDMT_MAP_TYPE, label##__##isa_name)),                           \
        .isa = isa_id,                                                                             \
        .bf16 = MDMT_MAPS_BF16,                                                                         \
        .supports = supports_##label,                                                              \
        .needs = needs_##label,                                                                    \
        .cost = cost_##label,                                                                      \
        .run = run_##label,                                                                        \
        .accepts = MDMT_ACCEPTS_VIEWS,                                                             \
    };

#define IMPLS(isa_id, isa_name)                                                                    \
    IMPL(conv2d_forward_winograd4, MDMT_WINO_FORWARD, 6, isa_id, isa_name)                         \
    IMPL(conv2d_forward_winograd2, MDMT_WINO_FORWARD, 4, isa_id, isa_name)                         \
    IMPL(conv2d_bwd_data_winograd4, MDMT_WINO_DATA, 6, isa_id, isa_name)                           \
    IMPL(conv2d_bwd_data_winograd2, MDMT_WINO_DATA, 4, isa_id, isa_name)                           \
    IMPL(conv2d_bwd_weight_winograd4, MDMT_WINO_WEIGHT, 6, isa_id, isa_name)                       \
    IMPL(conv2d_bwd_weight_winograd2, MDMT_WINO_WEIGHT, 4, isa_id, isa_name)
