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
 *     hardswish(z)  = z hardsigmoid(z)
 *     mish(z)       = z t,  t = tanh(log(1 + e)) = n / (n + 2),  e = exp(z),
 *     mish'(z)      = t + z (e^2 + e) (1 - t)^2,  n = e^2 + 2 e,  1 - t = 2 / (n + 2)
 *     sigmoid(z)    = s;    sigmoid'(z) = s (1 - s)
 *     hardsigmoid(z) = min(max(z + 3, 0), 6) / 6
 *     gelu(z)       = max(z, 0) - |z| P(-|z|),  P the normal distribution
 *     gelu'(z)      = z > 0 ? 1 - g : g,  g = P(-|z|) - |z| P'(z)
 *     gelu_tanh(z)  = the same with s(-|u|),  u = 2 sqrt(2 / pi) (z + 0.044715 z^3)
 */
#ifndef YM_MATH_ACT_H
#define YM_MATH_ACT_H

#include <math.h>

#include "core/backend.h"
#include "math/function.h"

#define YM_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define YM_QUOTIENT(a, b) ((a) / (b))

/* Those made of pieces, without an exponential. No factor is infinite where z alone is:
 * 0 times that were NaN. */
#define YM_DEFINE_PIECEWISE(function, suffix, real, quotient)                      \
    function real ym_clamp_##suffix(real z, real low, real high)                   \
    {                                                                              \
        z = z < low ? low : z;                                                     \
        return z > high ? high : z;                                                \
    }                                                                              \
                                                                                   \
    function real ym_leak_##suffix(real z, real slope, real d)                     \
    {                                                                              \
        return (z > 0 ? d : 0) + slope * (z > 0 ? 0 : d);                          \
    }                                                                              \
                                                                                   \
    function real ym_hardsigmoid_##suffix(real z)                                  \
    {                                                                              \
        return quotient(ym_clamp_##suffix(z + 3, 0, 6), 6);                        \
    }                                                                              \
                                                                                   \
    function real ym_hardsigmoid_backward_##suffix(real z, real d)                 \
    {                                                                              \
        return (z > -3 && z < 3 ? d : 0) * ((real)1 / 6);                          \
    }                                                                              \
                                                                                   \
    function real ym_hardswish_backward_##suffix(real z, real d)                   \
    {                                                                              \
        const real inside = z > -3 && z < 3 ? z : 0, more = z < 3 ? (real)0.5 : 1; \
        return (quotient(inside, 3) + more) * (z <= -3 ? 0 : d);                   \
    }                                                                              \
                                                                                   \
    function real ym_piecewise_##suffix(ym_activation activation, real z)          \
    {                                                                              \
        switch (activation.kind) {                                                 \
        case YM_RELU:                                                              \
            return z <= 0 ? 0 : z;                                                 \
        case YM_LEAKY_RELU:                                                        \
            return ym_leak_##suffix(z, activation.slope, z);                       \
        case YM_HARDTANH:                                                          \
            return ym_clamp_##suffix(z, activation.low, activation.high);          \
        case YM_HARDSWISH:                                                         \
            return z * ym_hardsigmoid_##suffix(z);                                 \
        case YM_HARDSIGMOID:                                                       \
            return ym_hardsigmoid_##suffix(z);                                     \
        default:                                                                   \
            return z;                                                              \
        }                                                                          \
    }                                                                              \
                                                                                   \
    function real ym_piecewise_backward_##suffix(ym_activation activation, real z, \
                                                 real d)                           \
    {                                                                              \
        switch (activation.kind) {                                                 \
        case YM_RELU:                                                              \
            return z <= 0 ? 0 : d;                                                 \
        case YM_LEAKY_RELU:                                                        \
            return ym_leak_##suffix(z, activation.slope, d);                       \
        case YM_HARDTANH:                                                          \
            return z <= activation.low || z >= activation.high ? 0 : d;            \
        case YM_HARDSWISH:                                                         \
            return ym_hardswish_backward_##suffix(z, d);                           \
        case YM_HARDSIGMOID:                                                       \
            return ym_hardsigmoid_backward_##suffix(z, d);                         \
        default:                                                                   \
            return d;                                                              \
        }                                                                          \
    }

/* Factors of z that are 1 at 40, to the last bit of a double, or 0 are the same from
 * there on: worked out at 40 they are not infinite. NaN stays one. */
