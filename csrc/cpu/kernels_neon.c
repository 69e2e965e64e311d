/* SPDX-License-Identifier: MIT
 *
 * The kernels with the 128-bit vectors of every 64-bit ARM: a tile of 12 x 8 in 24 of
 * 32 registers.
 */
#include "cpu/kernels.h"

#include <string.h>

#ifdef YM_CPU_ARM64
#include <arm_neon.h>

#define MULTIPLY_ADD(a, b, c) __builtin_fmaf(a, b, c)
#define TILE_ROWS 12
#define LANES 4
#define vector float32x4_t
#define LOAD vld1q_f32
#define STORE vst1q_f32
#define SPREAD vdupq_n_f32
#define VECTOR_MULTIPLY_ADD(a, b, c) vfmaq_f32(c, a, b)

#include "cpu/kernels_rows.h"

#include "cpu/kernels_product.h"

const cpu_kernels cpu_kernels_neon = KERNEL_TABLE("neon");
#endif
