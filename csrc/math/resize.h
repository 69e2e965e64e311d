/* SPDX-License-Identifier: MIT
 *
 * cv2.resize with INTER_LINEAR on 8-bit images, OpenCV 4.x: which two samples an output
 * sample lies between and their weights in 1/2048.
 */
#ifndef YM_MATH_RESIZE_H
#define YM_MATH_RESIZE_H

#include "math/warp.h"

typedef struct ym_lerp {
    int32_t first;            /* may be -1 or beyond the end for rows */
    int32_t weight0, weight1; /* of first and first + 1 */
} ym_lerp;

YM_MATH ym_lerp ym_lerp_of(float position, int32_t first)
{
    float part = position - (float)first;
    ym_lerp lerp = {first, (int32_t)rintf((1.0f - part) * 2048.0f),
                    (int32_t)rintf(part * 2048.0f)};
    return lerp;
}

YM_MATH float ym_resize_position(int32_t i, int32_t source, int32_t size)
{
    double scale = 1.0 / ((double)size / source);
    return (float)((i + 0.5) * scale - 0.5);
}

YM_MATH ym_lerp ym_resize_row(int32_t i, int32_t source, int32_t size)
{
    float position = ym_resize_position(i, source, size);
    return ym_lerp_of(position, (int32_t)floorf(position));
}

/* Columns beyond an edge take the edge's sample alone; rows blend it with itself. */
YM_MATH ym_lerp ym_resize_column(int32_t i, int32_t source, int32_t size)
{
    ym_lerp lerp = ym_resize_row(i, source, size);
    if (lerp.first < 0 || lerp.first >= source - 1) {
        lerp.first = lerp.first < 0 ? 0 : source - 1;
        lerp.weight0 = 2048;
        lerp.weight1 = 0;
    }
    return lerp;
}

/* Rows are stretched to sums in 1/2048, of which 4 bits are dropped: upper and lower
 * are in 1/128. The shifts are OpenCV's, lost bits included. */
YM_MATH uint8_t ym_resize_blend(int32_t upper, int32_t lower, int32_t weight0,
                                int32_t weight1)
{
    return (uint8_t)((((weight0 * upper) >> 16) + ((weight1 * lower) >> 16) + 2) >> 2);
}

#endif
