/* Template: the impl records of direct convolution for the including file's
 * inner kernels `micro`. The file defines ISA (avx2, avx512), ISA_ENUM, DTYPE
 * (f32, bf16), IS_BF16: 0, or 1 for bf16, and the passes that `micro` has:
 * DIRECT 1 or 0, STEM 1 or 0. */

#define TEXT_(a) #a
#define TEXT(a)  TEXT_(a)
/* SYMBOL(conv2d_forward_direct) is mdmt_f32_conv2d_forward_direct__avx512. */
#define NAME_(type, op, isa) mdmt_##type##_##op##__##isa
#define NAME(type, op, isa)  NAME_(type, op, isa)
#define SYMBOL(op)           NAME(DTYPE, op, ISA)
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
    const mdmt_cpu_impl SYMBOL(symbol) = {.name = TEXT(SYMBOL(symbol)),                            \
                                          .isa = ISA_ENUM,                                         \
                                          .bf16 = IS_BF16,                                         \
                                          .supports = mdmt_conv_##pass##_supports,                 \
                                          .needs = pass##_needs,                                   \
                                          .cost = pass##_cost,                                     \
                                          .run = pass##_run,                                       \
                                          .accepts = MDMT_ACCEPTS_VIEWS | (more)};

#define LAZY (MDMT_ACCEPTS_GATES | MDMT_ACCEPTS_ACTS)

#if DIRECT
DEFINE_IMPL(forward, conv2d_forward_direct, LAZY)
DEFINE_IMPL(data, conv2d_bwd_data_direct, 0)
DEFINE_IMPL(weight, conv2d_bwd_weight_direct, LAZY)
#endif
#if STEM
DEFINE_IMPL(stem, conv2d_forward_stem, 0)
DEFINE_IMPL(stem_weight, conv2d_bwd_weight_stem, 0)
#endif
