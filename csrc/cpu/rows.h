/* SPDX-License-Identifier: MIT
 *
 * How elementwise passes walk over a value: in rows of floats that fit the first-level
 * cache. A row is as many whole pixels as fit (so that narrow images make long
 * vectors), or a part of one wide pixel. Per-channel coefficients are repeated for each
 * pixel of the row. Packed float values are used in place, others by way of a buffer.
 */
#ifndef YM_CPU_ROWS_H
#define YM_CPU_ROWS_H

#include "cpu/cpu.h"

#include <string.h>

enum {
    CPU_ROW = 512,       /* floats of a row at most */
    CPU_FLUSH_ROWS = 8,  /* rows summed in float before double */
    CPU_MAX_BLOCKS = 32, /* of pixels, for sums: fixed by the size alone */
};

/* The work of one task: channels [channel, channel + count), pixels [first, end). */
typedef struct cpu_patch {
    int32_t channel, count;
    int32_t row_pixels;
    int64_t first, end;
} cpu_patch;

static inline int32_t cpu_channel_parts(int32_t channels)
{
    return (channels + CPU_ROW - 1) / CPU_ROW;
}

/* Into how many blocks of pixels sums are cut. */
static inline int32_t cpu_sum_blocks(const ym_tensor *x)
{
    const int64_t pixels = ym_pixels(x);
    const int64_t blocks = cpu_min(pixels * x->c / 32768, CPU_MAX_BLOCKS);
    return (int32_t)cpu_max(1, cpu_min(blocks, pixels));
}

/* Into how many blocks of about 32K elements elementwise work is cut. */
static inline int32_t cpu_map_blocks(const ym_tensor *x)
{
    return (int32_t)cpu_max(1, cpu_min(ym_pixels(x) * x->c / 32768, ym_pixels(x)));
}

static inline cpu_patch cpu_patch_of(const ym_tensor *x, int32_t blocks, int32_t index)
{
    const int32_t parts = cpu_channel_parts(x->c);
    const int32_t part = index % parts, block = index / parts;
    cpu_patch patch = {.channel = (int32_t)cpu_part(x->c, parts, part)};
    patch.count = (int32_t)cpu_part(x->c, parts, part + 1) - patch.channel;
    patch.row_pixels = CPU_ROW / patch.count;
    patch.first = cpu_part(ym_pixels(x), blocks, block);
    patch.end = cpu_part(ym_pixels(x), blocks, block + 1);
    return patch;
}

/* The first channel of a pixel. */
static inline char *cpu_pixel(const ym_tensor *x, int64_t pixel)
{
    return (char *)x->data + (size_t)(pixel * x->pitch) * ym_dtype_bytes(x->dtype);
}

/* Pixels of the row that begins at pixel p. */
static inline int32_t cpu_row_pixels(const cpu_patch *patch, int64_t p)
{
    return (int32_t)cpu_min(patch->row_pixels, patch->end - p);
}

static inline bool cpu_in_place(const ym_tensor *x, const cpu_patch *patch,
                                int32_t pixels)
{
    return x->dtype == YM_F32 && (pixels == 1 || x->pitch == patch->count);
}

/* The row of x at pixel p: in x itself or copied to the buffer. */
static inline const float *cpu_row(const ym_tensor *x, const cpu_patch *patch,
                                   int64_t p, int32_t pixels, float *buffer)
{
    const int64_t index = p * x->pitch + patch->channel;
    if (cpu_in_place(x, patch, pixels)) {
        return (const float *)x->data + index;
    }
    cpu_load(x, index, pixels, patch->count, 1, buffer, patch->count);
    return buffer;
}

/* Where to write the row of y at pixel p; cpu_row_done brings it home. */
static inline float *cpu_row_to(ym_tensor *y, const cpu_patch *patch, int64_t p,
                                int32_t pixels, float *buffer)
{
    if (cpu_in_place(y, patch, pixels)) {
        return (float *)y->data + p * y->pitch + patch->channel;
    }
    return buffer;
}

static inline void cpu_row_done(ym_tensor *y, const cpu_patch *patch, int64_t p,
                                int32_t pixels, const float *row)
{
    if (!cpu_in_place(y, patch, pixels)) {
        cpu_store(row, patch->count, pixels, patch->count, y,
                  p * y->pitch + patch->channel, 1);
    }
}

/* Repeats the first `count` floats for each pixel of the row: what there is already is
 * copied behind itself, which a loop over floats could not do by vectors. */
static inline void cpu_repeat(int32_t pixels, int32_t count, float *row)
{
    const int32_t floats = pixels * count;
    for (int32_t done = count; done < floats; done *= 2) {
        const int64_t more = cpu_min(done, floats - done);
        memcpy(row + done, row, (size_t)more * sizeof *row);
    }
}

/* Adds the sums of a row's pixels to the totals of its channels: in double, since there
 * are as many pixels as the channels are few. */
static inline void cpu_fold(const cpu_patch *patch, const double *restrict row,
                            double *restrict total)
{
    for (int32_t pixel = 0; pixel < patch->row_pixels; pixel++, row += patch->count) {
        for (int32_t c = 0; c < patch->count; c++) {
            total[c] += row[c];
        }
    }
}

#endif
