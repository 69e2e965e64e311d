/* SPDX-License-Identifier: MIT
 *
 * The steps that compilers make good vectors of, to be compiled for several instruction
 * sets: each file of kernels includes this and wraps the loops that it wants.
 */
#ifndef YM_CPU_MOSAIC_LOOPS_H
#define YM_CPU_MOSAIC_LOOPS_H

#include "cpu/mosaic.h"
#include "math/hsv.h"
#include "math/warp.h"

/* GCC makes vectors at -O3 only. */
#if defined(__GNUC__) && !defined(__clang__)
#define LOOP static inline __attribute__((always_inline, optimize("O3")))
#define TARGET(set) __attribute__((target(set), optimize("O3")))
#else
#define LOOP static inline __attribute__((always_inline))
#define TARGET(set) __attribute__((target(set)))
#endif

LOOP void loop_put_tap(cpu_span *span, int32_t i, int32_t x, int32_t y)
{
    span->x[i] = x >> 5;
    span->y[i] = y >> 5;
    span->weight_x[i] = (uint16_t)((32 - (x & 31)) | (x & 31) << 8);
    span->weight_y[i] = (uint32_t)((32 - (y & 31)) | (y & 31) << 16);
}

LOOP void loop_locate_affine(cpu_span *span, const cpu_affine *affine, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        loop_put_tap(span, i, ym_wrapping_add(affine->row_x, affine->column_x[i]) >> 5,
                     ym_wrapping_add(affine->row_y, affine->column_y[i]) >> 5);
    }
}

LOOP void loop_locate_perspective(cpu_span *span, const cpu_perspective *perspective,
                                  int32_t count)
{
    const double *m = perspective->inverse;
    int32_t y = perspective->y;
    int32_t end = 0;
    for (int32_t start = 0; start < count; start = end) {
        int32_t first = perspective->x + start; /* column of the image */
        first -= first % perspective->block;
        double x0 = m[0] * first + m[1] * y + m[2];
        double y0 = m[3] * first + m[4] * y + m[5];
        double w0 = m[6] * first + m[7] * y + m[8];
        end = first + perspective->block - perspective->x;
        end = end < count ? end : count;
        for (int32_t i = start; i < end; i++) {
            int32_t step = perspective->x + i - first;
            double w = w0 + m[6] * step;
            w = w != 0.0 ? 32.0 / w : 0.0;
            loop_put_tap(span, i, ym_clamped_to_int((x0 + m[0] * step) * w),
                         ym_clamped_to_int((y0 + m[3] * step) * w));
        }
    }
}

LOOP void loop_blend_floats(const cpu_span *span, cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        /* Halves of the words: b g r b and g r. */
        const uint32_t u = (uint32_t)span->upper[i], l = (uint32_t)span->lower[i];
        const uint32_t v = (uint32_t)(span->upper[i] >> 32);
        const uint32_t m = (uint32_t)(span->lower[i] >> 32);
        const float fx = span->fx[i], fy = span->fy[i];
        planes->b[i] = ym_blend_floats((int32_t)(u & 255), (int32_t)(u >> 24),
                                       (int32_t)(l & 255), (int32_t)(l >> 24), fx, fy);
        planes->g[i] = ym_blend_floats((int32_t)(u >> 8 & 255), (int32_t)(v & 255),
                                       (int32_t)(l >> 8 & 255), (int32_t)(m & 255), fx,
                                       fy);
        planes->r[i] =
            ym_blend_floats((int32_t)(u >> 16 & 255), (int32_t)(v >> 8 & 255),
                            (int32_t)(l >> 16 & 255), (int32_t)(m >> 8 & 255), fx, fy);
    }
}

LOOP void loop_weigh_rows(const uint8_t *restrict upper, const uint8_t *restrict lower,
                          int32_t weight, int32_t count, uint16_t *restrict out)
{
    uint16_t rest = (uint16_t)(32 - weight), part = (uint16_t)weight;
    for (int32_t i = 0; i < count; i++) {
        out[i] = (uint16_t)(upper[i] * rest + lower[i] * part);
    }
}

LOOP void loop_mix(uint8_t *a, const uint8_t *b, double ratio, int32_t count)
{
    double rest = 1.0 - ratio;
    for (int32_t i = 0; i < count; i++) {
        a[i] = (uint8_t)(int32_t)(a[i] * ratio + b[i] * rest);
    }
}

LOOP void loop_to_hsv(cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        uint8_t bgr[3] = {planes->b[i], planes->g[i], planes->r[i]}, hsv[3];
        ym_bgr_to_hsv(bgr, hsv);
        planes->b[i] = hsv[0];
        planes->g[i] = hsv[1];
        planes->r[i] = hsv[2];
    }
}

LOOP void loop_look_up(uint8_t *plane, const uint8_t *lut, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        plane[i] = lut[plane[i]];
    }
}

LOOP void loop_to_bgr(cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        uint8_t hsv[3] = {planes->b[i], planes->g[i], planes->r[i]}, bgr[3];
        ym_hsv_to_bgr(hsv, bgr, false);
        planes->b[i] = bgr[0];
        planes->g[i] = bgr[1];
        planes->r[i] = bgr[2];
    }
}

LOOP void loop_jitter(cpu_planes *planes, const uint8_t *lut, int32_t count)
{
    loop_to_hsv(planes, count);
    loop_look_up(planes->b, lut, count);
    loop_look_up(planes->g, lut + 256, count);
    loop_look_up(planes->r, lut + 512, count);
    loop_to_bgr(planes, count);
}

#endif
