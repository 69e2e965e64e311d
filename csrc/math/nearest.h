/* SPDX-License-Identifier: MIT
 *
 * Nearest upsampling: which pixel of the source an output is. The product is in float,
 * as in torch (ATen/native/UpSample.h).
 */
#ifndef YM_MATH_NEAREST_H
#define YM_MATH_NEAREST_H

#include <stdint.h>

#include "math/function.h"

YM_MATH int32_t ym_nearest_source(int32_t o, float scale, int32_t sources)
{
    const int32_t source = (int32_t)((float)o * scale), last = sources - 1;
    return source < last ? source : last;
}

#endif
