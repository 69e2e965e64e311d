/* SPDX-License-Identifier: MIT
 *
 * The first pass of a brick's backward: sums over chunks of the pixels, then over the
 * chunks in double, in an order that is always the same. See brick_backward.cu.
 */
#include "cuda/brick_sums.cuh"

#include "cuda/brick_walk.cuh"

namespace
{

/* partial: (1 + TERMS, chunks, channels). */
template <typename T, int V, int TERMS, cuda_formulas F>
__global__ void __launch_bounds__(YM_BLOCK, 2)
    brick_sums_kernel(cuda_brick<F> brick, cuda_values<T> dout, int64_t pixels,
                      int64_t chunk, int32_t channels, float *partial)
{
    __shared__ float all[V][YM_BLOCK];
    const int32_t c = cuda_first_channel<V>();
    const int64_t first = (int64_t)blockIdx.x * chunk, last = first + chunk;
    cuda_sums<T, V, TERMS> sum = {};
    if (c < channels) {
        cuda_term_channels<T, V> term[TERMS];
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            term[t].locate(brick.term[t], c);
        }
        const int32_t own = cuda_own_pixels(first, last < pixels ? last : pixels);
        cuda_walk<T, V, TERMS> pixel(term, dout, c, first + threadIdx.y);
        sum.walk(brick, term, pixel, c, own);
    }
#pragma unroll
    for (int i = 0; i < 1 + TERMS; i++) {
        cuda_add_rows<V>(all, sum.of[i]);
        if (threadIdx.y == 0 && c < channels) {
            const int64_t at = ((int64_t)i * gridDim.x + blockIdx.x) * channels + c;
            for (int v = 0; v < V; v++) {
                partial[at + v] = sum.of[i][v];
            }
        }
    }
}

template <int WHICH>
__device__ __forceinline__ void put_sum(const cuda_sums_output &out, double sum,
                                        double inverse_pixels, int32_t c)
{
    const double rstd = out.rstd[WHICH] != nullptr ? (double)out.rstd[WHICH][c] : 1.0;
    if (out.mean[WHICH] != nullptr) {
        out.mean[WHICH][c] = (float)(sum * inverse_pixels * rstd * rstd);
    }
#pragma unroll
    for (int t = 0; t < 2; t++) {
        if (WHICH == 0 || WHICH == 1 + t) {
            const int i = WHICH == 0 ? t : 2 + t;
            float *to = out.gradient[i];
            if (to != nullptr) {
                const float value = (float)(sum * rstd);
                to[c] = out.accumulate[i] ? to[c] + value : value;
            }
        }
    }
}

/* blockIdx.y: which sum. */
__global__ void __launch_bounds__(YM_BLOCK)
    brick_sums_finish_kernel(const float *__restrict__ partial, int32_t chunks,
                             int32_t channels, double inverse_pixels,
                             cuda_sums_output out)
{
    __shared__ double all[1][YM_BLOCK];
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    const int which = (int)blockIdx.y;
    double sum[1] = {0};
    if (c < channels) {
        const float *mine = partial + (int64_t)which * chunks * channels + c;
#pragma unroll 8
        for (int32_t i = (int32_t)threadIdx.y; i < chunks; i += YM_FINISH_ROWS) {
            sum[0] += mine[(int64_t)i * channels];
        }
    }
    cuda_finish_rows<1>(all, sum);
    if (threadIdx.y == 0 && c < channels && out.shared != nullptr) {
        out.shared[(int64_t)which * channels + c] = sum[0];
        if (which == 0 && c == 0) {
            out.shared[(int64_t)gridDim.y * channels] = out.pixels;
        }
    }
    if (threadIdx.y == 0 && c < channels) {
        /* Not out[which]: arguments with a computed index are copied to memory. */
        if (which == 0) {
            put_sum<0>(out, sum[0], inverse_pixels, c);
        } else if (which == 1) {
            put_sum<1>(out, sum[0], inverse_pixels, c);
        } else {
            put_sum<2>(out, sum[0], inverse_pixels, c);
        }
    }
}

/* The means that put_sum makes, of the sums of all processes. blockIdx.y: which. */
__global__ void __launch_bounds__(YM_BLOCK)
    shared_means_kernel(const double *__restrict__ shared, int32_t channels,
                        const float *rstd0, const float *rstd1, float *mean)
{
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    const int which = (int)blockIdx.y;
    if (c < channels) {
        const int64_t at = (int64_t)which * channels + c;
        const float *from = which == 1 ? rstd0 : which == 2 ? rstd1 : nullptr;
        const double rstd = from != nullptr ? (double)from[c] : 1.0;
        const double pixels = shared[(int64_t)gridDim.y * channels];
        mean[at] = (float)(shared[at] / pixels * rstd * rstd);
    }
}

template <typename T, int V, int TERMS>
void launch_partial_sums(ym_context *context, const cuda_brick_call &call,
                         const cuda_chunks &chunks, float *partial)
{
    constexpr int W = cuda_brick_width<V, TERMS>::OF_THREAD;
    const ym_tensor *dout = call.dout;
    const cuda_tiles tiles = cuda_divide(dout->c, W);
    YM_WITH_FORMULAS(call.brick->activation.kind,
                     YM_LAUNCH((brick_sums_kernel<T, W, TERMS, F>),
                               cuda_chunk_grid(tiles, chunks), cuda_block(tiles),
                               context, cuda_brick_of<F>(call.brick),
                               cuda_values<T>(*dout), ym_pixels(dout), chunks.pixels,
                               dout->c, partial));
}

} // namespace

ym_status cuda_launch_brick_sums(ym_context *context, const cuda_brick_call &call,
                                 const cuda_sums_output &out)
{
    const ym_tensor *dout = call.dout;
    const int64_t pixels = ym_pixels(dout);
    const cuda_chunks chunks = cuda_cut(pixels, cuda_multiprocessors(context));
    const int32_t terms = call.brick->term_count;
    float *partial = static_cast<float *>(context->scratch);
    YM_WITH_TYPE_AND_WIDTH(
        dout->dtype, call.wide,
        terms == 2 ? launch_partial_sums<T, V, 2>(context, call, chunks, partial)
                   : launch_partial_sums<T, V, 1>(context, call, chunks, partial));
    YM_TRY(cuda_launched(context, "brick_sums_kernel"));
    dim3 grid = cuda_finish_grid(dout->c);
    grid.y = 1 + (unsigned)terms;
    YM_LAUNCH(brick_sums_finish_kernel, grid, cuda_finish_block(), context, partial,
              chunks.count, dout->c, 1.0 / (double)pixels, out);
    return cuda_launched(context, "brick_sums_finish_kernel");
}

ym_status cuda_share_brick_sums(ym_context *context, const cuda_brick_call &call,
                                const ym_sharing *sharing, const cuda_sums_output &sums)
{
    const int32_t channels = call.dout->c;
    YM_TRY(ym_sum_shared(context, sharing, sums.shared,
                         ym_shared_sum_count(call.brick, channels)));
    dim3 grid = cuda_channel_grid(channels);
    grid.y = 1 + (unsigned)call.brick->term_count;
    YM_LAUNCH(shared_means_kernel, grid, dim3(YM_BLOCK), context, sums.shared, channels,
              sums.rstd[1], sums.rstd[2], sums.mean[0]);
    return cuda_launched(context, "shared_means_kernel");
}
