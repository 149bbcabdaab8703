#define _GNU_SOURCE
#include "cpuid.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <stdint.h>
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

static unsigned long long xgetbv0(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
}

mdmt_isa mdmt_detect_isa(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) {
        return MDMT_ISA_REF;
    }
    unsigned long long saved = xgetbv0();
    if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) {
        return MDMT_ISA_REF;
    }
#if defined(__APPLE__)
    /* macOS gives a thread the registers of AVX-512 when it first uses one, and
     * xgetbv says so only then: the answer would depend on what ran before. */
    return MDMT_ISA_AVX2;
#else
    unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return (saved & 0xE6) == 0xE6 && (b & wanted) == wanted ? MDMT_ISA_AVX512 : MDMT_ISA_AVX2;
#endif
}

int mdmt_has_avx512_bf16(void)
{
    unsigned a, b, c, d;
    return mdmt_detect_isa() == MDMT_ISA_AVX512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a & (1u << 5)) != 0;
}

const char *mdmt_cpu_name(void)
{
    static _Thread_local char name[49];
    unsigned word[12];
    for (unsigned leaf = 0; leaf < 3; leaf++) {
        unsigned *w = word + 4 * leaf;
        if (!__get_cpuid(0x80000002u + leaf, w, w + 1, w + 2, w + 3)) {
            return "unknown processor";
        }
    }
    memcpy(name, word, 48);
    const char *start = name;
    while (*start == ' ') {
        start++;
    }
    return start;
}
#else
mdmt_isa mdmt_detect_isa(void)
{
#if defined(__aarch64__)
    return MDMT_ISA_NEON;
#else
    return MDMT_ISA_REF;
#endif
}

int mdmt_has_avx512_bf16(void)
{
    return 0;
}

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <stdint.h>
#include <sys/auxv.h>

typedef struct {
    unsigned implementer, part;
    const char *name;
} arm_core;

/* MIDR_EL1's implementer and part, as the processors' manuals name them. */
static const arm_core arm_cores[] = {
    {0x41, 0xd03, "Arm Cortex-A53"},    {0x41, 0xd08, "Arm Cortex-A72"},
    {0x41, 0xd0b, "Arm Cortex-A76"},    {0x41, 0xd0c, "Arm Neoverse N1"},
    {0x41, 0xd40, "Arm Neoverse V1"},   {0x41, 0xd49, "Arm Neoverse N2"},
    {0x41, 0xd4f, "Arm Neoverse V2"},   {0x41, 0xd84, "Arm Neoverse V3"},
    {0x41, 0xd8e, "Arm Neoverse N3"},   {0xc0, 0xac3, "Ampere-1"},
    {0xc0, 0xac4, "Ampere-1a"},         {0x4e, 0x010, "NVIDIA Olympus"},
    {0x46, 0x001, "Fujitsu A64FX"},     {0x48, 0xd01, "HiSilicon TaiShan v110"},
    {0x61, 0x022, "Apple M1 (Icestorm)"}, {0x61, 0x023, "Apple M1 (Firestorm)"},
};

/* Linux lets programs read MIDR_EL1 where it says so. */
const char *mdmt_cpu_name(void)
{
    static _Thread_local char name[64];
    if (!(getauxval(AT_HWCAP) & HWCAP_CPUID)) {
        return "unknown processor";
    }
    uint64_t midr;
    __asm__("mrs %0, MIDR_EL1" : "=r"(midr));
    const unsigned implementer = (unsigned)(midr >> 24) & 0xff, part = (unsigned)(midr >> 4) & 0xfff;
    for (size_t i = 0; i < sizeof arm_cores / sizeof arm_cores[0]; i++) {
        if (arm_cores[i].implementer == implementer && arm_cores[i].part == part) {
            return arm_cores[i].name;
        }
    }
    snprintf(name, sizeof name, "aarch64 (implementer 0x%02x, part 0x%03x)", implementer, part);
    return name;
}
#elif defined(__APPLE__)
const char *mdmt_cpu_name(void)
{
    static _Thread_local char name[64];
    size_t bytes = sizeof name - 1; /* it stays 0-terminated */
    return sysctlbyname("machdep.cpu.brand_string", name, &bytes, NULL, 0) == 0
               ? name : "unknown processor";
}
#else
const char *mdmt_cpu_name(void)
{
    return "unknown processor";
}
#endif
#endif

#if defined(__APPLE__)
long long mdmt_system_number(const char *name)
{
    union {
        int32_t four;
        int64_t eight;
    } number = {.eight = 0};
    size_t bytes = sizeof number;
    if (sysctlbyname(name, &number, &bytes, NULL, 0) != 0) {
        return -1;
    }
    return bytes == sizeof number.four ? number.four : number.eight;
}
#endif

const char *mdmt_isa_name(mdmt_isa isa)
{
    static const char *const names[MDMT_ISAS] = {"ref", "avx2", "avx512", "neon"};
    return names[isa];
}

mdmt_isa mdmt_isa_named(const char *name)
{
    mdmt_isa isa = MDMT_ISA_REF;
    while (isa < MDMT_ISAS && strcmp(name, mdmt_isa_name(isa)) != 0) {
        isa++;
    }
    return isa;
}

int mdmt_isa_includes(mdmt_isa best, mdmt_isa isa)
{
    return isa == best || isa == MDMT_ISA_REF ||
           (best == MDMT_ISA_AVX512 && isa == MDMT_ISA_AVX2);
}

long mdmt_l2_bytes(void)
{
    long bytes = 0;
#if defined(__APPLE__)
    /* a cluster of performance cores has one; an Intel Mac's core has its own */
    long long shared = mdmt_system_number("hw.perflevel0.l2cachesize");
    long long sharers = mdmt_system_number("hw.perflevel0.cpusperl2");
    bytes = (long)(shared > 0 && sharers > 0 ? shared / sharers
                                             : mdmt_system_number("hw.l2cachesize"));
#elif defined(_SC_LEVEL2_CACHE_SIZE)
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes <= 0) { /* the C library does not know it on every processor; the kernel does */
        FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index2/size", "r");
        if (file) {
            bytes = fscanf(file, "%ldK", &bytes) == 1 ? bytes * 1024 : 0;
            fclose(file);
        }
    }
#endif
    return bytes >= 256 * 1024 ? bytes : 1024 * 1024;
}
