/* SPDX-License-Identifier: MIT
 *
 * The brick's formulas for the channels of one thread:
 *
 *     z = sum of terms,   a term is v, or xhat * gamma + beta with
 *     xhat = (v - mean) * rstd,   worked out as (v - mean) * (rstd * gamma) + beta
 */
#ifndef YM_CUDA_BRICK_CUH
#define YM_CUDA_BRICK_CUH

#include "cuda/tiles.cuh"
#include "math/act.h"

/* A term as kernels take it; gamma or beta NULL: 1 or 0. Backward of the identity reads
 * no values: they may be absent. */
struct cuda_term {
    const void *data;
    int64_t pitch;
    const float *mean, *rstd, *gamma, *beta;
    bool has_norm;
};

struct cuda_brick {
    cuda_term term[2];
    ym_activation activation;
    float slope;
};

static inline cuda_brick cuda_brick_of(const ym_brick *brick)
{
    cuda_brick made = {};
    made.activation = brick->activation;
    made.slope = brick->slope;
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        made.term[t] = {term->value.data, term->value.pitch, term->mean,    term->rstd,
                        term->norm.gamma, term->norm.beta,   term->has_norm};
    }
    return made;
}

/* What one thread knows of its channels of one term. */
template <typename T, int V> struct cuda_term_channels {
    const T *data;
    int64_t pitch;
    float mean[V], scale[V], beta[V];

    __device__ __forceinline__ void prepare(const cuda_term &term, int32_t c)
    {
        data = term.data != nullptr ? static_cast<const T *>(term.data) + c : nullptr;
        pitch = term.pitch;
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float gamma =
                term.has_norm && term.gamma != nullptr ? term.gamma[c + v] : 1.0f;
            mean[v] = term.has_norm ? term.mean[c + v] : 0.0f;
            scale[v] = term.has_norm ? term.rstd[c + v] * gamma : 1.0f;
            beta[v] = term.has_norm && term.beta != nullptr ? term.beta[c + v] : 0.0f;
        }
    }
    __device__ __forceinline__ cuda_pack<T, V> fetch_pixel(int64_t pixel) const
    {
        cuda_pack<T, V> none = {};
        return data != nullptr ? fetch<T, V>(data + pixel * pitch) : none;
    }
};

/* v - mean of each term, and z. */
template <typename T, int V, int TERMS>
__device__ __forceinline__ void
cuda_before_activation(const cuda_term_channels<T, V> (&term)[TERMS],
                       const cuda_pack<T, V> (&pack)[TERMS],
                       float (&distance)[TERMS][V], float (&z)[V])
{
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        unpack<T, V>(pack[t], distance[t]);
#pragma unroll
        for (int v = 0; v < V; v++) {
            distance[t][v] -= term[t].mean[v];
            const float made = fmaf(distance[t][v], term[t].scale[v], term[t].beta[v]);
            z[v] = t == 0 ? made : z[v] + made;
        }
    }
}

/* Stored in 16 bits, the last bits of exponential and quotient do not show. */
template <typename T> __device__ __forceinline__ float cuda_sigmoid(float z)
{
#ifdef __CUDA_ARCH__
    if (sizeof(T) == 2) {
        return __fdividef(1.0f, 1.0f + __expf(-z));
    }
#endif
    return 1.0f / (1.0f + expf(-z));
}

template <typename T, int V>
__device__ __forceinline__ void cuda_activate(const cuda_brick &brick, float (&z)[V])
{
    if (brick.activation == YM_SILU) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            z[v] *= cuda_sigmoid<T>(z[v]);
        }
    } else if (brick.activation != YM_IDENTITY) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            z[v] = ym_activate_f32(brick.activation, brick.slope, z[v]);
        }
    }
}

/* d *= activation'(z). */
template <typename T, int V>
__device__ __forceinline__ void cuda_derive(const cuda_brick &brick,
                                            const float (&z)[V], float (&d)[V])
{
    if (brick.activation == YM_SILU) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float s = cuda_sigmoid<T>(z[v]);
            d[v] *= s * fmaf(z[v], 1.0f - s, 1.0f);
        }
    } else if (brick.activation != YM_IDENTITY) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            d[v] *= ym_activate_derivative_f32(brick.activation, brick.slope, z[v]);
        }
    }
}

#endif
