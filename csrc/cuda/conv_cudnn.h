/* SPDX-License-Identifier: MIT
 *
 * Convolutions by cuDNN 9, found when first needed; where it has no engine for a case,
 * by the plain kernels. Tensors are packed. The sizes of scratch are those of the
 * current device.
 */
#ifndef YM_CUDA_CONV_CUDNN_H
#define YM_CUDA_CONV_CUDNN_H

#include "cuda/cuda.h"

size_t cudnn_packed_weight_bytes(const ym_conv *conv, const ym_tensor *x,
                                 const ym_tensor *y);
size_t cudnn_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                                const ym_tensor *x, const ym_tensor *y);
ym_status cudnn_conv_forward(ym_context *context, const ym_conv *conv,
                             const ym_tensor *x, const ym_weight *w, const float *bias,
                             ym_tensor *y);
ym_status cudnn_conv_backward_data(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *dy, const ym_weight *w,
                                   ym_tensor *dx, bool accumulate);
ym_status cudnn_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                     const ym_tensor *x, const ym_tensor *dy,
                                     ym_weight *dw, bool accumulate_dw, float *dbias,
                                     bool accumulate_dbias);

#endif
