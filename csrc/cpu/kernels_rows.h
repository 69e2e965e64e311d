/* SPDX-License-Identifier: MIT
 *
 * The row loops of kernels.h, for the instruction set that the including file has
 * switched on: plain loops that the compiler makes vectors of. The includer defines
 * MULTIPLY_ADD(a, b, c).
 */
#include "math/bf16.h"

/* exp(x) to about 1 ulp: 2^n times a polynomial of the remainder (Cephes, expf). Clamped
 * to where 2^n is a normal number. */
static inline float row_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float shifted = MULTIPLY_ADD(x, 1.44269504088896341f, magic);
    float n = shifted - magic;
    float r = MULTIPLY_ADD(n, -0.693359375f, x);
    r = MULTIPLY_ADD(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = MULTIPLY_ADD(p, r, 1.3981999507e-3f);
    p = MULTIPLY_ADD(p, r, 8.3334519073e-3f);
    p = MULTIPLY_ADD(p, r, 4.1665795894e-2f);
    p = MULTIPLY_ADD(p, r, 1.6666665459e-1f);
    p = MULTIPLY_ADD(p, r, 5.0000001201e-1f);
    p = MULTIPLY_ADD(p, r * r, r + 1.0f);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static void row_copy(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                     float *y, int64_t y_pitch)
{
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += y_pitch) {
        const float *restrict from = x;
        float *restrict to = y;
        for (int32_t i = 0; i < count; i++) {
            to[i] = from[i];
        }
    }
}

static void row_widen(int64_t pixels, int32_t count, const uint16_t *x, int64_t x_pitch,
                      float *y, int64_t y_pitch)
{
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += y_pitch) {
        const uint16_t *restrict from = x;
        float *restrict to = y;
        for (int32_t i = 0; i < count; i++) {
            to[i] = ym_bf16_to_f32(from[i]);
        }
    }
}

static void row_narrow(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                       uint16_t *y, int64_t y_pitch)
{
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += y_pitch) {
        const float *restrict from = x;
        uint16_t *restrict to = y;
        for (int32_t i = 0; i < count; i++) {
            to[i] = ym_f32_to_bf16(from[i]);
        }
    }
}

static void row_add(int32_t n, const float *restrict x, float *restrict y)
{
    for (int32_t i = 0; i < n; i++) {
        y[i] += x[i];
    }
}

static void row_divide(int32_t n, float divisor, float *restrict y)
{
    for (int32_t i = 0; i < n; i++) {
        y[i] /= divisor;
    }
}

static void row_maximum(int32_t n, const float *restrict x, float *restrict y)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t take = (x[i] > y[i]) | (x[i] != x[i]);
        y[i] = take ? x[i] : y[i];
    }
}

static void row_arg_maximum(int32_t n, const float *restrict x, int32_t code,
                            float *restrict most, int32_t *restrict codes)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t take = (x[i] > most[i]) | (x[i] != x[i]);
        most[i] = take ? x[i] : most[i];
        codes[i] = take ? code : codes[i];
    }
}

static void row_affine(int32_t n, const float *restrict v, const float *restrict mean,
                       const float *restrict scale, const float *restrict shift,
                       float *restrict z)
{
    for (int32_t i = 0; i < n; i++) {
        z[i] = MULTIPLY_ADD(v[i] - mean[i], scale[i], shift[i]);
    }
}

static void row_affine_add(int32_t n, const float *restrict v, const float *restrict mean,
                           const float *restrict scale, float *restrict z)
{
    for (int32_t i = 0; i < n; i++) {
        z[i] = MULTIPLY_ADD(v[i] - mean[i], scale[i], z[i]);
    }
}

static void row_activate(int32_t n, ym_activation kind, float slope, float *restrict z)
{
    if (kind == YM_SILU) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = z[i] / (1.0f + row_exp(-z[i]));
        }
    } else if (kind == YM_RELU) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = z[i] <= 0.0f ? 0.0f : z[i];
        }
    } else if (kind == YM_LEAKY_RELU) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = z[i] > 0.0f ? z[i] : slope * z[i];
        }
    }
}

static void row_activate_backward(int32_t n, ym_activation kind, float slope,
                                  const float *restrict d, float *restrict z)
{
    if (kind == YM_SILU) {
        for (int32_t i = 0; i < n; i++) {
            float s = 1.0f / (1.0f + row_exp(-z[i]));
            z[i] = d[i] * s * MULTIPLY_ADD(z[i], 1.0f - s, 1.0f);
        }
    } else if (kind == YM_RELU) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = z[i] <= 0.0f ? 0.0f : d[i];
        }
    } else if (kind == YM_LEAKY_RELU) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = z[i] > 0.0f ? d[i] : slope * d[i];
        }
    } else {
        for (int32_t i = 0; i < n; i++) {
            z[i] = d[i];
        }
    }
}

static void row_add_deviation(int32_t n, const float *restrict v,
                              const float *restrict mean, float *restrict sum,
                              float *restrict squares)
{
    for (int32_t i = 0; i < n; i++) {
        float d = v[i] - mean[i];
        sum[i] += d;
        squares[i] = MULTIPLY_ADD(d, d, squares[i]);
    }
}

static void row_add_product(int32_t n, const float *restrict d, const float *restrict v,
                            const float *restrict mean, float *restrict sum)
{
    for (int32_t i = 0; i < n; i++) {
        sum[i] = MULTIPLY_ADD(d[i], v[i] - mean[i], sum[i]);
    }
}

static void row_normalise_backward(int32_t n, const float *d, const float *restrict v,
                                   const float *const channel[4], float *dv)
{
    const float *restrict mean = channel[0], *restrict scale = channel[1];
    const float *restrict d_mean = channel[2], *restrict slope = channel[3];
    for (int32_t i = 0; i < n; i++) {
        float back = slope[i] * (v[i] - mean[i]);
        dv[i] = MULTIPLY_ADD(scale[i], d[i] - d_mean[i], -back);
    }
}
