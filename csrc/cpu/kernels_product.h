/* SPDX-License-Identifier: MIT
 *
 * The register tile of kernels.h. The includer defines
 *     TILE_ROWS, LANES            tile_rows <= 15, floats of a vector
 *     vector, LOAD, STORE, SPREAD, VECTOR_MULTIPLY_ADD
 */
#define PRODUCT_VECTORS 2

/* With constant rows and vectors the compiler keeps `sum` in registers. Addresses of a
 * are one base for three rows, as the instruction's addressing has base + {0, 1, 2} * row
 * and there are not registers enough for one base each. */
static inline __attribute__((always_inline)) void
product_tile(const cpu_product *p, const int rows, const int vectors)
{
    vector sum[TILE_ROWS][PRODUCT_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            sum[i][j] = p->accumulate     ? LOAD(p->c + i * p->c_row + j * LANES)
                        : p->bias != NULL ? LOAD(p->bias + j * LANES)
                                          : SPREAD(0.0f);
        }
    }
    const int64_t row = p->a_row * (int64_t)sizeof(float);
    const int64_t a_step = p->loop[2].a_step * (int64_t)sizeof(float);
    const int64_t b_step = p->loop[2].b_step;
    for (int64_t turn = 0; turn < p->loop[0].count * p->loop[1].count; turn++) {
        const int64_t outer = turn / p->loop[1].count, middle = turn % p->loop[1].count;
        const float *b = p->b + outer * p->loop[0].b_step + middle * p->loop[1].b_step;
        const char *a0 = (const char *)(p->a + outer * p->loop[0].a_step +
                                        middle * p->loop[1].a_step);
        const char *a3 = a0 + 3 * row, *a6 = a3 + 3 * row, *a9 = a6 + 3 * row;
        const char *a12 = a9 + 3 * row;
        for (int64_t left = p->loop[2].count; left > 0; left--) {
            const vector b0 = LOAD(b), b1 = vectors > 1 ? LOAD(b + LANES) : b0;
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const char *base = i < 3   ? a0
                                   : i < 6 ? a3
                                   : i < 9 ? a6
                                   : i < 12 ? a9
                                            : a12;
                const vector x = SPREAD(*(const float *)(base + i % 3 * row));
                sum[i][0] = VECTOR_MULTIPLY_ADD(x, b0, sum[i][0]);
                if (vectors > 1) {
                    sum[i][1] = VECTOR_MULTIPLY_ADD(x, b1, sum[i][1]);
                }
            }
            a0 += a_step, a3 += a_step, a6 += a_step, a9 += a_step, a12 += a_step;
            b += b_step;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            STORE(p->c + i * p->c_row + j * LANES, sum[i][j]);
        }
    }
}

#define PRODUCT_CASE(rows)                                                            \
    case rows:                                                                        \
        if (p->vectors > 1) {                                                         \
            product_tile(p, rows, 2);                                                 \
        } else {                                                                      \
            product_tile(p, rows, 1);                                                 \
        }                                                                             \
        break;

static void product(const cpu_product *p)
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
        PRODUCT_CASE(13)
        PRODUCT_CASE(14)
#endif
    default:
        break;
    }
}

/* The table that an instruction set's file exports. */
#define KERNEL_TABLE(text)                                                            \
    {                                                                                 \
        .name = text, .tile_rows = TILE_ROWS, .lanes = LANES, .product = product,     \
        .copy = row_copy, .widen = row_widen, .narrow = row_narrow, .add = row_add,   \
        .divide = row_divide, .maximum = row_maximum, .arg_maximum = row_arg_maximum,   \
        .affine = row_affine, .affine_add = row_affine_add, .activate = row_activate, \
        .activate_backward = row_activate_backward,                                   \
        .add_deviation = row_add_deviation, .add_product = row_add_product,           \
        .normalise_backward = row_normalise_backward,                                 \
    }
