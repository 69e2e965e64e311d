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
#include "cuda/brick_sums.cuh"
#include "cuda/brick_walk.cuh"

namespace
{

/* What is written for each term. */
struct term_outputs {
    void *data[2];
    int64_t pitch[2];
    bool accumulate[2], batch_statistics[2];
    const float *mean[3]; /* as cuda_sums_output's; NULL: 0 */
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

template <typename T, int V, int TERMS>
void launch_values_of(ym_context *context, const cuda_brick_call &call,
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

ym_status launch_values(ym_context *context, const cuda_brick_call &call,
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
    cuda_brick_call call = {brick, dout, cuda_is_wide(*dout)};
    cuda_sums_output sums = {};
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
        YM_TRY(cuda_launch_brick_sums(context, call, sums));
    }
    if (sharing != nullptr) {
        YM_TRY(cuda_share_brick_sums(context, call, sharing, sums));
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
    cuda_sums_output sums = {};
    sums.gradient[0] = dbias;
    sums.accumulate[0] = accumulate;
    return cuda_launch_brick_sums(context, {&brick, dy, cuda_is_wide(*dy)}, sums);
}
