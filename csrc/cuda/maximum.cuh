/* SPDX-License-Identifier: MIT
 * What maxima over pixels (maximum.cu) and over channels (maximum_channels.cu) share.
 */
#ifndef YM_CUDA_MAXIMUM_CUH
#define YM_CUDA_MAXIMUM_CUH

#include <math.h>

#include "cuda/tiles.cuh"

#define YM_MAXIMUM_EACH 4 /* packs fetched before the first is used */

/* A maximum and where it is: a pixel of the window, or a channel. What has seen nothing
 * is at the first, which is the answer where all is minus infinity. */
struct alignas(8) cuda_found {
    float most;
    int32_t place;

    __device__ __forceinline__ void start()
    {
        most = -INFINITY;
        place = 0;
    }
    /* Of what lies after all that was seen. */
    __device__ __forceinline__ void see(float value, int32_t here)
    {
        if (value > most || value != value) {
            most = value;
            place = here;
        }
    }
    /* Of what was seen elsewhere: the first of equals, the last NaN, as one loop over
     * both would have it. */
    __device__ __forceinline__ void join(cuda_found other)
    {
        const bool later = other.place > place, equal = other.most == most;
        /* Without branches, so that the next ones are fetched meanwhile. */
        const bool wins = other.most != other.most
                              ? (most == most) | later
                              : (other.most > most) | (equal & !later);
        most = wins ? other.most : most;
        place = wins ? other.place : place;
    }
};

/* y is dy in backward. */
template <typename T> struct cuda_operands {
    cuda_values<T> x, y, dx;
    bool accumulate;
};

/* Of one call; y is dy in backward, dx NULL in forward. */
struct cuda_maximum_job {
    const ym_tensor *x, *y, *dx;
    bool accumulate;

    template <typename T> cuda_operands<T> as() const
    {
        return {cuda_values<T>(*x), cuda_values<T>(*y),
                cuda_values<T>(dx != nullptr ? *dx : ym_tensor{}), accumulate};
    }
};

/* Calls use(i, values) for each of `count` packs that lie `step` values apart. */
template <typename T, int V, typename Use>
__device__ __forceinline__ void cuda_read_all(const T *from, int64_t step,
                                              int32_t count, const Use &use)
{
    for (int32_t i = 0; i < count;
         i += YM_MAXIMUM_EACH, from += YM_MAXIMUM_EACH * step) {
        cuda_pack<T, V> pack[YM_MAXIMUM_EACH];
#pragma unroll
        for (int k = 0; k < YM_MAXIMUM_EACH; k++) {
            if (i + k < count) {
                pack[k] = fetch<T, V>(from + k * step);
            }
        }
#pragma unroll
        for (int k = 0; k < YM_MAXIMUM_EACH; k++) {
            if (i + k < count) {
                float value[V];
                unpack<T, V>(pack[k], value);
                use(i + k, value);
            }
        }
    }
}

/* Writes value_of(i, v) into such packs, or adds it. */
template <typename T, int V, typename Value>
__device__ __forceinline__ void cuda_write_all(T *to, int64_t step, int32_t count,
                                               bool accumulate, const Value &value_of)
{
    for (int32_t i = 0; i < count; i += YM_MAXIMUM_EACH, to += YM_MAXIMUM_EACH * step) {
        cuda_pack<T, V> old[YM_MAXIMUM_EACH];
#pragma unroll
        for (int k = 0; k < YM_MAXIMUM_EACH; k++) {
            if (accumulate && i + k < count) {
                old[k] = fetch<T, V>(to + k * step);
            }
        }
#pragma unroll
        for (int k = 0; k < YM_MAXIMUM_EACH; k++) {
            if (i + k < count) {
                float value[V];
#pragma unroll
                for (int v = 0; v < V; v++) {
                    value[v] = value_of(i + k, v);
                }
                if (accumulate) {
                    float before[V];
                    unpack<T, V>(old[k], before);
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        value[v] += before[v];
                    }
                }
                store<T, V>(to + k * step, value);
            }
        }
    }
}

/* (N, H, W, C) to (N, H, W, 1). */
ym_status cuda_maximum_over_channels(ym_context *context, const cuda_maximum_job &all);

#endif
