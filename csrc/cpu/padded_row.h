/* SPDX-License-Identifier: MIT
 *
 * A row of an image as convolutions lay it out: zeros, the pixels inside the image,
 * zeros.
 */
#ifndef YM_CPU_PADDED_ROW_H
#define YM_CPU_PADDED_ROW_H

#include "cpu/cpu.h"

/* `count` pixels of row h of image n: first, first + step, ... The row or any of them
 * may be outside, where zeros are. */
typedef struct cpu_image_row {
    int32_t n, h, first, count, step;
} cpu_image_row;

/* Those inside: `count` of them behind `left` zeros, from `pixel` of all images on. */
typedef struct cpu_inside {
    int32_t left, count;
    int64_t pixel;
} cpu_inside;

cpu_inside cpu_inside_of(const ym_tensor *x, const cpu_image_row *row);

/* Writes the zeros, `words` a pixel; returns where the pixels inside belong. */
float *cpu_zeros_around(const cpu_image_row *row, const cpu_inside *inside,
                        int64_t words, float *to);

#endif
