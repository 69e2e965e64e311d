/* SPDX-License-Identifier: MIT
 *
 * Pools a row of pixels at a time: what the columns of a window make of one row of x
 * serves all windows that meet the row, and windows side by side are one vector,
 * however few their channels. And the windows of both ways to pool.
 */
#ifndef YM_CPU_POOL_ROWS_H
#define YM_CPU_POOL_ROWS_H

#include "cpu/rows.h"

enum {
    CPU_POOL_ROWS = 8,   /* of windows at a time */
    CPU_POOL_PIXELS = 9, /* of a window at most, which is then met pixel by pixel */
};

/* Pixels [first, end) of a side that a window has; `padded`, counting the padding. */
typedef struct cpu_window {
    int32_t first, end, padded;
} cpu_window;

static inline cpu_window cpu_window_of(int32_t o, int32_t kernel, int32_t stride,
                                       int32_t pad, int32_t size)
{
    const int32_t first = o * stride - pad, end = first + kernel;
    return (cpu_window){(int32_t)cpu_max(first, 0), (int32_t)cpu_min(end, size),
                        (int32_t)cpu_min(end, size + pad) - first};
}

static inline float cpu_window_divisor(const ym_pool *pool, cpu_window h, cpu_window w)
{
    return pool->count_include_pad
               ? (float)h.padded * (float)w.padded
               : (float)(h.end - h.first) * (float)(w.end - w.first);
}

/* The first window that can hold pixel i, and the one behind the last. */
static inline int32_t cpu_first_window(int32_t i, int32_t kernel, int32_t stride,
                                       int32_t pad)
{
    const int32_t past = i + pad - kernel;
    return past < 0 ? 0 : past / stride + 1;
}

static inline int32_t cpu_end_window(int32_t i, int32_t stride, int32_t pad,
                                     int32_t count)
{
    return (int32_t)cpu_min(count, (i + pad) / stride + 1);
}

/* Those of the windows [first, end) whose column `tap` is one of the pixels [low, high)
 * of a row. */
static inline void cpu_clip_windows(const ym_pool *pool, int32_t tap, int32_t low,
                                    int32_t high, int32_t *first, int32_t *end)
{
    const int32_t stride = pool->stride_w, from = low + pool->pad_w - tap;
    const int32_t last = high - 1 + pool->pad_w - tap;
    *first = (int32_t)cpu_max(*first, from <= 0 ? 0 : (from + stride - 1) / stride);
    *end = last < 0 ? *first : (int32_t)cpu_min(*end, last / stride + 1);
}

/* Windows [first, end) of a row of them, as many as a row of floats holds. */
typedef struct cpu_window_row {
    int32_t n, first, end;
} cpu_window_row;

/* Calls use(argument, tap, window, pixels, x) for the pixels of row h of x that are
 * column `tap` of windows from `window` on, in the order of taps; x has the channels of
 * one behind those of the other. */
typedef void cpu_use_taps(void *argument, int32_t tap, int32_t window, int32_t pixels,
                          const float *x);

void cpu_walk_taps(const ym_pool *pool, const ym_tensor *x, const cpu_patch *patch,
                   const cpu_window_row *row, int32_t h, cpu_use_taps *use,
                   void *argument);

/* Whether there are so few channels, or so many pixels in a window, that pooling by
 * rows is faster than a window at a time (pooling.c). */
static inline bool cpu_pools_by_rows(const ym_pool *pool, const ym_tensor *x)
{
    return x->c < cpu_kernels_best()->lanes ||
           (int64_t)pool->kernel_h * pool->kernel_w > CPU_POOL_PIXELS;
}

ym_status cpu_pool_rows_forward(const ym_pool *pool, bool average, const ym_tensor *x,
                                ym_tensor *y);
ym_status cpu_pool_rows_backward(const ym_pool *pool, const ym_tensor *x,
                                 const ym_tensor *dy, ym_tensor *dx, bool average,
                                 bool accumulate);

#endif