#define YM_CAPPED(z) ((z) > 40 ? 40 : (z))
#define YM_SIZE(real, z) ((real)fabs(z))

/* Those made of the sigmoid s, or (mish) of e = exp(YM_CAPPED(z)). */
#define YM_DEFINE_SIGMOIDAL(function, suffix, real, quotient, multiply_add) \
    function real ym_sigmoid_backward_##suffix(real s, real d)              \
    {                                                                       \
        return d * (s * (1 - s));                                           \
    }                                                                       \
                                                                            \
    function real ym_silu_backward_##suffix(real z, real s, real d)         \
    {                                                                       \
        return d * s * multiply_add(z, 1 - s, 1);                           \
    }                                                                       \
                                                                            \
    function real ym_mish_##suffix(real z, real e)                          \
    {                                                                       \
        const real n = multiply_add(e, e, e + e), most = z > 0 ? z : 0;     \
        const real rest = quotient(z > 0 ? 2 : n, n + 2);                   \
        return multiply_add(-YM_SIZE(real, YM_CAPPED(z)), rest, most);      \
    }                                                                       \
                                                                            \
    function real ym_mish_backward_##suffix(real z, real e, real d)         \
    {                                                                       \
        const real n = multiply_add(e, e, e + e);                           \
        const real rest = quotient(z > 0 ? 2 : n, n + 2), other = 1 - rest; \
        const real t = z > 0 ? other : rest, down = z > 0 ? rest : other;   \
        const real part = YM_CAPPED(z) * down;                              \
        return d * multiply_add(part, multiply_add(e, e, e) * down, t);     \
    }

/* 1 - low where z > 0. */
#define YM_MIRROR(z, low) ((z) > 0 ? 1 - (low) : (low))

/* gelu and gelu_tanh of low = P(-far) or s(-u(far)), far = YM_CAPPED(|z|), and their
 * derivatives, that of gelu of bell = exp(-far^2 / 2). */
#define YM_DEFINE_GELU(function, suffix, real, multiply_add)                         \
    function real ym_gelu_##suffix(real z, real far, real low)                       \
    {                                                                                \
        return multiply_add(-far, low, z > 0 ? z : 0);                               \
    }                                                                                \
                                                                                     \
    function real ym_gelu_backward_##suffix(real z, real far, real low, real bell,   \
                                            real d)                                  \
    {                                                                                \
        low = multiply_add(-far * (real)0.3989422804014327, bell, low);              \
        return d * YM_MIRROR(z, low);                                                \
    }                                                                                \
                                                                                     \
    function real ym_gelu_u_##suffix(real far)                                       \
    {                                                                                \
        return far * multiply_add(far * far, (real)0.07135481627260025,              \
                                  (real)1.5957691216057308);                         \
    }                                                                                \
                                                                                     \
    function real ym_gelu_tanh_backward_##suffix(real z, real far, real low, real d) \
    {                                                                                \
        const real slope = multiply_add(far * far, (real)0.21406444881780074,        \
                                        (real)1.5957691216057308);                   \
        low = multiply_add(far * (low * (low - 1)), slope, low);                     \
        return d * YM_MIRROR(z, low);                                                \
    }

/* P(-far) of floats. Up to 1 it is 1/2 less an odd polynomial, which keeps the last bit
 * of 1/2; beyond, bell times a polynomial of u = 1 / (1 + 0.33 far), the form of
 * Abramowitz and Stegun, 26.2.17, fitted to 1e-8 of P(-far). */
#define YM_DEFINE_NORMAL(function, suffix, quotient, multiply_add)   \
    function float ym_normal_##suffix(float far, float bell)         \
    {                                                                \
        const float u = quotient(1, multiply_add(far, 0.33f, 1.0f)); \
        const float square = far * far;                              \
        float tail = 4.352577094e-02f, middle = -7.577993936e-06f;   \
        tail = multiply_add(tail, u, -1.379177151e-01f);             \
        tail = multiply_add(tail, u, 1.083614521e-01f);              \
        tail = multiply_add(tail, u, 6.608035820e-03f);              \
        tail = multiply_add(tail, u, 1.006816177e-01f);              \
        tail = multiply_add(tail, u, 1.153174787e-01f);              \
        tail = multiply_add(tail, u, 1.318337913e-01f);              \
        tail = multiply_add(tail, u, 1.316438664e-01f);              \
        middle = multiply_add(middle, square, 1.132841238e-04f);     \
        middle = multiply_add(middle, square, -1.186138619e-03f);    \
        middle = multiply_add(middle, square, 9.973247474e-03f);     \
        middle = multiply_add(middle, square, -6.649034896e-02f);    \
        middle = multiply_add(middle, square, 3.989422799e-01f);     \
        const float near = multiply_add(-far, middle, 0.5f);         \
        return far < 1 ? near : tail * u * bell;                     \
    }

