/* SPDX-License-Identifier: MIT
 *
 * Backend "ref": each entry as plain loops over single elements with double sums. It is
 * the specification that the other backends are compared with.
 */
#ifndef YM_REF_REF_H
#define YM_REF_REF_H

#include "core/backend.h"
#include "math/bf16.h"
#include "ref/sgd.h"

struct ym_mosaic_job;

/* Where element (n, h, w, c) of x lies. */
static inline int64_t ref_index(const ym_tensor *x, int32_t n, int32_t h, int32_t w,
                                int32_t c)
{
    return ym_pixel_index(x, n, h, w) * x->pitch + c;
}

static inline int64_t ref_index_of(const ym_tensor *x, ym_extent at)
{
    return ref_index(x, at.n, at.h, at.w, at.c);
}

static inline int64_t ref_count(const ym_tensor *x)
{
    return ym_pixels(x) * x->c;
}

/* Which element is number i of ref_count(x), c counting fastest. */
static inline ym_extent ref_element(const ym_tensor *x, int64_t i)
{
    const int64_t p = i / x->c;
    return (ym_extent){.n = (int32_t)(p / x->w / x->h),
                       .h = (int32_t)(p / x->w % x->h),
                       .w = (int32_t)(p % x->w),
                       .c = (int32_t)(i % x->c)};
}

static inline double ref_load(const ym_tensor *x, int64_t index)
{
    if (x->dtype == YM_BF16) {
        return ym_bf16_to_f32(((const uint16_t *)x->data)[index]);
    }
    return ((const float *)x->data)[index];
}

static inline void ref_store(ym_tensor *x, int64_t index, double value)
{
    if (x->dtype == YM_BF16) {
        ((uint16_t *)x->data)[index] = ym_f32_to_bf16((float)value);
    } else {
        ((float *)x->data)[index] = (float)value;
    }
}

static inline void ref_put(ym_tensor *x, int64_t index, double value, bool accumulate)
{
    ref_store(x, index, accumulate ? ref_load(x, index) + value : value);
}

size_t ref_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                              const ym_tensor *x, const ym_tensor *y);
ym_status ref_conv_forward(ym_context *context, const ym_conv *conv, const ym_tensor *x,
                           const ym_weight *w, const float *bias, ym_tensor *y);
ym_status ref_conv_backward_data(ym_context *context, const ym_conv *conv,
                                 const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                                 bool accumulate);
ym_status ref_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate_dw, float *dbias,
                                   bool accumulate_dbias);

size_t ref_norm_scratch_bytes(const ym_tensor *x);
ym_status ref_norm_statistics(ym_context *context, const ym_tensor *x,
                              const ym_norm *norm, float *mean, float *rstd);
ym_status ref_norm_moments(ym_context *context, const ym_tensor *x, double *part);
ym_status ref_norm_merge(ym_context *context, const double *parts, int32_t channels,
                         const ym_norm *norm, float *mean, float *rstd);
ym_status ref_brick_forward(ym_context *context, const ym_brick *brick, ym_tensor *out);
size_t ref_brick_scratch_bytes(const ym_tensor *out);
ym_status ref_brick_backward(ym_context *context, const ym_brick *brick,
                             const ym_tensor *dout, ym_term_gradient gradient[2]);

ym_status ref_max_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y);
ym_status ref_max_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                bool accumulate);
ym_status ref_avg_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y);
ym_status ref_avg_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate);

ym_status ref_nearest_forward(ym_context *context, const ym_resize *resize,
                              const ym_tensor *x, ym_tensor *y);
ym_status ref_nearest_backward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate);
ym_status ref_bilinear_forward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *x, ym_tensor *y);
ym_status ref_bilinear_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate);
size_t ref_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y);
ym_status ref_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y);
ym_status ref_maximum_backward(ym_context *context, const ym_tensor *x,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate);
size_t ref_multiply_scratch_bytes(const ym_tensor *a, const ym_tensor *b,
                                  const ym_tensor *y);
ym_status ref_multiply(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                       double scale, ym_tensor *y, bool accumulate);
ym_status ref_copy(ym_context *context, const ym_tensor *x, ym_tensor *y,
                   bool accumulate);
ym_status ref_fill_zero(ym_context *context, ym_tensor *y);
ym_status ref_pack_planes(ym_context *context, const ym_tensor *x, ym_tensor *y);

ym_status ref_mosaic(ym_context *context, const struct ym_mosaic_job *job);

#endif
