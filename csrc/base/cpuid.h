/* What the processor can do and the operating system allows (cpuid, xgetbv). */
#ifndef MDMT_BASE_CPUID_H
#define MDMT_BASE_CPUID_H

typedef enum {
    MDMT_ISA_REF = 0,
    MDMT_ISA_AVX2 = 1,
    MDMT_ISA_AVX512 = 2,
    MDMT_ISA_NEON = 3,
    MDMT_ISAS = 4
} mdmt_isa;

/* AVX2 means AVX2 and FMA; AVX512 means F, BW, DQ and VL; each with its
 * registers saved by the operating system. NEON is what every aarch64 has. */
mdmt_isa mdmt_detect_isa(void);
/* "ref", "avx2", "avx512", "neon". */
const char *mdmt_isa_name(mdmt_isa isa);
/* The one of this name, or MDMT_ISAS. */
mdmt_isa mdmt_isa_named(const char *name);
/* Whether a processor whose best is `best` has `isa`, too. */
int mdmt_isa_includes(mdmt_isa best, mdmt_isa isa);
/* The processor's own name, or "unknown processor". */
const char *mdmt_cpu_name(void);
/* Whether it has bfloat16 dot products (vdpbf16ps). */
int mdmt_has_avx512_bf16(void);
/* L2 bytes of one core; 1 MiB where unknown. Only for tile sizes that do not
 * change results. */
long mdmt_l2_bytes(void);
#if defined(__APPLE__)
/* A number that sysctl knows by this name, or -1. */
long long mdmt_system_number(const char *name);
#endif

#endif
