/* SPDX-License-Identifier: MIT
 *
 * The brick's formulas for the channels of one thread:
 *
 *     z = sum of terms,   a term is v, or xhat * gamma + beta with
 *     xhat = (v - mean) * rstd,   worked out as (v - mean) * (rstd * gamma) + beta
 */
#ifndef YM_CUDA_BRICK_CUH
#define YM_CUDA_BRICK_CUH

#include "cuda/approximate.cuh"
#include "cuda/tiles.cuh"
#include "math/act.h"

/* A term as kernels take it; without a norm all four are NULL, gamma or beta NULL: 1 or
 * 0. Backward of the identity reads no values: they may be absent. */
struct cuda_term {
    const void *data;
    int64_t pitch;
    const float *mean, *rstd, *gamma, *beta;
};

/* Which formulas a kernel knows. With all of them in one, the code of a pixel does not
 * fit where a multiprocessor keeps it: on an H200 SiLU's sums ran at 0.73 of a copy's
 * speed in float and at 0.79 in half, instead of 0.82 and 0.85. */
enum cuda_formulas { CUDA_SILU, CUDA_PIECEWISE, CUDA_SIGMOIDAL };

template <cuda_formulas F> struct cuda_brick {
    cuda_term term[2];
    ym_activation activation;
};

template <cuda_formulas F>
static inline cuda_brick<F> cuda_brick_of(const ym_brick *brick)
{
    cuda_brick<F> made = {};
    made.activation = brick->activation;
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        made.term[t].data = term->value.data;
        made.term[t].pitch = term->value.pitch;
        if (term->has_norm) {
            made.term[t].mean = term->mean;
            made.term[t].rstd = term->rstd;
            made.term[t].gamma = term->norm.gamma;
            made.term[t].beta = term->norm.beta;
        }
    }
    return made;
}

/* A float of each channel from c on, or `absent`; 16 bytes at a time where they lie so.
 */
template <int V>
__device__ __forceinline__ void cuda_load_channels(const float *from, int32_t c,
                                                   float absent, float (&out)[V])
{
    if (from == nullptr) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            out[v] = absent;
        }
        return;
    }
    from += c;
    if constexpr (V % 4 == 0) {
        if (((uintptr_t)from & 15) == 0) {
#pragma unroll
            for (int v = 0; v < V; v += 4) {
                float four[4];
                load<float, 4>(from + v, four);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    out[v + i] = four[i];
                }
            }
            return;
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        out[v] = from[v];
    }
}

/* What one thread knows of its channels of one term. Where it is comes first, so that
 * pixels are on their way before the floats of the channels are waited for. */
