/* SPDX-License-Identifier: MIT
 *
 * Nearest upsampling, places in float as torch (math/nearest.h). Backward gathers the
 * outputs of each input pixel.
 */
#include "cuda/pool.cuh"
#include "math/nearest.h"

namespace
{

/* The first output of input i; the guess is a little low for every rounding. */
__device__ __forceinline__ int32_t first_output(int32_t i, float scale, int32_t size,
                                                int32_t outputs)
{
    const float guess = (float)i / scale - 2.0f;
    int32_t o = guess > 0.0f ? (int32_t)guess : 0;
    while (o < outputs && ym_nearest_source(o, scale, size) < i) {
        o++;
    }
    return o;
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    nearest_forward_kernel(float scale_h, float scale_w, cuda_values<T> x,
                           cuda_values<T> y, int32_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, y.h, y.w);
    float value[V];
    load<T, V>(x.at(at.n, ym_nearest_source(at.y, scale_h, x.h),
                    ym_nearest_source(at.x, scale_w, x.w), c),
               value);
    store<T, V>(y.at(p, c), value);
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    nearest_backward_kernel(float scale_h, float scale_w, cuda_values<T> dy,
                            cuda_values<T> dx, int32_t pixels, int32_t channels,
                            bool accumulate)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, dx.h, dx.w);
    const int32_t first_w = first_output(at.x, scale_w, dx.w, dy.w);
    float sum[V] = {}, d[V];
    for (int32_t oh = first_output(at.y, scale_h, dx.h, dy.h);
         oh < dy.h && ym_nearest_source(oh, scale_h, dx.h) == at.y; oh++) {
        for (int32_t ow = first_w;
             ow < dy.w && ym_nearest_source(ow, scale_w, dx.w) == at.x; ow++) {
            load<T, V>(dy.at(at.n, oh, ow, c), d);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += d[v];
            }
        }
    }
    put<T, V>(dx.at(p, c), sum, accumulate);
}

} // namespace

ym_status cuda_nearest_forward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *x, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "nearest upsampling", y));
    const int32_t pixels = (int32_t)ym_pixels(y);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x) && cuda_is_wide(*y),
        const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((nearest_forward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, resize->scale_h, resize->scale_w,
                  cuda_values<T>(*x), cuda_values<T>(*y), pixels, x->c));
    return cuda_launched(context, "nearest_forward_kernel");
}

ym_status cuda_nearest_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "nearest upsampling backward", dx));
    const int32_t pixels = (int32_t)ym_pixels(dx);
    YM_WITH_TYPE_AND_WIDTH(
        dx->dtype, cuda_is_wide(*dy) && cuda_is_wide(*dx),
        const cuda_tiles tiles = cuda_divide(dx->c, V);
        YM_LAUNCH((nearest_backward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, resize->scale_h, resize->scale_w,
                  cuda_values<T>(*dy), cuda_values<T>(*dx), pixels, dx->c, accumulate));
    return cuda_launched(context, "nearest_backward_kernel");
}
