/* SPDX-License-Identifier: MIT
 *
 * The colours of a span for AVX2 and FMA, 32 pixels at a time: bytes as long as they
 * are enough, then floats that hold every integer exactly (math/hsv.h has the formulas;
 * all products stay below 2^24). Widening and narrowing stay within the halves of a
 * register, so one undoes the order of the other.
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>

#define AVX2 TARGET("avx2,fma")
#define GROUP 32

AVX2 static inline __m256i load(const uint8_t *bytes)
{
    return _mm256_load_si256((const __m256i *)(const void *)bytes);
}

AVX2 static inline void store(uint8_t *bytes, __m256i value)
{
    _mm256_store_si256((__m256i *)(void *)bytes, value);
}

/* A quarter of 32 bytes, or of 16-bit halves, as floats: 0 and 1 are the lower ones. */
AVX2 static inline __m256 widen(const __m256i halves[2], int quarter)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i half = halves[quarter >> 1];
    return _mm256_cvtepi32_ps(quarter & 1 ? _mm256_unpackhi_epi16(half, zero)
                                          : _mm256_unpacklo_epi16(half, zero));
}

/* The same of signed halves, times 65536: they are put in the upper 16 bits. */
AVX2 static inline __m256 widen_signed(const __m256i halves[2], int quarter)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i half = halves[quarter >> 1];
    return _mm256_cvtepi32_ps(quarter & 1 ? _mm256_unpackhi_epi16(zero, half)
                                          : _mm256_unpacklo_epi16(zero, half));
}

AVX2 static inline void split(__m256i bytes, __m256i halves[2])
{
    halves[0] = _mm256_unpacklo_epi8(bytes, _mm256_setzero_si256());
    halves[1] = _mm256_unpackhi_epi8(bytes, _mm256_setzero_si256());
}

/* Four quarters of integers to 32 bytes. */
AVX2 static inline __m256i narrow(const __m256i quarter[4])
{
    return _mm256_packus_epi16(_mm256_packs_epi32(quarter[0], quarter[1]),
                               _mm256_packs_epi32(quarter[2], quarter[3]));
}

AVX2 static inline __m256 reciprocal(float numerator, __m256 denominator)
{
    return _mm256_round_ps(_mm256_div_ps(_mm256_set1_ps(numerator), denominator),
                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* left - right + turn * span, which is 60 degrees a span. */
AVX2 static inline void numerators(__m256i left, __m256i right, __m256i turn,
                                   __m256i span, __m256i out[2])
{
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi8(1);
    __m256i low = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(left, span),
                                       _mm256_unpacklo_epi8(one, turn));
    __m256i high = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(left, span),
                                        _mm256_unpackhi_epi8(one, turn));
    out[0] = _mm256_sub_epi16(low, _mm256_unpacklo_epi8(right, zero));
    out[1] = _mm256_sub_epi16(high, _mm256_unpackhi_epi8(right, zero));
}

#define RAISED 32 /* added to the hue to truncate what is positive; it is above -31 */

AVX2 static inline void to_hsv(__m256i b, __m256i g, __m256i r, __m256i hsv[3])
{
    __m256i v = _mm256_max_epu8(_mm256_max_epu8(b, g), r);
    __m256i low = _mm256_min_epu8(_mm256_min_epu8(b, g), r);
    __m256i span = _mm256_sub_epi8(v, low);
    __m256i is_r = _mm256_cmpeq_epi8(v, r), is_g = _mm256_cmpeq_epi8(v, g);
    __m256i left = _mm256_blendv_epi8(_mm256_blendv_epi8(r, b, is_g), g, is_r);
    __m256i right = _mm256_blendv_epi8(_mm256_blendv_epi8(g, r, is_g), b, is_r);
    __m256i turn = _mm256_blendv_epi8(_mm256_set1_epi8(4), _mm256_set1_epi8(2), is_g);
    __m256i h[2], spans[2], values[2], hue[4], saturation[4];
    numerators(left, right, _mm256_andnot_si256(is_r, turn), span, h);
    split(span, spans);
    /* Where a denominator is 0 it may be anything, for it is multiplied by 0. */
    split(_mm256_max_epu8(v, _mm256_set1_epi8(1)), values);
    for (int k = 0; k < 4; k++) {
        __m256 part = widen(spans, k);
        __m256 h_scale =
            reciprocal(122880.0f, _mm256_max_ps(part, _mm256_set1_ps(1.0f)));
        __m256 s_scale = reciprocal(1044480.0f, widen(values, k));
        __m256 over = _mm256_mul_ps(widen_signed(h, k), _mm256_set1_ps(0x1p-28f));
        part = _mm256_mul_ps(part, _mm256_set1_ps(0x1p-12f));
        hue[k] = _mm256_cvttps_epi32(
            _mm256_fmadd_ps(over, h_scale, _mm256_set1_ps(RAISED + 0.5f)));
        saturation[k] =
            _mm256_cvttps_epi32(_mm256_fmadd_ps(part, s_scale, _mm256_set1_ps(0.5f)));
    }
    const __m256i raised = _mm256_set1_epi8(RAISED);
    __m256i high = narrow(hue);
    __m256i is_whole = _mm256_cmpeq_epi8(_mm256_max_epu8(high, raised), high);
    __m256i circle = _mm256_andnot_si256(is_whole, _mm256_set1_epi8((char)180));
    hsv[0] = _mm256_add_epi8(_mm256_sub_epi8(high, raised), circle);
    hsv[1] = narrow(saturation);
    hsv[2] = v;
}

