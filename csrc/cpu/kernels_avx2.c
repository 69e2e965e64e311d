/* SPDX-License-Identifier: MIT
 *
 * The kernels with 256-bit vectors: a tile of 6 x 16 in 12 of 16 registers.
 */
#include "cpu/kernels.h"

#include <string.h>

#ifdef YM_CPU_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define MULTIPLY_ADD(a, b, c) __builtin_fmaf(a, b, c)
#define TILE_ROWS 6
#define LANES 8
#define vector __m256
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SPREAD _mm256_set1_ps
#define VECTOR_MULTIPLY_ADD _mm256_fmadd_ps

#include "cpu/kernels_rows.h"

#include "cpu/kernels_product.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const cpu_kernels cpu_kernels_avx2 = KERNEL_TABLE("avx2");
#endif