template <typename T, int V> struct cuda_term_channels {
    const T *data;
    int64_t pitch;
    float mean[V], scale[V], beta[V];

    __device__ __forceinline__ void locate(const cuda_term &term, int32_t c)
    {
        data = term.data != nullptr ? static_cast<const T *>(term.data) + c : nullptr;
        pitch = term.pitch;
    }
    __device__ __forceinline__ void prepare(const cuda_term &term, int32_t c)
    {
        float gamma[V];
        cuda_load_channels<V>(term.mean, c, 0.0f, mean);
        cuda_load_channels<V>(term.rstd, c, 1.0f, scale);
        cuda_load_channels<V>(term.gamma, c, 1.0f, gamma);
        cuda_load_channels<V>(term.beta, c, 0.0f, beta);
#pragma unroll
        for (int v = 0; v < V; v++) {
            scale[v] *= gamma[v];
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

/* Stored in 16 bits, the last bits of exponential and quotient do not show. Denormals,
 * which cost seven instructions more, do in bfloat16: callers keep out of them. */
template <typename T> __device__ __forceinline__ float cuda_quotient(float a, float b)
{
    return sizeof(T) == 2 ? a * cuda_inverse(b) : a / b;
}

template <typename T> __device__ __forceinline__ float cuda_exponential(float x)
{
    return sizeof(T) == 2 ? cuda_power_of_two(x * 1.44269504f) : expf(x);
}

/* Of x up to 40: denormals too, as the square of its root, which is none. */
template <typename T> __device__ __forceinline__ float cuda_exp_down(float x)
{
    if (sizeof(T) == 2) {
        const float root = cuda_exponential<T>(x / 2);
        return root * root;
    }
    return expf(x);
}

/* In 16 bits the square of a root's inverse, which is no denormal where the result is:
 * of large negative z, where SiLU is a number that bfloat16 has. */
template <typename T> __device__ __forceinline__ float cuda_sigmoid(float z)
{
    const float more = 1.0f + cuda_exponential<T>(-z);
    if (sizeof(T) == 2) {
        const float root = cuda_inverse_root(more);
        return root * root;
    }
    return 1.0f / more;
}

/* x / count of a constant count, to the last bit but for one in many; a GPU divides
 * slowly. */
static __device__ __forceinline__ float cuda_part(float x, float count)
{
    const float inverse = 1.0f / count;
    return fmaf(x, inverse, x * (float)(1.0 / count - inverse));
}

YM_DEFINE_PIECEWISE(static __device__ __forceinline__, cuda, float, cuda_part)
YM_DEFINE_GELU(static __device__ __forceinline__, cuda, float, fmaf)
YM_DEFINE_SIGMOIDAL(template <typename T> __device__ __forceinline__, cuda, float,
                    cuda_quotient<T>, fmaf)
YM_DEFINE_NORMAL(template <typename T> __device__ __forceinline__, cuda,
                 cuda_quotient<T>, fmaf)

template <typename T> __device__ __forceinline__ float cuda_gelu_low(float far)
{
    const float e = cuda_exp_down<T>(-ym_gelu_u_cuda(far));
    return cuda_quotient<T>(e, 1.0f + e);
}

/* Runs the statements with F, the formulas of an activation's kind. */
#define YM_WITH_FORMULAS(kind, ...)                                                  \
    do {                                                                             \
        if ((kind) == YM_SILU) {                                                     \
            constexpr cuda_formulas F = CUDA_SILU;                                   \
            __VA_ARGS__;                                                             \
        } else if ((kind) == YM_MISH || (kind) == YM_SIGMOID || (kind) == YM_GELU || \
                   (kind) == YM_GELU_TANH) {                                         \
            constexpr cuda_formulas F = CUDA_SIGMOIDAL;                              \
            __VA_ARGS__;                                                             \
        } else {                                                                     \
            constexpr cuda_formulas F = CUDA_PIECEWISE;                              \
            __VA_ARGS__;                                                             \
        }                                                                            \
    } while (0)

/* z = f(z) of channels, with `which` an activation of a kind that the compiler knows:
 * it asks once for all channels. */
#define YM_PIECEWISE_CASE(known, z, f)                \
    case known: {                                     \
        ym_activation which = brick.activation;       \
        which.kind = known;                           \
        _Pragma("unroll") for (int v = 0; v < V; v++) \
        {                                             \
            z[v] = f;                                 \
        }                                             \
        break;                                        \
    }
#define YM_PIECEWISE_CASES(z, f)                \
    switch (brick.activation.kind) {            \
        YM_PIECEWISE_CASE(YM_RELU, z, f)        \
        YM_PIECEWISE_CASE(YM_LEAKY_RELU, z, f)  \
        YM_PIECEWISE_CASE(YM_HARDTANH, z, f)    \
        YM_PIECEWISE_CASE(YM_HARDSWISH, z, f)   \
        YM_PIECEWISE_CASE(YM_HARDSIGMOID, z, f) \
    default: /* identity */                     \
        break;                                  \
    }

template <typename T, int V>
__device__ __forceinline__ void cuda_activate(const cuda_brick<CUDA_SILU> &,
                                              float (&z)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        z[v] *= cuda_sigmoid<T>(z[v]);
    }
}

template <typename T, int V>
__device__ __forceinline__ void cuda_activate(const cuda_brick<CUDA_PIECEWISE> &brick,
                                              float (&z)[V])
{
    YM_PIECEWISE_CASES(z, ym_piecewise_cuda(which, z[v]))
}

template <typename T, int V>
__device__ __forceinline__ void cuda_activate(const cuda_brick<CUDA_SIGMOIDAL> &brick,
                                              float (&z)[V])
{
    if (brick.activation.kind == YM_MISH) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            z[v] = ym_mish_cuda<T>(z[v], cuda_exp_down<T>(YM_CAPPED(z[v])));
        }
    } else if (brick.activation.kind == YM_SIGMOID) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            z[v] = cuda_sigmoid<T>(z[v]);
        }
    } else if (brick.activation.kind == YM_GELU) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float far = YM_CAPPED(fabsf(z[v]));
            const float bell = cuda_exp_down<T>(far * far / -2);
            z[v] = ym_gelu_cuda(z[v], far, ym_normal_cuda<T>(far, bell));
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float far = YM_CAPPED(fabsf(z[v]));
            z[v] = ym_gelu_cuda(z[v], far, cuda_gelu_low<T>(far));
        }
    }
}

/* d *= activation'(z). */
template <typename T, int V>
__device__ __forceinline__ void cuda_derive(const cuda_brick<CUDA_SILU> &,
                                            const float (&z)[V], float (&d)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        d[v] = ym_silu_backward_cuda<T>(z[v], cuda_sigmoid<T>(z[v]), d[v]);
    }
}

template <typename T, int V>
__device__ __forceinline__ void cuda_derive(const cuda_brick<CUDA_PIECEWISE> &brick,
                                            const float (&z)[V], float (&d)[V])
{
    YM_PIECEWISE_CASES(d, ym_piecewise_backward_cuda(which, z[v], d[v]))
}

template <typename T, int V>
__device__ __forceinline__ void cuda_derive(const cuda_brick<CUDA_SIGMOIDAL> &brick,
                                            const float (&z)[V], float (&d)[V])
{
    if (brick.activation.kind == YM_MISH) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float e = cuda_exp_down<T>(YM_CAPPED(z[v]));
            d[v] = ym_mish_backward_cuda<T>(z[v], e, d[v]);
        }
    } else if (brick.activation.kind == YM_SIGMOID) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            d[v] = ym_sigmoid_backward_cuda<T>(cuda_sigmoid<T>(z[v]), d[v]);
        }
    } else if (brick.activation.kind == YM_GELU) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float far = YM_CAPPED(fabsf(z[v]));
            const float bell = cuda_exp_down<T>(far * far / -2);
            const float low = ym_normal_cuda<T>(far, bell);
            d[v] = ym_gelu_backward_cuda(z[v], far, low, bell, d[v]);
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float far = YM_CAPPED(fabsf(z[v]));
            const float low = cuda_gelu_low<T>(far);
            d[v] = ym_gelu_tanh_backward_cuda(z[v], far, low, d[v]);
        }
    }
}

#endif
