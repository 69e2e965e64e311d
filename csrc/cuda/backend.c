/* SPDX-License-Identifier: MIT
 *
 * The two tables of backend "cuda". They differ in the convolutions: cuDNN takes packed
 * tensors only, so the planner packs a slice where one meets a convolution.
 */
#include "cuda/cuda.h"

#include "cuda/conv_cudnn.h"
#include "cuda/mosaic.h"
#include "cuda/replay.h"
#include "cuda/sgd.h"
#include "cuda/weight.h"

/* All but the convolutions. */
#define COMMON_ENTRIES                                                                \
    .api_version = YM_BACKEND_API_VERSION,                                            \
    .norm_scratch_bytes = cuda_norm_scratch_bytes,                                    \
    .norm_statistics = cuda_norm_statistics, .norm_moments = cuda_norm_moments,       \
    .norm_merge = cuda_norm_merge, .brick_forward = cuda_brick_forward,               \
    .brick_scratch_bytes = cuda_brick_scratch_bytes,                                  \
    .brick_backward = cuda_brick_backward, .max_pool_forward = cuda_max_pool_forward, \
    .max_pool_backward = cuda_max_pool_backward,                                      \
    .avg_pool_forward = cuda_avg_pool_forward,                                        \
    .avg_pool_backward = cuda_avg_pool_backward,                                      \
    .nearest_forward = cuda_nearest_forward,                                          \
    .nearest_backward = cuda_nearest_backward,                                        \
    .bilinear_forward = cuda_bilinear_forward,                                        \
    .bilinear_backward = cuda_bilinear_backward,                                      \
    .maximum_scratch_bytes = cuda_maximum_scratch_bytes,                              \
    .maximum_forward = cuda_maximum_forward,                                          \
    .maximum_backward = cuda_maximum_backward,                                        \
    .multiply_scratch_bytes = cuda_multiply_scratch_bytes, .multiply = cuda_multiply, \
    .copy = cuda_copy, .fill_zero = cuda_fill_zero, .pack_planes = cuda_pack_planes,  \
    .make_replayer = cuda_make_replayer, .mosaic = cuda_mosaic,                       \
    .sgd_norm = cuda_sgd_norm, .sgd_step = cuda_sgd_step

const ym_backend *ym_cuda_backend(void)
{
    static const ym_backend backend = {
        COMMON_ENTRIES,
        .name = "cuda",
        .capabilities = 0,
        .packed_weight_bytes = cudnn_packed_weight_bytes,
        .pack_weights = cuda_pack_weights,
        .conv_scratch_bytes = cudnn_conv_scratch_bytes,
        .conv_forward = cudnn_conv_forward,
        .conv_backward_data = cudnn_conv_backward_data,
        .conv_backward_weight = cudnn_conv_backward_weight,
    };
    return &backend;
}

const ym_backend *ym_cuda_plain_backend(void)
{
    static const ym_backend backend = {
        COMMON_ENTRIES,
        .name = "cuda (without cuDNN)",
        .capabilities = YM_CAP_STRIDED_CONV,
        .conv_scratch_bytes = cuda_plain_conv_scratch_bytes,
        .conv_forward = cuda_plain_conv_forward,
        .conv_backward_data = cuda_plain_conv_backward_data,
        .conv_backward_weight = cuda_plain_conv_backward_weight,
    };
    return &backend;
}
