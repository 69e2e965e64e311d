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

/* Images of one panel: a pair as words of bf16, or one. */
static inline int32_t cpu_panel_images(const ym_tensor *x, const ym_tensor *dy)
{
    return dy->n > 1 && cpu_pairs(x) && cpu_pairs(dy) ? 2 : 1;
}

/* The first channel of a part. */
static inline int32_t cpu_part_first(int32_t count, int32_t part)
{
    const int32_t parts = cpu_part_count(count);
    return part * (count / parts) + (int32_t)cpu_min(part, count % parts);
}

/* (part, row, column, channel of the part). The buffer holds a row as floats; it is not
 * used for floats or pairs. */
void cpu_pack_parts(const cpu_rows *rows, float *buffer, float *panel);

/* One part of all rows of an image, (row, column, channel of the part). */
void cpu_pack_part(const cpu_rows *rows, int32_t part, float *panel);

/* (row, column, channel) of `width` columns from -left on, with zeros outside. */
void cpu_pack_padded(const cpu_rows *rows, int32_t left, int32_t width, float *panel);

/* (row, column, channel), with zeros up to the end of the last vector. */
void cpu_pack_columns(const cpu_rows *rows, float *panel);

/* Rows [first, end) of dy of image n (of the pair from n on), and rows [low, high) of x
 * that they meet, as panels: of x the parts of one group, of dy a block of columns. */
typedef struct cpu_visit {
    int32_t n, first, end, low, high;
    float *x, *dy;
} cpu_visit;

/* Sets product's a, b and inner loops to the pixels that one tap joins; product->rows
 * channels of x from c on, which is where a part begins, and product->c_row columns.
 * False where all of them fall in the padding. */
bool cpu_meet(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy,
              const cpu_visit *visit, const int32_t tap[2], int64_t c,
              cpu_product *product);

/* Whether the taps of a kernel's row are joined: with so few channels a register tile
 * has room for several taps, whose pixels lie side by side in a row with the zeros of
 * its padding (cpu_pack_padded). */
static inline bool cpu_joins_taps(const ym_conv *conv)
{
    return conv->s > 1 && conv->dilation_w == 1 &&
           2 * (conv->c / conv->groups) <= cpu_kernels_best()->tile_rows;
}

/* Columns of such a row of x. */
static inline int64_t cpu_joined_width(const ym_conv *conv, const ym_tensor *dy)
{
    return (dy->w - 1) * (int64_t)conv->stride_w + conv->s;
}

/* cpu_meet of a joined row of the kernel, from its first tap and channel on. */
bool cpu_meet_row(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy,
                  const cpu_visit *visit, int32_t row, cpu_product *product);

/* Gradients of weights: input channels [c, c + count), columns output channels from k
 * on, all taps. */
typedef struct cpu_weight_patch {
    int32_t c, count, k, columns;
} cpu_weight_patch;

/* Puts or adds sums, (tap, channel, column) with zeros up to the end of the last
 * vector, where dw's strides say. */
void cpu_store_weights(const ym_conv *conv, const ym_weight *dw,
                       const cpu_weight_patch *patch, const float *sums,
                       bool accumulate);

#endif
