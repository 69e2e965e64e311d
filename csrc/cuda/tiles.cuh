/* SPDX-License-Identifier: MIT
 *
 * How a channels-last tensor is divided: a block has `columns` threads side by side, V
 * channels each, and `rows` of them below each other, on neighbouring pixels. A thread
 * keeps its channels, so what belongs to a channel is read once.
 */
#ifndef YM_CUDA_TILES_CUH
#define YM_CUDA_TILES_CUH

#include "cuda/values.cuh"

#define YM_BLOCK 256      /* threads, at most */
#define YM_CHUNKS 1024    /* partial sums of one channel, at most */
#define YM_FINISH_ROWS 32 /* threads that add up the partial sums of one channel */
#define YM_FINISH_COLUMNS (YM_BLOCK / YM_FINISH_ROWS)

struct cuda_tiles {
    int32_t columns, rows;
    int32_t column_blocks;
};

static inline cuda_tiles cuda_divide(int32_t channels, int width)
{
    const int32_t vectors = channels / width;
    cuda_tiles tiles;
    tiles.column_blocks = (vectors + 31) / 32;
    tiles.columns = (vectors + tiles.column_blocks - 1) / tiles.column_blocks;
    tiles.rows = YM_BLOCK / tiles.columns;
    return tiles;
}

/* A sum over pixels is cut into chunks; where, depends on the number of pixels alone.
 */
static inline int64_t cuda_chunk_pixels(int64_t pixels)
{
    const int64_t least = 32, even = (pixels + YM_CHUNKS - 1) / YM_CHUNKS;
    return even > least ? even : least;
}

static inline int32_t cuda_chunk_count(int64_t pixels)
{
    const int64_t chunk = cuda_chunk_pixels(pixels);
    return (int32_t)((pixels + chunk - 1) / chunk);
}

static inline dim3 cuda_block(const cuda_tiles &tiles)
{
    return dim3((unsigned)tiles.columns, (unsigned)tiles.rows);
}

/* One block for each chunk. */
static inline dim3 cuda_chunk_grid(const cuda_tiles &tiles, int64_t pixels)
{
    return dim3((unsigned)cuda_chunk_count(pixels), (unsigned)tiles.column_blocks);
}

/* Blocks whose threads do `each` pixels. */
static inline dim3 cuda_pixel_grid(const cuda_tiles &tiles, int64_t pixels, int each)
{
    const int64_t of_block = (int64_t)tiles.rows * each;
    return dim3((unsigned)((pixels + of_block - 1) / of_block),
                (unsigned)tiles.column_blocks);
}

static inline dim3 cuda_finish_grid(int32_t channels)
{
    return dim3((unsigned)((channels + YM_FINISH_COLUMNS - 1) / YM_FINISH_COLUMNS));
}

static inline dim3 cuda_finish_block()
{
    return dim3(YM_FINISH_COLUMNS, YM_FINISH_ROWS);
}

/* The first channel of this thread. */
template <int V> __device__ __forceinline__ int32_t cuda_first_channel()
{
    return (int32_t)(blockIdx.y * blockDim.x + threadIdx.x) * V;
}

/* Sums V values over the rows of the block; the answers are row 0's. Every thread of
 * the block comes. */
template <int V>
__device__ __forceinline__ void cuda_add_rows(float (&all)[V][YM_BLOCK],
                                              float (&value)[V])
{
    const int columns = (int)blockDim.x, row = (int)threadIdx.y;
    const int mine = row * columns + (int)threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) {
        all[v][mine] = value[v];
    }
    for (int rows = (int)blockDim.y; rows > 1;) {
        const int half = (rows + 1) / 2;
        __syncthreads();
        if (row + half < rows) {
#pragma unroll
            for (int v = 0; v < V; v++) {
                all[v][mine] += all[v][mine + half * columns];
            }
        }
        rows = half;
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        value[v] = all[v][mine];
    }
}

/* The same in double, in a block of cuda_finish_block. */
template <int N>
__device__ __forceinline__ void cuda_finish_rows(double (&all)[N][YM_BLOCK],
                                                 double (&value)[N])
{
    const int row = (int)threadIdx.y;
    const int mine = row * YM_FINISH_COLUMNS + (int)threadIdx.x;
#pragma unroll
    for (int n = 0; n < N; n++) {
        all[n][mine] = value[n];
    }
    for (int rows = YM_FINISH_ROWS / 2; rows > 0; rows /= 2) {
        __syncthreads();
#pragma unroll
        for (int n = 0; n < N && row < rows; n++) {
            all[n][mine] += all[n][mine + rows * YM_FINISH_COLUMNS];
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
        value[n] = all[n][mine];
    }
}

struct cuda_position {
    int32_t n, y, x;
};

__device__ __forceinline__ cuda_position cuda_locate(int32_t pixel, int32_t h,
                                                     int32_t w)
{
    const int32_t line = pixel / w;
    return {line / h, line % h, pixel % w};
}

#endif
