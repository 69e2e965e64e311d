/* SPDX-License-Identifier: MIT
 *
 * Bilinear interpolation along one side of an image: which two pixels of the source an
 * output lies between, and the way back. In float as torch (ATen/native/UpSample.h).
 */
#ifndef YM_MATH_BILINEAR_H
#define YM_MATH_BILINEAR_H

#include <math.h>

#include "core/backend.h"
#include "math/function.h"

typedef struct ym_side {
    int32_t sources, outputs; /* pixels of x and of y */
    float scale;
    bool align_corners;
} ym_side;

typedef struct ym_between {
    int32_t source[2]; /* neighbours, or the last one twice */
    float weight[2];
} ym_between;

YM_MATH ym_side ym_rows_between(const ym_resize *resize, const ym_tensor *x,
                                const ym_tensor *y)
{
    const ym_side side = {x->h, y->h, resize->scale_h, resize->align_corners};
    return side;
}

YM_MATH ym_side ym_columns_between(const ym_resize *resize, const ym_tensor *x,
                                   const ym_tensor *y)
{
    const ym_side side = {x->w, y->w, resize->scale_w, resize->align_corners};
    return side;
}

/* Where output o lies: source i lies at i. */
YM_MATH float ym_place_of(ym_side side, int32_t o)
{
    if (side.align_corners) {
        return side.scale * (float)o;
    }
    /* Rounded once, as the vector units and GPUs that torch is compiled for do it. */
    const float place = fmaf(side.scale, (float)o + 0.5f, -0.5f);
    return place > 0.0f ? place : 0.0f;
}

YM_MATH int32_t ym_source_before(ym_side side, int32_t o)
{
    const int32_t source = (int32_t)ym_place_of(side, o), last = side.sources - 1;
    return source < last ? source : last;
}

YM_MATH ym_between ym_between_of(ym_side side, int32_t o)
{
    const int32_t first = ym_source_before(side, o);
    const float part = ym_place_of(side, o) - (float)first;
    ym_between made = {{first, first + (first < side.sources - 1)}, {1.0f, 1.0f}};
    made.weight[1] = part < 1.0f ? part : 1.0f;
    made.weight[0] = 1.0f - made.weight[1];
    return made;
}

/* What output o has of source i. */
YM_MATH float ym_weight_of(ym_side side, int32_t o, int32_t i)
{
    const ym_between at = ym_between_of(side, o);
    return (at.source[0] == i ? at.weight[0] : 0.0f) +
           (at.source[1] == i ? at.weight[1] : 0.0f);
}

/* The first output that lies at source i or beyond, as rounded above: places never
 * fall as o grows. From a guess, which may be any; it saves steps only. Those that have
 * something of source i lie at i - 1 or beyond, but not at i + 1. */
YM_MATH int32_t ym_first_output_from(ym_side side, int32_t i, int32_t guess)
{
    if (i <= 0) {
        return 0;
    }
    int32_t o = guess;
    while (o > 0 && ym_source_before(side, o - 1) >= i) {
        o--;
    }
    while (o < side.outputs && ym_source_before(side, o) < i) {
        o++;
    }
    return o;
}

YM_MATH int32_t ym_first_output(ym_side side, int32_t i)
{
    const float half = side.align_corners ? 0.0f : 0.5f;
    const float guess = ((float)i + half) / side.scale - half;
    const bool inside = guess < (float)side.outputs; /* not where scale is 0 */
    return ym_first_output_from(side, i,
                                inside && i > 0 ? (int32_t)guess : side.outputs);
}

#endif
