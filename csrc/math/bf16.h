/* SPDX-License-Identifier: MIT
 *
 * bfloat16 <-> float32: the upper half of the bits; rounding to nearest, ties to even,
 * and every NaN becomes the quiet NaN 0x7fc0, as torch does.
 */
#ifndef YM_MATH_BF16_H
#define YM_MATH_BF16_H

#include <stdint.h>
#include <string.h>

#include "math/function.h"

YM_MATH float ym_bf16_to_f32(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

YM_MATH uint16_t ym_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(value != value ? 0x7fc0u : rounded);
}

#endif
