/* SPDX-License-Identifier: MIT
 *
 * The kernels with 512-bit vectors (kernels_avx512.h).
 */
#include "cpu/kernels.h"

#include <string.h>

#ifdef YM_CPU_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/kernels_avx512.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const cpu_kernels cpu_kernels_avx512 = KERNEL_TABLE("avx512");
#endif
