/* SPDX-License-Identifier: MIT
 *
 * The inner loops of backend "cpu". They are written once (kernels_rows.h,
 * kernels_product.h, kernels_winograd.h), compiled for several instruction sets
 * (kernels_avx512_bf16.c, kernels_avx512.c, kernels_avx2.c, kernels_neon.c,
 * kernels_plain.c) and chosen at run time (isa.c).
 *
 * Row loops work on `n` floats that lie in the first-level cache; arrays of one call do
 * not overlap unless said. The callers move tensors of any dtype and pitch in and out
 * with copy, widen and narrow.
 */
#ifndef YM_CPU_KERNELS_H
#define YM_CPU_KERNELS_H

#include "core/backend.h"
#include "math/bilinear.h"

/* A loop of a product: how often, and how far a and b move each time (words). */
typedef struct cpu_loop {
    int64_t count, a_step, b_step;
} cpu_loop;

/* A register tile of a matrix product whose sum runs over three nested loops:
 *
 *     c[i][j] = (sum over the loops of a[i * a_row] * b[j]) + base
 *
 * a and b are words of 4 bytes: a float, or a pair of bf16 (the first in the lower
 * half), and the product of two pairs is the sum of two products.
 *
 * for 0 <= i < rows and 0 <= j < vectors * lanes. base is c itself if accumulate, else
 * bias[j], else 0; it is added last, where it costs the least accuracy. Steps of any
 * size let the same code read images in place: convolution sums over (r, s, channel),
 * the weight gradient over (row, column). */
typedef struct cpu_product {
    const void *a, *b;
    float *c;
    const float *bias;
    int64_t a_row, c_row;
    cpu_loop loop[3]; /* outermost first */
    int32_t rows;     /* 1 .. kernels->tile_rows */
    int32_t vectors;  /* 1 or 2 */
    int32_t chain;    /* words summed in one register at most; 0: CPU_CHAIN */
    bool accumulate;
} cpu_product;

/* Longer sums are made of such parts, so that the rounding error grows with the root of
 * their number, not of the number of terms. */
enum { CPU_CHAIN = 64 };

/* n elements of a brick. With x_t = v_t - mean_t and z = shift + sum of x_t scale_t:
 *
 *     forward   out = activation(z) + residual
 *     sums      dz = d activation'(z); sum_0 += dz; sum_{1+t} += dz x_t
 *     values    dv_t = scale_t (dz - d_mean_t) - back_t x_t
 */
typedef struct cpu_brick_row {
    int32_t n, terms;
    ym_activation activation;
    const float *v[2], *mean[2], *scale[2], *shift;
    const float *residual; /* may be NULL; forward only, as out */
    float *out;
    const float *d; /* backward only, as what follows */
    float *sum[3];
    const float *d_mean[2], *back[2];
    float *dv[2]; /* one of them may be d */
} cpu_brick_row;

typedef struct cpu_kernels {
    const char *name;
    int32_t tile_rows, lanes;
    void (*product)(const cpu_product *product);
    void (*product_pairs)(const cpu_product *product); /* of bf16; may be NULL */
    /* The same of floats with a factor for each lane, a[i * a_row + j] for a[i *
     * a_row]: what channels sum that do not mix. */
    void (*product_lanes)(const cpu_product *product);

    /* y[p][i] = x[p][i], `count` channels of each of `pixels` pixels. */
    void (*copy)(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                 float *y, int64_t y_pitch);
    void (*widen)(int64_t pixels, int32_t count, const uint16_t *x, int64_t x_pitch,
                  float *y, int64_t y_pitch);
    void (*narrow)(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                   uint16_t *y, int64_t y_pitch);

    /* y[p * count + i] = x[p * x_pitch + i]: the pixels side by side; count is at
     * most tile_rows. */
    void (*pack)(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                 float *y);

    /* y[p * count + i] = x[p * x_pitch + from[i]] */
    void (*pick)(int64_t pixels, int32_t count, const float *x, int64_t x_pitch,
                 const int32_t *from, float *y);

    /* bf16 to the words of product_pairs. Two channels of a pixel, y[p][i] = (x[p][2i],
     * x[p][2i + 1]), with zero after the last; and the same channel of two images,
     * y[p][i] = (x[p][i], other[p][i]), zero where other is NULL. */
    void (*pair_channels)(int64_t pixels, int32_t count, const uint16_t *x,
                          int64_t x_pitch, uint16_t *y);
    void (*pair_images)(int64_t pixels, int32_t count, const uint16_t *x,
                        const uint16_t *other, int64_t x_pitch, uint32_t *y,
                        int64_t y_pitch);

    /* Winograd's transforms (winograd.c) of `count` channels, a multiple of lanes: 4 x
     * 4 pixels to 16 points `point_step` apart, and 16 points to 2 x 2 pixels, of which
     * those that are NULL are not wanted. bias may be NULL. */
    void (*winograd_in)(int32_t count, const float *const pixel[16], float *points,
                        int64_t point_step);
    void (*winograd_out)(int32_t count, const float *points, int64_t point_step,
                         const float *bias, bool accumulate, float *const pixel[4]);

    void (*add)(int32_t n, const float *x, float *y);      /* y += x */
    void (*multiply)(int32_t n, const float *x, float *y); /* y *= x */
    /* y += a * b */
    void (*add_product)(int32_t n, const float *a, const float *b, float *y);
    /* out = a * x + b * y; out may be x or y */
    void (*blend)(int32_t n, float a, const float *x, float b, const float *y,
                  float *out);
    /* Bilinear along a row: y[p] = at[p]'s weights times its two sources, of which x
     * has those from `origin` on; and x += the same products of y. Packed pixels. */
    void (*interpolate)(int32_t pixels, int32_t count, const ym_between *at,
                        int32_t origin, const float *x, float *y);
    void (*spread)(int32_t pixels, int32_t count, const ym_between *at, int32_t origin,
                   const float *y, float *x);
    void (*divide)(int32_t n, float divisor, float *y);   /* y /= divisor */
    void (*maximum)(int32_t n, const float *x, float *y); /* NaN wins */
    /* Where x > most or x is NaN: most = x, codes = code. */
    void (*arg_maximum)(int32_t n, const float *x, int32_t code, float *most,
                        int32_t *codes);
    /* The same where each x has its own code. */
    void (*join_maximum)(int32_t n, const float *x, const int32_t *code, float *most,
                         int32_t *codes);

    void (*add_to_double)(int32_t n, const float *v, double *sum); /* sum += v */
    /* squares += (v - mean)^2 */
    void (*add_squares)(int32_t n, const float *v, const float *mean, float *squares);
    /* The three passes over a brick (cpu/brick.c). */
    void (*brick_forward)(const cpu_brick_row *row);
    void (*brick_sums)(const cpu_brick_row *row);
    void (*brick_values)(const cpu_brick_row *row);
} cpu_kernels;

/* The best set that isa.h allows. */
const cpu_kernels *cpu_kernels_best(void);

#if defined(__x86_64__) && defined(__GNUC__)
#define YM_CPU_X86 1
extern const cpu_kernels cpu_kernels_avx512_bf16, cpu_kernels_avx512, cpu_kernels_avx2;
#elif defined(__aarch64__)
#define YM_CPU_ARM64 1
extern const cpu_kernels cpu_kernels_neon;
#endif
extern const cpu_kernels cpu_kernels_plain;

#endif
