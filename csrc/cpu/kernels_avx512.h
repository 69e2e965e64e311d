/* SPDX-License-Identifier: MIT
 *
 * The kernels with 512-bit vectors, for the AVX-512 that the including file has
 * switched on: a tile of 14 x 32 in 28 of 32 registers.
 */
#define MULTIPLY_ADD(a, b, c) __builtin_fmaf(a, b, c)
#define TILE_ROWS 14
#define LANES 16
#define vector __m512
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SPREAD _mm512_set1_ps
#define VECTOR_MULTIPLY_ADD _mm512_fmadd_ps

#include "cpu/kernels_rows.h"

#include "cpu/kernels_product.h"
