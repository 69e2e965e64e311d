/* SPDX-License-Identifier: MIT
 *
 * The kernels of kernels_avx512.h, and products of bf16: two a lane, as fast as one of
 * float.
 */
#include "cpu/kernels.h"

#include <string.h>

#ifdef YM_CPU_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define PAIR_MULTIPLY_ADD(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))

#include "cpu/kernels_avx512.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const cpu_kernels cpu_kernels_avx512_bf16 = KERNEL_TABLE("avx512_bf16");
#endif
