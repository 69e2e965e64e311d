/* SPDX-License-Identifier: MIT
 *
 * The table of the reference: every kernel in plain loops.
 */
#include "ref/ref.h"

const ym_backend *ym_ref_backend(void)
{
    static const ym_backend backend = {
        .api_version = YM_BACKEND_API_VERSION,
        .name = "ref",
        .capabilities = YM_CAP_STRIDED_CONV,
        .conv_scratch_bytes = ref_conv_scratch_bytes,
        .conv_forward = ref_conv_forward,
        .conv_backward_data = ref_conv_backward_data,
        .conv_backward_weight = ref_conv_backward_weight,
        .norm_scratch_bytes = ref_norm_scratch_bytes,
        .norm_statistics = ref_norm_statistics,
        .norm_moments = ref_norm_moments,
        .norm_merge = ref_norm_merge,
        .brick_forward = ref_brick_forward,
        .brick_scratch_bytes = ref_brick_scratch_bytes,
        .brick_backward = ref_brick_backward,
        .max_pool_forward = ref_max_pool_forward,
        .max_pool_backward = ref_max_pool_backward,
        .avg_pool_forward = ref_avg_pool_forward,
        .avg_pool_backward = ref_avg_pool_backward,
        .nearest_forward = ref_nearest_forward,
        .nearest_backward = ref_nearest_backward,
        .bilinear_forward = ref_bilinear_forward,
        .bilinear_backward = ref_bilinear_backward,
        .maximum_scratch_bytes = ref_maximum_scratch_bytes,
        .maximum_forward = ref_maximum_forward,
        .maximum_backward = ref_maximum_backward,
        .multiply_scratch_bytes = ref_multiply_scratch_bytes,
        .multiply = ref_multiply,
        .copy = ref_copy,
        .fill_zero = ref_fill_zero,
        .pack_planes = ref_pack_planes,
        .mosaic = ref_mosaic,
        .sgd_norm = ref_sgd_norm,
        .sgd_step = ref_sgd_step,
    };
    return &backend;
}
