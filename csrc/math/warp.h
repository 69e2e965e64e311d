/* SPDX-License-Identifier: MIT
 *
 * Where a pixel of a warped image comes from and what it becomes (warpAffine,
 * warpPerspective; 8-bit, bilinear, constant border): the integers of OpenCV 4, with
 * positions in 1/32 pixel, and the floats of OpenCV 5. Compile with -ffp-contract=off:
 * every product is rounded.
 */
#ifndef YM_MATH_WARP_H
#define YM_MATH_WARP_H

#include "core/mosaic.h"

#include <math.h>

#include "math/function.h"

YM_MATH bool ym_warp_is_perspective(ym_warp warp)
{
    return warp == YM_WARP_PERSPECTIVE || warp == YM_WARP_PERSPECTIVE_FLOAT;
}

YM_MATH bool ym_warp_is_float(ym_warp warp)
{
    return warp == YM_WARP_AFFINE_FLOAT || warp == YM_WARP_PERSPECTIVE_FLOAT;
}

/* The upper left of the four neighbours, and how far beyond it in 1/32. */
typedef struct ym_tap {
    int32_t x, y;
    int32_t fx, fy;
} ym_tap;

/* Half to even; what does not fit becomes INT32_MIN, as x86 converts. */
YM_MATH int32_t ym_round_to_int(double value)
{
    return value > -2147483649.0 && value < 2147483647.5 && value >= -2147483648.5
               ? (int32_t)rint(value)
               : INT32_MIN;
}

