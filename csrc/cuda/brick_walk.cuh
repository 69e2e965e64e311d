/* SPDX-License-Identifier: MIT
 *
 * How a thread of the brick's backward goes over its pixels, and what it sums up there.
 * How many pixels are on their way at once was found by measurement on an H200.
 */
#ifndef YM_CUDA_BRICK_WALK_CUH
#define YM_CUDA_BRICK_WALK_CUH

#include "cuda/brick.cuh"

/* Channels of a thread: two terms of 16 bits with eight channels would leave no
 * registers for pixels on their way. */
template <int V, int TERMS> struct cuda_brick_width {
    static const int OF_THREAD = V == 8 && TERMS == 2 ? 4 : V;
};

/* Pixels of a thread that are fetched before the first is used: as many as there are
 * registers for, 128 a thread. For the sums of one term, two of them while the two
 * before are worked on, which is faster than more at once. */
template <typename T, int TERMS> struct cuda_brick_ahead {
    static const int WHEN_WRITING = sizeof(T) == 2 && TERMS == 2 ? 8 : 4;
    static const int WHEN_SUMMING = sizeof(T) == 2 && TERMS == 2 ? 8 : 2;
    static const bool OVERLAPS = TERMS == 1;
};

/* What is stored of a pixel. */
template <typename T, int V, int TERMS> struct cuda_stored {
    cuda_pack<T, V> value[TERMS], dout;

    /* dz; v - mean of each term on the way. */
    template <cuda_formulas F>
    __device__ __forceinline__ void
    derive(const cuda_brick<F> &brick, const cuda_term_channels<T, V> (&term)[TERMS],
           float (&distance)[TERMS][V], float (&dz)[V]) const
    {
        float z[V];
        unpack<T, V>(dout, dz);
        cuda_before_activation<T, V, TERMS>(term, value, distance, z);
        cuda_derive<T, V>(brick, z, dz);
    }
};

/* Walks over a thread's pixels. Values that are absent are nobody's business: dout is
 * read in their place, which is cheaper than to ask each time. */
template <typename T, int V, int TERMS> struct cuda_walk {
    const T *from[TERMS + 1]; /* dout last */
    int64_t step[TERMS + 1];  /* to the thread's next pixel */

    __device__ __forceinline__ cuda_walk(const cuda_term_channels<T, V> (&term)[TERMS],
                                         const cuda_values<T> &dout, int32_t c,
                                         int64_t first)
    {
#pragma unroll
        for (int t = 0; t <= TERMS; t++) {
            const bool present = t < TERMS && term[t % TERMS].data != nullptr;
            const T *data = present ? term[t % TERMS].data : dout.data + c;
            const int64_t pitch = present ? term[t % TERMS].pitch : dout.pitch;
            from[t] = data + first * pitch;
            step[t] = blockDim.y * pitch;
        }
    }
    template <int COUNT>
    __device__ __forceinline__ void next(cuda_stored<T, V, TERMS> (&some)[COUNT])
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            some[i].dout = fetch<T, V>(from[TERMS] + i * step[TERMS]);
#pragma unroll
            for (int t = 0; t < TERMS; t++) {
                some[i].value[t] = fetch<T, V>(from[t] + i * step[t]);
            }
        }
#pragma unroll
        for (int t = 0; t <= TERMS; t++) {
            from[t] += COUNT * step[t];
        }
    }
};

/* The sums of dz, and of dz (v - mean) of each term. */
template <typename T, int V, int TERMS> struct cuda_sums {
    float of[1 + TERMS][V];

    template <cuda_formulas F, int COUNT>
    __device__ __forceinline__ void add(const cuda_brick<F> &brick,
                                        const cuda_term_channels<T, V> (&term)[TERMS],
                                        const cuda_stored<T, V, TERMS> (&some)[COUNT])
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float distance[TERMS][V], dz[V];
            some[i].derive(brick, term, distance, dz);
#pragma unroll
            for (int v = 0; v < V; v++) {
                of[0][v] += dz[v];
#pragma unroll
                for (int t = 0; t < TERMS; t++) {
                    of[1 + t][v] = fmaf(dz[v], distance[t][v], of[1 + t][v]);
                }
            }
        }
    }
    /* All of a thread's pixels; what the terms need beside them is loaded while the
     * first are on their way. */
    template <cuda_formulas F>
    __device__ __forceinline__ void
    walk(const cuda_brick<F> &brick, cuda_term_channels<T, V> (&term)[TERMS],
         cuda_walk<T, V, TERMS> &pixel, int32_t c, int32_t left)
    {
        const int EACH = cuda_brick_ahead<T, TERMS>::WHEN_SUMMING;
        const bool OVERLAPS = cuda_brick_ahead<T, TERMS>::OVERLAPS;
        cuda_stored<T, V, TERMS> now[EACH], later[EACH], one[1];
        const bool has_some = OVERLAPS && left >= EACH;
        if (has_some) {
            pixel.next(now);
        }
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            term[t].prepare(brick.term[t], c);
        }
        for (; left >= (OVERLAPS ? 2 : 1) * EACH; left -= EACH) {
            pixel.next(later);
            if constexpr (OVERLAPS) {
                add(brick, term, now);
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    now[i] = later[i];
                }
            } else {
                add(brick, term, later);
            }
        }
        if (has_some) {
            add(brick, term, now);
            left -= EACH;
        }
        for (; left > 0; left--) {
            pixel.next(one);
            add(brick, term, one);
        }
    }
};

#endif
