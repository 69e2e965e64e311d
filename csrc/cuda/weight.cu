/* SPDX-License-Identifier: MIT
 * Weights between float32 with any strides and packed (K, R, S, C); and the bias.
 */
#include "cuda/weight.h"

#include "cuda/tiles.cuh"

namespace
{

const int EACH = 4; /* pixels of a thread */

__device__ __forceinline__ int64_t place_of(const ym_weight &w, int64_t i)
{
    const int64_t c = i % w.c, s = i / w.c % w.s, r = i / w.c / w.s % w.r;
    const int64_t k = i / w.c / w.s / w.r;
    return k * w.stride_k + c * w.stride_c + r * w.stride_r + s * w.stride_s;
}

template <typename T>
__global__ void __launch_bounds__(YM_BLOCK)
    pack_weight_kernel(ym_weight w, int64_t count, T *packed)
{
    const int64_t i = (int64_t)blockIdx.x * YM_BLOCK + threadIdx.x;
    if (i < count) {
        from_float(w.data[place_of(w, i)], &packed[i]);
    }
}

template <typename T>
__global__ void __launch_bounds__(YM_BLOCK)
    unpack_weight_kernel(const T *packed, int64_t count, ym_weight dw, bool accumulate)
{
    const int64_t i = (int64_t)blockIdx.x * YM_BLOCK + threadIdx.x;
    if (i < count) {
        float *to = &dw.data[place_of(dw, i)];
        const float value = to_float(packed[i]);
        *to = accumulate ? *to + value : value;
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    add_bias_kernel(const float *bias, cuda_values<T> y, int64_t pixels,
                    int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t step = blockDim.y, first = blockIdx.x * (EACH * step) + threadIdx.y;
    for (int64_t p = first; c < channels && p < first + EACH * step && p < pixels;
         p += step) {
        float value[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
            value[v] = bias[c + v];
        }
        put<T, V>(y.at(p, c), value, true);
    }
}

int64_t count_of(const ym_weight *w)
{
    return (int64_t)w->k * w->c * w->r * w->s;
}

dim3 grid_of(int64_t count)
{
    return dim3((unsigned)((count + YM_BLOCK - 1) / YM_BLOCK));
}

} // namespace

ym_status cuda_pack_weight(ym_context *context, const ym_weight *w, ym_dtype dtype,
                           void *packed)
{
    const cuda_device_guard guard(context);
    const int64_t count = count_of(w);
    YM_WITH_TYPE(dtype,
                 YM_LAUNCH((pack_weight_kernel<T>), grid_of(count), dim3(YM_BLOCK),
                           context, *w, count, static_cast<T *>(packed)));
    return cuda_launched(context, "pack_weight_kernel");
}

ym_status cuda_unpack_weight(ym_context *context, const void *packed, ym_dtype dtype,
                             ym_weight *dw, bool accumulate)
{
    const cuda_device_guard guard(context);
    const int64_t count = count_of(dw);
    YM_WITH_TYPE(dtype,
                 YM_LAUNCH((unpack_weight_kernel<T>), grid_of(count), dim3(YM_BLOCK),
                           context, static_cast<const T *>(packed), count, *dw,
                           accumulate));
    return cuda_launched(context, "unpack_weight_kernel");
}

ym_status cuda_add_bias(ym_context *context, const float *bias, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    const int64_t pixels = ym_pixels(y);
    YM_WITH_TYPE_AND_WIDTH(
        y->dtype, cuda_is_wide(*y), const cuda_tiles tiles = cuda_divide(y->c, V);
        YM_LAUNCH((add_bias_kernel<T, V>), cuda_pixel_grid(tiles, pixels, EACH),
                  cuda_block(tiles), context, bias, cuda_values<T>(*y), pixels, y->c));
    return cuda_launched(context, "add_bias_kernel");
}
