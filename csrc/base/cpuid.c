#define _GNU_SOURCE
#include "cpuid.h"

#include <string.h>
#include <unistd.h>

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
    unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return (saved & 0xE6) == 0xE6 && (b & wanted) == wanted ? MDMT_ISA_AVX512 : MDMT_ISA_AVX2;
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
    return MDMT_ISA_REF;
}

int mdmt_has_avx512_bf16(void)
{
    return 0;
}

const char *mdmt_cpu_name(void)
{
    return "unknown processor";
}
#endif

const char *mdmt_isa_name(mdmt_isa isa)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};
    return names[isa];
}

long mdmt_l2_bytes(void)
{
#ifdef _SC_LEVEL2_CACHE_SIZE
    long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes >= 256 * 1024) {
        return bytes;
    }
#endif
    return 1024 * 1024;
}
