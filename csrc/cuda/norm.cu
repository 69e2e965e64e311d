/* SPDX-License-Identifier: MIT
 *
 * Batch norm statistics in two stages. First each block sums up its chunk of the pixels
 * around the chunk's first value, which keeps the sum of squares free of cancellation,
 * and makes its mean and squares of them. Then one block per eight channels merges the
 * chunks in double (math/norm.h). Means are kept as distances from the channel's very
 * first value, so a mean far from 0 costs no digits.
 */
#include "cuda/tiles.cuh"
#include "math/norm.h"

namespace
{

const int EACH = 4; /* pixels fetched before the first is used */

/* Sums of one thread's channels, of distances from an origin and of their squares. */
template <int V> struct moments {
    float origin[V], sum[V], squares[V];

    template <typename T> __device__ __forceinline__ void add(const cuda_pack<T, V> &x)
    {
        float value[V];
        unpack<T, V>(x, value);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float d = value[v] - origin[v];
            sum[v] += d;
            squares[v] = fmaf(d, d, squares[v]);
        }
    }
};

/* Of each channel of a chunk: the mean, and the sum of squares of the distances from
 * it. */
template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK, YM_CHUNK_WAVE)
    statistics_kernel(cuda_values<T> x, int64_t pixels, int64_t chunk, int32_t channels,
                      float2 *partial, float *start)
{
    __shared__ float all[V][YM_BLOCK];
    const int32_t c = cuda_first_channel<V>();
    const int64_t first = (int64_t)blockIdx.x * chunk, last = first + chunk;
    const int64_t end = last < pixels ? last : pixels;
    float base[V] = {0};
    moments<V> made = {};
    if (c < channels) {
        load<T, V>(x.at(0, c), base);
        load<T, V>(x.at(first, c), made.origin);
        const int32_t mine = cuda_own_pixels(first, end);
        const T *next = x.at(first + threadIdx.y, c);
        const int64_t step = blockDim.y * x.pitch;
        int32_t i = 0;
        for (; i + EACH <= mine; i += EACH, next += EACH * step) {
            cuda_pack<T, V> pack[EACH];
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                pack[k] = fetch<T, V>(next + k * step);
            }
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                made.template add<T>(pack[k]);
            }
        }
        for (; i < mine; i++, next += step) {
            made.template add<T>(fetch<T, V>(next));
        }
    }
    cuda_add_rows<V>(all, made.sum);
    cuda_add_rows<V>(all, made.squares);
    if (threadIdx.y == 0 && c < channels) {
        const float inverse = 1.0f / (float)(end - first);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float mean = made.sum[v] * inverse;
            const float rest = made.squares[v] - made.sum[v] * mean;
            /* A NaN must stay one. */
            partial[(int64_t)blockIdx.x * channels + c + v] = {
                made.origin[v] - base[v] + mean, rest < 0 ? 0 : rest};
            if (blockIdx.x == 0) {
                start[c + v] = base[v];
            }
        }
    }
}

/* Where the statistics go, or (part) one process's moments. */
struct statistics_output {
    ym_norm norm;
    float *mean, *rstd;
    double *part;
};

__device__ void finish_channel(const statistics_output &out, int32_t c,
                               int32_t channels, double count, double mean,
                               double squares)
{
    if (out.part == nullptr) {
        ym_finish_statistics(&out.norm, c, count, mean, squares, out.mean, out.rstd);
        return;
    }
    out.part[c] = mean;
    out.part[channels + c] = squares;
    if (c == 0) {
        out.part[2 * (int64_t)channels] = count;
    }
}

/* Chunks are equally long but for the last, whose part of a chunk is `tail`: so sums
 * will do, without a quotient for each chunk (a GPU divides doubles slowly). */
