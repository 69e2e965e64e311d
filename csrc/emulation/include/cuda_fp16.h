/* SPDX-License-Identifier: MIT
 * IEEE binary16 for the emulation: the four functions that csrc/cuda uses, rounding to
 * nearest, ties to even.
 */
#ifndef YM_EMULATION_CUDA_FP16_H
#define YM_EMULATION_CUDA_FP16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

struct __half {
    uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits)
{
    return {bits};
}

inline uint16_t __half_as_ushort(__half value)
{
    return value.bits;
}

inline float __half2float(__half value)
{
    int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
    float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                 : exponent == 0 ? ldexpf((float)fraction, -24)
                                 : ldexpf((float)(1024 + fraction), exponent - 25);
    return value.bits & 0x8000 ? -size : size;
}

inline __half __float2half_rn(float value)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value)) {
        return {0x7fff};
    }
    float size = fabsf(value);
    if (size >= 65520.0f) {
        return {(uint16_t)(sign | 0x7c00)};
    }
    int exponent = size < 6.103515625e-05f ? -14 : ilogbf(size);
    /* In units of the last place; a carry moves into the exponent by itself. */
    int units = (int)rintf(ldexpf(size, 10 - exponent));
    int base = exponent == -14 && units < 1024 ? 0 : (exponent + 14) << 10;
    return {(uint16_t)(sign | (base + units))};
}

#endif
