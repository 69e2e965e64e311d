/* SPDX-License-Identifier: MIT
 * y (+)= x of any pitches, a cast where the types differ; and zeros.
 */
#include "cuda/tiles.cuh"

namespace
{

const int EACH = 4; /* pixels of a thread */

template <typename FROM, typename TO, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    copy_kernel(cuda_values<FROM> x, cuda_values<TO> y, int64_t pixels,
                int32_t channels, bool accumulate)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t step = blockDim.y, first = blockIdx.x * (EACH * step) + threadIdx.y;
    cuda_pack<FROM, V> pack[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (c < channels && p < pixels) {
            pack[i] = fetch<FROM, V>(x.at(p, c));
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (c < channels && p < pixels) {
            float value[V];
            unpack<FROM, V>(pack[i], value);
            put<TO, V>(y.at(p, c), value, accumulate);
        }
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    zero_kernel(cuda_values<T> y, int64_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t step = blockDim.y, first = blockIdx.x * (EACH * step) + threadIdx.y;
    const float zero[V] = {};
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (c < channels && p < pixels) {
            store<T, V>(y.at(p, c), zero);
        }
    }
}

template <typename FROM>
void launch_cast(ym_context *context, const ym_tensor *x, ym_tensor *y, bool accumulate)
{
    const int64_t pixels = ym_pixels(y);
    const cuda_tiles tiles = cuda_divide(y->c, 1);
    const dim3 grid = cuda_pixel_grid(tiles, pixels, EACH), block = cuda_block(tiles);
    const cuda_values<FROM> from(*x);
    YM_WITH_TYPE(y->dtype,
                 YM_LAUNCH((copy_kernel<FROM, T, 1>), grid, block, context, from,
                           cuda_values<T>(*y), pixels, y->c, accumulate));
}

} // namespace

ym_status cuda_copy(ym_context *context, const ym_tensor *x, ym_tensor *y,
                    bool accumulate)
{
    const cuda_device_guard guard(context);
    const int64_t pixels = ym_pixels(y);
    if (x->dtype != y->dtype) {
        YM_WITH_TYPE(x->dtype, launch_cast<T>(context, x, y, accumulate));
        return cuda_launched(context, "copy_kernel");
    }
    YM_WITH_TYPE_AND_WIDTH(y->dtype, cuda_is_wide(*x) && cuda_is_wide(*y),
                           const cuda_tiles tiles = cuda_divide(y->c, V);
                           YM_LAUNCH((copy_kernel<T, T, V>),
                                     cuda_pixel_grid(tiles, pixels, EACH),
                                     cuda_block(tiles), context, cuda_values<T>(*x),
                                     cuda_values<T>(*y), pixels, y->c, accumulate));
    return cuda_launched(context, "copy_kernel");
}

ym_status cuda_fill_zero(ym_context *context, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    const int64_t pixels = ym_pixels(y);
    if (y->pitch == y->c) {
        const size_t bytes = (size_t)pixels * (size_t)y->c * ym_dtype_bytes(y->dtype);
        return cuda_check(
            context, cudaMemsetAsync(y->data, 0, bytes, (cudaStream_t)context->stream),
            "cudaMemsetAsync");
    }
    YM_WITH_TYPE_AND_WIDTH(
        y->dtype, cuda_is_wide(*y), const cuda_tiles tiles = cuda_divide(y->c, V);
        YM_LAUNCH((zero_kernel<T, V>), cuda_pixel_grid(tiles, pixels, EACH),
                  cuda_block(tiles), context, cuda_values<T>(*y), pixels, y->c));
    return cuda_launched(context, "zero_kernel");
}
