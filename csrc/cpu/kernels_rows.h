/* SPDX-License-Identifier: MIT
 *
 * The row loops of kernels.h, for the instruction set that the including file has
 * switched on: plain loops that the compiler makes vectors of. The includer defines
 * MULTIPLY_ADD(a, b, c), LANES, LOAD and STORE.
 */
#include "math/act.h"
#include "math/bf16.h"

/* exp(x) to less than 1 ulp: 2^n times a polynomial of the remainder (Cephes, expf).
 * Of x where 2^spare 2^n is a normal number. */
static inline __attribute__((always_inline)) float row_exp(float x, int spare)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
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
    p = MULTIPLY_ADD(p, r, 1.0f);
    p = MULTIPLY_ADD(p, r, 1.0f);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u + (uint32_t)spare) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power * (spare < 0 ? 2.0f : 0x1p-64f);
}

/* Those of math/act.h. */
static inline __attribute__((always_inline)) float row_exp_up(float x)
{
    x = x > 89.0f ? 89.0f : x;
    return row_exp(x < -86.0f ? -86.0f : x, -1);
}

static inline __attribute__((always_inline)) float row_exp_down(float x)
{
    return row_exp(x < -105.0f ? -105.0f : x, 64);
}

/* By vectors: pixels of a slice are short, and a call of memcpy for each costs more. */
static void row_copy(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                     float *y, int64_t y_pitch)
{
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += y_pitch) {
        int32_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            STORE(y + i, LOAD(x + i));
        }
        for (; i < count; i++) {
            y[i] = x[i];
        }
    }
}

/* Whole vectors, whose ends the next pixels overwrite; the last pixels one by one. */
static void row_pack(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                     float *y)
{
    const int32_t rounded = (count + LANES - 1) / LANES * LANES;
    int64_t whole = pixels - (rounded - 1) / count;
    for (; whole > 0; whole--, pixels--, x += x_pitch, y += count) {
        STORE(y, LOAD(x));
        for (int32_t i = LANES; i < count && TILE_ROWS > LANES; i += LANES) {
            STORE(y + i, LOAD(x + i));
        }
    }
    for (; pixels > 0; pixels--, x += x_pitch, y += count) {
        for (int32_t i = 0; i < count; i++) {
            y[i] = x[i];
        }
    }
}

static void row_pick(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                     const int32_t *restrict from, float *restrict y)
{
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += count) {
        for (int32_t i = 0; i < count; i++) {
            y[i] = x[from[i]];
        }
    }
}

static void row_pair_channels(int64_t pixels, int32_t count, const uint16_t *x,
                              int64_t x_pitch, uint16_t *y)
{
    const int32_t rounded = (count + 1) / 2 * 2;
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += rounded) {
        const uint16_t *restrict from = x;
        uint16_t *restrict to = y;
        for (int32_t i = 0; i < count; i++) {
            to[i] = from[i];
        }
        if (count < rounded) {
            to[count] = 0;
        }
    }
}

static inline __attribute__((always_inline)) void
pair_lanes(const uint16_t *restrict x, const uint16_t *restrict other,
           uint32_t *restrict y)
{
    for (int32_t i = 0; i < LANES; i++) {
        y[i] = x[i] | (uint32_t)other[i] << 16;
    }
}

