/* Template: the impl records of direct convolution for the including file's
 * inner kernels `micro`. The file defines ISA (avx2, avx512) and ISA_ENUM. */

#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)
#define TEXT_(a)    #a
#define TEXT(a)     TEXT_(a)
#define DEFINE_IMPL(pass, symbol, more)                                                            \
    static void pass##_needs(const mdmt_site *site, mdmt_needs *needs)                             \
    {                                                                                              \
        mdmt_conv_##pass##_needs(site, &micro, needs);                                             \
    }                                                                                              \
    static double pass##_cost(const mdmt_site *site)                                               \
    {                                                                                              \
        return mdmt_conv_##pass##_cost(site, &micro);                                              \
    }                                                                                              \
    static mdmt_status pass##_run(const mdmt_site *site, const mdmt_call *call)                    \
    {                                                                                              \
        return mdmt_conv_##pass##_run(site, &micro, call);                                         \
    }                                                                                              \
    const mdmt_cpu_impl JOIN(symbol, ISA) = {.name = TEXT(JOIN(symbol, ISA)),                      \
                                             .isa = ISA_ENUM,                                      \
                                             .supports = mdmt_conv_##pass##_supports,              \
                                             .needs = pass##_needs,                                \
                                             .cost = pass##_cost,                                  \
                                             .run = pass##_run,                                    \
                                             .accepts = MDMT_ACCEPTS_VIEWS | (more)};

#define LAZY (MDMT_ACCEPTS_GATES | MDMT_ACCEPTS_ACTS)

DEFINE_IMPL(forward, mdmt_f32_conv2d_forward_direct__, LAZY)
DEFINE_IMPL(data, mdmt_f32_conv2d_bwd_data_direct__, 0)
DEFINE_IMPL(weight, mdmt_f32_conv2d_bwd_weight_direct__, LAZY)
DEFINE_IMPL(stem, mdmt_f32_conv2d_forward_stem__, 0)
DEFINE_IMPL(stem_weight, mdmt_f32_conv2d_bwd_weight_stem__, 0)
