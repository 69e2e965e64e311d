/* SPDX-License-Identifier: MIT
 *
 * Products whose result has sides of 1, along which they are summed. Where y has all
 * channels, threads lie side by side on them and share the pixels; where it has one,
 * the lanes of a group share channels and pixels. A sum that few threads would make is
 * cut into chunks, whose sums are added up in double by a second kernel.
 */
#include "cuda/multiply.cuh"

namespace
{

const int EACH = 4;   /* pixels fetched before the first is used */
const int FLUSH = 16; /* numbers added up before their sum goes to that of all */
const int LANES = 32; /* of a group, at most */
const int GROUPS = YM_BLOCK / LANES;
const int64_t LEAST_PIXELS = 32; /* of a chunk, for threads side by side */
const int64_t LEAST_PACKS = 512; /* of a chunk, for the lanes of a group */
const int64_t WAVES = 4;         /* so many may be without a cut */
const int64_t TRIES = 4;

/* A sum of many numbers, sixteen at a time: what an addition loses grows with the sum
 * that it adds to. */
template <int V> struct running {
    float whole[V], part[V];
    int32_t count;

    __device__ __forceinline__ void add(const float (&value)[V])
    {
#pragma unroll
        for (int v = 0; v < V; v++) {
            part[v] += value[v];
        }
        if (++count == FLUSH) {
            flush();
        }
    }
    __device__ __forceinline__ void flush()
    {
#pragma unroll
        for (int v = 0; v < V; v++) {
            whole[v] += part[v];
            part[v] = 0;
        }
        count = 0;
    }
};

/* How sums are divided: y's pixels and, of each, the pixels that make it. */
struct division {
    cuda_sides kept{1, 1}, summed{1, 1};
    int32_t pixels = 1; /* that make one of y */
    int32_t chunk = 1, chunks = 1;
    int32_t channels = 1;
    float *partial = nullptr; /* (y's pixels, chunks, channels) */

    __device__ __forceinline__ int32_t end_of(int32_t first) const
    {
        return pixels - first < chunk ? pixels : first + chunk;
    }
};

/* V channels of both factors at N pixels. */
template <typename T, int V, bool A_FLAT, bool B_FLAT, int N> struct addends {
    cuda_taken<T, V, A_FLAT> left[N];
    cuda_taken<T, V, B_FLAT> right[N];

    __device__ __forceinline__ void fetch_from(const cuda_product<T> &of, int k,
                                               int32_t a, int32_t b, int32_t channel)
    {
        left[k].fetch_from(of.a, a, channel);
        right[k].fetch_from(of.b, b, channel);
    }
    __device__ __forceinline__ void add_to(const cuda_product<T> &of, int k,
                                           float (&sum)[V]) const
    {
        float value[V], other[V];
        left[k].unpack_to(of.a, value);
        right[k].unpack_to(of.b, other);
#pragma unroll
        for (int v = 0; v < V; v++) {
            sum[v] = fmaf(value[v], other[v], sum[v]);
        }
    }
};

/* One block for each chunk of each of y's pixels. */
template <typename T, int V, bool A_FLAT, bool B_FLAT>
__global__ void __launch_bounds__(YM_BLOCK, YM_CHUNK_WAVE)
    pixel_sums_kernel(cuda_product<T> of, division parts)
{
    /* More of both factors would not fit into a thread's registers. */
    constexpr int N = V > 1 && !B_FLAT ? EACH / 2 : EACH;
    __shared__ float all[V][YM_BLOCK];
    const int32_t c = cuda_first_channel<V>(), rows = (int32_t)blockDim.y;
    const int32_t o = (int32_t)blockIdx.x / parts.chunks;
    const int32_t first = ((int32_t)blockIdx.x - o * parts.chunks) * parts.chunk;
    running<V> sum = {};
    if (c < parts.channels) {
        const cuda_position at = parts.kept.locate(o);
        const int32_t a = of.a.pixel(at), b = of.b.pixel(at);
        const int32_t from = first + (int32_t)threadIdx.y;
        const int32_t mine = (parts.end_of(first) - from + rows - 1) / rows;
        addends<T, V, A_FLAT, B_FLAT, N> next;
        int32_t i = 0;
        for (; i + N <= mine; i += N) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                const cuda_position p = parts.summed.locate(from + (i + k) * rows);
                next.fetch_from(of, k, a + of.a.pixel(p), b + of.b.pixel(p), c);
            }
            float made[V] = {};
#pragma unroll
            for (int k = 0; k < N; k++) {
                next.add_to(of, k, made);
            }
            sum.add(made);
        }
        for (; i < mine; i++) {
            const cuda_position p = parts.summed.locate(from + i * rows);
            float made[V] = {};
            next.fetch_from(of, 0, a + of.a.pixel(p), b + of.b.pixel(p), c);
            next.add_to(of, 0, made);
            sum.add(made);
        }
    }
    sum.flush();
    cuda_add_rows<V>(all, sum.whole);
    if (threadIdx.y > 0 || c >= parts.channels) {
        return;
    }
    if (parts.chunks > 1) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            parts.partial[(int64_t)blockIdx.x * parts.channels + c + v] = sum.whole[v];
        }
        return;
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        sum.whole[v] = of.divisor.of(sum.whole[v]);
    }
    put<T, V>(of.y.at(o, c), sum.whole, of.accumulate);
}