/* Sixteenths of a table of bytes, each but 0 and 8 combined (xor) with the one before
 * it: see look_up. */
AVX2 static void make_steps(const uint8_t *lut, __m128i step[16])
{
    for (int k = 0; k < 16; k++) {
        step[k] = _mm_loadu_si128((const __m128i *)(const void *)(lut + 16 * k));
    }
    for (int k = 15; k > 0; k--) {
        step[k] = k == 8 ? step[k] : _mm_xor_si128(step[k], step[k - 1]);
    }
}

/* Half a table. A shuffle gives 0 where the index is negative, so those of the steps
 * up to the index' own count, and all but the last cancel out. */
AVX2 static inline __m256i look_up_half(const __m128i step[8], __m256i index)
{
    __m256i found = _mm256_setzero_si256();
    for (int k = 0; k < 8; k++) {
        __m256i table = _mm256_broadcastsi128_si256(step[k]);
        found = _mm256_xor_si256(found, _mm256_shuffle_epi8(table, index));
        index = _mm256_subs_epi8(index, _mm256_set1_epi8(16));
    }
    return found;
}

AVX2 static inline __m256i look_up(const __m128i step[16], __m256i index)
{
    __m256i turned = _mm256_xor_si256(index, _mm256_set1_epi8((char)128));
    return _mm256_xor_si256(look_up_half(step, index), look_up_half(step + 8, turned));
}

AVX2 static inline __m256i times_255(__m256 value)
{
    return _mm256_cvttps_epi32(_mm256_mul_ps(value, _mm256_set1_ps(255.0f)));
}

/* The colour is v in the hue's sectors of `top` (0 .. 5 as bits), the one in between in
 * those of `mid`, else the lowest. */
AVX2 static inline __m256i choose(__m256i sector, int top, int mid,
                                  const __m256i value[3])
{
    char is_top[16] = {0}, is_mid[16] = {0};
    for (int i = 0; i < 6; i++) {
        is_top[i] = (char)-(top >> i & 1);
        is_mid[i] = (char)-(mid >> i & 1);
    }
    __m256i tops = _mm256_broadcastsi128_si256(
        _mm_loadu_si128((const __m128i *)(const void *)is_top));
    __m256i mids = _mm256_broadcastsi128_si256(
        _mm_loadu_si128((const __m128i *)(const void *)is_mid));
    __m256i colour =
        _mm256_blendv_epi8(value[0], value[1], _mm256_shuffle_epi8(mids, sector));
    return _mm256_blendv_epi8(colour, value[2], _mm256_shuffle_epi8(tops, sector));
}

AVX2 static inline void to_bgr(const __m256i hsv[3], cpu_planes *planes, int32_t i)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
    __m256i hues[2], saturations[2], values[2];
    __m256i sectors[4], lows[4], mids[4], tops[4];
    split(hsv[0], hues);
    split(hsv[1], saturations);
    split(hsv[2], values);
    for (int k = 0; k < 4; k++) {
        __m256 h = _mm256_mul_ps(widen(hues, k), _mm256_set1_ps(6.0f / 180.0f));
        __m256 s = _mm256_mul_ps(widen(saturations, k), _mm256_set1_ps(1.0f / 255.0f));
        __m256 v = _mm256_mul_ps(widen(values, k), _mm256_set1_ps(1.0f / 255.0f));
        sectors[k] = _mm256_cvttps_epi32(h);
        /* f in odd sectors and 1 - f in even ones is how far the odd end is. */
        __m256i odd = _mm256_or_si256(sectors[k], _mm256_set1_epi32(1));
        __m256 part =
            _mm256_and_ps(magnitude, _mm256_sub_ps(h, _mm256_cvtepi32_ps(odd)));
        lows[k] = times_255(_mm256_mul_ps(v, _mm256_sub_ps(one, s)));
        mids[k] = times_255(_mm256_mul_ps(v, _mm256_fnmadd_ps(s, part, one)));
        tops[k] = times_255(v);
    }
    const __m256i value[3] = {narrow(lows), narrow(mids), narrow(tops)};
    __m256i sector = narrow(sectors);
    store(planes->b + i, choose(sector, 1 << 3 | 1 << 4, 1 << 2 | 1 << 5, value));
    store(planes->g + i, choose(sector, 1 << 1 | 1 << 2, 1 << 0 | 1 << 3, value));
    store(planes->r + i, choose(sector, 1 << 0 | 1 << 5, 1 << 1 | 1 << 4, value));
}

AVX2 void cpu_mosaic_jitter_avx2(cpu_planes *planes, const uint8_t *lut, int32_t count)
{
    __m128i hue[16], saturation[16], value[16];
    make_steps(lut, hue);
    make_steps(lut + 256, saturation);
    make_steps(lut + 512, value);
    for (int32_t i = 0; i < count; i += GROUP) {
        __m256i hsv[3];
        to_hsv(load(planes->b + i), load(planes->g + i), load(planes->r + i), hsv);
        hsv[0] = look_up(hue, hsv[0]);
        hsv[1] = look_up(saturation, hsv[1]);
        hsv[2] = look_up(value, hsv[2]);
        to_bgr(hsv, planes, i);
    }
}
#endif
