/* SPDX-License-Identifier: MIT
 *
 * Planes of images, (n, c, h, w), to packed pixels: a block moves tiles by way of
 * shared memory, so that threads side by side read neighbours in a plane and write
 * neighbours in a pixel.
 */
#include "cuda/tiles.cuh"

namespace
{

const int EACH = 4;                   /* elements of a thread */
const int MOST = EACH * YM_BLOCK;     /* of a tile */
const int MOST_CHANNELS = 32;         /* of a tile: a warp writes lines of memory */
const int RUN = MOST / MOST_CHANNELS; /* pixels, of which a tile has a multiple */
const int WAVE = 8;                   /* blocks that a multiprocessor takes at once */

/* How an image is divided into tiles. */
struct division {
    int64_t plane, tiles; /* pixels of an image; tiles of all */
    int64_t runs;         /* tiles one after the other in a plane */
    int32_t all_channels, parts;
    int32_t pixels, channels; /* of a tile at most */
};

struct tile {
    int64_t first; /* pixel of the image */
    int64_t image;
    int32_t channel, pixels, channels;
};

division divide(const ym_tensor &y)
{
    division z = {};
    z.plane = (int64_t)y.h * y.w;
    z.all_channels = y.c;
    z.channels = y.c < MOST_CHANNELS ? y.c : MOST_CHANNELS;
    z.pixels = MOST / z.channels / RUN * RUN;
    z.parts = (y.c + z.channels - 1) / z.channels;
    z.runs = (z.plane + z.pixels - 1) / z.pixels;
    z.tiles = y.n * z.runs * z.parts;
    return z;
}

__device__ __forceinline__ tile tile_of(const division &z, int64_t number)
{
    tile t;
    t.channel = (int32_t)(number % z.parts) * z.channels;
    const int64_t run = number / z.parts;
    t.first = run % z.runs * z.pixels;
    t.image = run / z.runs;
    t.pixels = (int32_t)(z.plane - t.first < z.pixels ? z.plane - t.first : z.pixels);
    t.channels = z.all_channels - t.channel < z.channels ? z.all_channels - t.channel
                                                         : z.channels;
    return t;
}

template <typename FROM, typename TO>
__global__ void __launch_bounds__(YM_BLOCK)
    pack_planes_kernel(const FROM *x, cuda_values<TO> y, division z)
{
    __shared__ float tile_values[MOST + MOST_CHANNELS];
    for (int64_t number = blockIdx.x; number < z.tiles; number += gridDim.x) {
        const tile t = tile_of(z, number);
        const FROM *from = x + (t.image * z.all_channels + t.channel) * z.plane +
                           t.first;
        float value[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int e = (int)threadIdx.x + i * YM_BLOCK;
            const int c = e / z.pixels, p = e % z.pixels;
            if (c < t.channels && p < t.pixels) {
                value[i] = to_float(from[c * z.plane + p]);
            }
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int e = (int)threadIdx.x + i * YM_BLOCK;
            const int c = e / z.pixels, p = e % z.pixels;
            if (c < t.channels && p < t.pixels) {
                tile_values[c * (z.pixels + 1) + p] = value[i];
            }
        }
        __syncthreads();
        for (int e = (int)threadIdx.x; e < t.channels * t.pixels; e += YM_BLOCK) {
            const int p = e / t.channels, c = e % t.channels;
            from_float(tile_values[c * (z.pixels + 1) + p],
                       y.at(t.image * z.plane + t.first + p, t.channel + c));
        }
        __syncthreads();
    }
}

template <typename FROM, typename TO>
void launch_pack(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    const division z = divide(*y);
    const int64_t wave = (int64_t)WAVE * cuda_multiprocessors(context);
    const dim3 grid((unsigned)(z.tiles < wave ? z.tiles : wave));
    YM_LAUNCH((pack_planes_kernel<FROM, TO>), grid, dim3(YM_BLOCK), context,
              static_cast<const FROM *>(x->data), cuda_values<TO>(*y), z);
}

} // namespace

ym_status cuda_pack_planes(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    if (x->dtype == y->dtype) {
        YM_WITH_TYPE(y->dtype, (launch_pack<T, T>(context, x, y)));
    } else {
        YM_WITH_TYPE(y->dtype, (launch_pack<float, T>(context, x, y)));
    }
    return cuda_launched(context, "pack_planes_kernel");
}