/* One group of blockDim.x lanes, a power of two, for each chunk of each of y's pixels:
 * `packs` of V channels are a pixel. */
template <typename T, int V, bool A_FLAT, bool B_FLAT>
__global__ void __launch_bounds__(YM_BLOCK, YM_CHUNK_WAVE)
    channel_sums_kernel(cuda_product<T> of, division parts, cuda_quotient by_packs,
                        int32_t packs, int64_t groups)
{
    const int64_t group = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const int32_t lanes = (int32_t)blockDim.x;
    running<1> sum = {};
    int32_t o = 0;
    if (group < groups) {
        o = (int32_t)((uint32_t)group / (uint32_t)parts.chunks);
        const int32_t first = ((int32_t)group - o * parts.chunks) * parts.chunk;
        const cuda_position at = parts.kept.locate(o);
        const int32_t a = of.a.pixel(at), b = of.b.pixel(at);
        const int32_t count = (parts.end_of(first) - first) * packs;
        addends<T, V, A_FLAT, B_FLAT, EACH> next;
        for (int32_t i = (int32_t)threadIdx.x; i < count; i += EACH * lanes) {
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                const int32_t pack = i + k * lanes, row = by_packs.of(pack);
                if (pack < count) {
                    const cuda_position p = parts.summed.locate(first + row);
                    next.fetch_from(of, k, a + of.a.pixel(p), b + of.b.pixel(p),
                                    (pack - row * packs) * V);
                }
            }
            float made[V] = {}, made_up[1] = {};
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                if (i + k * lanes < count) {
                    next.add_to(of, k, made);
                }
            }
#pragma unroll
            for (int v = 0; v < V; v++) {
                made_up[0] += made[v];
            }
            sum.add(made_up);
        }
    }
    sum.flush();
    float made = sum.whole[0];
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        made += __shfl_down_sync(0xffffffffu, made, (unsigned)distance);
    }
    if (threadIdx.x > 0 || group >= groups) {
        return;
    }
    if (parts.chunks > 1) {
        parts.partial[group] = made;
        return;
    }
    float value[1] = {of.divisor.of(made)};
    put<T, 1>(of.y.at(o, 0), value, of.accumulate);
}

/* blockIdx.y is y's pixel. */
template <typename T>
__global__ void __launch_bounds__(YM_BLOCK)
    multiply_finish_kernel(cuda_values<T> y, const float *__restrict__ partial,
                           int32_t chunks, int32_t channels, double scale,
                           bool accumulate)
{
    __shared__ double all[1][YM_BLOCK];
    const int32_t c = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    const float *from = partial + (int64_t)blockIdx.y * chunks * channels + c;
    double sum[1] = {0};
    if (c < channels) {
#pragma unroll 4
        for (int32_t i = (int32_t)threadIdx.y; i < chunks; i += YM_FINISH_ROWS) {
            sum[0] += from[(int64_t)i * channels];
        }
    }
    cuda_finish_rows<1>(all, sum);
    if (threadIdx.y == 0 && c < channels) {
        float value[1] = {(float)(sum[0] * scale)};
        put<T, 1>(y.at((int64_t)blockIdx.y, c), value, accumulate);
    }
}

