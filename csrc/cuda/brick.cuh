/* SPDX-License-Identifier: MIT
 *
 * The brick's formulas for the channels of one thread:
 *
 *     z = sum of terms,   a term is v, or xhat * gamma + beta with
 *     xhat = (v - mean) * rstd
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
    float mean[V], rstd[V], gamma[V], beta[V];
    bool has_norm;

    __device__ __forceinline__ void prepare(const cuda_term &term, int32_t c)
    {
        data = term.data != nullptr ? static_cast<const T *>(term.data) + c : nullptr;
        pitch = term.pitch;
        has_norm = term.has_norm;
#pragma unroll
        for (int v = 0; v < V; v++) {
            mean[v] = has_norm ? term.mean[c + v] : 0.0f;
            rstd[v] = has_norm ? term.rstd[c + v] : 1.0f;
            gamma[v] = has_norm && term.gamma != nullptr ? term.gamma[c + v] : 1.0f;
            beta[v] = has_norm && term.beta != nullptr ? term.beta[c + v] : 0.0f;
        }
    }
    /* xhat of a pixel, or v itself. */
    __device__ __forceinline__ void normal(int64_t pixel, float (&xhat)[V]) const
    {
        if (data != nullptr) {
            load<T, V>(data + pixel * pitch, xhat);
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
            xhat[v] = data != nullptr ? (xhat[v] - mean[v]) * rstd[v] : 0.0f;
        }
    }
};

/* xhat of each term, and z. */
template <typename T, int V, int TERMS>
__device__ __forceinline__ void
cuda_before_activation(const cuda_term_channels<T, V> (&term)[TERMS], int64_t pixel,
                       float (&xhat)[TERMS][V], float (&z)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        z[v] = 0;
    }
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        term[t].normal(pixel, xhat[t]);
#pragma unroll
        for (int v = 0; v < V; v++) {
            z[v] += fmaf(xhat[t][v], term[t].gamma[v], term[t].beta[v]);
        }
    }
}

/* Stored in 16 bits, the last bits of the exponential do not show. */
template <typename T> __device__ __forceinline__ float cuda_sigmoid(float z)
{
#ifdef __CUDA_ARCH__
    if (sizeof(T) == 2) {
        return __frcp_rn(1.0f + __expf(-z));
    }
#endif
    return 1.0f / (1.0f + expf(-z));
}

template <typename T, int V>
__device__ __forceinline__ void cuda_activate(const cuda_brick &brick, float (&z)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        z[v] = brick.activation == YM_SILU
                   ? z[v] * cuda_sigmoid<T>(z[v])
                   : ym_activate_f32(brick.activation, brick.slope, z[v]);
    }
}

/* d *= activation'(z). */
template <typename T, int V>
__device__ __forceinline__ void cuda_derive(const cuda_brick &brick,
                                            const float (&z)[V], float (&d)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        if (brick.activation == YM_SILU) {
            const float s = cuda_sigmoid<T>(z[v]);
            d[v] *= s * (1.0f + z[v] * (1.0f - s));
        } else {
            d[v] *= ym_activate_derivative_f32(brick.activation, brick.slope, z[v]);
        }
    }
}

#endif
