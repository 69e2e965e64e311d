/* SPDX-License-Identifier: MIT
 * Bilinear resizing, weights in float as torch (math/bilinear.h). Backward gathers the
 * outputs that have something of each input pixel, so sums have a fixed order.
 */
#include "cuda/pool.cuh"
#include "math/bilinear.h"

namespace
{

template <int V>
__device__ __forceinline__ void add_scaled(float (&sum)[V], float weight,
                                           const float (&value)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        sum[v] += weight * value[v];
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    bilinear_forward_kernel(ym_side rows, ym_side columns, cuda_values<T> x,
                            cuda_values<T> y, int32_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, y.h, y.w);
    const ym_between h = ym_between_of(rows, at.y), w = ym_between_of(columns, at.x);
    cuda_pack<T, V> pack[4]; /* all fetched before the first is used */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pack[i] = fetch<T, V>(x.at(at.n, h.source[i / 2], w.source[i % 2], c));
    }
    float sum[V] = {}, value[V];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        unpack<T, V>(pack[i], value);
        add_scaled<V>(sum, h.weight[i / 2] * w.weight[i % 2], value);
    }
    store<T, V>(y.at(p, c), sum);
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    bilinear_backward_kernel(ym_side rows, ym_side columns, cuda_values<T> dy,
                             cuda_values<T> dx, int32_t pixels, int32_t channels,
                             bool accumulate)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, dx.h, dx.w);
    const int32_t first_w = ym_first_output(columns, at.x - 1);
    const int32_t end_w = ym_first_output(columns, at.x + 1);
    const int32_t end_h = ym_first_output(rows, at.y + 1);
    float sum[V] = {}, d[V];
    for (int32_t oh = ym_first_output(rows, at.y - 1); oh < end_h; oh++) {
        const float of_row = ym_weight_of(rows, oh, at.y);
        for (int32_t ow = first_w; ow < end_w; ow++) {
            load<T, V>(dy.at(at.n, oh, ow, c), d);
            add_scaled<V>(sum, of_row * ym_weight_of(columns, ow, at.x), d);
        }
    }
    put<T, V>(dx.at(p, c), sum, accumulate);
}

} // namespace

ym_status cuda_bilinear_forward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *x, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "bilinear", y));
    const ym_side rows = ym_rows_between(resize, x, y);
    const ym_side columns = ym_columns_between(resize, x, y);
    const int32_t pixels = (int32_t)ym_pixels(y);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x) && cuda_is_wide(*y),
        const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((bilinear_forward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, rows, columns, cuda_values<T>(*x),
                  cuda_values<T>(*y), pixels, x->c));
    return cuda_launched(context, "bilinear_forward_kernel");
}

ym_status cuda_bilinear_backward(ym_context *context, const ym_resize *resize,
                                 const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "bilinear backward", dx));
    const ym_side rows = ym_rows_between(resize, dx, dy);
    const ym_side columns = ym_columns_between(resize, dx, dy);
    const int32_t pixels = (int32_t)ym_pixels(dx);
    YM_WITH_TYPE_AND_WIDTH(
        dx->dtype, cuda_is_wide(*dy) && cuda_is_wide(*dx),
        const cuda_tiles tiles = cuda_divide(dx->c, V);
        YM_LAUNCH((bilinear_backward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, rows, columns, cuda_values<T>(*dy),
                  cuda_values<T>(*dx), pixels, dx->c, accumulate));
    return cuda_launched(context, "bilinear_backward_kernel");
}
