/* SPDX-License-Identifier: MIT
 *
 * One augmented image as a description. A scene is a virtual canvas: tiles placed on
 * grey, part of it perhaps replaced by its own mirror image (copy-paste), seen through
 * an inverse matrix. The image is one scene, or two blended (mixup), then colour
 * jittered, flipped and stored as planes. No canvas is ever made: a pixel of the image
 * is mapped back and its four neighbours are looked up on the tiles.
 */
#ifndef YM_CORE_MOSAIC_H
#define YM_CORE_MOSAIC_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define YM_MOSAIC_TILES 9
#define YM_MOSAIC_FILL 114       /* the grey between tiles */
#define YM_MOSAIC_MAX_SIDE 32766 /* OpenCV keeps source coordinates in 16 bits */

/* Borrowed and never written. Where tiles overlap the later one is seen. */
typedef struct ym_tile {
    const uint8_t *pixels; /* (height, width, 3), BGR, 3 bytes a pixel */
    int64_t row_bytes;
    int32_t x, y;          /* of its first pixel on the canvas */
    int32_t height, width; /* wholly on the canvas */
} ym_tile;

typedef enum ym_warp {
    YM_WARP_NONE = 0,     /* the canvas is the image */
    YM_WARP_AFFINE,       /* by the integers of OpenCV 4 */
    YM_WARP_PERSPECTIVE,  /* by the same */
    YM_WARP_AFFINE_FLOAT, /* by the floats of OpenCV 5 */
    YM_WARP_PERSPECTIVE_FLOAT,
} ym_warp;

typedef struct ym_scene {
    ym_tile tile[YM_MOSAIC_TILES];
    int32_t tile_count;
    int32_t height, width; /* of the canvas */
    ym_warp warp;
    double inverse[9]; /* image -> canvas, row by row; affine: the first six */
    /* One bit a canvas pixel, (height, paste_row_bytes), lowest bit first, or NULL.
     * Where the bit of the mirrored pixel (width - 1 - x, y) is set, (x, y) shows it.
     * Rows have at least 8 bytes more than they need, so that words can be read. */
    const uint8_t *paste;
    int64_t paste_row_bytes;
} ym_scene;

/* Which instructions backend "cpu" may use; every choice gives the same bytes. */
typedef enum ym_mosaic_simd {
    YM_MOSAIC_SIMD_BEST = 0,
    YM_MOSAIC_SIMD_NONE,
    YM_MOSAIC_SIMD_AVX2,
    YM_MOSAIC_SIMD_AVX512,
} ym_mosaic_simd;

typedef struct ym_mosaic_job {
    ym_scene scene[2];
    int32_t scene_count;
    double ratio;       /* of scene 0 in the blend of two */
    const uint8_t *hsv; /* (3, 256): new hue (below 180), saturation, value; or NULL */
    bool flip_vertical, flip_horizontal;
    uint8_t *out; /* (3, height, width), RGB, packed */
    int32_t height, width;
    ym_mosaic_simd simd;
} ym_mosaic_job;

#endif
