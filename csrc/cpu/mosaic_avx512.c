/* SPDX-License-Identifier: MIT
 * The steps of a mosaic for AVX-512 (F, BW, DQ, VL, VBMI).
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>

#define ISA TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")
#define LANES 16

ISA static void locate_affine(cpu_span *span, const cpu_affine *affine, int32_t count)
{
    const __m512i low = _mm512_set1_epi32(31), whole = _mm512_set1_epi32(32);
    const __m512i row_x = _mm512_set1_epi32(affine->row_x);
    const __m512i row_y = _mm512_set1_epi32(affine->row_y);
    for (int32_t i = 0; i < count; i += 16) {
        __m512i x = _mm512_add_epi32(row_x, _mm512_load_si512(&affine->column_x[i]));
        __m512i y = _mm512_add_epi32(row_y, _mm512_load_si512(&affine->column_y[i]));
        __m512i fx = _mm512_and_si512(_mm512_srai_epi32(x, 5), low);
        __m512i fy = _mm512_and_si512(_mm512_srai_epi32(y, 5), low);
        __m512i weight_x =
            _mm512_or_si512(_mm512_slli_epi32(fx, 8), _mm512_sub_epi32(whole, fx));
        __m512i weight_y =
            _mm512_or_si512(_mm512_slli_epi32(fy, 16), _mm512_sub_epi32(whole, fy));
        _mm512_store_si512(&span->x[i], _mm512_srai_epi32(x, 10));
        _mm512_store_si512(&span->y[i], _mm512_srai_epi32(y, 10));
        _mm512_store_si512(&span->weight_y[i], weight_y);
        _mm256_store_si256((__m256i *)&span->weight_x[i],
                           _mm512_cvtepi32_epi16(weight_x));
    }
}

ISA static void locate_perspective(cpu_span *span, const cpu_perspective *perspective,
                                   int32_t count)
{
    loop_locate_perspective(span, perspective, count);
}

/* Two pixels in each quarter, blended over x: b g r - as 16 bits each. */
ISA static inline __m512i blend_x(__m512i pairs, __m512i weights)
{
    const __m512i interleave = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 3, 1, 4, 2, 5, 6, 7, 8, 11, 9, 12, 10, 13, 14, 15));
    return _mm512_maddubs_epi16(_mm512_shuffle_epi8(pairs, interleave), weights);
}

/* 16-bit upper and lower values, alternating, blended over y. */
ISA static inline __m512i blend_y(__m512i both, __m512i weights)
{
    __m512i sum = _mm512_madd_epi16(both, weights);
    return _mm512_srli_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(512)), 10);
}

/* `lane` is the first of two pixels in each quarter: of every four pixels, 0 or 2. */
ISA static inline __m512i blend_half(__m512i upper, __m512i lower, __m512i weight_x,
                                     __m512i weight_y, int32_t lane)
{
    const __m512i quarter =
        _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    const __m512i pairs = _mm512_set_epi16(13, 13, 13, 13, 12, 12, 12, 12, 9, 9, 9, 9,
                                           8, 8, 8, 8, 5, 5, 5, 5, 4, 4, 4, 4, 1, 1, 1,
                                           1, 0, 0, 0, 0);
    __m512i spread = _mm512_permutexvar_epi16(
        _mm512_add_epi16(pairs, _mm512_set1_epi16((int16_t)lane)), weight_x);
    __m512i even_lane = _mm512_add_epi32(quarter, _mm512_set1_epi32(lane));
    __m512i odd_lane = _mm512_add_epi32(quarter, _mm512_set1_epi32(lane + 1));
    upper = blend_x(upper, spread);
    lower = blend_x(lower, spread);
    __m512i even = blend_y(_mm512_unpacklo_epi16(upper, lower),
                           _mm512_permutexvar_epi32(even_lane, weight_y));
    __m512i odd = blend_y(_mm512_unpackhi_epi16(upper, lower),
                          _mm512_permutexvar_epi32(odd_lane, weight_y));
    return _mm512_packs_epi32(even, odd);
}

