/* SPDX-License-Identifier: MIT
 *
 * Max pooling. The maximum is the first in row-major order, a NaN wins; backward finds
 * it again for every window over a pixel, so no index is ever stored.
 */
#include "cuda/pool.cuh"

#include <math.h>

namespace
{

/* The largest value of a window for each channel, and its place in the image. */
template <typename T, int V>
__device__ __forceinline__ void
find_maximum(const cuda_values<T> &x, int32_t n, cuda_window rows, cuda_window columns,
             int32_t c, float (&most)[V], int32_t (&place)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        most[v] = -INFINITY;
        place[v] = -1;
    }
    for (int32_t h = rows.first; h < rows.end; h++) {
        for (int32_t w = columns.first; w < columns.end; w++) {
            float value[V];
            load<T, V>(x.at(n, h, w, c), value);
#pragma unroll
            for (int v = 0; v < V; v++) {
                if (place[v] < 0 || value[v] > most[v] || value[v] != value[v]) {
                    most[v] = value[v];
                    place[v] = h * x.w + w;
                }
            }
        }
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    max_pool_forward_kernel(ym_pool pool, cuda_values<T> x, cuda_values<T> y,
                            int32_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, y.h, y.w);
    float most[V];
    int32_t place[V];
    find_maximum<T, V>(x, at.n, cuda_rows(pool, at.y, x.h),
                       cuda_columns(pool, at.x, x.w), c, most, place);
    store<T, V>(y.at(p, c), most);
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    max_pool_backward_kernel(ym_pool pool, cuda_values<T> x, cuda_values<T> dy,
                             cuda_values<T> dx, int32_t pixels, int32_t channels,
                             bool accumulate)
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
    float sum[V] = {};
    for (int32_t oh = over_h.first; oh < over_h.end; oh++) {
        const cuda_window rows = cuda_rows(pool, oh, x.h);
        for (int32_t ow = over_w.first; ow < over_w.end; ow++) {
            float most[V], d[V];
            int32_t place[V];
            find_maximum<T, V>(x, at.n, rows, cuda_columns(pool, ow, x.w), c, most,
                               place);
            load<T, V>(dy.at(at.n, oh, ow, c), d);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += place[v] == at.y * x.w + at.x ? d[v] : 0.0f;
            }
        }
    }
    put<T, V>(dx.at(p, c), sum, accumulate);
}

} // namespace

ym_status cuda_max_pool_forward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "max pool", y));
    const int32_t pixels = (int32_t)ym_pixels(y);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x) && cuda_is_wide(*y),
        const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((max_pool_forward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, *pool, cuda_values<T>(*x),
                  cuda_values<T>(*y), pixels, x->c));
    return cuda_launched(context, "max_pool_forward_kernel");
}

ym_status cuda_max_pool_backward(ym_context *context, const ym_pool *pool,
                                 const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                 bool accumulate)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "max pool backward", dx));
    const int32_t pixels = (int32_t)ym_pixels(dx);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x) && cuda_is_wide(*dy) && cuda_is_wide(*dx),
        const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((max_pool_backward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, *pool, cuda_values<T>(*x),
                  cuda_values<T>(*dy), cuda_values<T>(*dx), pixels, x->c, accumulate));
    return cuda_launched(context, "max_pool_backward_kernel");
}