YM_MATH int32_t ym_wrapping_add(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

YM_MATH ym_tap ym_tap_at(int32_t x, int32_t y)
{
    ym_tap tap = {x >> 5, y >> 5, x & 31, y & 31};
    return tap;
}

/* The part of an affine position that depends on the column, in 1/1024 pixel, and the
 * part that depends on the row, with half a step of 1/32 to round by. */
YM_MATH int32_t ym_affine_column(double slope, int32_t x)
{
    return ym_round_to_int(slope * x * 1024.0);
}

YM_MATH int32_t ym_affine_row(double slope, double offset, int32_t y)
{
    return ym_wrapping_add(ym_round_to_int((slope * y + offset) * 1024.0), 16);
}

YM_MATH ym_tap ym_affine_tap(const double *inverse, int32_t x, int32_t y)
{
    int32_t column_x = ym_affine_column(inverse[0], x);
    int32_t column_y = ym_affine_column(inverse[3], x);
    int32_t row_x = ym_affine_row(inverse[1], inverse[2], y);
    int32_t row_y = ym_affine_row(inverse[4], inverse[5], y);
    return ym_tap_at(ym_wrapping_add(row_x, column_x) >> 5,
                     ym_wrapping_add(row_y, column_y) >> 5);
}

/* OpenCV works in blocks and adds up from the block's first column, which shows in the
 * last bits. */
YM_MATH int32_t ym_perspective_block(int32_t height, int32_t width)
{
    int32_t block = 1024 / (height < 16 ? height : 16);
    return block < width ? block : width;
}

YM_MATH int32_t ym_clamped_to_int(double value)
{
    double low = value < 2147483647.0 ? value : 2147483647.0;
    return (int32_t)rint(low > -2147483648.0 ? low : -2147483648.0);
}

YM_MATH ym_tap ym_perspective_tap(const double *inverse, int32_t x, int32_t y,
                                  int32_t block)
{
    int32_t first = x - x % block;
    int32_t step = x - first;
    double x0 = inverse[0] * first + inverse[1] * y + inverse[2];
    double y0 = inverse[3] * first + inverse[4] * y + inverse[5];
    double w = inverse[6] * first + inverse[7] * y + inverse[8];
    w += inverse[6] * step;
    w = w != 0.0 ? 32.0 / w : 0.0;
    return ym_tap_at(ym_clamped_to_int((x0 + inverse[0] * step) * w),
                     ym_clamped_to_int((y0 + inverse[3] * step) * w));
}

/* The weights of the four neighbours add up to 1024. */
YM_MATH uint8_t ym_blend_taps(int32_t upper_left, int32_t upper_right,
                              int32_t lower_left, int32_t lower_right, ym_tap tap)
{
    int32_t upper = upper_left * (32 - tap.fx) + upper_right * tap.fx;
    int32_t lower = lower_left * (32 - tap.fx) + lower_right * tap.fx;
    return (uint8_t)((upper * (32 - tap.fy) + lower * tap.fy + 512) >> 10);
}

/* As ym_tap, in float. */
typedef struct ym_float_tap {
    int32_t x, y;
    float fx, fy; /* 0 <= f < 1 */
} ym_float_tap;

/* OpenCV 5 works on groups of columns; those left over at the end of a row are added up
 * in another order, with roundings of their own. (As its AVX2 code does: on a CPU
 * without fused multiply-add it rounds otherwise.) */
#define YM_FLOAT_GROUP 16

YM_MATH int32_t ym_float_tail(int32_t width)
{
    return width - width % YM_FLOAT_GROUP;
}

/* What a row of the inverse matrix makes of one row of pixels. */
typedef struct ym_float_row {
    float slope, of_y, offset;
} ym_float_row;

YM_MATH ym_float_row ym_float_row_at(const double *row, int32_t y)
{
    ym_float_row made = {(float)row[0], (float)y * (float)row[1], (float)row[2]};
    return made;
}

YM_MATH float ym_float_position(ym_float_row row, int32_t x, bool tail)
{
    return tail ? fmaf(row.slope, (float)x, row.of_y) + row.offset
                : fmaf(row.slope, (float)x, row.of_y + row.offset);
}

#define YM_FLOAT_FAR 1073741824.0f

/* What no canvas reaches, or is no number, lies far outside of all. */
YM_MATH float ym_float_in_reach(float position)
{
    const float above = position > -YM_FLOAT_FAR ? position : -YM_FLOAT_FAR;
    return above < YM_FLOAT_FAR ? above : YM_FLOAT_FAR;
}

YM_MATH ym_float_tap ym_float_tap_of(float x, float y)
{
    x = ym_float_in_reach(x);
    y = ym_float_in_reach(y);
    const float left = floorf(x), top = floorf(y);
    ym_float_tap tap = {(int32_t)left, (int32_t)top, x - left, y - top};
    return tap;
}

/* width: of the image. */
YM_MATH ym_float_tap ym_float_tap_at(const double *inverse, bool perspective, int32_t x,
                                     int32_t y, int32_t width)
{
    const bool tail = x >= ym_float_tail(width);
    float at_x = ym_float_position(ym_float_row_at(inverse, y), x, tail);
    float at_y = ym_float_position(ym_float_row_at(inverse + 3, y), x, tail);
    if (perspective) {
        const float w = ym_float_position(ym_float_row_at(inverse + 6, y), x, tail);
        at_x /= w;
        at_y /= w;
    }
    return ym_float_tap_of(at_x, at_y);
}

YM_MATH uint8_t ym_blend_floats(int32_t upper_left, int32_t upper_right,
                                int32_t lower_left, int32_t lower_right, float fx,
                                float fy)
{
    const float upper = fmaf(fx, (float)(upper_right - upper_left), (float)upper_left);
    const float lower = fmaf(fx, (float)(lower_right - lower_left), (float)lower_left);
    return (uint8_t)(int32_t)rintf(fmaf(fy, lower - upper, upper));
}

/* NumPy's (a * ratio + b * (1 - ratio)).astype(uint8): doubles, truncated. */
YM_MATH uint8_t ym_mix(uint8_t a, uint8_t b, double ratio)
{
    return (uint8_t)(a * ratio + b * (1.0 - ratio));
}

/* The BGR bytes of a pixel of the canvas without copy-paste, NULL: grey. */
YM_MATH const uint8_t *ym_scene_tile_pixel(const ym_scene *scene, int32_t x, int32_t y)
{
    for (int32_t i = scene->tile_count - 1; i >= 0; i--) {
        const ym_tile *tile = &scene->tile[i];
        int32_t column = x - tile->x, row = y - tile->y;
        if (column >= 0 && row >= 0 && column < tile->width && row < tile->height) {
            return tile->pixels + row * tile->row_bytes + (int64_t)column * 3;
        }
    }
    return NULL;
}

/* The BGR bytes of any position; NULL: grey, as outside the canvas. */
YM_MATH const uint8_t *ym_scene_pixel(const ym_scene *scene, int32_t x, int32_t y)
{
    if (x < 0 || y < 0 || x >= scene->width || y >= scene->height) {
        return NULL;
    }
    if (scene->paste != NULL) {
        int32_t mirrored = scene->width - 1 - x;
        const uint8_t *bits = scene->paste + y * scene->paste_row_bytes;
        if (bits[mirrored >> 3] >> (mirrored & 7) & 1) {
            x = mirrored;
        }
    }
    return ym_scene_tile_pixel(scene, x, y);
}

#endif
