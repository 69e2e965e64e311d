/* SPDX-License-Identifier: MIT
 *
 * Batch norm statistics in two stages. First each block sums up its chunk of the pixels
 * around the first value that a thread meets, which keeps the sum of squares free of
 * cancellation, and merges its threads' means and squares (Chan, Golub, LeVeque 1979).
 * Then one block per eight channels merges the chunks in double. Means are kept as
 * distances from the channel's very first value, so a mean far from 0 costs no digits.
 */
#include "cuda/tiles.cuh"

#include <math.h>

namespace
{

const int AHEAD = 4; /* pixels fetched before the first is used */

/* A count of values, their mean, and the sum of squares of the distances from it. */
template <typename real> struct moments {
    real count, mean, squares;
};

template <typename real>
__device__ __forceinline__ moments<real> merge(moments<real> a, moments<real> b)
{
    if (b.count == 0) {
        return a;
    }
    const real count = a.count + b.count, delta = b.mean - a.mean;
    const real share = b.count / count;
    return {count, a.mean + delta * share,
            a.squares + b.squares + delta * delta * a.count * share};
}

/* Merges the rows of each column into row 0, for V sets of one moment a thread; every
 * thread of the block comes. */
template <typename real, int V>
__device__ __forceinline__ void merge_rows(moments<real> (&all)[V][YM_BLOCK])
{
    const int row = (int)threadIdx.y, columns = (int)blockDim.x;
    const int mine = row * columns + (int)threadIdx.x;
    for (int rows = (int)blockDim.y; rows > 1;) {
        const int half = (rows + 1) / 2;
        __syncthreads();
        for (int v = 0; v < V && row + half < rows; v++) {
            all[v][mine] = merge(all[v][mine], all[v][mine + half * columns]);
        }
        rows = half;
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    statistics_kernel(cuda_values<T> x, int64_t pixels, int64_t chunk, int32_t channels,
                      float2 *partial, float *start)
{
    __shared__ moments<float> all[V][YM_BLOCK];
    const int32_t c = cuda_first_channel<V>();
    const int64_t first = (int64_t)blockIdx.x * chunk + threadIdx.y;
    const int64_t last = (int64_t)(blockIdx.x + 1) * chunk;
    const int64_t end = last < pixels ? last : pixels;
    float base[V] = {0}, origin[V] = {0}, sum[V] = {0}, squares[V] = {0}, value[V];
    float count = 0;
    if (c < channels && first < end) {
        load<T, V>(x.at(0, c), base);
        load<T, V>(x.at(first, c), origin);
        const int64_t step = blockDim.y;
        for (int64_t next = first; next < end; next += AHEAD * step) {
            cuda_pack<T, V> pack[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (next + i * step < end) {
                    pack[i] = fetch<T, V>(x.at(next + i * step, c));
                }
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (next + i * step < end) {
                    unpack<T, V>(pack[i], value);
                    count += 1;
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        const float d = value[v] - origin[v];
                        sum[v] += d;
                        squares[v] = fmaf(d, d, squares[v]);
                    }
                }
            }
        }
    }
    const float inverse = count > 0 ? 1.0f / count : 0.0f;
    const int mine = (int)(threadIdx.y * blockDim.x + threadIdx.x);
    for (int v = 0; v < V; v++) {
        const float mean = sum[v] * inverse, rest = squares[v] - sum[v] * mean;
        /* A NaN must stay one. */
        all[v][mine] = {count, origin[v] - base[v] + mean, rest < 0 ? 0 : rest};
    }
    merge_rows<float, V>(all);
    for (int v = 0; v < V && threadIdx.y == 0 && c < channels; v++) {
        const moments<float> m = all[v][threadIdx.x];
        partial[(int64_t)blockIdx.x * channels + c + v] = {m.mean, m.squares};
        if (blockIdx.x == 0) {
            start[c + v] = base[v];
        }
    }
}

struct norm_output {
    float *mean, *rstd, *running_mean, *running_var;
    float eps, momentum;
    bool update;
};

__device__ void finish_channel(const norm_output &out, int32_t c, moments<double> m)
{
    out.mean[c] = (float)m.mean;
    out.rstd[c] = (float)(1.0 / sqrt(m.squares / m.count + (double)out.eps));
    if (out.update) {
        const double momentum = out.momentum, unbiased = m.squares / (m.count - 1.0);
        out.running_mean[c] =
            (float)(momentum * m.mean + (1.0 - momentum) * out.running_mean[c]);
        out.running_var[c] =
            (float)(momentum * unbiased + (1.0 - momentum) * out.running_var[c]);
    }
}

__global__ void __launch_bounds__(YM_BLOCK)
    statistics_finish_kernel(const float2 *partial, const float *start, int64_t pixels,
                             int64_t chunk, int32_t chunks, int32_t channels,
                             norm_output out)
{
    __shared__ moments<double> all[1][YM_BLOCK];
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    moments<double> m = {0, 0, 0};
    for (int32_t i = (int32_t)threadIdx.y; c < channels && i < chunks;
         i += YM_FINISH_ROWS) {
        const float2 part = partial[(int64_t)i * channels + c];
        const int64_t left = pixels - i * chunk;
        m = merge(m, {(double)(left < chunk ? left : chunk), part.x, part.y});
    }
    all[0][threadIdx.y * blockDim.x + threadIdx.x] = m;
    merge_rows<double, 1>(all);
    if (threadIdx.y == 0 && c < channels) {
        m = all[0][threadIdx.x];
        m.mean += start[c];
        finish_channel(out, c, m);
    }
}

/* Evaluation: the statistics are the running ones. */
__global__ void __launch_bounds__(YM_BLOCK)
    running_statistics_kernel(int32_t channels, norm_output out)
{
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c < channels) {
        out.mean[c] = out.running_mean[c];
        out.rstd[c] = (float)(1.0 / sqrt((double)out.running_var[c] + (double)out.eps));
    }
}

} // namespace