/* Sixteen pixels of four bytes, four to a quarter, as planes. */
ISA static inline void store_planes(cpu_planes *planes, int32_t i, __m512i pixels)
{
    const __m512i planar = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i quarters =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i bytes =
        _mm512_permutexvar_epi32(quarters, _mm512_shuffle_epi8(pixels, planar));
    _mm_store_si128((__m128i *)&planes->b[i], _mm512_castsi512_si128(bytes));
    _mm_store_si128((__m128i *)&planes->g[i], _mm512_extracti32x4_epi32(bytes, 1));
    _mm_store_si128((__m128i *)&planes->r[i], _mm512_extracti32x4_epi32(bytes, 2));
}

ISA static void blend(const cpu_span *span, cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i += 16) {
        __m512i upper0 = _mm512_load_si512(&span->upper[i]);
        __m512i upper1 = _mm512_load_si512(&span->upper[i + 8]);
        __m512i lower0 = _mm512_load_si512(&span->lower[i]);
        __m512i lower1 = _mm512_load_si512(&span->lower[i + 8]);
        __m512i weight_y = _mm512_load_si512(&span->weight_y[i]);
        __m512i weight_x = _mm512_castsi256_si512(
            _mm256_load_si256((const __m256i *)&span->weight_x[i]));
        __m512i first = blend_half(_mm512_shuffle_i64x2(upper0, upper1, 0x88),
                                   _mm512_shuffle_i64x2(lower0, lower1, 0x88), weight_x,
                                   weight_y, 0);
        __m512i second = blend_half(_mm512_shuffle_i64x2(upper0, upper1, 0xDD),
                                    _mm512_shuffle_i64x2(lower0, lower1, 0xDD),
                                    weight_x, weight_y, 2);
        store_planes(planes, i, _mm512_packus_epi16(first, second));
    }
}

typedef float vector __attribute__((vector_size(4 * LANES), may_alias));

ISA static inline vector fused(vector a, vector b, vector c)
{
    return _mm512_fmadd_ps(a, b, c);
}

ISA static inline vector larger(vector a, vector b)
{
    return _mm512_max_ps(a, b);
}

ISA static inline vector smaller(vector a, vector b)
{
    return _mm512_min_ps(a, b);
}

ISA static inline vector rounded_down(vector a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

ISA static inline void put_whole(int32_t *to, vector a)
{
    _mm512_store_si512(to, _mm512_cvttps_epi32(a));
}

#include "cpu/mosaic_float_lanes.h"

ISA static void blend_floats(const cpu_span *span, cpu_planes *planes, int32_t count)
{
    loop_blend_floats(span, planes, count);
}

ISA static void weigh_rows(const uint8_t *upper, const uint8_t *lower, int32_t weight,
                           int32_t count, uint16_t *out)
{
    loop_weigh_rows(upper, lower, weight, count, out);
}

ISA static inline __m128i load_sums(const uint16_t *sums, int32_t offset)
{
    return _mm_loadu_si128((const __m128i *)(const void *)(sums + offset));
}

/* Pixels first, first + 4, ... of a row of sums: b g r - as 32 bits each. */
ISA static inline __m512i sample_four(const uint16_t *sums, const int32_t *offset,
                                      __m512i weight, int32_t first)
{
    const __m512i interleave = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 14, 15));
    const __m512i quarter =
        _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    __m512i pairs = _mm512_castsi128_si512(load_sums(sums, offset[first]));
    pairs = _mm512_inserti32x4(pairs, load_sums(sums, offset[first + 4]), 1);
    pairs = _mm512_inserti32x4(pairs, load_sums(sums, offset[first + 8]), 2);
    pairs = _mm512_inserti32x4(pairs, load_sums(sums, offset[first + 12]), 3);
    __m512i lanes = _mm512_add_epi32(quarter, _mm512_set1_epi32(first));
    __m512i sum = _mm512_madd_epi16(_mm512_shuffle_epi8(pairs, interleave),
                                    _mm512_permutexvar_epi32(lanes, weight));
    return _mm512_srli_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(512)), 10);
}

