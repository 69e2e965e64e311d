/* SPDX-License-Identifier: MIT
 * out = activation(term 0 + term 1) + residual, one pass over memory.
 */
#include "cuda/brick.cuh"

namespace
{

const int EACH = 4; /* pixels of a thread, all fetched before the first is stored */

template <typename T, int V, int TERMS, cuda_formulas F>
__global__ void __launch_bounds__(YM_BLOCK, TERMS == 1 ? 3 : 2)
    brick_forward_kernel(cuda_brick<F> brick, cuda_values<T> residual,
                         cuda_values<T> out, int64_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    if (c >= channels) {
        return;
    }
    cuda_term_channels<T, V> term[TERMS];
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        term[t].locate(brick.term[t], c);
    }
    const int64_t step = blockDim.y, first = blockIdx.x * (EACH * step) + threadIdx.y;
    cuda_pack<T, V> pack[EACH][TERMS], more[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (p < pixels) {
#pragma unroll
            for (int t = 0; t < TERMS; t++) {
                pack[i][t] = term[t].fetch_pixel(p);
            }
            if (residual.data != nullptr) {
                more[i] = fetch<T, V>(residual.at(p, c));
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        term[t].prepare(brick.term[t], c);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (p < pixels) {
            float distance[TERMS][V], z[V];
            cuda_before_activation<T, V, TERMS>(term, pack[i], distance, z);
            cuda_activate<T, V>(brick, z);
            if (residual.data != nullptr) {
                float added[V];
                unpack<T, V>(more[i], added);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    z[v] += added[v];
                }
            }
            store<T, V>(out.at(p, c), z);
        }
    }
}

template <typename T, int V, int TERMS>
void launch_forward(ym_context *context, const ym_brick *brick,
                    const ym_tensor &residual, const ym_tensor &out)
{
    const int64_t pixels = ym_pixels(&out);
    const cuda_tiles tiles = cuda_divide(out.c, V);
    YM_WITH_FORMULAS(brick->activation.kind,
                     YM_LAUNCH((brick_forward_kernel<T, V, TERMS, F>),
                               cuda_pixel_grid(tiles, pixels, EACH), cuda_block(tiles),
                               context, cuda_brick_of<F>(brick),
                               cuda_values<T>(residual), cuda_values<T>(out), pixels,
                               out.c));
}

} // namespace

ym_status cuda_brick_forward(ym_context *context, const ym_brick *brick, ym_tensor *out)
{
    const cuda_device_guard guard(context);
    ym_tensor residual = brick->residual;
    residual.data = brick->has_residual ? residual.data : nullptr;
    bool wide = cuda_is_wide(*out) && cuda_is_wide(residual);
    for (int32_t t = 0; t < brick->term_count; t++) {
        wide = wide && cuda_is_wide(brick->term[t].value);
    }
    YM_WITH_TYPE_AND_WIDTH(
        out->dtype, wide,
        brick->term_count == 2
            ? launch_forward<T, V, 2>(context, brick, residual, *out)
            : launch_forward<T, V, 1>(context, brick, residual, *out));
    return cuda_launched(context, "brick_forward_kernel");
}
