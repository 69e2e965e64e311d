/* SPDX-License-Identifier: MIT
 *
 * From dout to the terms. With dz = dout * activation'(z), M the number of pixels:
 *
 *     dbeta = sum dz,   dgamma = sum dz xhat
 *     dv = gamma rstd (dz - dbeta / M - xhat dgamma / M)
 *
 * One pass reads and sums (chunks, then a second small kernel in double), one reads
 * again and writes; z and xhat are made anew in both and never stored. The sums are of
 * dz (v - mean); rstd comes in once for each channel. Where processes share statistics,
 * their sums come together in between.
 */
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

/* Sum number i of each channel: where it goes and what else is made of it. */
struct sums_output {
    float *mean[3]; /* the sum over M, for the second pass; times rstd^2 but for 0 */
    const float *rstd[3]; /* NULL: 1 */
    float *gradient[4]; /* dbeta of each term, dgamma of each term; NULL: not wanted */
    bool accumulate[4]; /* to each gradient */
    double *shared;     /* the sums, and the number of pixels, for others; NULL: none */
    double pixels;
};

template <int WHICH>
__device__ __forceinline__ void put_sum(const sums_output &out, double sum,
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
                             int32_t channels, double inverse_pixels, sums_output out)
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

/* What is written for each term. */
struct term_outputs {
    void *data[2];
    int64_t pitch[2];
    bool accumulate[2], batch_statistics[2];
    const float *mean[3]; /* as sums_output's; NULL: 0 */
};

template <typename T, int V, int TERMS, cuda_formulas F>
__global__ void __launch_bounds__(YM_BLOCK, 2)
    brick_backward_kernel(cuda_brick<F> brick, cuda_values<T> dout, term_outputs out,
                          int64_t pixels, int32_t channels)
{
    const int EACH = cuda_brick_ahead<T, TERMS>::WHEN_WRITING;
    const int32_t c = cuda_first_channel<V>();
    if (c >= channels) {
        return;
    }
    cuda_term_channels<T, V> term[TERMS];
    float mean[V], slope[TERMS][V];
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        term[t].locate(brick.term[t], c);
    }
    const int64_t step = blockDim.y, first = blockIdx.x * (EACH * step) + threadIdx.y;
    cuda_stored<T, V, TERMS> some[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (p < pixels) {
            some[i].dout = fetch<T, V>(dout.at(p, c));
#pragma unroll
            for (int t = 0; t < TERMS; t++) {
                some[i].value[t] = term[t].fetch_pixel(p);
            }
        }
    }
    cuda_load_channels<V>(out.mean[0], c, 0.0f, mean);
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        term[t].prepare(brick.term[t], c);
        cuda_load_channels<V>(out.mean[1 + t], c, 0.0f, slope[t]);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (p >= pixels) {
            break;
        }
        float distance[TERMS][V], dz[V], dv[V];
        some[i].derive(brick, term, distance, dz);
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            if (out.data[t] == nullptr) {
                continue;
            }
#pragma unroll
            for (int v = 0; v < V; v++) {
                const float made = fmaf(distance[t][v], slope[t][v], mean[v]);
                const float rest = out.batch_statistics[t] ? made : 0.0f;
                dv[v] = (dz[v] - rest) * term[t].scale[v];
            }
            put<T, V>(static_cast<T *>(out.data[t]) + p * out.pitch[t] + c, dv,
                      out.accumulate[t]);
        }
    }
}

struct backward_call {
    const ym_brick *brick;
    const ym_tensor *dout;
    bool wide;
};

template <typename T, int V, int TERMS>
void launch_partial_sums(ym_context *context, const backward_call &call,
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

ym_status launch_sums(ym_context *context, const backward_call &call,
                      const sums_output &out)
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

ym_status share_sums(ym_context *context, const backward_call &call,
                     const ym_sharing *sharing, const sums_output &sums)
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

template <typename T, int V, int TERMS>
void launch_values_of(ym_context *context, const backward_call &call,
                      const term_outputs &out)
{
    constexpr int W = cuda_brick_width<V, TERMS>::OF_THREAD;
    constexpr int EACH = cuda_brick_ahead<T, TERMS>::WHEN_WRITING;
    const ym_tensor *dout = call.dout;
    const int64_t pixels = ym_pixels(dout);
    const cuda_tiles tiles = cuda_divide(dout->c, W);
    YM_WITH_FORMULAS(call.brick->activation.kind,
                     YM_LAUNCH((brick_backward_kernel<T, W, TERMS, F>),
                               cuda_pixel_grid(tiles, pixels, EACH), cuda_block(tiles),
                               context, cuda_brick_of<F>(call.brick),
                               cuda_values<T>(*dout), out, pixels, dout->c));
}

ym_status launch_values(ym_context *context, const backward_call &call,
                        const term_outputs &out)
{
    YM_WITH_TYPE_AND_WIDTH(call.dout->dtype, call.wide,
                           call.brick->term_count == 2
                               ? launch_values_of<T, V, 2>(context, call, out)
                               : launch_values_of<T, V, 1>(context, call, out));
    return cuda_launched(context, "brick_backward_kernel");
}

bool needs_sums(const ym_brick *brick, const ym_term_gradient gradient[2])
{
    bool needs = false;
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        needs = needs ||
                (term->has_norm &&
                 (term->norm.dgamma != nullptr || term->norm.dbeta != nullptr ||
                  (term->norm.batch_statistics && gradient[t].dvalue.data != nullptr)));
    }
    return needs;
}

