/* SPDX-License-Identifier: MIT */
#include "cpu/kernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const cpu_kernels *choose(void)
{
#ifdef YM_CPU_X86
    const char *asked = getenv("YOLOV9MEM_ISA");
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                  __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
    if (asked != NULL) {
        avx512 = avx512 && strcmp(asked, "avx512") == 0;
        avx2 = avx2 && (avx512 || strcmp(asked, "avx2") == 0);
    }
    if (avx512) {
        return &cpu_kernels_avx512;
    }
    if (avx2) {
        return &cpu_kernels_avx2;
    }
#elif defined(YM_CPU_ARM64)
    const char *asked = getenv("YOLOV9MEM_ISA");
    if (asked == NULL || strcmp(asked, "neon") == 0) {
        return &cpu_kernels_neon;
    }
#endif
    return &cpu_kernels_plain;
}

const cpu_kernels *cpu_kernels_best(void)
{
    static const cpu_kernels *_Atomic chosen;
    const cpu_kernels *best = atomic_load(&chosen);
    if (best == NULL) {
        best = choose();
        atomic_store(&chosen, best);
    }
    return best;
}
