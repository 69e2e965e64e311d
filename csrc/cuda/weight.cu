/* SPDX-License-Identifier: MIT
 * Weights between float32 with any strides and packed (K, R, S, C); and the bias.
 */
#include "cuda/weight.h"

#include "cuda/tiles.cuh"

namespace
{

const int EACH = 4;             /* pixels of a thread */
const int64_t PACK_SPAN = 2048; /* elements that a block packs */

/* Weights as a kernel's argument, each with the number of its first block. */
struct pack_job {
    int32_t count;
    uint32_t first_block[YM_WEIGHTS_AT_ONCE];
    ym_weight w[YM_WEIGHTS_AT_ONCE];
};
static_assert(sizeof(pack_job) <= 4096, "more than a kernel takes as arguments");

/* Where element i of the packed weight is. */
__device__ __forceinline__ int64_t place_of(const ym_weight &w, int64_t i)
{
    const int32_t taps = w.r * w.s * w.c;
    /* A GPU divides 64 bits slowly, and hardly any weight needs them. */
    const int64_t k = i >> 32 == 0 ? (uint32_t)i / (uint32_t)taps : i / taps;
    const int32_t rest = (int32_t)(i - k * taps), tap = rest / w.c;
    const int64_t c = rest - tap * w.c, r = tap / w.s, s = tap - r * w.s;
    return k * w.stride_k + c * w.stride_c + r * w.stride_r + s * w.stride_s;
}

template <typename T>
__global__ void __launch_bounds__(YM_BLOCK) pack_weights_kernel(pack_job job)
{
    int32_t at = 0;
    while (at + 1 < job.count && job.first_block[at + 1] <= blockIdx.x) {
        at++;
    }
    const ym_weight w = job.w[at];
    T *packed = static_cast<T *>(w.packed);
    const int64_t count = (int64_t)w.k * w.c * w.r * w.s;
    const int64_t first = (blockIdx.x - job.first_block[at]) * PACK_SPAN;
    const int64_t end = first + PACK_SPAN < count ? first + PACK_SPAN : count;
    for (int64_t i = first + threadIdx.x; i < end; i += YM_BLOCK) {
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
    if (c >= channels) {
        return;
    }
    float added[V], value[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        added[v] = bias[c + v];
    }
    for (int64_t p = first; p < first + EACH * step && p < pixels; p += step) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            value[v] = added[v];
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

ym_status cuda_pack_weights(ym_context *context, const ym_weight *w, int32_t count,
                            ym_dtype dtype)
{
    const cuda_device_guard guard(context);
    pack_job job;
    job.count = count;
    int64_t blocks = 0;
    for (int32_t i = 0; i < count; i++) {
        job.first_block[i] = (uint32_t)blocks;
        job.w[i] = w[i];
        blocks += (count_of(&w[i]) + PACK_SPAN - 1) / PACK_SPAN;
    }
    YM_WITH_TYPE(dtype, YM_LAUNCH((pack_weights_kernel<T>), dim3((unsigned)blocks),
                                  dim3(YM_BLOCK), context, job));
    return cuda_launched(context, "pack_weights_kernel");
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
