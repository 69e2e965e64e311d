/* SPDX-License-Identifier: MIT */
#include "cpu/kernels.h"

#include "cpu/isa.h"

#include <stdatomic.h>

static const cpu_kernels *choose(void)
{
    switch (cpu_isa_allowed()) {
#ifdef YM_CPU_X86
    case CPU_ISA_AVX512_BF16:
        return &cpu_kernels_avx512_bf16;
    case CPU_ISA_AVX512:
        return &cpu_kernels_avx512;
    case CPU_ISA_AVX2:
        return &cpu_kernels_avx2;
#elif defined(YM_CPU_ARM64)
    case CPU_ISA_NEON:
        return &cpu_kernels_neon;
#endif
    default:
        return &cpu_kernels_plain;
    }
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
