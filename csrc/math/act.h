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
 *     gelu(z)       = z P(z),  P the normal distribution;    gelu'(z) = P(z) + z P'(z)
 *     gelu_tanh(z)  = z s(u),  u = 2 sqrt(2 / pi) (z + 0.044715 z^3)
 */
#ifndef YM_MATH_ACT_H
#define YM_MATH_ACT_H

#include <math.h>

#include "core/backend.h"
#include "math/function.h"

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

/* 1 - low where z > 0, without a piece that compilers would make a branch of. */
#define YM_MIRROR(z, low, multiply_add) \
    multiply_add((z) > 0 ? -4.0f : 4.0f, (low) / 4, (z) > 0 ? 1.0f : 0.0f)

/* gelu' of p = P(z) and of exp(-z^2 / 2), the square of `root`: so it is 0 far out also
 * where exponentials end with the normal numbers. gelu_tanh' of `low`, the sigmoid of
 * -|u|, so that 1 - low keeps its digits. */
#define YM_DEFINE_GELU(function, suffix, real, multiply_add)                   \
    function real ym_gelu_backward_##suffix(real z, real p, real root, real d) \
    {                                                                          \
        return d * multiply_add(z * (real)0.3989422804014327, root * root, p); \
    }                                                                          \
                                                                               \
    function real ym_gelu_u_##suffix(real z)                                   \
    {                                                                          \
        return z * multiply_add(z * z, (real)0.07135481627260025,              \
                                (real)1.5957691216057308);                     \
    }                                                                          \
                                                                               \
    function real ym_gelu_tanh_backward_##suffix(real z, real low, real d)     \
    {                                                                          \
        const real t = z * (low * (1 - low)); /* first: z^2 may be infinite */ \
        const real s = YM_MIRROR(z, low, multiply_add);                        \
        const real sum = multiply_add(t, (real)1.5957691216057308, s);         \
        return d * multiply_add(t * z * z, (real)0.21406444881780074, sum);    \
    }

/* P(z) of floats: root^2 times a polynomial of 1 / (1 + 0.345 |z|), the form of
 * Abramowitz and Stegun, 26.2.17, fitted to 2e-8 of P(-|z|) up to |z| = 13. */
#define YM_DEFINE_NORMAL(function, suffix, reciprocal, multiply_add) \
    function float ym_normal_##suffix(float z, float root)           \
    {                                                                \
        const float far = fabsf(z);                                  \
        const float u = reciprocal(multiply_add(far, 0.345f, 1.0f)); \
        float low = -2.842730284e-02f;                               \
        low = multiply_add(low, u, 1.454883963e-01f);                \
        low = multiply_add(low, u, -2.715707421e-01f);               \
        low = multiply_add(low, u, 1.876187176e-01f);                \
        low = multiply_add(low, u, -3.787073120e-02f);               \
        low = multiply_add(low, u, 1.119047627e-01f);                \
        low = multiply_add(low, u, 1.172137484e-01f);                \
        low = multiply_add(low, u, 1.380240023e-01f);                \
        low = multiply_add(low, u, 1.376191229e-01f);                \
        return YM_MIRROR(z, low * u * (root * root), multiply_add);  \
    }

YM_MATH double ym_normal_f64(double z, double root)
{
    (void)root;
    return 0.5 * erfc(z * -0.7071067811865476);
}

/* ym_activate_<suffix> and ym_activate_backward_<suffix>, after ym_normal_<suffix>. A
 * backend with an exponential of its own, such as one of vectors, defines its own. */
#define YM_DEFINE_ACTIVATION(function, suffix, real, exponential, multiply_add)   \
    YM_DEFINE_PIECEWISE(function, suffix, real, multiply_add)                     \
    YM_DEFINE_SIGMOIDAL(function, suffix, real, YM_RECIPROCAL, multiply_add)      \
    YM_DEFINE_GELU(function, suffix, real, multiply_add)                          \
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
        case YM_GELU: {                                                           \
            const real root = exponential(-(z * z / 4));                          \
            return z * ym_normal_##suffix(z, root);                               \
        }                                                                         \
        case YM_GELU_TANH:                                                        \
            return z / (1 + exponential(-ym_gelu_u_##suffix(z)));                 \
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
        case YM_GELU: {                                                           \
            const real root = exponential(-(z * z / 4));                          \
            const real p = ym_normal_##suffix(z, root);                           \
            return ym_gelu_backward_##suffix(z, p, root, d);                      \
        }                                                                         \
        case YM_GELU_TANH: {                                                      \
            const real u = ym_gelu_u_##suffix(z);                                 \
            const real low = 1 / (1 + exponential(u > 0 ? u : -u));               \
            return ym_gelu_tanh_backward_##suffix(z, low, d);                     \
        }                                                                         \
        default:                                                                  \
            return ym_piecewise_backward_##suffix(activation, z, d);              \
        }                                                                         \
    }

YM_DEFINE_NORMAL(YM_MATH, f32, YM_RECIPROCAL, YM_MULTIPLY_ADD)
YM_DEFINE_ACTIVATION(YM_MATH, f32, float, expf, YM_MULTIPLY_ADD)
YM_DEFINE_ACTIVATION(YM_MATH, f64, double, exp, YM_MULTIPLY_ADD)

#endif
