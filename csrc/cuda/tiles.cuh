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
#define YM_LEAST_CHUNK 32 /* pixels */
#define YM_CHUNK_WAVE 4   /* blocks of one chunk that a multiprocessor takes at once */
#define YM_FINISH_ROWS 32 /* threads that add up the partial sums of one channel */
#define YM_FINISH_COLUMNS (YM_BLOCK / YM_FINISH_ROWS)

struct cuda_tiles {
    int32_t columns, rows;
    int32_t column_blocks;
};

/* All channels of a pixel in one block, so that it reads and writes whole lines of
 * memory: a border within a line costs a fifth of the speed. Where that would leave an
 * eighth of the threads without work, or there are too many, several blocks of columns,
 * whose borders lie between the memory's units of 32 bytes. */
static inline cuda_tiles cuda_divide(int32_t channels, int width)
{
    const int32_t most = 128, enough = YM_BLOCK - YM_BLOCK / 8;
    const int32_t vectors = channels / width, least = (vectors + most - 1) / most;
    cuda_tiles best = {};
    for (int32_t blocks = least; blocks < least + 4; blocks++) {
        int32_t columns = (vectors + blocks - 1) / blocks;
        columns = blocks == 1 ? columns : (columns + 3) / 4 * 4;
        const int32_t rows = YM_BLOCK / columns;
        if (rows * columns > best.rows * best.columns) {
            best.columns = columns;
            best.rows = rows;
            best.column_blocks = (vectors + columns - 1) / columns;
        }
        if (rows * columns >= enough) {
            break;
        }
    }
    return best;
}

/* A thread for each channel, in blocks of YM_BLOCK. */
static inline dim3 cuda_channel_grid(int32_t channels)
{
    return dim3((unsigned)(channels + YM_BLOCK - 1) / YM_BLOCK);
}

/* A sum over pixels is cut into chunks. */
struct cuda_chunks {
    int64_t pixels; /* of one; the last may have fewer */
    int32_t count;
};

/* Into at most `most`, of at least `least` pixels where there are so many. */
static inline cuda_chunks cuda_cut_into(int64_t pixels, int64_t most, int64_t least)
{
    const int64_t even = (pixels + most - 1) / most;
    cuda_chunks made;
    made.pixels = even > least ? even : least;
    made.count = (int32_t)((pixels + made.pixels - 1) / made.pixels);
    return made;
}

/* Chunks that the GPU takes at once. */
static inline int32_t cuda_chunk_wave(int32_t multiprocessors)
{
    const int64_t wave = (int64_t)YM_CHUNK_WAVE * multiprocessors;
    return wave < YM_CHUNKS ? (int32_t)wave : YM_CHUNKS;
}

/* As many as the GPU takes at once: a few blocks more would cost as much as all. Where
 * the cuts are depends on the pixels and the GPU's model alone. */
static inline cuda_chunks cuda_cut(int64_t pixels, int32_t multiprocessors)
{
    return cuda_cut_into(pixels, cuda_chunk_wave(multiprocessors), YM_LEAST_CHUNK);
}

/* At most so many on any GPU. */
static inline size_t cuda_most_chunks(int64_t pixels)
{
    return (size_t)cuda_cut(pixels, YM_CHUNKS).count;
}

static inline dim3 cuda_block(const cuda_tiles &tiles)
{
    return dim3((unsigned)tiles.columns, (unsigned)tiles.rows);
}

/* One block for each chunk. */
static inline dim3 cuda_chunk_grid(const cuda_tiles &tiles, const cuda_chunks &chunks)
{
    return dim3((unsigned)chunks.count, (unsigned)tiles.column_blocks);
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

/* Of the pixels from `first` to `end`, those of this thread: every blockDim.y-th from
 * the threadIdx.y-th on. */
__device__ __forceinline__ int32_t cuda_own_pixels(int64_t first, int64_t end)
{
    const int64_t step = blockDim.y;
    return (int32_t)((end - first - (int64_t)threadIdx.y + step - 1) / step);
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
