/* SPDX-License-Identifier: MIT
 *
 * Activations of the pre-activation z and, for backward, d times their derivative, for
 * float and double. NaN passes through; corners, infinities and (of those made of
 * pieces) NaN have the derivative that torch's scalar loops give them, and where that
 * is 0 the result is 0 whatever d is.
 *
 *     silu(z)       = z s,  s = 1 / (1 + exp(-z));    silu'(z) = s (1 + z (1 - s))
 *     relu(z)       = max(z, 0);    leaky_relu(z) = z > 0 ? z : slope z
 *     hardtanh(z)   = min(max(z, low), high)
 *     hardswish(z)  = z min(max(z + 3, 0), 6) / 6
 *     mish(z)       = z tanh(log(1 + exp(z))) = z s (1 + w) / (1 + w^2),  w = 1 - s,
 *     mish'(z)      = s t ((1 + w) / 2 + z w^2 t),  t = 2 / (1 + w^2)
 *     sigmoid(z)    = s;    sigmoid'(z) = s (1 - s)
 *     hardsigmoid(z) = min(max(z / 6 + 1/2, 0), 1)
 */
#ifndef YM_MATH_ACT_H
#define YM_MATH_ACT_H

#include <math.h>

#include "core/backend.h"

#ifndef YM_MATH
#ifdef __CUDACC__
#define YM_MATH static inline __host__ __device__
#else
#define YM_MATH static inline
#endif
#endif

#define YM_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define YM_RECIPROCAL(x) (1 / (x))

/* Those made of pieces, without an exponential. They are written so that compilers make
 * vectors of them: no piece is a product, nor a factor of 1. No factor is infinite
 * where z alone is: 0 times that were NaN. */
#define YM_DEFINE_PIECEWISE(function, suffix, real, multiply_add)                   \
    function real ym_clamp_##suffix(real z, real low, real high)                    \
    {                                                                               \
        z = z < low ? low : z;                                                      \
        return z > high ? high : z;                                                 \
    }                                                                               \
                                                                                    \
    function real ym_leak_##suffix(real z, real slope, real d)                      \
    {                                                                               \
        return (z > 0 ? d : 0) + slope * (z > 0 ? 0 : d);                           \
    }                                                                               \
                                                                                    \
    function real ym_hardswish_##suffix(real z)                                     \
    {                                                                               \
        return z * (ym_clamp_##suffix(z + 3, 0, 6) * ((real)1 / 6));                \
    }                                                                               \
                                                                                    \
    function real ym_hardswish_backward_##suffix(real z, real d)                    \
    {                                                                               \
        const real least = z <= -3 ? 0 : z, most = least < 3 ? least : 3;           \
        const real more = z < 3 ? (real)0.5 : 0;                                    \
        const real slope = multiply_add(most, (real)1 / 3, more); /* 1 from 3 on */ \
        return slope * (z <= -3 ? 0 : d);                                           \
    }                                                                               \
                                                                                    \
    function real ym_hardsigmoid_##suffix(real z)                                   \
    {                                                                               \
        return ym_clamp_##suffix(multiply_add(z, (real)1 / 6, (real)0.5), 0, 1);    \
    }                                                                               \
                                                                                    \
    function real ym_hardsigmoid_backward_##suffix(real z, real d)                  \
    {                                                                               \
        const real chosen = z > -3 && z < 3 ? d : 0;                                \
        /* Compilers make branches of the pieces if the factor is a constant. */    \
        const real sixth = z == z ? (real)1 / 6 : 0;                                \
        return sixth * chosen;                                                      \
    }                                                                               \
                                                                                    \
    function real ym_piecewise_##suffix(ym_activation activation, real z)           \
    {                                                                               \
        switch (activation.kind) {                                                  \
        case YM_RELU:                                                               \
            return z <= 0 ? 0 : z;                                                  \
        case YM_LEAKY_RELU:                                                         \
            return ym_leak_##suffix(z, activation.slope, z);                        \
        case YM_HARDTANH:                                                           \
            return ym_clamp_##suffix(z, activation.low, activation.high);           \
        case YM_HARDSWISH:                                                          \
            return ym_hardswish_##suffix(z);                                        \
        case YM_HARDSIGMOID:                                                        \
            return ym_hardsigmoid_##suffix(z);                                      \
        default:                                                                    \
            return z;                                                               \
        }                                                                           \
    }                                                                               \
                                                                                    \
    function real ym_piecewise_backward_##suffix(ym_activation activation, real z,  \
                                                 real d)                            \
    {                                                                               \
        switch (activation.kind) {                                                  \
        case YM_RELU:                                                               \
            return z <= 0 ? 0 : d;                                                  \
        case YM_LEAKY_RELU:                                                         \
            return ym_leak_##suffix(z, activation.slope, d);                        \
        case YM_HARDTANH:                                                           \
            return z <= activation.low || z >= activation.high ? 0 : d;             \
        case YM_HARDSWISH:                                                          \
            return ym_hardswish_backward_##suffix(z, d);                            \
        case YM_HARDSIGMOID:                                                        \
            return ym_hardsigmoid_backward_##suffix(z, d);                          \
        default:                                                                    \
            return d;                                                               \
        }                                                                           \
    }

