/* SPDX-License-Identifier: MIT
 *
 * Backend "cuda": what its files share. Entries put their kernels on context->stream of
 * context->device. What a plan runs returns without waiting, allocates no memory and
 * copies nothing between host and device, so that a stream may be captured; but the
 * first convolution of its shape may make cuDNN's plan (cudnn_cache.h), which a capture
 * refuses, and time others (cudnn_trials.h), which waits and is left out of a capture.
 * The mosaic and the optimizer step copy a table from the host, which a capture
 * refuses, and sgd_norm waits for its answer. Sums have a fixed order: two runs give
 * the same bits.
 */
#ifndef YM_CUDA_CUDA_H
#define YM_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "core/backend.h"
#include "core/sharing.h"

/* With cuDNN for convolutions (packed tensors only), or with kernels of our own. */
const ym_backend *ym_cuda_backend(void);
const ym_backend *ym_cuda_plain_backend(void);

/* YM_OK, or an error that names the call and says what to do about it. */
ym_status cuda_check(ym_context *context, cudaError_t result, const char *call);
/* What became of the launch of a kernel. */
ym_status cuda_launched(ym_context *context, const char *kernel);
/* Makes the context's device current; what it returns goes to cuda_leave_device. */
int cuda_enter_device(const ym_context *context);
void cuda_leave_device(int previous);
/* Of the context's device, which is the current one. */
int32_t cuda_multiprocessors(const ym_context *context);
ym_status cuda_require_scratch(ym_context *context, const char *call, size_t bytes);
/* Whether the stream is being captured, or nothing can be told about it. */
bool cuda_is_captured(const ym_context *context);
/* YM_OK, or an error for a call that a capture does not allow. */
ym_status cuda_require_no_capture(ym_context *context, const char *call);

size_t cuda_plain_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                                     const ym_tensor *x, const ym_tensor *y);
ym_status cuda_plain_conv_forward(ym_context *context, const ym_conv *conv,
                                  const ym_tensor *x, const ym_weight *w,
                                  const float *bias, ym_tensor *y);
ym_status cuda_plain_conv_backward_data(ym_context *context, const ym_conv *conv,
                                        const ym_tensor *dy, const ym_weight *w,
                                        ym_tensor *dx, bool accumulate);
ym_status cuda_plain_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                          const ym_tensor *x, const ym_tensor *dy,
                                          ym_weight *dw, bool accumulate_dw,
                                          float *dbias, bool accumulate_dbias);
/* dbias (+)= the sum of dy over its pixels. */
size_t cuda_bias_scratch_bytes(const ym_tensor *dy);
ym_status cuda_bias_gradient(ym_context *context, const ym_tensor *dy, float *dbias,
                             bool accumulate);

size_t cuda_norm_scratch_bytes(const ym_tensor *x);
ym_status cuda_norm_statistics(ym_context *context, const ym_tensor *x,
                               const ym_norm *norm, float *mean, float *rstd);
ym_status cuda_norm_moments(ym_context *context, const ym_tensor *x, double *part);
ym_status cuda_norm_merge(ym_context *context, const double *parts, int32_t channels,
                          const ym_norm *norm, float *mean, float *rstd);
ym_status cuda_brick_forward(ym_context *context, const ym_brick *brick,
                             ym_tensor *out);
size_t cuda_brick_scratch_bytes(const ym_tensor *out);
ym_status cuda_brick_backward(ym_context *context, const ym_brick *brick,
                              const ym_tensor *dout, ym_term_gradient gradient[2]);

ym_status cuda_max_pool_forward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, ym_tensor *y);
ym_status cuda_max_pool_backward(ym_context *context, const ym_pool *pool,
                                 const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                 bool accumulate);
ym_status cuda_avg_pool_forward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, ym_tensor *y);
ym_status cuda_avg_pool_backward(ym_context *context, const ym_pool *pool,
                                 const ym_tensor *dy, ym_tensor *dx, bool accumulate);
ym_status cuda_nearest_forward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *x, ym_tensor *y);
ym_status cuda_nearest_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate);
ym_status cuda_bilinear_forward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *x, ym_tensor *y);
ym_status cuda_bilinear_backward(ym_context *context, const ym_resize *resize,
                                 const ym_tensor *dy, ym_tensor *dx, bool accumulate);
size_t cuda_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y);
ym_status cuda_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y);
ym_status cuda_maximum_backward(ym_context *context, const ym_tensor *x,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate);
size_t cuda_multiply_scratch_bytes(const ym_tensor *a, const ym_tensor *b,
                                   const ym_tensor *y);
ym_status cuda_multiply(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                        double scale, ym_tensor *y, bool accumulate);
ym_status cuda_copy(ym_context *context, const ym_tensor *x, ym_tensor *y,
                    bool accumulate);
ym_status cuda_fill_zero(ym_context *context, ym_tensor *y);
ym_status cuda_pack_planes(ym_context *context, const ym_tensor *x, ym_tensor *y);

#ifdef __cplusplus
}
#endif

#endif
