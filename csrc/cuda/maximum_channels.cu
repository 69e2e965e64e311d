/* SPDX-License-Identifier: MIT
 *
 * Maxima over channels: the lanes of a group share those of a pixel. All of them know
 * the maximum in the end and write the gradient as well.
 */
#include "cuda/maximum.cuh"

namespace
{

const int PACKS = 2;       /* of a lane, where there are few channels */
const int MOST_LANES = 32; /* of a group */

/* A group of `lanes` lanes for each pixel. */
template <typename T, int V, bool BACKWARD>
__global__ void __launch_bounds__(YM_BLOCK)
    channels_kernel(cuda_operands<T> of, int64_t pixels, int32_t channels,
                    int32_t lanes)
{
    const int32_t thread = (int32_t)threadIdx.x, lane = thread % lanes;
    const int64_t p = (int64_t)blockIdx.x * (YM_BLOCK / lanes) + thread / lanes;
    const int32_t step = lanes * V, c = lane * V;
    const int32_t count = p < pixels ? (channels / V - lane + lanes - 1) / lanes : 0;
    cuda_found best;
    best.start();
    cuda_read_all<T, V>(of.x.at(p, c), step, count,
                        [&](int32_t i, const float(&value)[V]) {
#pragma unroll
                            for (int v = 0; v < V; v++) {
                                best.see(value[v], c + i * step + v);
                            }
                        });
    for (int32_t across = lanes / 2; across > 0; across /= 2) {
        best.join({__shfl_xor_sync(0xffffffffu, best.most, across),
                   __shfl_xor_sync(0xffffffffu, best.place, across)});
    }
    if (p >= pixels) {
        return;
    }
    if (BACKWARD) {
        const float dy = to_float(*of.y.at(p, 0));
        cuda_write_all<T, V>(of.dx.at(p, c), step, count, of.accumulate,
                             [&](int32_t i, int v) {
                                 return best.place == c + i * step + v ? dy : 0.0f;
                             });
    } else if (lane == 0) {
        from_float(best.most, of.y.at(p, 0));
    }
}

template <typename T, int V>
ym_status over_channels(ym_context *context, const cuda_maximum_job &all)
{
    const int64_t pixels = ym_pixels(all.x);
    const int32_t channels = all.x->c, wanted = (channels / V + PACKS - 1) / PACKS;
    int32_t lanes = 1;
    while (lanes < wanted && lanes < MOST_LANES) {
        lanes *= 2;
    }
    const int64_t each = YM_BLOCK / lanes;
    const dim3 grid((unsigned)((pixels + each - 1) / each)), block(YM_BLOCK);
    const cuda_operands<T> of = all.as<T>();
    if (all.dx == nullptr) {
        YM_LAUNCH((channels_kernel<T, V, false>), grid, block, context, of, pixels,
                  channels, lanes);
    } else {
        YM_LAUNCH((channels_kernel<T, V, true>), grid, block, context, of, pixels,
                  channels, lanes);
    }
    return cuda_launched(context, "channels_kernel");
}

} // namespace

ym_status cuda_maximum_over_channels(ym_context *context, const cuda_maximum_job &all)
{
    const bool wide = cuda_is_wide(*all.x) &&
                      (all.dx == nullptr || cuda_is_wide(*all.dx));
    YM_WITH_TYPE_AND_WIDTH(all.x->dtype, wide,
                           return (over_channels<T, V>(context, all)));
}
