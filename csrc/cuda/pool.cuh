/* SPDX-License-Identifier: MIT
 * Pooling windows: rows [first, end) inside the image, and how many rows the window has
 * when the padding counts.
 */
#ifndef YM_CUDA_POOL_CUH
#define YM_CUDA_POOL_CUH

#include "cuda/tiles.cuh"

struct cuda_window {
    int32_t first, end, padded;
};

__device__ __forceinline__ cuda_window cuda_window_of(int32_t o, int32_t kernel,
                                                      int32_t stride, int32_t pad,
                                                      int32_t size)
{
    const int32_t first = o * stride - pad, end = first + kernel;
    return {first > 0 ? first : 0, end < size ? end : size,
            (end < size + pad ? end : size + pad) - first};
}

__device__ __forceinline__ cuda_window cuda_rows(const ym_pool &pool, int32_t o,
                                                 int32_t h)
{
    return cuda_window_of(o, pool.kernel_h, pool.stride_h, pool.pad_h, h);
}

__device__ __forceinline__ cuda_window cuda_columns(const ym_pool &pool, int32_t o,
                                                    int32_t w)
{
    return cuda_window_of(o, pool.kernel_w, pool.stride_w, pool.pad_w, w);
}

/* The outputs [first, end) whose windows can hold pixel i. */
__device__ __forceinline__ cuda_window cuda_windows_over(int32_t i, int32_t kernel,
                                                         int32_t stride, int32_t pad,
                                                         int32_t outputs)
{
    const int32_t past = i + pad - kernel, last = (i + pad) / stride;
    return {past < 0 ? 0 : past / stride + 1, last + 1 < outputs ? last + 1 : outputs,
            0};
}

/* Calls use(row, column, values) for each pixel of rows and columns of image n, in
 * row-major order. SMALL: they are two rows and columns at most, all fetched before the
 * first is used. */
template <typename T, int V, bool SMALL, typename Use>
__device__ __forceinline__ void cuda_gather(const cuda_values<T> &x, int32_t n,
                                            cuda_window rows, cuda_window columns,
                                            int32_t c, const Use &use)
{
    float value[V];
    if constexpr (SMALL) {
        cuda_pack<T, V> pack[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t row = rows.first + i / 2, column = columns.first + i % 2;
            if (row < rows.end && column < columns.end) {
                pack[i] = fetch<T, V>(x.at(n, row, column, c));
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t row = rows.first + i / 2, column = columns.first + i % 2;
            if (row < rows.end && column < columns.end) {
                unpack<T, V>(pack[i], value);
                use(row, column, value);
            }
        }
    } else {
        for (int32_t row = rows.first; row < rows.end; row++) {
            for (int32_t column = columns.first; column < columns.end; column++) {
                load<T, V>(x.at(n, row, column, c), value);
                use(row, column, value);
            }
        }
    }
}

/* Kernels count pixels in 32 bits. */
static inline ym_status cuda_check_pixels(ym_context *context, const char *call,
                                          const ym_tensor *x)
{
    YM_CHECK(&context->error, ym_pixels(x) <= INT32_MAX, YM_ERR_UNSUPPORTED,
             "cuda: %s: %lld pixels in a batch, at most %d are possible", call,
             (long long)ym_pixels(x), INT32_MAX);
    return YM_OK;
}

#endif
