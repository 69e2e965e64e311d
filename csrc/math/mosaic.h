/* SPDX-License-Identifier: MIT
 *
 * One pixel of a mosaic's image, from its scenes: what backends that work a pixel at a
 * time do. Compile with -ffp-contract=off.
 */
#ifndef YM_MATH_MOSAIC_H
#define YM_MATH_MOSAIC_H

#include "math/hsv.h"
#include "math/warp.h"

YM_MATH ym_tap ym_mosaic_tap(const ym_mosaic_job *job, const ym_scene *scene, int32_t x,
                             int32_t y)
{
    if (scene->warp == YM_WARP_AFFINE) {
        return ym_affine_tap(scene->inverse, x, y);
    }
    if (scene->warp == YM_WARP_PERSPECTIVE) {
        const int32_t block = ym_perspective_block(job->height, job->width);
        return ym_perspective_tap(scene->inverse, x, y, block);
    }
    ym_tap tap = {x, y, 0, 0};
    return tap;
}

YM_MATH void ym_mosaic_sample(const ym_mosaic_job *job, const ym_scene *scene,
                              int32_t x, int32_t y, uint8_t bgr[3])
{
    const bool floats = ym_warp_is_float(scene->warp);
    ym_float_tap float_tap = {0, 0, 0.0f, 0.0f};
    ym_tap tap = {0, 0, 0, 0};
    if (floats) {
        const bool perspective = ym_warp_is_perspective(scene->warp);
        float_tap = ym_float_tap_at(scene->inverse, perspective, x, y, job->width);
        tap.x = float_tap.x;
        tap.y = float_tap.y;
    } else {
        tap = ym_mosaic_tap(job, scene, x, y);
    }
    const uint8_t grey[3] = {YM_MOSAIC_FILL, YM_MOSAIC_FILL, YM_MOSAIC_FILL};
    const uint8_t *corner[4];
    for (int32_t i = 0; i < 4; i++) {
        corner[i] = ym_scene_pixel(scene, tap.x + (i & 1), tap.y + (i >> 1));
        corner[i] = corner[i] != NULL ? corner[i] : grey;
    }
    for (int32_t c = 0; c < 3; c++) {
        const int32_t at[4] = {corner[0][c], corner[1][c], corner[2][c], corner[3][c]};
        bgr[c] = floats ? ym_blend_floats(at[0], at[1], at[2], at[3], float_tap.fx,
                                          float_tap.fy)
                        : ym_blend_taps(at[0], at[1], at[2], at[3], tap);
    }
}

/* Before any flip; BGR. */
YM_MATH void ym_mosaic_pixel(const ym_mosaic_job *job, int32_t x, int32_t y,
                             uint8_t bgr[3])
{
    ym_mosaic_sample(job, &job->scene[0], x, y, bgr);
    if (job->scene_count == 2) {
        uint8_t other[3];
        ym_mosaic_sample(job, &job->scene[1], x, y, other);
        for (int32_t c = 0; c < 3; c++) {
            bgr[c] = ym_mix(bgr[c], other[c], job->ratio);
        }
    }
    if (job->hsv != NULL) {
        ym_hsv_jitter(bgr, job->hsv, x >= ym_hsv_tail(job->width));
    }
}

/* Pixel (x, y) of the image to where it stands in out, flipped as the job says. */
YM_MATH void ym_mosaic_put_pixel(const ym_mosaic_job *job, int32_t x, int32_t y)
{
    const int64_t plane = (int64_t)job->height * job->width;
    const int32_t row = job->flip_vertical ? job->height - 1 - y : y;
    const int32_t column = job->flip_horizontal ? job->width - 1 - x : x;
    uint8_t *out = job->out + (int64_t)row * job->width + column;
    uint8_t bgr[3];
    ym_mosaic_pixel(job, x, y, bgr);
    for (int32_t c = 0; c < 3; c++) {
        out[c * plane] = bgr[2 - c];
    }
}

#endif