size_t cuda_norm_scratch_bytes(const ym_tensor *x)
{
    const size_t chunks = (size_t)cuda_chunk_count(ym_pixels(x));
    return (size_t)x->c * (chunks * sizeof(float2) + sizeof(float));
}

ym_status cuda_norm_statistics(ym_context *context, const ym_tensor *x,
                               const ym_norm *norm, float *mean, float *rstd)
{
    const cuda_device_guard guard(context);
    const bool moves = norm->update_running && norm->running_mean != nullptr;
    const norm_output out = {
        mean,           rstd, norm->running_mean, norm->running_var, norm->eps,
        norm->momentum, moves};
    if (!norm->batch_statistics) {
        YM_CHECK(&context->error, norm->running_mean != nullptr, YM_ERR_ARGUMENT,
                 "batch norm: no running statistics to normalise with");
        const dim3 grid((unsigned)(x->c + YM_BLOCK - 1) / YM_BLOCK);
        YM_LAUNCH(running_statistics_kernel, grid, dim3(YM_BLOCK), context, x->c, out);
        return cuda_launched(context, "running_statistics_kernel");
    }
    YM_TRY(cuda_require_scratch(context, "batch norm statistics",
                                cuda_norm_scratch_bytes(x)));
    const int64_t pixels = ym_pixels(x), chunk = cuda_chunk_pixels(pixels);
    const int32_t chunks = cuda_chunk_count(pixels);
    float2 *partial = static_cast<float2 *>(context->scratch);
    float *start = reinterpret_cast<float *>(partial + (int64_t)chunks * x->c);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x), const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((statistics_kernel<T, V>), cuda_chunk_grid(tiles, pixels),
                  cuda_block(tiles), context, cuda_values<T>(*x), pixels, chunk, x->c,
                  partial, start));
    YM_TRY(cuda_launched(context, "statistics_kernel"));
    YM_LAUNCH(statistics_finish_kernel, cuda_finish_grid(x->c), cuda_finish_block(),
              context, partial, start, pixels, chunk, chunks, x->c, out);
    return cuda_launched(context, "statistics_finish_kernel");
}