/* Those made of the sigmoid s. */
#define YM_DEFINE_SIGMOIDAL(function, suffix, real, reciprocal, multiply_add) \
    function real ym_sigmoid_backward_##suffix(real s, real d)                \
    {                                                                         \
        return d * (s * (1 - s));                                             \
    }                                                                         \
                                                                              \
    function real ym_silu_backward_##suffix(real z, real s, real d)           \
    {                                                                         \
        return d * s * multiply_add(z, 1 - s, 1);                             \
    }                                                                         \
                                                                              \
    function real ym_mish_##suffix(real z, real s)                            \
    {                                                                         \
        const real w = 1 - s;                                                 \
        return z * (s * (1 + w) * reciprocal(multiply_add(w, w, 1)));         \
    }                                                                         \
                                                                              \
    function real ym_mish_backward_##suffix(real z, real s, real d)           \
    {                                                                         \
        const real w = 1 - s, half = (real)0.5 * w;                           \
        const real t = reciprocal(multiply_add(half, w, (real)0.5));          \
        /* w t is at most 1: z w^2 t does not overflow. */                    \
        return d * (s * t * multiply_add(z * w, w * t, (real)0.5 + half));    \
    }

/* ym_activate_<suffix> and ym_activate_backward_<suffix>. A backend with an exponential
 * of its own, such as one of vectors, defines its own. */
#define YM_DEFINE_ACTIVATION(function, suffix, real, exponential, multiply_add)   \
    YM_DEFINE_PIECEWISE(function, suffix, real, multiply_add)                     \
    YM_DEFINE_SIGMOIDAL(function, suffix, real, YM_RECIPROCAL, multiply_add)      \
                                                                                  \
    function real ym_activate_##suffix(ym_activation activation, real z)          \
    {                                                                             \
        switch (activation.kind) {                                                \
        case YM_SILU:                                                             \
            return z / (1 + exponential(-z));                                     \
        case YM_MISH:                                                             \
            return ym_mish_##suffix(z, 1 / (1 + exponential(-z)));                \
        case YM_SIGMOID:                                                          \
            return 1 / (1 + exponential(-z));                                     \
        default:                                                                  \
            return ym_piecewise_##suffix(activation, z);                          \
        }                                                                         \
    }                                                                             \
                                                                                  \
    function real ym_activate_backward_##suffix(ym_activation activation, real z, \
                                                real d)                           \
    {                                                                             \
        switch (activation.kind) {                                                \
        case YM_SILU:                                                             \
            return ym_silu_backward_##suffix(z, 1 / (1 + exponential(-z)), d);    \
        case YM_MISH:                                                             \
            return ym_mish_backward_##suffix(z, 1 / (1 + exponential(-z)), d);    \
        case YM_SIGMOID:                                                          \
            return ym_sigmoid_backward_##suffix(1 / (1 + exponential(-z)), d);    \
        default:                                                                  \
            return ym_piecewise_backward_##suffix(activation, z, d);              \
        }                                                                         \
    }

YM_DEFINE_ACTIVATION(YM_MATH, f32, float, expf, YM_MULTIPLY_ADD)
YM_DEFINE_ACTIVATION(YM_MATH, f64, double, exp, YM_MULTIPLY_ADD)

#endif
