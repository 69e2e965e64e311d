/* SPDX-License-Identifier: MIT
 *
 * Backend "cpu": vectors, threads, and tiles that stay in the caches. Every result is a
 * function of the operands and the instruction set only, not of the number of threads.
 */
#ifndef YM_CPU_CPU_H
#define YM_CPU_CPU_H

#include "core/backend.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/sgd.h"

struct ym_mosaic_job;

static inline int64_t cpu_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t cpu_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t cpu_round_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* Where part `index` of `parts` of the range [0, count) begins: sizes differ by 1. */
static inline int64_t cpu_part(int64_t count, int64_t parts, int64_t index)
{
    return count * index / parts;
}

/* The columns of a matrix product come in blocks of two vectors, the last in one or
 * two.
 */
static inline int32_t cpu_block_columns(void)
{
    return 2 * cpu_kernels_best()->lanes;
}

static inline int32_t cpu_block_count(int32_t columns)
{
    return (columns + cpu_block_columns() - 1) / cpu_block_columns();
}

/* Those of `columns` that are in a block. */
static inline int32_t cpu_columns_of_block(int32_t columns, int32_t block)
{
    return (int32_t)cpu_min(cpu_block_columns(), columns - block * cpu_block_columns());
}

static inline int64_t cpu_padded_count(int32_t columns)
{
    return cpu_round_up(columns, cpu_kernels_best()->lanes);
}

/* Whether products read x as pairs of bf16. */
static inline bool cpu_pairs(const ym_tensor *x)
{
    return x->dtype == YM_BF16 && cpu_kernels_best()->product_pairs != NULL;
}

/* `pixels` pixels of `count` channels from element `index` of x on, into y as float;
 * `step` counts pixels of x from one to the next. */
static inline void cpu_load(const ym_tensor *x, int64_t index, int64_t pixels,
                            int32_t count, int64_t step, float *y, int64_t y_pitch)
{
    const cpu_kernels *kernels = cpu_kernels_best();
    if (x->pitch * step == count && y_pitch == count && count * pixels <= INT32_MAX) {
        count *= (int32_t)pixels; /* one long row */
        pixels = 1;
    }
    if (x->dtype == YM_BF16) {
        kernels->widen(pixels, count, (const uint16_t *)x->data + index,
                       x->pitch * step, y, y_pitch);
    } else {
        kernels->copy(pixels, count, (const float *)x->data + index, x->pitch * step, y,
                      y_pitch);
    }
}

/* The way back: from floats to pixels of y, rounded if y is bf16. */
static inline void cpu_store(const float *x, int64_t x_pitch, int64_t pixels,
                             int32_t count, const ym_tensor *y, int64_t index,
                             int64_t step)
{
    const cpu_kernels *kernels = cpu_kernels_best();
    if (y->pitch * step == count && x_pitch == count && count * pixels <= INT32_MAX) {
        count *= (int32_t)pixels;
        pixels = 1;
    }
    if (y->dtype == YM_BF16) {
        kernels->narrow(pixels, count, x, x_pitch, (uint16_t *)y->data + index,
                        y->pitch * step);
    } else {
        kernels->copy(pixels, count, x, x_pitch, (float *)y->data + index,
                      y->pitch * step);
    }
}

size_t cpu_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                              const ym_tensor *x, const ym_tensor *y);
ym_status cpu_conv_forward(ym_context *context, const ym_conv *conv, const ym_tensor *x,
                           const ym_weight *w, const float *bias, ym_tensor *y);
ym_status cpu_conv_backward_data(ym_context *context, const ym_conv *conv,
                                 const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                                 bool accumulate);
size_t cpu_conv_weight_scratch_bytes(const ym_conv *conv, const ym_tensor *x,
                                     const ym_tensor *dy);
ym_status cpu_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate_dw, float *dbias,
                                   bool accumulate_dbias);

void cpu_conv_backward_bias(const ym_tensor *dy, float *dbias, bool accumulate);

size_t cpu_norm_scratch_bytes(const ym_tensor *x);
ym_status cpu_norm_statistics(ym_context *context, const ym_tensor *x,
                              const ym_norm *norm, float *mean, float *rstd);
ym_status cpu_norm_moments(ym_context *context, const ym_tensor *x, double *part);
ym_status cpu_brick_forward(ym_context *context, const ym_brick *brick, ym_tensor *out);
size_t cpu_brick_scratch_bytes(const ym_tensor *out);
ym_status cpu_brick_backward(ym_context *context, const ym_brick *brick,
                             const ym_tensor *dout, ym_term_gradient gradient[2]);

ym_status cpu_max_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y);
ym_status cpu_max_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                bool accumulate);
ym_status cpu_avg_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y);
ym_status cpu_avg_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate);

ym_status cpu_nearest_forward(ym_context *context, const ym_resize *resize,
                              const ym_tensor *x, ym_tensor *y);
ym_status cpu_nearest_backward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate);
ym_status cpu_bilinear_forward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *x, ym_tensor *y);
ym_status cpu_bilinear_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate);
size_t cpu_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y);
ym_status cpu_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y);
ym_status cpu_maximum_backward(ym_context *context, const ym_tensor *x,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate);
size_t cpu_multiply_scratch_bytes(const ym_tensor *a, const ym_tensor *b,
                                  const ym_tensor *y);
ym_status cpu_multiply(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                       double scale, ym_tensor *y, bool accumulate);
ym_status cpu_copy(ym_context *context, const ym_tensor *x, ym_tensor *y,
                   bool accumulate);
ym_status cpu_fill_zero(ym_context *context, ym_tensor *y);
ym_status cpu_pack_planes(ym_context *context, const ym_tensor *x, ym_tensor *y);

ym_status cpu_mosaic(ym_context *context, const struct ym_mosaic_job *job);

#endif
