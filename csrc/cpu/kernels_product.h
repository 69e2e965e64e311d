/* SPDX-License-Identifier: MIT
 *
 * The register tile of kernels.h. The includer defines
 *     TILE_ROWS, LANES            tile_rows <= 15, floats of a vector
 *     vector, LOAD, STORE, SPREAD, VECTOR_MULTIPLY_ADD
 * and, where words may be pairs of bf16, PAIR_MULTIPLY_ADD.
 */
#include "cpu/kernels_winograd.h"

#define PRODUCT_VECTORS 2

#define PRODUCT_INLINE static inline __attribute__((always_inline))

/* A word that may lie anywhere, as the float with its bits. */
PRODUCT_INLINE float product_word(const char *from)
{
    float word;
    memcpy(&word, from, sizeof word);
    return word;
}

enum { PRODUCT_FLOATS, PRODUCT_PAIRS, PRODUCT_LANES };

PRODUCT_INLINE vector product_step(const int kind, vector a, vector b, vector sum)
{
#ifdef PAIR_MULTIPLY_ADD
    return kind == PRODUCT_PAIRS ? PAIR_MULTIPLY_ADD(a, b, sum)
                                 : VECTOR_MULTIPLY_ADD(a, b, sum);
#else
    (void)kind;
    return VECTOR_MULTIPLY_ADD(a, b, sum);
#endif
}

/* The factor of vector j: one word for all lanes, or one for each. */
PRODUCT_INLINE vector product_factor(const int kind, const char *from, const int j)
{
    return kind == PRODUCT_LANES ? LOAD((const float *)(const void *)from + j * LANES)
                                 : SPREAD(product_word(from));
}

/* Adds `count` terms to the sums. Addresses of a are one base for three rows, as the
 * instruction's addressing has base + {0, 1, 2} * row and there are not registers
 * enough for one base each. */
PRODUCT_INLINE void product_run(const cpu_product *p, const int rows, const int vectors,
                                const int kind, const char *a, const float *b,
                                int64_t count, vector sum[TILE_ROWS][PRODUCT_VECTORS])
{
    const int64_t row = p->a_row * (int64_t)sizeof(float);
    const int64_t a_step = p->loop[2].a_step * (int64_t)sizeof(float);
    const int64_t b_step = p->loop[2].b_step;
    const char *a0 = a, *a3 = a0 + 3 * row, *a6 = a3 + 3 * row;
    const char *a9 = a6 + 3 * row, *a12 = a9 + 3 * row;
    for (; count > 0; count--) {
        const vector b0 = LOAD(b), b1 = vectors > 1 ? LOAD(b + LANES) : b0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const char *base = i < 3 ? a0 : i < 6 ? a3 : i < 9 ? a6 : i < 12 ? a9 : a12;
            const char *from = base + i % 3 * row;
            const vector x = product_factor(kind, from, 0);
            sum[i][0] = product_step(kind, x, b0, sum[i][0]);
            if (vectors > 1) {
                const vector x1 = kind == PRODUCT_LANES ? product_factor(kind, from, 1)
                                                        : x;
                sum[i][1] = product_step(kind, x1, b1, sum[i][1]);
            }
        }
        a0 += a_step, a3 += a_step, a6 += a_step, a9 += a_step, a12 += a_step;
        b += b_step;
    }
}

/* Adds the sums to c, or to the bias, and starts them again at zero. */
PRODUCT_INLINE void product_put(const cpu_product *p, const int rows, const int vectors,
                                bool accumulate, vector sum[TILE_ROWS][PRODUCT_VECTORS])
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            float *c = p->c + i * p->c_row + j * LANES;
            if (accumulate) {
                sum[i][j] = sum[i][j] + LOAD(c);
            } else if (p->bias != NULL) {
                sum[i][j] = sum[i][j] + LOAD(p->bias + j * LANES);
            }
            STORE(c, sum[i][j]);
            sum[i][j] = SPREAD(0.0f);
        }
    }
}