/* After the partial sums, the means of the three sums. */
float *means_in_scratch(const ym_context *context, const ym_tensor *dout)
{
    const size_t chunks = cuda_most_chunks(ym_pixels(dout));
    return static_cast<float *>(context->scratch) + 3 * chunks * (size_t)dout->c;
}

/* Bytes before what is shared, which comes last. */
size_t own_scratch_bytes(const ym_tensor *out)
{
    const size_t chunks = cuda_most_chunks(ym_pixels(out));
    const size_t bytes = 3 * (chunks + 1) * (size_t)out->c * sizeof(float);
    return (bytes + sizeof(double) - 1) / sizeof(double) * sizeof(double);
}

} // namespace

size_t cuda_brick_scratch_bytes(const ym_tensor *out)
{
    return own_scratch_bytes(out) + (3 * (size_t)out->c + 1) * sizeof(double);
}

ym_status cuda_brick_backward(ym_context *context, const ym_brick *brick,
                              const ym_tensor *dout, ym_term_gradient gradient[2])
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_require_scratch(context, "brick backward",
                                cuda_brick_scratch_bytes(dout)));
    backward_call call = {brick, dout, cuda_is_wide(*dout)};
    sums_output sums = {};
    term_outputs out = {};
    bool writes = false;
    for (int i = 0; i < 3; i++) {
        sums.mean[i] = means_in_scratch(context, dout) + (int64_t)i * dout->c;
    }
    const ym_sharing *sharing = ym_shared_sums(brick, gradient);
    if (sharing != nullptr) {
        char *scratch = static_cast<char *>(context->scratch);
        sums.shared = reinterpret_cast<double *>(scratch + own_scratch_bytes(dout));
        sums.pixels = (double)ym_pixels(dout);
    }
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        const ym_tensor &dvalue = gradient[t].dvalue;
        call.wide = call.wide && cuda_is_wide(term->value) && cuda_is_wide(dvalue);
        sums.gradient[t] = term->has_norm ? term->norm.dbeta : nullptr;
        sums.gradient[2 + t] = term->has_norm ? term->norm.dgamma : nullptr;
        sums.accumulate[t] = gradient[t].accumulate_beta;
        sums.accumulate[2 + t] = gradient[t].accumulate_gamma;
        sums.rstd[1 + t] = term->has_norm ? term->rstd : nullptr;
        out.data[t] = dvalue.data;
        out.pitch[t] = dvalue.pitch;
        out.accumulate[t] = gradient[t].accumulate;
        out.batch_statistics[t] = term->has_norm && term->norm.batch_statistics &&
                                  dvalue.data != nullptr; /* else no sums, maybe */
        if (out.batch_statistics[t]) {
            out.mean[0] = sums.mean[0];
            out.mean[1 + t] = sums.mean[1 + t];
        }
        writes = writes || dvalue.data != nullptr;
    }
    if (needs_sums(brick, gradient)) {
        YM_TRY(launch_sums(context, call, sums));
    }
    if (sharing != nullptr) {
        YM_TRY(share_sums(context, call, sharing, sums));
    }
    return writes ? launch_values(context, call, out) : YM_OK;
}

size_t cuda_bias_scratch_bytes(const ym_tensor *dy)
{
    return cuda_brick_scratch_bytes(dy);
}

/* A brick of one plain term without activation: dz is dy. */
ym_status cuda_bias_gradient(ym_context *context, const ym_tensor *dy, float *dbias,
                             bool accumulate)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_require_scratch(context, "bias gradient", cuda_bias_scratch_bytes(dy)));
    ym_brick brick = {};
    brick.term_count = 1;
    sums_output sums = {};
    sums.gradient[0] = dbias;
    sums.accumulate[0] = accumulate;
    return launch_sums(context, {&brick, dy, cuda_is_wide(*dy)}, sums);
}
