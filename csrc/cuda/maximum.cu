/* SPDX-License-Identifier: MIT
 *
 * Maxima over the pixels or the channels of an image (rules: ref/maximum.c). Over
 * pixels, here: threads lie side by side on channels, those below each other share the
 * pixels of a window and write its gradient as soon as they know the maximum. Where
 * windows are few they are cut into chunks, whose maxima a second kernel joins; then a
 * third one writes the gradient.
 */
#include "cuda/maximum.cuh"
#include "cuda/pool.cuh"

namespace
{

const int PIXELS = 16; /* of a thread, where windows are long and many */

enum pass { PARTIAL, FORWARD, BACKWARD };

/* x as (outer, count, inner) pixels: the middle ones are a window and make one of y. */
struct division {
    int32_t windows, count, inner, channels;
    int32_t team, teams;   /* rows of threads that share a window; such in a block */
    int32_t chunk, chunks; /* pixels of a window, parts of it */
};

/* The places first, first + step, ... of one thread. */
struct share {
    int32_t first, step, count;
};

/* The first pixel of a window. */
__device__ __forceinline__ int64_t first_pixel(const division &d, int32_t window)
{
    const int32_t outer = window / d.inner;
    return (int64_t)outer * d.inner * d.count + (window - outer * d.inner);
}

/* What this thread does of the chunk blockIdx.z of a window. */
__device__ __forceinline__ share share_of(const division &d)
{
    const int32_t row = (int32_t)threadIdx.y % d.team;
    const int32_t first = (int32_t)blockIdx.z * d.chunk;
    const int32_t pixels = d.count - first < d.chunk ? d.count - first : d.chunk;
    return {first + row, d.team, (pixels - row + d.team - 1) / d.team};
}

/* Joins what the `team` rows of a window have seen, and tells them all. Every thread
 * of the block comes. */
template <int V>
__device__ __forceinline__ void join_rows(cuda_found (&all)[V][YM_BLOCK],
                                          cuda_found (&best)[V], int32_t team)
{
    const int columns = (int)blockDim.x, row = (int)threadIdx.y % team;
    const int mine = (int)threadIdx.y * columns + (int)threadIdx.x;
#pragma unroll
    for (int v = 0; v < V; v++) {
        all[v][mine] = best[v];
    }
    for (int rows = team; rows > 1;) {
        const int half = (rows + 1) / 2;
        __syncthreads();
        if (row + half < rows) {
#pragma unroll
            for (int v = 0; v < V; v++) {
                best[v].join(all[v][mine + half * columns]);
                all[v][mine] = best[v];
            }
        }
        rows = half;
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) {
        best[v] = all[v][mine - row * columns];
    }
}

/* dx of this thread's share of a window. */
template <typename T, int V>
__device__ __forceinline__ void give_back(const cuda_operands<T> &of, const division &d,
                                          int32_t window, int32_t c, share mine,
                                          const int32_t (&place)[V])
{
    float dy[V];
    load<T, V>(of.y.at((int64_t)window, c), dy);
    const int64_t first = first_pixel(d, window) + (int64_t)mine.first * d.inner;
    cuda_write_all<T, V>(of.dx.at(first, c), of.dx.pitch * d.inner * mine.step,
                         mine.count, of.accumulate, [&](int32_t i, int v) {
                             const bool here = place[v] == mine.first + i * mine.step;
                             return here ? dy[v] : 0.0f;
                         });
}

/* One chunk of one window for each team of a block. partial: (windows, chunks,
 * channels). */
template <typename T, int V, pass PASS>
__global__ void __launch_bounds__(YM_BLOCK, YM_CHUNK_WAVE)
    window_kernel(cuda_operands<T> of, division d, cuda_found *partial)
{
    __shared__ cuda_found all[V][YM_BLOCK];
    const int32_t c = cuda_first_channel<V>();
    const int32_t row = (int32_t)threadIdx.y;
    const int64_t number = (int64_t)blockIdx.x * d.teams + row / d.team;
    const int32_t window = (int32_t)number;
    const bool works = c < d.channels && number < d.windows;
    const share mine = share_of(d);
    cuda_found best[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        best[v].start();
    }
    if (works) {
        const int64_t first = first_pixel(d, window) + (int64_t)mine.first * d.inner;
        cuda_read_all<T, V>(of.x.at(first, c), of.x.pitch * d.inner * mine.step,
                            mine.count, [&](int32_t i, const float(&value)[V]) {
#pragma unroll
                                for (int v = 0; v < V; v++) {
                                    best[v].see(value[v], mine.first + i * mine.step);
                                }
                            });
    }
    if (d.team > 1) {
        join_rows<V>(all, best, d.team);
    }
    if (!works || (PASS != BACKWARD && row % d.team > 0)) {
        return;
    }
    float most[V];
    int32_t place[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        most[v] = best[v].most;
        place[v] = best[v].place;
        if (PASS == PARTIAL) {
            const int64_t chunk = (int64_t)window * d.chunks + blockIdx.z;
            partial[chunk * d.channels + c + v] = best[v];
        }
    }
    if (PASS == FORWARD) {
        store<T, V>(of.y.at((int64_t)window, c), most);
    } else if (PASS == BACKWARD) {
        give_back<T, V>(of, d, window, c, mine, place);
    }
}

/* The maxima of window blockIdx.y from those of its chunks: to y, or, in backward, to
 * places (windows, channels). */
template <typename T>
__global__ void __launch_bounds__(YM_BLOCK)
    finish_kernel(const cuda_found *__restrict__ partial, division d, cuda_values<T> y,
                  int32_t *places)
{
    __shared__ cuda_found all[1][YM_BLOCK];
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    const int64_t window = blockIdx.y;
    cuda_found best[1];
    best[0].start();
    if (c < d.channels) {
        const cuda_found *from = partial + window * d.chunks * d.channels + c;
#pragma unroll 4
        for (int32_t i = (int32_t)threadIdx.y; i < d.chunks; i += YM_FINISH_ROWS) {
            best[0].join(from[(int64_t)i * d.channels]);
        }
    }
    join_rows<1>(all, best, YM_FINISH_ROWS);
    if (threadIdx.y > 0 || c >= d.channels) {
        return;
    }
    if (places != nullptr) {
        places[window * d.channels + c] = best[0].place;
    } else {
        from_float(best[0].most, y.at(window, c));
    }
}

/* dx of one chunk of one window. */
template <typename T, int V>
__global__ void __launch_bounds__(YM_BLOCK, YM_CHUNK_WAVE)
    give_back_kernel(cuda_operands<T> of, division d,
                     const int32_t *__restrict__ places)
{
    const int32_t c = cuda_first_channel<V>(), window = (int32_t)blockIdx.x;
    if (c < d.channels) {
        int32_t place[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
            place[v] = places[(int64_t)window * d.channels + c + v];
        }
        give_back<T, V>(of, d, window, c, share_of(d), place);
    }
}

/* Long windows get whole blocks if there are not enough of them to keep the GPU busy,
 * and chunks if that does not either. */
division share_out(const ym_tensor &x, const ym_tensor &y, const cuda_tiles &tiles,
                   int32_t multiprocessors)
{
    division made = {};
    made.windows = (int32_t)ym_pixels(&y);
    made.count = (int32_t)(ym_pixels(&x) / ym_pixels(&y));
    made.inner = y.h < x.h && y.w == x.w ? x.w : 1;
    made.channels = x.c;
    const int64_t wave = cuda_chunk_wave(multiprocessors);
    const int64_t alone = (int64_t)made.windows * tiles.column_blocks; /* in a block */
    const int64_t fit = (int64_t)tiles.rows * PIXELS / made.count, spare = alone / wave;
    const int64_t teams = fit < spare ? fit : spare, most = wave / alone;
    made.teams = (int32_t)(teams < 1 ? 1 : teams < tiles.rows ? teams : tiles.rows);
    const int32_t rows = tiles.rows / made.teams;
    const int32_t busy = (made.count - 1) / YM_MAXIMUM_EACH + 1;
    made.team = rows < busy ? rows : busy;
    const int64_t least = (int64_t)tiles.rows * YM_MAXIMUM_EACH;
    const cuda_chunks chunks =
        cuda_cut_into(made.count, most > 1 ? most : 1,
                      least > YM_LEAST_CHUNK ? least : YM_LEAST_CHUNK);
    made.chunk = (int32_t)chunks.pixels;
    made.chunks = chunks.count;
    return made;
}

/* As many as share_out makes on any GPU, for any access. */
size_t most_chunks(const ym_tensor &x, const ym_tensor &y)
{
    const int64_t windows = ym_pixels(&y), most = YM_CHUNKS / windows;
    const int64_t count = ym_pixels(&x) / windows;
    return most > 1 ? (size_t)cuda_cut_into(count, most, YM_LEAST_CHUNK).count : 1;
}

template <typename T, int V>
ym_status over_pixels(ym_context *context, const cuda_maximum_job &all)
{
    const cuda_tiles tiles = cuda_divide(all.x->c, V);
    const division d = share_out(*all.x, *all.y, tiles, cuda_multiprocessors(context));
    const cuda_operands<T> of = all.as<T>();
    const dim3 block((unsigned)tiles.columns, (unsigned)(d.teams * d.team));
    const dim3 grid((unsigned)((d.windows - 1) / d.teams + 1),
                    (unsigned)tiles.column_blocks, (unsigned)d.chunks);
    cuda_found *partial = static_cast<cuda_found *>(context->scratch);
    if (d.chunks > 1) {
        YM_LAUNCH((window_kernel<T, V, PARTIAL>), grid, block, context, of, d, partial);
    } else if (all.dx == nullptr) {
        YM_LAUNCH((window_kernel<T, V, FORWARD>), grid, block, context, of, d, partial);
    } else {
        YM_LAUNCH((window_kernel<T, V, BACKWARD>), grid, block, context, of, d,
                  partial);
    }
    YM_TRY(cuda_launched(context, "window_kernel"));
    if (d.chunks == 1) {
        return YM_OK;
    }
    const int64_t partials = (int64_t)d.windows * d.chunks * d.channels;
    int32_t *places = reinterpret_cast<int32_t *>(partial + partials);
    dim3 finish = cuda_finish_grid(d.channels);
    finish.y = (unsigned)d.windows;
    YM_LAUNCH(finish_kernel<T>, finish, cuda_finish_block(), context, partial, d, of.y,
              all.dx != nullptr ? places : nullptr);
    YM_TRY(cuda_launched(context, "finish_kernel"));
    if (all.dx != nullptr) {
        YM_LAUNCH((give_back_kernel<T, V>), grid, block, context, of, d, places);
        YM_TRY(cuda_launched(context, "give_back_kernel"));
    }
    return YM_OK;
}

ym_status maximum(ym_context *context, const cuda_maximum_job &all)
{
    const cuda_device_guard guard(context);
    const ym_tensor &x = *all.x, &y = *all.y;
    if (y.c < x.c) {
        return cuda_maximum_over_channels(context, all);
    }
    YM_TRY(cuda_check_pixels(context, "maximum", &x));
    YM_TRY(
        cuda_require_scratch(context, "maximum", cuda_maximum_scratch_bytes(&x, &y)));
    const bool wide = cuda_is_wide(x) && cuda_is_wide(y) &&
                      (all.dx == nullptr || cuda_is_wide(*all.dx));
    YM_WITH_TYPE_AND_WIDTH(x.dtype, wide, return (over_pixels<T, V>(context, all)));
}

} // namespace

size_t cuda_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y)
{
    const size_t chunks = y->c < x->c ? 1 : most_chunks(*x, *y);
    const size_t of_channel = chunks * sizeof(cuda_found) + sizeof(int32_t);
    return chunks > 1 ? (size_t)ym_pixels(y) * (size_t)x->c * of_channel : 0;
}

ym_status cuda_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    return maximum(context, {x, y, nullptr, false});
}

ym_status cuda_maximum_backward(ym_context *context, const ym_tensor *x,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    return maximum(context, {x, dy, dx, accumulate});
}
