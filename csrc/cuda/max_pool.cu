/* SPDX-License-Identifier: MIT
 *
 * Max pooling. The maximum is the first in row-major order, a NaN wins; backward finds
 * it again, so no index is ever stored: a block of a tile of pixels once for each
 * window over the tile, where these are few enough to be remembered, else for every
 * window over a pixel.
 */
#include "cuda/pool.cuh"

#include <math.h>

namespace
{

const int TILE = 8;          /* pixels a side */
const int TILE_VECTORS = 4;  /* of V channels each, side by side in a block */
const int MOST_WINDOWS = 16; /* over a tile, in each direction */

/* Where a pixel is in a window, from 0 on. */
__device__ __forceinline__ int32_t place_in(const ym_pool &pool, cuda_window rows,
                                            cuda_window columns, int32_t h, int32_t w)
{
    return (h - rows.first) * pool.kernel_w + w - columns.first;
}

/* The largest value of a window for each channel, and its place. */
template <typename T, int V>
__device__ __forceinline__ void
find_maximum(const ym_pool &pool, const cuda_values<T> &x, int32_t n, cuda_window rows,
             cuda_window columns, int32_t c, float (&most)[V], int32_t (&place)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        most[v] = -INFINITY;
        place[v] = -1;
    }
    for (int32_t h = rows.first; h < rows.end; h++) {
        for (int32_t w = columns.first; w < columns.end; w++) {
            float value[V];
            load<T, V>(x.at(n, h, w, c), value);
#pragma unroll
            for (int v = 0; v < V; v++) {
                if (place[v] < 0 || value[v] > most[v] || value[v] != value[v]) {
                    most[v] = value[v];
                    place[v] = place_in(pool, rows, columns, h, w);
                }
            }
        }
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    max_pool_forward_kernel(ym_pool pool, cuda_values<T> x, cuda_values<T> y,
                            int32_t pixels, int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, y.h, y.w);
    float most[V];
    int32_t place[V];
    find_maximum<T, V>(pool, x, at.n, cuda_rows(pool, at.y, x.h),
                       cuda_columns(pool, at.x, x.w), c, most, place);
    store<T, V>(y.at(p, c), most);
}

template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    max_pool_backward_kernel(ym_pool pool, cuda_values<T> x, cuda_values<T> dy,
                             cuda_values<T> dx, int32_t pixels, int32_t channels,
                             bool accumulate)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t p = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels || p >= pixels) {
        return;
    }
    const cuda_position at = cuda_locate((int32_t)p, dx.h, dx.w);
    const cuda_window over_h =
        cuda_windows_over(at.y, pool.kernel_h, pool.stride_h, pool.pad_h, dy.h);
    const cuda_window over_w =
        cuda_windows_over(at.x, pool.kernel_w, pool.stride_w, pool.pad_w, dy.w);
    float sum[V] = {};
    for (int32_t oh = over_h.first; oh < over_h.end; oh++) {
        const cuda_window rows = cuda_rows(pool, oh, x.h);
        for (int32_t ow = over_w.first; ow < over_w.end; ow++) {
            float most[V], d[V];
            int32_t place[V];
            const cuda_window columns = cuda_columns(pool, ow, x.w);
            const int32_t mine = place_in(pool, rows, columns, at.y, at.x);
            find_maximum<T, V>(pool, x, at.n, rows, columns, c, most, place);
            load<T, V>(dy.at(at.n, oh, ow, c), d);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += place[v] == mine ? d[v] : 0.0f;
            }
        }
    }
    put<T, V>(dx.at(p, c), sum, accumulate);
}

/* The windows [first, end) over the pixels of a tile, in one direction. */
__device__ __forceinline__ cuda_window windows_over_tile(int32_t begin, int32_t size,
                                                         int32_t kernel, int32_t stride,
                                                         int32_t pad, int32_t outputs)
{
    const int32_t end = begin + TILE < size ? begin + TILE : size;
    cuda_window found = cuda_windows_over(begin, kernel, stride, pad, outputs);
    found.end = cuda_windows_over(end - 1, kernel, stride, pad, outputs).end;
    return found;
}

/* Where the maximum of a window is, for each channel. */
template <typename T, int V>
__device__ __forceinline__ void
find_places(const ym_pool &pool, const cuda_values<T> &x, int32_t n, int32_t oh,
            int32_t ow, int32_t c, uint8_t (&places)[V])
{
    float most[V];
    int32_t place[V];
    find_maximum<T, V>(pool, x, n, cuda_rows(pool, oh, x.h),
                       cuda_columns(pool, ow, x.w), c, most, place);
#pragma unroll
    for (int v = 0; v < V; v++) {
        places[v] = (uint8_t)place[v];
    }
}

