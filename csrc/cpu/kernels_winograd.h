/* SPDX-License-Identifier: MIT
 *
 * The transforms of Winograd's F(2 x 2, 3 x 3) (winograd.c) for the instruction set
 * that the including file has switched on; see kernels.h.
 */

/* B^T d for a column of four, in place. */
#define WINOGRAD_IN(d0, d1, d2, d3) \
    do {                            \
        const vector first = d1;    \
        d0 = d0 - d2;               \
        d1 = first + d2;            \
        d2 = d2 - first;            \
        d3 = first - d3;            \
    } while (0)

static void winograd_in(int32_t count, const float *const pixel[16], float *points,
                        int64_t point_step)
{
    for (int32_t i = 0; i < count; i += LANES) {
        vector d[16];
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) {
            d[k] = LOAD(pixel[k] + i);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            WINOGRAD_IN(d[k], d[4 + k], d[8 + k], d[12 + k]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 16; k += 4) {
            WINOGRAD_IN(d[k], d[k + 1], d[k + 2], d[k + 3]);
        }
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) {
            STORE(points + k * point_step + i, d[k]);
        }
    }
}

static void winograd_out(int32_t count, const float *points, int64_t point_step,
                         const float *bias, bool accumulate, float *const pixel[4])
{
    for (int32_t i = 0; i < count; i += LANES) {
        vector y[2][4], sum[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const float *from = points + k * point_step + i;
            const vector m0 = LOAD(from), m1 = LOAD(from + 4 * point_step);
            const vector m2 = LOAD(from + 8 * point_step);
            const vector m3 = LOAD(from + 12 * point_step);
            y[0][k] = m0 + (m1 + m2);
            y[1][k] = (m1 - m2) - m3;
        }
#pragma GCC unroll 2
        for (int r = 0; r < 2; r++) {
            sum[2 * r] = y[r][0] + (y[r][1] + y[r][2]);
            sum[2 * r + 1] = (y[r][1] - y[r][2]) - y[r][3];
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            if (pixel[k] == NULL) {
                continue;
            }
            if (bias != NULL) {
                sum[k] = sum[k] + LOAD(bias + i);
            }
            if (accumulate) {
                sum[k] = sum[k] + LOAD(pixel[k] + i);
            }
            STORE(pixel[k] + i, sum[k]);
        }
    }
}