ISA static void sample(const uint16_t *sums, const int32_t *offset,
                       const uint32_t *weight, cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i += 16) {
        __m512i weights = _mm512_loadu_si512(weight + i);
        __m512i low = _mm512_packs_epi32(sample_four(sums, offset + i, weights, 0),
                                         sample_four(sums, offset + i, weights, 1));
        __m512i high = _mm512_packs_epi32(sample_four(sums, offset + i, weights, 2),
                                          sample_four(sums, offset + i, weights, 3));
        store_planes(planes, i, _mm512_packus_epi16(low, high));
    }
}

ISA static void mix(cpu_planes *planes, const cpu_planes *other, double ratio,
                    int32_t count)
{
    loop_mix(planes->b, other->b, ratio, count);
    loop_mix(planes->g, other->g, ratio, count);
    loop_mix(planes->r, other->r, ratio, count);
}

ISA static inline __m512i load_bytes(const uint8_t *plane)
{
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)plane));
}

ISA static inline void store_bytes(uint8_t *plane, __m512i value)
{
    _mm_store_si128((__m128i *)plane, _mm512_cvtepi32_epi8(value));
}

/* round(numerator / denominator); anything where that is 0, for it is multiplied by 0.
 */
ISA static inline __m512i reciprocal(float numerator, __m512i denominator)
{
    return _mm512_cvtps_epi32(
        _mm512_div_ps(_mm512_set1_ps(numerator), _mm512_cvtepi32_ps(denominator)));
}

ISA static inline __m512i scale_down(__m512i value, __m512i factor)
{
    __m512i product = _mm512_mullo_epi32(value, factor);
    return _mm512_srai_epi32(_mm512_add_epi32(product, _mm512_set1_epi32(2048)), 12);
}

ISA static void to_hsv(cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i += 16) {
        __m512i b = load_bytes(&planes->b[i]);
        __m512i g = load_bytes(&planes->g[i]);
        __m512i r = load_bytes(&planes->r[i]);
        __m512i v = _mm512_max_epi32(_mm512_max_epi32(b, g), r);
        __m512i low = _mm512_min_epi32(_mm512_min_epi32(b, g), r);
        __m512i span = _mm512_sub_epi32(v, low);
        __m512i twice = _mm512_add_epi32(span, span);
        __m512i h =
            _mm512_add_epi32(_mm512_sub_epi32(r, g), _mm512_add_epi32(twice, twice));
        h = _mm512_mask_add_epi32(h, _mm512_cmpeq_epi32_mask(v, g),
                                  _mm512_sub_epi32(b, r), twice);
        h = _mm512_mask_sub_epi32(h, _mm512_cmpeq_epi32_mask(v, r), g, b);
        h = scale_down(h, reciprocal(122880.0f, span));
        h = _mm512_mask_add_epi32(h, _mm512_movepi32_mask(h), h,
                                  _mm512_set1_epi32(180));
        store_bytes(&planes->b[i], h);
        store_bytes(&planes->g[i], scale_down(span, reciprocal(1044480.0f, v)));
        store_bytes(&planes->r[i], v);
    }
}

ISA static void look_up(uint8_t *plane, const uint8_t *lut, int32_t count)
{
    __m512i table[4];
    for (int32_t k = 0; k < 4; k++) {
        table[k] = _mm512_loadu_si512(lut + 64 * k);
    }
    for (int32_t i = 0; i < count; i += 64) {
        __m512i index = _mm512_load_si512(plane + i);
        __m512i low = _mm512_permutex2var_epi8(table[0], index, table[1]);
        __m512i high = _mm512_permutex2var_epi8(table[2], index, table[3]);
        _mm512_store_si512(plane + i,
                           _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high));
    }
}

