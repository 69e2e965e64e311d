/* SPDX-License-Identifier: MIT
 *
 * The instruction sets that backend "cpu" has code for.
 */
#ifndef YM_CPU_ISA_H
#define YM_CPU_ISA_H

#include <stdbool.h>

/* From the least to the most; neon is every 64-bit ARM's. */
typedef enum cpu_isa {
    CPU_ISA_PLAIN,
    CPU_ISA_NEON,
    CPU_ISA_AVX2,        /* and FMA */
    CPU_ISA_AVX512,      /* F, BW, DQ and VL */
    CPU_ISA_AVX512_BF16, /* products of bf16 */
} cpu_isa;

/* The most that this machine can do. */
cpu_isa cpu_isa_here(void);

/* No more than the variable YOLOV9MEM_ISA names, if it is set and not empty
 * (avx512_bf16, avx512, avx2, neon, plain; plain for any other word, which
 * cpu_check_environment refuses). */
cpu_isa cpu_isa_allowed(void);

/* Is it the name of one of them, of another machine's too? */
bool cpu_isa_is_known(const char *name);

#endif