__global__ void __launch_bounds__(YM_BLOCK)
    statistics_finish_kernel(const float2 *__restrict__ partial, const float *start,
                             int64_t pixels, int64_t chunk, int32_t chunks,
                             int32_t channels, statistics_output out)
{
    __shared__ double all[3][YM_BLOCK];
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    const double tail = (double)(pixels - (chunks - 1) * chunk) / (double)chunk;
    double sum[3] = {0, 0, 0}; /* of means, of their squares, of squares */
    if (c < channels) {
#pragma unroll 8
        for (int32_t i = (int32_t)threadIdx.y; i < chunks; i += YM_FINISH_ROWS) {
            const float2 part = partial[(int64_t)i * channels + c];
            const double mean = part.x;
            const double weighted = i + 1 < chunks ? mean : mean * tail;
            sum[0] += weighted;
            sum[1] = fma(weighted, mean, sum[1]);
            sum[2] += part.y;
        }
    }
    cuda_finish_rows<3>(all, sum);
    if (threadIdx.y == 0 && c < channels) {
        const double count = (double)pixels, mean = sum[0] * (double)chunk / count;
        const double squares = sum[2] + sum[1] * (double)chunk - count * mean * mean;
        finish_channel(out, c, channels, count, mean + start[c],
                       squares < 0 ? 0 : squares);
    }
}

/* Evaluation and affine calls: the batch has no say. */
__global__ void __launch_bounds__(YM_BLOCK)
    known_statistics_kernel(int32_t channels, ym_norm norm, float *mean, float *rstd)
{
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c < channels) {
        ym_known_statistics(&norm, c, mean, rstd);
    }
}

__global__ void __launch_bounds__(YM_BLOCK)
    merge_kernel(const double *__restrict__ parts, int32_t channels, ym_norm norm,
                 float *mean, float *rstd)
{
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c < channels) {
        ym_merge_parts(parts, channels, &norm, c, mean, rstd);
    }
}

ym_status launch_statistics(ym_context *context, const ym_tensor *x,
                            const statistics_output &out)
{
    YM_TRY(cuda_require_scratch(context, "batch norm statistics",
                                cuda_norm_scratch_bytes(x)));
    const int64_t pixels = ym_pixels(x);
    const cuda_chunks chunks = cuda_cut(pixels, cuda_multiprocessors(context));
    float2 *partial = static_cast<float2 *>(context->scratch);
    float *start = reinterpret_cast<float *>(partial + (int64_t)chunks.count * x->c);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x), const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((statistics_kernel<T, V>), cuda_chunk_grid(tiles, chunks),
                  cuda_block(tiles), context, cuda_values<T>(*x), pixels, chunks.pixels,
                  x->c, partial, start));
    YM_TRY(cuda_launched(context, "statistics_kernel"));
    YM_LAUNCH(statistics_finish_kernel, cuda_finish_grid(x->c), cuda_finish_block(),
              context, partial, start, pixels, chunks.pixels, chunks.count, x->c, out);
    return cuda_launched(context, "statistics_finish_kernel");
}

} // namespace

size_t cuda_norm_scratch_bytes(const ym_tensor *x)
{
    const size_t chunks = cuda_most_chunks(ym_pixels(x));
    return (size_t)x->c * (chunks * sizeof(float2) + sizeof(float));
}

ym_status cuda_norm_statistics(ym_context *context, const ym_tensor *x,
                               const ym_norm *norm, float *mean, float *rstd)
{
    const cuda_device_guard guard(context);
    if (norm->batch_statistics) {
        return launch_statistics(context, x, {*norm, mean, rstd, nullptr});
    }
    YM_LAUNCH(known_statistics_kernel, cuda_channel_grid(x->c), dim3(YM_BLOCK), context,
              x->c, *norm, mean, rstd);
    return cuda_launched(context, "known_statistics_kernel");
}

ym_status cuda_norm_moments(ym_context *context, const ym_tensor *x, double *part)
{
    const cuda_device_guard guard(context);
    return launch_statistics(context, x, {{}, nullptr, nullptr, part});
}

ym_status cuda_norm_merge(ym_context *context, const double *parts, int32_t channels,
                          const ym_norm *norm, float *mean, float *rstd)
{
    const cuda_device_guard guard(context);
    YM_LAUNCH(merge_kernel, cuda_channel_grid(channels), dim3(YM_BLOCK), context, parts,
              channels, *norm, mean, rstd);
    return cuda_launched(context, "merge_kernel");
}