ISA static inline __m512 load_scaled(const uint8_t *plane, float scale)
{
    return _mm512_mul_ps(_mm512_cvtepi32_ps(load_bytes(plane)), _mm512_set1_ps(scale));
}

/* Bits 0 .. 5 of `top`: in which sectors of the hue the colour is v; of `mid`: in which
 * it is the one in between; it is the lowest elsewhere. */
ISA static inline void store_colour(uint8_t *plane, __m512i bit, uint8_t top,
                                    uint8_t mid, const __m512 value[3])
{
    __mmask16 is_top = _mm512_test_epi32_mask(bit, _mm512_set1_epi32(top));
    __mmask16 is_mid = _mm512_test_epi32_mask(bit, _mm512_set1_epi32(mid));
    __m512 colour = _mm512_mask_mov_ps(value[0], is_mid, value[1]);
    colour = _mm512_mask_mov_ps(colour, is_top, value[2]);
    store_bytes(plane,
                _mm512_cvttps_epi32(_mm512_mul_ps(colour, _mm512_set1_ps(255.0f))));
}

ISA static void to_bgr(cpu_planes *planes, int32_t count)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512i unit = _mm512_set1_epi32(1);
    for (int32_t i = 0; i < count; i += 16) {
        __m512 h = load_scaled(&planes->b[i], 6.0f / 180.0f);
        __m512 s = load_scaled(&planes->g[i], 1.0f / 255.0f);
        __m512 v = load_scaled(&planes->r[i], 1.0f / 255.0f);
        __m512i sector = _mm512_cvttps_epi32(h);
        __m512 f = _mm512_sub_ps(h, _mm512_cvtepi32_ps(sector));
        __mmask16 even = _mm512_testn_epi32_mask(sector, unit);
        __m512 part = _mm512_mask_sub_ps(f, even, one, f);
        __m512 mid = _mm512_mul_ps(v, _mm512_fnmadd_ps(s, part, one));
        __m512 low = _mm512_mul_ps(v, _mm512_sub_ps(one, s));
        __m512i bit = _mm512_sllv_epi32(unit, sector);
        const __m512 value[3] = {low, mid, v};
        store_colour(&planes->b[i], bit, 1 << 3 | 1 << 4, 1 << 2 | 1 << 5, value);
        store_colour(&planes->g[i], bit, 1 << 1 | 1 << 2, 1 << 0 | 1 << 3, value);
        store_colour(&planes->r[i], bit, 1 << 0 | 1 << 5, 1 << 1 | 1 << 4, value);
    }
}

ISA static void jitter(cpu_planes *planes, const uint8_t *lut, int32_t count)
{
    to_hsv(planes, count);
    look_up(planes->b, lut, count);
    look_up(planes->g, lut + 256, count);
    look_up(planes->r, lut + 512, count);
    to_bgr(planes, count);
}

ISA static void reverse(uint8_t *out, const uint8_t *plane, int32_t count)
{
    const __m256i mirror = _mm256_setr_epi8(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21,
                                            20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10,
                                            9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int32_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i bytes = _mm256_load_si256((const __m256i *)(plane + i));
        _mm256_storeu_si256((__m256i *)(out + count - 32 - i),
                            _mm256_permutexvar_epi8(mirror, bytes));
    }
    for (; i < count; i++) {
        out[count - 1 - i] = plane[i];
    }
}

const cpu_mosaic_kernels cpu_mosaic_avx512 = {
    .locate_affine = locate_affine,
    .locate_perspective = locate_perspective,
    .locate_floats = locate_floats,
    .gather = cpu_mosaic_gather_avx512,
    .weigh_rows = weigh_rows,
    .sample = sample,
    .blend = blend,
    .blend_floats = blend_floats,
    .mix = mix,
    .jitter = jitter,
    .reverse = reverse,
};
#endif