int64_t at_least_one(int64_t number)
{
    return number > 1 ? number : 1;
}

int64_t quotient_up(int64_t number, int64_t by)
{
    return (number + by - 1) / by;
}

/* `sums` are made at once, `wave` of which fill the GPU: into how many chunks each is
 * cut, at most `most`, so that the last wave is nearly full. */
int64_t chunks_of(int64_t sums, int64_t wave, int64_t most)
{
    const int64_t least = at_least_one(wave / sums);
    if (sums >= WAVES * wave || most <= least) {
        return sums >= WAVES * wave ? 1 : most;
    }
    int64_t best = least;
    double best_share = 0;
    for (int64_t i = least; i < least + TRIES && i <= most && best_share < 0.875; i++) {
        const int64_t made = sums * i;
        const double share = (double)made / (double)(quotient_up(made, wave) * wave);
        if (share > best_share) {
            best = i;
            best_share = share;
        }
    }
    return best;
}

/* Of any GPU and any way to read the tensors. */
int64_t most_chunks(int64_t sums, int64_t wave, int64_t most)
{
    const int64_t tried = at_least_one(wave / sums) + TRIES - 1;
    return sums >= WAVES * wave ? 1 : tried < most ? tried : most;
}

int64_t summed_pixels(const ym_extent &all, const ym_tensor &y)
{
    return (int64_t)(all.n / y.n) * (all.h / y.h) * (all.w / y.w);
}

/* As many chunks as the least ones would be. */
int64_t most_by_pixels(int64_t pixels)
{
    return quotient_up(pixels, LEAST_PIXELS);
}

int64_t most_by_packs(int64_t pixels, int64_t packs)
{
    return quotient_up(pixels, quotient_up(LEAST_PACKS, packs));
}

division divide(const ym_extent &all, const ym_tensor &y, int64_t chunks)
{
    const int64_t pixels = summed_pixels(all, y), chunk = quotient_up(pixels, chunks);
    division made;
    made.kept = cuda_sides(y.h, y.w);
    made.summed = cuda_sides(all.h / y.h, all.w / y.w);
    made.pixels = (int32_t)pixels;
    made.chunk = (int32_t)chunk;
    made.chunks = (int32_t)quotient_up(pixels, chunk);
    made.channels = y.c;
    return made;
}

int64_t blocks_at_once(const ym_context *context)
{
    const int64_t blocks = (int64_t)YM_CHUNK_WAVE * cuda_multiprocessors(context);
    return blocks < YM_CHUNKS ? blocks : YM_CHUNKS;
}

ym_status sum_pixels(ym_context *context, const ym_tensor &a, const ym_tensor &b,
                     const cuda_divisor &divisor, ym_tensor *y, division *made,
                     bool accumulate)
{
    const ym_extent all = ym_span(&a, &b, y);
    const bool wide = cuda_is_wide(*y) && cuda_is_wide_or_flat(a, all) &&
                      cuda_is_wide_or_flat(b, all);
    const int64_t sums = ym_pixels(y), wave = blocks_at_once(context);
    const int64_t pixels = summed_pixels(all, *y), most = most_by_pixels(pixels);
    YM_WITH_TYPE_AND_WIDTH(
        y->dtype, wide, cuda_tiles tiles = cuda_divide(y->c, V);
        tiles.rows = (int32_t)(tiles.rows < pixels ? tiles.rows : pixels);
        *made = divide(all, *y, chunks_of(sums * tiles.column_blocks, wave, most));
        made->partial = static_cast<float *>(context->scratch);
        const dim3 grid((unsigned)(sums * made->chunks), (unsigned)tiles.column_blocks);
        const cuda_product<T> of(a, b, *y, divisor, accumulate);
        YM_WITH_FLATNESS(cuda_is_flat(a, all), cuda_is_flat(b, all),
                         YM_LAUNCH((pixel_sums_kernel<T, V, A, B>), grid,
                                   cuda_block(tiles), context, of, *made)));
    return cuda_launched(context, "pixel_sums_kernel");
}

