/* SPDX-License-Identifier: MIT
 *
 * Polygons of objects: filled into a bit map as OpenCV's drawContours(FILLED) fills
 * them, and boxed after a warp as YOLOv9 does it.
 */
#ifndef YM_OPS_POLYGON_H
#define YM_OPS_POLYGON_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ym_point {
    double x, y; /* pixels */
} ym_point;

/* One bit a pixel, lowest bit first. */
typedef struct ym_bitmap {
    uint8_t *bits; /* (height, row_bytes) */
    int64_t row_bytes;
    int32_t height, width;
} ym_bitmap;

size_t ym_polygon_scratch_bytes(int32_t count);

/* Adds the polygon, its points truncated to integers and its outline included. Points
 * may lie outside the bit map, up to 32767 pixels from 0. scratch: 8-byte aligned. */
ym_status ym_polygon_fill(const ym_bitmap *bitmap, const ym_point *point, int32_t count,
                          void *scratch, ym_error *error);

typedef struct ym_polygon_warp {
    double matrix[9]; /* canvas -> image */
    bool perspective;
    double width, height; /* of the image */
} ym_polygon_warp;

/* `closed` has count + 2 points: after the last comes the first again, twice. The
 * outline is cut into 1000 points at equal steps of the index, warped, and those inside
 * the image are boxed: x1, y1, x2, y2; zeros where none is. */
void ym_polygon_box(const ym_polygon_warp *warp, const ym_point *closed, int32_t count,
                    double box[4]);

#endif
