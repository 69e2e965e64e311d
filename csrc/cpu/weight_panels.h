/* SPDX-License-Identifier: MIT
 *
 * Panels that the weight gradient's products read (conv_weight.c).
 */
#ifndef YM_CPU_WEIGHT_PANELS_H
#define YM_CPU_WEIGHT_PANELS_H

#include "cpu/cpu.h"

/* Channels [channel, channel + count) of rows [first, end) of image n; with `pairs`, of
 * images n and n + 1 as words of bf16, with zeros where there is no image n + 1. */
typedef struct cpu_rows {
    const ym_tensor *of;
    int32_t n, first, end, channel, count;
    bool pairs;
} cpu_rows;

/* Register tiles cut `count` channels into parts of nearly one size, the larger ones
 * first. */
static inline int32_t cpu_part_count(int32_t count)
{
    const int32_t most = cpu_kernels_best()->tile_rows;
    return (count + most - 1) / most;
}

static inline int32_t cpu_part_size(int32_t count, int32_t part)
{
    const int32_t parts = cpu_part_count(count);
    return count / parts + (part < count % parts);
}

/* (part, row, column, channel of the part). The buffer holds a row as floats; it is not
 * used for floats or pairs. */
void cpu_pack_parts(const cpu_rows *rows, float *buffer, float *panel);

/* (row, column, channel), with zeros up to the end of the last vector. */
void cpu_pack_columns(const cpu_rows *rows, float *panel);

#endif
