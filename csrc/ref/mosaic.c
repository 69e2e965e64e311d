/* SPDX-License-Identifier: MIT
 *
 * image (3, H, W) <- scenes: the formulas of math/warp.h and math/hsv.h, a pixel at a
 * time.
 */
#include "core/mosaic.h"
#include "math/hsv.h"
#include "math/warp.h"
#include "ref/ref.h"

static ym_tap find_tap(const ym_mosaic_job *job, const ym_scene *scene, int32_t x,
                       int32_t y)
{
    if (scene->warp == YM_WARP_AFFINE) {
        return ym_affine_tap(scene->inverse, x, y);
    }
    if (scene->warp == YM_WARP_PERSPECTIVE) {
        int32_t block = ym_perspective_block(job->height, job->width);
        return ym_perspective_tap(scene->inverse, x, y, block);
    }
    ym_tap tap = {x, y, 0, 0};
    return tap;
}

/* The four neighbours of a position. */
static void find_corners(const ym_scene *scene, int32_t x, int32_t y,
                         const uint8_t *corner[4])
{
    static const uint8_t grey[3] = {YM_MOSAIC_FILL, YM_MOSAIC_FILL, YM_MOSAIC_FILL};
    for (int32_t i = 0; i < 4; i++) {
        corner[i] = ym_scene_pixel(scene, x + (i & 1), y + (i >> 1));
        corner[i] = corner[i] != NULL ? corner[i] : grey;
    }
}

static void sample_floats(const ym_scene *scene, ym_float_tap tap, uint8_t bgr[3])
{
    const uint8_t *corner[4];
    find_corners(scene, tap.x, tap.y, corner);
    for (int32_t c = 0; c < 3; c++) {
        bgr[c] = ym_blend_floats(corner[0][c], corner[1][c], corner[2][c], corner[3][c],
                                 tap.fx, tap.fy);
    }
}

static void sample_scene(const ym_mosaic_job *job, const ym_scene *scene, int32_t x,
                         int32_t y, uint8_t bgr[3])
{
    if (scene->warp >= YM_WARP_AFFINE_FLOAT) {
        const bool perspective = ym_warp_is_perspective(scene->warp);
        sample_floats(
            scene, ym_float_tap_at(scene->inverse, perspective, x, y, job->width), bgr);
        return;
    }
    const ym_tap tap = find_tap(job, scene, x, y);
    const uint8_t *corner[4];
    find_corners(scene, tap.x, tap.y, corner);
    for (int32_t c = 0; c < 3; c++) {
        bgr[c] =
            ym_blend_taps(corner[0][c], corner[1][c], corner[2][c], corner[3][c], tap);
    }
}

static void make_pixel(const ym_mosaic_job *job, int32_t x, int32_t y, uint8_t bgr[3])
{
    sample_scene(job, &job->scene[0], x, y, bgr);
    if (job->scene_count == 2) {
        uint8_t other[3];
        sample_scene(job, &job->scene[1], x, y, other);
        for (int32_t c = 0; c < 3; c++) {
            bgr[c] = ym_mix(bgr[c], other[c], job->ratio);
        }
    }
    if (job->hsv != NULL) {
        ym_hsv_jitter(bgr, job->hsv, x >= ym_hsv_tail(job->width));
    }
}

ym_status ref_mosaic(ym_context *context, const ym_mosaic_job *job)
{
    (void)context;
    int64_t plane = (int64_t)job->height * job->width;
    for (int32_t y = 0; y < job->height; y++) {
        int32_t row = job->flip_vertical ? job->height - 1 - y : y;
        for (int32_t x = 0; x < job->width; x++) {
            int32_t column = job->flip_horizontal ? job->width - 1 - x : x;
            uint8_t *out = job->out + (int64_t)row * job->width + column;
            uint8_t bgr[3];
            make_pixel(job, x, y, bgr);
            for (int32_t c = 0; c < 3; c++) {
                out[c * plane] = bgr[2 - c];
            }
        }
    }
    return YM_OK;
}