YM_MATH double ym_normal_f64(double far, double bell)
{
    (void)bell;
    return 0.5 * erfc(far * 0.7071067811865476);
}

/* ym_activate_<suffix> and ym_activate_backward_<suffix>, after ym_normal_<suffix>. A
 * backend with exponentials of its own, such as those of vectors, defines its own. Of
 * exp_up, results below 2^-64 need be no more than that; exp_down, of arguments up to
 * 40, is exact where it is a denormal, and 0 at -infinity. */
#define YM_DEFINE_ACTIVATION(function, suffix, real, exp_up, exp_down, multiply_add) \
    YM_DEFINE_PIECEWISE(function, suffix, real, YM_QUOTIENT)                         \
    YM_DEFINE_SIGMOIDAL(function, suffix, real, YM_QUOTIENT, multiply_add)           \
    YM_DEFINE_GELU(function, suffix, real, multiply_add)                             \
                                                                                     \
    function real ym_sigmoid_##suffix(real z)                                        \
    {                                                                                \
        return 1 / (1 + exp_up(-z));                                                 \
    }                                                                                \
                                                                                     \
    function real ym_gelu_low_##suffix(real far)                                     \
    {                                                                                \
        const real e = exp_down(-ym_gelu_u_##suffix(far));                           \
        return e / (1 + e);                                                          \
    }                                                                                \
                                                                                     \
    function real ym_activate_##suffix(ym_activation activation, real z)             \
    {                                                                                \
        switch (activation.kind) {                                                   \
        case YM_SILU:                                                                \
            return z / (1 + exp_up(-z));                                             \
        case YM_MISH:                                                                \
            return ym_mish_##suffix(z, exp_down(YM_CAPPED(z)));                      \
        case YM_SIGMOID:                                                             \
            return ym_sigmoid_##suffix(z);                                           \
        case YM_GELU: {                                                              \
            const real far = YM_CAPPED(YM_SIZE(real, z));                            \
            const real bell = exp_down(far * far / -2);                              \
            return ym_gelu_##suffix(z, far, ym_normal_##suffix(far, bell));          \
        }                                                                            \
        case YM_GELU_TANH: {                                                         \
            const real far = YM_CAPPED(YM_SIZE(real, z));                            \
            const real low = ym_gelu_low_##suffix(far);                              \
            return ym_gelu_##suffix(z, far, low);                                    \
        }                                                                            \
        default:                                                                     \
            return ym_piecewise_##suffix(activation, z);                             \
        }                                                                            \
    }                                                                                \
                                                                                     \
    function real ym_activate_backward_##suffix(ym_activation activation, real z,    \
                                                real d)                              \
    {                                                                                \
        switch (activation.kind) {                                                   \
        case YM_SILU:                                                                \
            return ym_silu_backward_##suffix(z, ym_sigmoid_##suffix(z), d);          \
        case YM_MISH:                                                                \
            return ym_mish_backward_##suffix(z, exp_down(YM_CAPPED(z)), d);          \
        case YM_SIGMOID:                                                             \
            return ym_sigmoid_backward_##suffix(ym_sigmoid_##suffix(z), d);          \
        case YM_GELU: {                                                              \
            const real far = YM_CAPPED(YM_SIZE(real, z));                            \
            const real bell = exp_down(far * far / -2);                              \
            const real low = ym_normal_##suffix(far, bell);                          \
            return ym_gelu_backward_##suffix(z, far, low, bell, d);                  \
        }                                                                            \
        case YM_GELU_TANH: {                                                         \
            const real far = YM_CAPPED(YM_SIZE(real, z));                            \
            const real low = ym_gelu_low_##suffix(far);                              \
            return ym_gelu_tanh_backward_##suffix(z, far, low, d);                   \
        }                                                                            \
        default:                                                                     \
            return ym_piecewise_backward_##suffix(activation, z, d);                 \
        }                                                                            \
    }

YM_DEFINE_ACTIVATION(YM_MATH, f64, double, exp, exp, YM_MULTIPLY_ADD)

#endif