/* As many lanes as have a few packs each. */
int32_t lanes_of(int64_t packs)
{
    int32_t lanes = LANES;
    while (lanes > 1 && lanes * EACH > packs) {
        lanes /= 2;
    }
    return lanes;
}

/* At least one factor has channels. */
ym_status sum_channels(ym_context *context, const ym_tensor &a, const ym_tensor &b,
                       const cuda_divisor &divisor, ym_tensor *y, division *made,
                       bool accumulate)
{
    const ym_extent all = ym_span(&a, &b, y);
    const bool wide = cuda_is_wide_or_flat(a, all) && cuda_is_wide_or_flat(b, all);
    const int64_t sums = ym_pixels(y), wave = GROUPS * blocks_at_once(context);
    const int64_t pixels = summed_pixels(all, *y);
    YM_WITH_TYPE_AND_WIDTH(
        y->dtype, wide, const int32_t packs = all.c / V;
        const int32_t lanes = lanes_of(packs * pixels);
        *made = divide(all, *y, chunks_of(sums, wave, most_by_packs(pixels, packs)));
        made->partial = static_cast<float *>(context->scratch); YM_CHECK(
            &context->error, (int64_t)made->chunk * packs <= INT32_MAX - EACH * LANES,
            YM_ERR_UNSUPPORTED,
            "cuda: multiply: a sum of %lld numbers in one chunk, at most %lld are "
            "possible",
            (long long)made->chunk * all.c, (INT32_MAX - EACH * LANES) * (long long)V);
        const int64_t groups = sums * made->chunks;
        const dim3 block((unsigned)lanes, (unsigned)(YM_BLOCK / lanes));
        const dim3 grid((unsigned)quotient_up(groups, block.y));
        const cuda_product<T> of(a, b, *y, divisor, accumulate); YM_WITH_FLATNESS(
            false, cuda_is_flat(b, all),
            YM_LAUNCH((channel_sums_kernel<T, V, A, B>), grid, block, context, of,
                      *made, cuda_quotient(packs), packs, groups)));
    return cuda_launched(context, "channel_sums_kernel");
}

} // namespace

size_t cuda_sum_scratch_bytes(const ym_extent &all, const ym_tensor &y)
{
    const int64_t sums = ym_pixels(&y), pixels = summed_pixels(all, y);
    const int64_t chunks = y.c == all.c
                               ? most_chunks(sums, YM_CHUNKS, most_by_pixels(pixels))
                               : most_chunks(sums, (int64_t)YM_CHUNKS * GROUPS,
                                             most_by_packs(pixels, all.c));
    return chunks > 1 ? (size_t)(sums * chunks * y.c) * sizeof(float) : 0;
}

ym_status cuda_multiply_sum(ym_context *context, const ym_tensor &a, const ym_tensor &b,
                            double scale, ym_tensor *y, bool accumulate)
{
    const ym_extent all = ym_span(&a, &b, y);
    const cuda_divisor divisor(scale);
    YM_TRY(cuda_require_scratch(context, "multiply", cuda_sum_scratch_bytes(all, *y)));
    division made;
    if (y->c == all.c) {
        YM_TRY(sum_pixels(context, a, b, divisor, y, &made, accumulate));
    } else {
        YM_TRY(sum_channels(context, a, b, divisor, y, &made, accumulate));
    }
    if (made.chunks == 1) {
        return YM_OK;
    }
    const dim3 grid(cuda_finish_grid(y->c).x, (unsigned)ym_pixels(y));
    YM_WITH_TYPE(y->dtype,
                 YM_LAUNCH((multiply_finish_kernel<T>), grid, cuda_finish_block(),
                           context, cuda_values<T>(*y), made.partial, made.chunks, y->c,
                           scale, accumulate));
    return cuda_launched(context, "multiply_finish_kernel");
}
