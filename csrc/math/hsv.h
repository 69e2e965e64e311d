/* SPDX-License-Identifier: MIT
 *
 * 8-bit BGR to HSV (hue below 180) and back, as OpenCV 4.x does it on x86-64: integers
 * with 12 fraction bits one way, float32 the other way, where `1 - s * f` is one fused
 * operation. OpenCV works through a row in blocks of 32 pixels and truncates; what is
 * left of the row is rounded instead, so the pixel's place matters.
 */
#ifndef YM_MATH_HSV_H
#define YM_MATH_HSV_H

#include "math/warp.h"

/* Pixels of a row from this one on are rounded. */
YM_MATH int32_t ym_hsv_tail(int32_t width)
{
    return width - width % 32;
}

/* round(numerator / denominator) for 255 << 12 and (180 << 12) / 6: equal to OpenCV's
 * table of rounded doubles for every denominator; 0 for 0. */
YM_MATH int32_t ym_hsv_reciprocal(float numerator, int32_t denominator)
{
    return denominator == 0 ? 0 : (int32_t)rintf(numerator / (float)denominator);
}

YM_MATH void ym_bgr_to_hsv(const uint8_t bgr[3], uint8_t hsv[3])
{
    int32_t b = bgr[0], g = bgr[1], r = bgr[2];
    int32_t v = b > g ? b : g;
    int32_t low = b > g ? g : b;
    v = v > r ? v : r;
    low = low < r ? low : r;
    int32_t span = v - low;
    int32_t h = v == r ? g - b : v == g ? b - r + 2 * span : r - g + 4 * span;
    h = (h * ym_hsv_reciprocal(122880.0f, span) + 2048) >> 12;
    hsv[0] = (uint8_t)(h < 0 ? h + 180 : h);
    hsv[1] = (uint8_t)((span * ym_hsv_reciprocal(1044480.0f, v) + 2048) >> 12);
    hsv[2] = (uint8_t)v;
}

YM_MATH uint8_t ym_hsv_store(float value, bool rounded)
{
    value *= 255.0f;
    return (uint8_t)(rounded ? rintf(value) : value);
}

YM_MATH void ym_hsv_to_bgr(const uint8_t hsv[3], uint8_t bgr[3], bool rounded)
{
    float h = (float)hsv[0] * (6.0f / 180.0f);
    float s = (float)hsv[1] * (1.0f / 255.0f);
    float v = (float)hsv[2] * (1.0f / 255.0f);
    int32_t sector = (int32_t)h;
    float f = h - (float)sector;
    float t1 = v * (1.0f - s);
    float t2 = v * fmaf(-s, f, 1.0f);
    float t3 = v * fmaf(-s, 1.0f - f, 1.0f);
    sector = sector % 6;
    float b = sector < 2 ? t1 : sector == 2 ? t3 : sector < 5 ? v : t2;
    float g = sector == 0 ? t3 : sector < 3 ? v : sector == 3 ? t2 : t1;
    float r = sector == 0 || sector == 5 ? v : sector == 1 ? t2 : sector < 4 ? t1 : t3;
    bgr[0] = ym_hsv_store(b, rounded);
    bgr[1] = ym_hsv_store(g, rounded);
    bgr[2] = ym_hsv_store(r, rounded);
}

/* lut: (3, 256), the new hue, saturation and value. */
YM_MATH void ym_hsv_jitter(uint8_t bgr[3], const uint8_t *lut, bool rounded)
{
    uint8_t hsv[3];
    ym_bgr_to_hsv(bgr, hsv);
    hsv[0] = lut[hsv[0]];
    hsv[1] = lut[256 + hsv[1]];
    hsv[2] = lut[512 + hsv[2]];
    ym_hsv_to_bgr(hsv, bgr, rounded);
}

#endif
