/* SPDX-License-Identifier: MIT */
#include "cpu/isa.h"

#include <stdlib.h>
#include <string.h>

cpu_isa cpu_isa_here(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        return CPU_ISA_PLAIN;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return CPU_ISA_AVX2;
    }
    return __builtin_cpu_supports("avx512bf16") ? CPU_ISA_AVX512_BF16 : CPU_ISA_AVX512;
#elif defined(__aarch64__)
    return CPU_ISA_NEON;
#else
    return CPU_ISA_PLAIN;
#endif
}

/* -1: a name of none. */
static int number_of(const char *name)
{
    static const char *const names[] = {"plain", "neon", "avx2", "avx512",
                                        "avx512_bf16"};
    int isa = CPU_ISA_AVX512_BF16;
    while (isa >= 0 && strcmp(name, names[isa]) != 0) {
        isa--;
    }
    return isa;
}

bool cpu_isa_is_known(const char *name)
{
    return number_of(name) >= 0;
}

cpu_isa cpu_isa_allowed(void)
{
    const cpu_isa here = cpu_isa_here();
    const char *asked = getenv("YOLOV9MEM_ISA");
    if (asked == NULL || asked[0] == '\0') {
        return here;
    }
    const int isa = number_of(asked);
    return isa < (int)here ? (isa < 0 ? CPU_ISA_PLAIN : (cpu_isa)isa) : here;
}