/* Like row_pack where pixels lie side by side. */
static void row_pair_images(int64_t pixels, int32_t count, const uint16_t *x,
                            const uint16_t *other, int64_t x_pitch, uint32_t *y,
                            int64_t y_pitch)
{
    const int32_t rounded = (count + LANES - 1) / LANES * LANES;
    const int64_t whole = y_pitch == count ? pixels - (rounded - 1) / count : 0;
    for (int64_t p = 0; p < pixels; p++, x += x_pitch, y += y_pitch) {
        const uint16_t *second = other == NULL ? NULL : other + p * x_pitch;
        const int32_t end = p < whole ? rounded : count;
        int32_t i = 0;
        for (; second != NULL && i + LANES <= end; i += LANES) {
            pair_lanes(x + i, second + i, y + i);
        }
        for (; i < count; i++) {
            y[i] = x[i] | (second == NULL ? 0 : (uint32_t)second[i] << 16);
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

static void row_multiply(int32_t n, const float *restrict x, float *restrict y)
{
    for (int32_t i = 0; i < n; i++) {
        y[i] *= x[i];
    }
}

static void row_add_product(int32_t n, const float *a, const float *b,
                            float *restrict y)
{
    for (int32_t i = 0; i < n; i++) {
        y[i] = MULTIPLY_ADD(a[i], b[i], y[i]);
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

static void row_join_maximum(int32_t n, const float *restrict x,
                             const int32_t *restrict code, float *restrict most,
                             int32_t *restrict codes)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t take = (x[i] > most[i]) | (x[i] != x[i]);
        most[i] = take ? x[i] : most[i];
        codes[i] = take ? code[i] : codes[i];
    }
}

static void row_add_to_double(int32_t n, const float *restrict v, double *restrict sum)
{
    for (int32_t i = 0; i < n; i++) {
        sum[i] += v[i];
    }
}

static void row_add_squares(int32_t n, const float *restrict v,
                            const float *restrict mean, float *restrict squares)
{
    for (int32_t i = 0; i < n; i++) {
        float d = v[i] - mean[i];
        squares[i] = MULTIPLY_ADD(d, d, squares[i]);
    }
}

/* Loops over arrays that do not overlap, or that overlap element by element only. */
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

static void row_blend(int32_t n, float a, const float *x, float b, const float *y,
                      float *out)
{
    INDEPENDENT
    for (int32_t i = 0; i < n; i++) {
        out[i] = MULTIPLY_ADD(a, x[i], b * y[i]);
    }
}

static void row_interpolate(int32_t pixels, int32_t count, const ym_between *at,
                            int32_t origin, const float *x, float *y)
{
    for (int32_t p = 0; p < pixels; p++, y += count) {
        row_blend(count, at[p].weight[0], x + (at[p].source[0] - origin) * count,
                  at[p].weight[1], x + (at[p].source[1] - origin) * count, y);
    }
}

static void row_spread(int32_t pixels, int32_t count, const ym_between *at,
                       int32_t origin, const float *y, float *x)
{
    for (int32_t p = 0; p < pixels; p++, y += count) {
        for (int k = 0; k < 2; k++) {
            float *to = x + (at[p].source[k] - origin) * count;
            row_blend(count, at[p].weight[k], y, 1.0f, to, to);
        }
    }
}

YM_DEFINE_NORMAL(ALWAYS_INLINE, row, YM_QUOTIENT, MULTIPLY_ADD)
YM_DEFINE_ACTIVATION(ALWAYS_INLINE, row, float, row_exp_up, row_exp_down, MULTIPLY_ADD)

/* back x, where back is 0 for a value that only dz reaches: 0 also of an infinite x. */
ALWAYS_INLINE float row_back(float back, float x)
{
    const float finite = back != 0.0f ? x : 0.0f;
    return back * finite;
}

/* z, with the terms' x_0 and x_1. */
ALWAYS_INLINE float row_combine(const cpu_brick_row *r, int terms, int32_t i,
                                float x[2])
{
    x[0] = r->v[0][i] - r->mean[0][i];
    float z = MULTIPLY_ADD(x[0], r->scale[0][i], r->shift[i]);
    if (terms > 1) {
        x[1] = r->v[1][i] - r->mean[1][i];
        z = MULTIPLY_ADD(x[1], r->scale[1][i], z);
    }
    return z;
}

ALWAYS_INLINE void forward_loop(const cpu_brick_row *row, int terms,
                                ym_activation_kind kind, bool residual)
{
    cpu_brick_row r = *row;
    r.activation.kind = kind;
    INDEPENDENT
    for (int32_t i = 0; i < r.n; i++) {
        float x[2];
        const float z = row_combine(&r, terms, i, x);
        const float y = ym_activate_row(r.activation, z);
        r.out[i] = residual ? y + r.residual[i] : y;
    }
}

ALWAYS_INLINE void sums_loop(const cpu_brick_row *row, int terms,
                             ym_activation_kind kind)
{
    cpu_brick_row r = *row;
    r.activation.kind = kind;
    INDEPENDENT
    for (int32_t i = 0; i < r.n; i++) {
        float x[2];
        const float z = row_combine(&r, terms, i, x);
        const float dz = ym_activate_backward_row(r.activation, z, r.d[i]);
        r.sum[0][i] += dz;
        r.sum[1][i] = MULTIPLY_ADD(dz, x[0], r.sum[1][i]);
        if (terms > 1) {
            r.sum[2][i] = MULTIPLY_ADD(dz, x[1], r.sum[2][i]);
        }
    }
}

ALWAYS_INLINE void values_loop(const cpu_brick_row *row, int terms,
                               ym_activation_kind kind)
{
    cpu_brick_row r = *row;
    r.activation.kind = kind;
    INDEPENDENT
    for (int32_t i = 0; i < r.n; i++) {
        float x[2];
        const float z = row_combine(&r, terms, i, x);
        const float dz = ym_activate_backward_row(r.activation, z, r.d[i]);
        const float back = row_back(r.back[0][i], x[0]);
        r.dv[0][i] = MULTIPLY_ADD(r.scale[0][i], dz - r.d_mean[0][i], -back);
        if (terms > 1) {
            const float other = row_back(r.back[1][i], x[1]);
            r.dv[1][i] = MULTIPLY_ADD(r.scale[1][i], dz - r.d_mean[1][i], -other);
        }
    }
}

/* One loop for each number of terms and activation, so that none has a branch. */
#define BRICK_CASE(kind, loop, ...)                         \
    case kind:                                              \
        row->terms > 1 ? loop(row, 2, kind, ##__VA_ARGS__)  \
                       : loop(row, 1, kind, ##__VA_ARGS__); \
        break;
#define BRICK_CASES(loop, ...)                          \
    switch (row->activation.kind) {                     \
        BRICK_CASE(YM_IDENTITY, loop, ##__VA_ARGS__)    \
        BRICK_CASE(YM_SILU, loop, ##__VA_ARGS__)        \
        BRICK_CASE(YM_RELU, loop, ##__VA_ARGS__)        \
        BRICK_CASE(YM_LEAKY_RELU, loop, ##__VA_ARGS__)  \
        BRICK_CASE(YM_HARDTANH, loop, ##__VA_ARGS__)    \
        BRICK_CASE(YM_HARDSWISH, loop, ##__VA_ARGS__)   \
        BRICK_CASE(YM_MISH, loop, ##__VA_ARGS__)        \
        BRICK_CASE(YM_SIGMOID, loop, ##__VA_ARGS__)     \
        BRICK_CASE(YM_HARDSIGMOID, loop, ##__VA_ARGS__) \
        BRICK_CASE(YM_GELU, loop, ##__VA_ARGS__)        \
        BRICK_CASE(YM_GELU_TANH, loop, ##__VA_ARGS__)   \
    }

static void row_brick_forward(const cpu_brick_row *row)
{
    if (row->residual != NULL) {
        BRICK_CASES(forward_loop, true)
    } else {
        BRICK_CASES(forward_loop, false)
    }
}

static void row_brick_sums(const cpu_brick_row *row)
{
    BRICK_CASES(sums_loop)
}

static void row_brick_values(const cpu_brick_row *row)
{
    BRICK_CASES(values_loop)
}
