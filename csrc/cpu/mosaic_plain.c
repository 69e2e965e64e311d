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

static void mix(cpu_planes *planes, const cpu_planes *other, double ratio, int32_t count)
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
    .gather = gather,
    .blend = blend,
    .mix = mix,
    .jitter = jitter,
    .reverse = reverse,
};