/* With constant rows and vectors the compiler keeps `sum` in registers. */
PRODUCT_INLINE void product_tile(const cpu_product *p, const int rows,
                                 const int vectors, const int kind)
{
    vector sum[TILE_ROWS][PRODUCT_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            sum[i][j] = SPREAD(0.0f);
        }
    }
    const cpu_loop *loop = p->loop;
    const bool empty = loop[0].count * loop[1].count * loop[2].count == 0;
    bool accumulate = p->accumulate;
    const int64_t most = p->chain > 0 ? p->chain : CPU_CHAIN;
    int64_t chain = 0;
    for (int64_t outer = 0; outer < (empty ? 0 : loop[0].count); outer++) {
        for (int64_t middle = 0; middle < loop[1].count; middle++) {
            const char *a = (const char *)p->a +
                            (outer * loop[0].a_step + middle * loop[1].a_step) *
                                (int64_t)sizeof(float);
            const float *b = (const float *)p->b + outer * loop[0].b_step +
                             middle * loop[1].b_step;
            int64_t left = loop[2].count;
            while (left > 0) {
                const int64_t count = left < most ? left : most;
                if (chain + count > most) {
                    product_put(p, rows, vectors, accumulate, sum);
                    accumulate = true;
                    chain = 0;
                }
                product_run(p, rows, vectors, kind, a, b, count, sum);
                a += count * loop[2].a_step * (int64_t)sizeof(float);
                b += count * loop[2].b_step;
                chain += count, left -= count;
            }
        }
    }
    product_put(p, rows, vectors, accumulate, sum);
}

#define PRODUCT_CASE(rows)                  \
    case rows:                              \
        if (p->vectors > 1) {               \
            product_tile(p, rows, 2, kind); \
        } else {                            \
            product_tile(p, rows, 1, kind); \
        }                                   \
        break;

PRODUCT_INLINE void product_of(const cpu_product *p, const int kind)
{
    switch (p->rows) {
        PRODUCT_CASE(1)
        PRODUCT_CASE(2)
        PRODUCT_CASE(3)
        PRODUCT_CASE(4)
        PRODUCT_CASE(5)
        PRODUCT_CASE(6)
#if TILE_ROWS > 6
        PRODUCT_CASE(7)
        PRODUCT_CASE(8)
        PRODUCT_CASE(9)
        PRODUCT_CASE(10)
        PRODUCT_CASE(11)
        PRODUCT_CASE(12)
#endif
#if TILE_ROWS > 12
        PRODUCT_CASE(13)
        PRODUCT_CASE(14)
#endif
    default:
        break;
    }
}

static void product(const cpu_product *p)
{
    product_of(p, PRODUCT_FLOATS);
}

static void product_lanes(const cpu_product *p)
{
    product_of(p, PRODUCT_LANES);
}

#ifdef PAIR_MULTIPLY_ADD
static void product_pairs(const cpu_product *p)
{
    product_of(p, PRODUCT_PAIRS);
}
#define PRODUCT_OF_PAIRS product_pairs
#else
#define PRODUCT_OF_PAIRS NULL
#endif

/* The table that an instruction set's file exports. */
#define KERNEL_TABLE(text)                  \
    {                                       \
        .name = text,                       \
        .tile_rows = TILE_ROWS,             \
        .lanes = LANES,                     \
        .product = product,                 \
        .product_pairs = PRODUCT_OF_PAIRS,  \
        .product_lanes = product_lanes,     \
        .copy = row_copy,                   \
        .pack = row_pack,                   \
        .pick = row_pick,                   \
        .widen = row_widen,                 \
        .narrow = row_narrow,               \
        .pair_channels = row_pair_channels, \
        .pair_images = row_pair_images,     \
        .add = row_add,                     \
        .multiply = row_multiply,           \
        .add_product = row_add_product,     \
        .blend = row_blend,                 \
        .interpolate = row_interpolate,     \
        .spread = row_spread,               \
        .divide = row_divide,               \
        .maximum = row_maximum,             \
        .arg_maximum = row_arg_maximum,     \
        .join_maximum = row_join_maximum,   \
        .winograd_in = winograd_in,         \
        .winograd_out = winograd_out,       \
        .add_to_double = row_add_to_double, \
        .add_squares = row_add_squares,     \
        .brick_forward = row_brick_forward, \
        .brick_sums = row_brick_sums,       \
        .brick_values = row_brick_values,   \
    }
