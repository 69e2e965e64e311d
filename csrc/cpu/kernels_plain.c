/* SPDX-License-Identifier: MIT
 *
 * The kernels for what every machine of the target has (SSE2), by the compiler's own
 * vectors of four floats.
 */
#include "cpu/kernels.h"

#include <string.h>

typedef float vector __attribute__((vector_size(16)));

static inline vector load_vector(const float *from)
{
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store_vector(float *to, vector v)
{
    memcpy(to, &v, sizeof v);
}

#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define TILE_ROWS 6
#define LANES 4
#define LOAD load_vector
#define STORE store_vector
#define SPREAD(x) ((vector){0.0f, 0.0f, 0.0f, 0.0f} + (x))
#define VECTOR_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))

#include "cpu/kernels_rows.h"

#include "cpu/kernels_product.h"

const cpu_kernels cpu_kernels_plain = KERNEL_TABLE("plain");