/* blockIdx.x: the tile, y: the image, z: the channels. */
template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK)
    max_pool_backward_tile_kernel(ym_pool pool, cuda_values<T> x, cuda_values<T> dy,
                                  cuda_values<T> dx, int32_t channels, bool accumulate)
{
    __shared__ uint8_t places[MOST_WINDOWS * MOST_WINDOWS][TILE_VECTORS][V];
    const int32_t c = (int32_t)(blockIdx.z * TILE_VECTORS + threadIdx.x) * V;
    const int32_t n = (int32_t)blockIdx.y, across = (dx.w + TILE - 1) / TILE;
    const int32_t top = (int32_t)blockIdx.x / across * TILE;
    const int32_t left = (int32_t)blockIdx.x % across * TILE;
    const cuda_window over_h =
        windows_over_tile(top, dx.h, pool.kernel_h, pool.stride_h, pool.pad_h, dy.h);
    const cuda_window over_w =
        windows_over_tile(left, dx.w, pool.kernel_w, pool.stride_w, pool.pad_w, dy.w);
    /* None where strides leave pixels out. */
    const int32_t high = over_h.end > over_h.first ? over_h.end - over_h.first : 0;
    const int32_t wide = over_w.end > over_w.first ? over_w.end - over_w.first : 0;
    const int32_t windows = high * wide;
    for (int32_t i = (int32_t)threadIdx.y; c < channels && i < windows;
         i += (int32_t)blockDim.y) {
        find_places<T, V>(pool, x, n, over_h.first + i / wide, over_w.first + i % wide,
                          c, places[i][threadIdx.x]);
    }
    __syncthreads();
    const int32_t h = top + (int32_t)threadIdx.y / TILE;
    const int32_t w = left + (int32_t)threadIdx.y % TILE;
    if (c >= channels || h >= dx.h || w >= dx.w) {
        return;
    }
    const cuda_window mine_h =
        cuda_windows_over(h, pool.kernel_h, pool.stride_h, pool.pad_h, dy.h);
    const cuda_window mine_w =
        cuda_windows_over(w, pool.kernel_w, pool.stride_w, pool.pad_w, dy.w);
    float sum[V] = {};
    for (int32_t oh = mine_h.first; oh < mine_h.end; oh++) {
        const cuda_window rows = cuda_rows(pool, oh, x.h);
        for (int32_t ow = mine_w.first; ow < mine_w.end; ow++) {
            const cuda_window columns = cuda_columns(pool, ow, x.w);
            const uint8_t mine = (uint8_t)place_in(pool, rows, columns, h, w);
            const int32_t i = (oh - over_h.first) * wide + ow - over_w.first;
            float d[V];
            load<T, V>(dy.at(n, oh, ow, c), d);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += places[i][threadIdx.x][v] == mine ? d[v] : 0.0f;
            }
        }
    }
    put<T, V>(dx.at(n, h, w, c), sum, accumulate);
}

/* Whether the windows over a tile can be remembered, and blocks numbered. */
bool fits_tiles(const ym_pool &pool, const ym_tensor &dx)
{
    const int32_t high = (TILE + pool.kernel_h - 2) / pool.stride_h + 1;
    const int32_t wide = (TILE + pool.kernel_w - 2) / pool.stride_w + 1;
    return high <= MOST_WINDOWS && wide <= MOST_WINDOWS &&
           pool.kernel_h * pool.kernel_w <= 256 && dx.n <= 65535 &&
           dx.c <= 65535 * TILE_VECTORS;
}

} // namespace

ym_status cuda_max_pool_forward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "max pool", y));
    const int32_t pixels = (int32_t)ym_pixels(y);
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, cuda_is_wide(*x) && cuda_is_wide(*y),
        const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((max_pool_forward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, *pool, cuda_values<T>(*x),
                  cuda_values<T>(*y), pixels, x->c));
    return cuda_launched(context, "max_pool_forward_kernel");
}

ym_status cuda_max_pool_backward(ym_context *context, const ym_pool *pool,
                                 const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                 bool accumulate)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_check_pixels(context, "max pool backward", dx));
    const int32_t pixels = (int32_t)ym_pixels(dx);
    const bool wide = cuda_is_wide(*x) && cuda_is_wide(*dy) && cuda_is_wide(*dx);
    if (fits_tiles(*pool, *dx)) {
        const int32_t tiles = ((dx->h + TILE - 1) / TILE) * ((dx->w + TILE - 1) / TILE);
        YM_WITH_TYPE_AND_WIDTH(
            x->dtype, wide, const int32_t vectors = x->c / V;
            const dim3 grid((unsigned)tiles, (unsigned)dx->n,
                            (unsigned)((vectors + TILE_VECTORS - 1) / TILE_VECTORS));
            YM_LAUNCH((max_pool_backward_tile_kernel<T, V>), grid,
                      dim3(TILE_VECTORS, TILE * TILE), context, *pool,
                      cuda_values<T>(*x), cuda_values<T>(*dy), cuda_values<T>(*dx),
                      x->c, accumulate));
        return cuda_launched(context, "max_pool_backward_tile_kernel");
    }
    YM_WITH_TYPE_AND_WIDTH(
        x->dtype, wide, const cuda_tiles tiles = cuda_divide(x->c, V);
        YM_LAUNCH((max_pool_backward_kernel<T, V>), cuda_pixel_grid(tiles, pixels, 1),
                  cuda_block(tiles), context, *pool, cuda_values<T>(*x),
                  cuda_values<T>(*dy), cuda_values<T>(*dx), pixels, x->c, accumulate));
    return cuda_launched(context, "max_pool_backward_kernel");
}
