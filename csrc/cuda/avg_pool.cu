/* SPDX-License-Identifier: MIT
 * Average pooling: both directions gather, so sums have a fixed order.
 */
#include "cuda/pool.cuh"

namespace
{

__device__ __forceinline__ float divisor(const ym_pool &pool, cuda_window h,
                                         cuda_window w)
{
    return pool.count_include_pad ? (float)h.padded * (float)w.padded
                                  : (float)(h.end - h.first) * (float)(w.end - w.first);
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    avg_pool_forward_kernel(ym_pool pool, cuda_values<T> x, cuda_values<T> y,
                            int32_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, y.h, y.w);
    const cuda_window rows = cuda_rows(pool, at.y, x.h);
    const cuda_window columns = cuda_columns(pool, at.x, x.w);
    const float count = divisor(pool, rows, columns);
    float sum[V] = {}, value[V];
    for (int32_t h = rows.first; h < rows.end; h++) {
        for (int32_t w = columns.first; w < columns.end; w++) {
            load<T, V>(x.at(at.n, h, w, c), value);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += value[v];
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        sum[v] /= count;
    }
    store<T, V>(y.at(p, c), sum);
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    avg_pool_backward_kernel(ym_pool pool, cuda_values<T> dy, cuda_values<T> dx,
                             int32_t pixels, int32_t channels, bool accumulate)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, dx.h, dx.w);
    const cuda_window over_h =
        cuda_windows_over(at.y, pool.kernel_h, pool.stride_h, pool.pad_h, dy.h);
    const cuda_window over_w =
        cuda_windows_over(at.x, pool.kernel_w, pool.stride_w, pool.pad_w, dy.w);
    float sum[V] = {}, d[V];
    for (int32_t oh = over_h.first; oh < over_h.end; oh++) {
        const cuda_window rows = cuda_rows(pool, oh, dx.h);
        for (int32_t ow = over_w.first; ow < over_w.end; ow++) {
            const float count = divisor(pool, rows, cuda_columns(pool, ow, dx.w));
            load<T, V>(dy.at(at.n, oh, ow, c), d);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += d[v] / count;
            }
        }
    }
    put<T, V>(dx.at(p, c), sum, accumulate);
}

} // namespace

ym_status cuda_avg_pool_forward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "average pool", y));
    const int32_t pixels = (int32_t)ym_pixels(y);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x) && cuda_is_wide(*y),
        const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((avg_pool_forward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, *pool, cuda_values<T>(*x),
                  cuda_values<T>(*y), pixels, x->c));
    return cuda_launched(context, "avg_pool_forward_kernel");
}

ym_status cuda_avg_pool_backward(ym_context *context, const ym_pool *pool,
                                 const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "average pool backward", dx));
    const int32_t pixels = (int32_t)ym_pixels(dx);
    YM_WITH_TYPE_AND_WIDTH(
        dx->dtype, cuda_is_wide(*dy) && cuda_is_wide(*dx),
        const cuda_tiles tiles = cuda_divide(dx->c, V);
        YM_LAUNCH((avg_pool_backward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, *pool, cuda_values<T>(*dy),
                  cuda_values<T>(*dx), pixels, dx->c, accumulate));
    return cuda_launched(context, "avg_pool_backward_kernel");
}
