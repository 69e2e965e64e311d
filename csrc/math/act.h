/* SPDX-License-Identifier: MIT
 *
 * Activations and their derivatives with respect to the pre-activation z, for float and
 * double. NaN passes through, as in torch.
 *
 *     silu(z)  = z * s,  s = 1 / (1 + exp(-z));    silu'(z) = s * (1 + z * (1 - s))
 *     relu(z)  = max(z, 0);    leaky_relu(z) = z > 0 ? z : slope * z
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

#define YM_DEFINE_ACTIVATION(suffix, real, exponential)                          \
    /* ReLU or LeakyReLU. */                                                     \
    YM_MATH real ym_rectify_##suffix(ym_activation kind, real slope, real z)     \
    {                                                                            \
        if (kind == YM_RELU) {                                                   \
            return z <= (real)0 ? (real)0 : z;                                   \
        }                                                                        \
        return z > (real)0 ? z : slope * z;                                      \
    }                                                                            \
                                                                                 \
    YM_MATH real ym_rectify_derivative_##suffix(ym_activation kind, real slope,  \
                                                real z)                          \
    {                                                                            \
        if (kind == YM_RELU) {                                                   \
            return z <= (real)0 ? (real)0 : (real)1;                             \
        }                                                                        \
        return z > (real)0 ? (real)1 : slope;                                    \
    }                                                                            \
                                                                                 \
    YM_MATH real ym_activate_##suffix(ym_activation kind, real slope, real z)    \
    {                                                                            \
        switch (kind) {                                                          \
        case YM_SILU:                                                            \
            return z / ((real)1 + exponential(-z));                              \
        case YM_IDENTITY:                                                        \
            return z;                                                            \
        default:                                                                 \
            return ym_rectify_##suffix(kind, slope, z);                          \
        }                                                                        \
    }                                                                            \
                                                                                 \
    YM_MATH real ym_activate_derivative_##suffix(ym_activation kind, real slope, \
                                                 real z)                         \
    {                                                                            \
        switch (kind) {                                                          \
        case YM_SILU: {                                                          \
            real s = (real)1 / ((real)1 + exponential(-z));                      \
            return s * ((real)1 + z * ((real)1 - s));                            \
        }                                                                        \
        case YM_IDENTITY:                                                        \
            return (real)1;                                                      \
        default:                                                                 \
            return ym_rectify_derivative_##suffix(kind, slope, z);               \
        }                                                                        \
    }

YM_DEFINE_ACTIVATION(f32, float, expf)
YM_DEFINE_ACTIVATION(f64, double, exp)

#undef YM_DEFINE_ACTIVATION

#endif
