/* SPDX-License-Identifier: MIT
 *
 * The table of the CPU's kernels: what is fast in vectors and threads is cpu's own.
 */
#include "cpu/cpu.h"
#include "ref/ref.h"

static const ym_backend backend = {
    .api_version = YM_BACKEND_API_VERSION,
    .name = "cpu",
    .capabilities = YM_CAP_STRIDED_CONV,
    .conv_scratch_bytes = cpu_conv_scratch_bytes,
    .conv_forward = cpu_conv_forward,
    .conv_backward_data = cpu_conv_backward_data,
    .conv_backward_weight = cpu_conv_backward_weight,
    .norm_scratch_bytes = cpu_norm_scratch_bytes,
    .norm_statistics = cpu_norm_statistics,
    .norm_moments = cpu_norm_moments,
    .norm_merge = ref_norm_merge, /* few numbers */
    .brick_forward = cpu_brick_forward,
    .brick_scratch_bytes = cpu_brick_scratch_bytes,
    .brick_backward = cpu_brick_backward,
    .max_pool_forward = cpu_max_pool_forward,
    .max_pool_backward = cpu_max_pool_backward,
    .avg_pool_forward = cpu_avg_pool_forward,
    .avg_pool_backward = cpu_avg_pool_backward,
    .nearest_forward = cpu_nearest_forward,
    .nearest_backward = cpu_nearest_backward,
    .bilinear_forward = cpu_bilinear_forward,
    .bilinear_backward = cpu_bilinear_backward,
    .maximum_scratch_bytes = cpu_maximum_scratch_bytes,
    .maximum_forward = cpu_maximum_forward,
    .maximum_backward = cpu_maximum_backward,
    .multiply_scratch_bytes = cpu_multiply_scratch_bytes,
    .multiply = cpu_multiply,
    .copy = cpu_copy,
    .fill_zero = cpu_fill_zero,
    .pack_planes = cpu_pack_planes,
    .mosaic = cpu_mosaic,
    .sgd_norm = cpu_sgd_norm,
    .sgd_step = cpu_sgd_step,
};

const ym_backend *ym_cpu_backend(void)
{
    return &backend;
}
