/* SPDX-License-Identifier: MIT
 * The steps of a mosaic without vector instructions of our own.
 */
#include "cpu/mosaic_loops.h"

static void locate_affine(cpu_span *span, const cpu_affine *affine, int32_t count)
{
    loop_locate_affine(span, affine, count);
}

static void locate_perspective(cpu_span *span, const cpu_perspective *perspective,
                               int32_t count)
{
    loop_locate_perspective(span, perspective, count);
}

static void gather(cpu_span *span, cpu_source *source, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        cpu_mosaic_gather_pixel(span, source->scene, i);
    }
}

static uint8_t blend_byte(uint64_t upper, uint64_t lower, int32_t shift, ym_tap tap)
{
    return ym_blend_taps(upper >> shift & 255, upper >> (shift + 24) & 255,
                         lower >> shift & 255, lower >> (shift + 24) & 255, tap);
}

static void blend(const cpu_span *span, cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        uint64_t upper = span->upper[i], lower = span->lower[i];
        ym_tap tap = {0, 0, span->weight_x[i] >> 8, (int32_t)(span->weight_y[i] >> 16)};
        planes->b[i] = blend_byte(upper, lower, 0, tap);
        planes->g[i] = blend_byte(upper, lower, 8, tap);
        planes->r[i] = blend_byte(upper, lower, 16, tap);
    }
}

static void locate_floats(cpu_span *span, const cpu_floats *floats, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const ym_float_tap tap = ym_float_tap_at(floats->inverse, floats->perspective,
                                                 floats->x + i, floats->y,
                                                 floats->width);
        span->x[i] = tap.x;
        span->y[i] = tap.y;
        span->fx[i] = tap.fx;
        span->fy[i] = tap.fy;
    }
}

static void blend_floats(const cpu_span *span, cpu_planes *planes, int32_t count)
{
    loop_blend_floats(span, planes, count);
}

static void weigh_rows(const uint8_t *upper, const uint8_t *lower, int32_t weight,
                       int32_t count, uint16_t *out)
{
    loop_weigh_rows(upper, lower, weight, count, out);
}

static void sample(const uint16_t *sums, const int32_t *offset, const uint32_t *weight,
                   cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const uint16_t *at = sums + offset[i];
        uint32_t left = weight[i] & 0xFFFF, right = weight[i] >> 16;
        planes->b[i] = (uint8_t)((at[0] * left + at[3] * right + 512) >> 10);
        planes->g[i] = (uint8_t)((at[1] * left + at[4] * right + 512) >> 10);
        planes->r[i] = (uint8_t)((at[2] * left + at[5] * right + 512) >> 10);
    }
}

static void mix(cpu_planes *planes, const cpu_planes *other, double ratio,
                int32_t count)
{
    loop_mix(planes->b, other->b, ratio, count);
    loop_mix(planes->g, other->g, ratio, count);
    loop_mix(planes->r, other->r, ratio, count);
}

static void jitter(cpu_planes *planes, const uint8_t *lut, int32_t count)
{
    loop_jitter(planes, lut, count);
}

static void reverse(uint8_t *out, const uint8_t *plane, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        out[count - 1 - i] = plane[i];
    }
}

const cpu_mosaic_kernels cpu_mosaic_plain = {
    .locate_affine = locate_affine,
    .locate_perspective = locate_perspective,
    .locate_floats = locate_floats,
    .gather = gather,
    .weigh_rows = weigh_rows,
    .sample = sample,
    .blend = blend,
    .blend_floats = blend_floats,
    .mix = mix,
    .jitter = jitter,
    .reverse = reverse,
};
