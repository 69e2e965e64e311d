/* SPDX-License-Identifier: MIT */
#include "ops/mosaic.h"

#include "math/warp.h"

#include <math.h>

/* warpAffine's own inverse: no general 2x2 or 3x3 routine has these roundings. */
static void invert_affine(const double m[9], double out[9])
{
    double d = m[0] * m[4] - m[1] * m[3];
    d = d != 0.0 ? 1.0 / d : 0.0;
    out[0] = m[4] * d;
    out[4] = m[0] * d;
    out[1] = m[1] * -d;
    out[3] = m[3] * -d;
    out[2] = -out[0] * m[2] - out[1] * m[5];
    out[5] = -out[3] * m[2] - out[4] * m[5];
    out[6] = out[7] = 0.0;
    out[8] = 1.0;
}

/* cv::invert of a 3x3 matrix: cofactors times 1 / determinant. */
static void invert_perspective(const double m[9], double out[9])
{
    double d = m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6]) +
               m[2] * (m[3] * m[7] - m[4] * m[6]);
    d = d != 0.0 ? 1.0 / d : 0.0;
    out[0] = (m[4] * m[8] - m[5] * m[7]) * d;
    out[1] = (m[2] * m[7] - m[1] * m[8]) * d;
    out[2] = (m[1] * m[5] - m[2] * m[4]) * d;
    out[3] = (m[5] * m[6] - m[3] * m[8]) * d;
    out[4] = (m[0] * m[8] - m[2] * m[6]) * d;
    out[5] = (m[2] * m[3] - m[0] * m[5]) * d;
    out[6] = (m[3] * m[7] - m[4] * m[6]) * d;
    out[7] = (m[1] * m[6] - m[0] * m[7]) * d;
    out[8] = (m[0] * m[4] - m[1] * m[3]) * d;
}

void ym_scene_invert(ym_scene *scene, const double forward[9])
{
    if (ym_warp_is_perspective(scene->warp)) {
        invert_perspective(forward, scene->inverse);
    } else {
        invert_affine(forward, scene->inverse);
    }
}

static ym_status check_side(int32_t side, const char *what, ym_error *error)
{
    YM_CHECK(error, side >= 1 && side <= YM_MOSAIC_MAX_SIDE, YM_ERR_ARGUMENT,
             "mosaic: %s is %d, must be 1 to %d", what, side, YM_MOSAIC_MAX_SIDE);
    return YM_OK;
}

static ym_status check_tile(const ym_scene *scene, int32_t index, ym_error *error)
{
    const ym_tile *tile = &scene->tile[index];
    YM_TRY(check_side(tile->height, "a tile's height", error));
    YM_TRY(check_side(tile->width, "a tile's width", error));
    YM_CHECK(error, tile->pixels != NULL, YM_ERR_ARGUMENT,
             "mosaic: tile %d has no pixels", index);
    YM_CHECK(error,
             tile->x >= 0 && tile->y >= 0 && tile->x <= scene->width - tile->width &&
                 tile->y <= scene->height - tile->height,
             YM_ERR_ARGUMENT,
             "mosaic: tile %d, %dx%d at (x %d, y %d), must lie on the canvas of %dx%d",
             index, tile->width, tile->height, tile->x, tile->y, scene->width,
             scene->height);
    return YM_OK;
}

static ym_status check_scene(const ym_mosaic_job *job, const ym_scene *scene,
                             ym_error *error)
{
    YM_TRY(check_side(scene->height, "the canvas' height", error));
    YM_TRY(check_side(scene->width, "the canvas' width", error));
    YM_CHECK(error, scene->tile_count >= 0 && scene->tile_count <= YM_MOSAIC_TILES,
             YM_ERR_ARGUMENT, "mosaic: %d tiles in a scene, must be 0 to %d",
             scene->tile_count, YM_MOSAIC_TILES);
    for (int32_t i = 0; i < scene->tile_count; i++) {
        YM_TRY(check_tile(scene, i, error));
    }
    YM_CHECK(
        error,
        scene->warp != YM_WARP_NONE ||
            (scene->height == job->height && scene->width == job->width),
        YM_ERR_ARGUMENT,
        "mosaic: without a warp the canvas, %dx%d, must have the image's size, %dx%d",
        scene->width, scene->height, job->width, job->height);
    for (int i = 0; scene->warp != YM_WARP_NONE && i < 9; i++) {
        YM_CHECK(error, isfinite(scene->inverse[i]), YM_ERR_ARGUMENT,
                 "mosaic: element (%d, %d) of the inverse matrix is %g, must be finite",
                 i / 3, i % 3, scene->inverse[i]);
    }
    if (scene->paste == NULL) {
        return YM_OK;
    }
    const int64_t row_bytes = scene->paste_row_bytes;
    YM_CHECK(error, row_bytes >= (scene->width + 7) / 8 + 8, YM_ERR_ARGUMENT,
             "mosaic: a row of the paste mask has %lld bytes, must have at least %d",
             (long long)row_bytes, (scene->width + 7) / 8 + 8);
    YM_CHECK(error, row_bytes <= INT32_MAX / scene->height, YM_ERR_ARGUMENT,
             "mosaic: a row of the paste mask has %lld bytes, must have at most %d in "
             "each of %d rows",
             (long long)row_bytes, INT32_MAX / scene->height, scene->height);
    return YM_OK;
}

/* Whether the picture's bytes lie apart from these. */
static bool is_apart(const ym_mosaic_job *job, const uint8_t *first, int64_t bytes)
{
    const uintptr_t out = (uintptr_t)job->out, read = (uintptr_t)first;
    const uintptr_t out_bytes = (uintptr_t)3 * (uintptr_t)job->height * job->width;
    return read + (uintptr_t)bytes <= out || out + out_bytes <= read;
}

/* Pixels are looked up while others are written. */
static ym_status check_tile_apart(const ym_mosaic_job *job, const ym_scene *scene,
                                  int32_t index, ym_error *error)
{
    const ym_tile *tile = &scene->tile[index];
    const int64_t row_bytes = tile->row_bytes, wide = (int64_t)3 * tile->width;
    const int64_t reach = (tile->height - 1) * row_bytes; /* below 0: rows run up */
    const int64_t below = reach < 0 ? reach : 0, above = reach - below;
    if (is_apart(job, tile->pixels + below, above - below + wide)) {
        return YM_OK; /* nearly always, and all at once */
    }
    bool apart = true;
    for (int32_t row = 0; apart && row < tile->height; row++) {
        apart = is_apart(job, tile->pixels + row * row_bytes, wide);
    }
    YM_CHECK(error, apart, YM_ERR_ARGUMENT,
             "mosaic: out shares memory with %stile %d, %dx%d at (x %d, y %d), must "
             "have its own",
             scene == job->scene ? "" : "the partner's ", index, tile->width,
             tile->height, tile->x, tile->y);
    return YM_OK;
}

static ym_status check_apart(const ym_mosaic_job *job, ym_error *error)
{
    for (int32_t i = 0; i < job->scene_count; i++) {
        const ym_scene *scene = &job->scene[i];
        for (int32_t k = 0; k < scene->tile_count; k++) {
            YM_TRY(check_tile_apart(job, scene, k, error));
        }
        YM_CHECK(
            error,
            scene->paste == NULL ||
                is_apart(job, scene->paste, scene->paste_row_bytes * scene->height),
            YM_ERR_ARGUMENT,
            "mosaic: out shares memory with the paste mask, must have its own");
    }
    YM_CHECK(error, job->hsv == NULL || is_apart(job, job->hsv, 3 * 256),
             YM_ERR_ARGUMENT, "mosaic: out shares memory with hsv, must have its own");
    return YM_OK;
}

ym_status ym_mosaic_check(const ym_mosaic_job *job, ym_error *error)
{
    YM_TRY(check_side(job->height, "the image's height", error));
    YM_TRY(check_side(job->width, "the image's width", error));
    YM_CHECK(error, job->out != NULL, YM_ERR_ARGUMENT, "mosaic: out is missing");
    YM_CHECK(error, job->scene_count == 1 || job->scene_count == 2, YM_ERR_ARGUMENT,
             "mosaic: %d scenes, must be 1 or 2", job->scene_count);
    for (int32_t i = 0; i < job->scene_count; i++) {
        YM_TRY(check_scene(job, &job->scene[i], error));
    }
    YM_TRY(check_apart(job, error));
    YM_CHECK(error, job->scene_count == 1 || (job->ratio >= 0.0 && job->ratio <= 1.0),
             YM_ERR_ARGUMENT, "mosaic: the mixup ratio is %g, must be 0 to 1",
             job->ratio);
    for (int i = 0; job->hsv != NULL && i < 256; i++) {
        YM_CHECK(error, job->hsv[i] < 180, YM_ERR_ARGUMENT,
                 "mosaic: hue %d becomes %d, must be below 180", i, job->hsv[i]);
    }
    return YM_OK;
}
