/* SPDX-License-Identifier: MIT
 * The steps of a mosaic for AVX2 and FMA.
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>

#define ISA TARGET("avx2,fma")
#define LANES 8

ISA static void locate_affine(cpu_span *span, const cpu_affine *affine, int32_t count)
{
    loop_locate_affine(span, affine, count);
}

ISA static void locate_perspective(cpu_span *span, const cpu_perspective *perspective,
                                   int32_t count)
{
    loop_locate_perspective(span, perspective, count);
}

/* Pixels first, first + 1 in the low half and first + 4, first + 5 in the high half. */
ISA static inline __m256i load_pairs(const uint64_t *pairs)
{
    __m256i low =
        _mm256_castsi128_si256(_mm_load_si128((const __m128i *)(const void *)pairs));
    return _mm256_inserti128_si256(
        low, _mm_load_si128((const __m128i *)(const void *)(pairs + 4)), 1);
}

/* Rows of two pixels in each half, blended over x: b g r - as 16 bits each. */
ISA static inline __m256i blend_x(const uint64_t *pairs, __m256i weights)
{
    const __m256i interleave = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 3, 1, 4, 2, 5, 6, 7, 8, 11, 9, 12, 10, 13, 14, 15));
    return _mm256_maddubs_epi16(_mm256_shuffle_epi8(load_pairs(pairs), interleave),
                                weights);
}

/* 16-bit upper and lower values, alternating, blended over y. */
ISA static inline __m256i blend_y(__m256i both, __m256i weights)
{
    __m256i sum = _mm256_madd_epi16(both, weights);
    return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(512)), 10);
}

/* Four pixels: first, first + 1, first + 4, first + 5. */
ISA static inline __m256i blend_four(const cpu_span *span, int32_t first,
                                     __m256i weight_x, __m256i weight_y, __m256i lanes)
{
    __m256i upper = blend_x(&span->upper[first], weight_x);
    __m256i lower = blend_x(&span->lower[first], weight_x);
    __m256i next = _mm256_add_epi32(lanes, _mm256_set1_epi32(1));
    __m256i even = blend_y(_mm256_unpacklo_epi16(upper, lower),
                           _mm256_permutevar8x32_epi32(weight_y, lanes));
    __m256i odd = blend_y(_mm256_unpackhi_epi16(upper, lower),
                          _mm256_permutevar8x32_epi32(weight_y, next));
    return _mm256_packs_epi32(even, odd);
}

/* Eight pixels of four bytes, four to a half, as planes. */
ISA static inline void store_pixels(cpu_planes *planes, int32_t i, __m256i pixels)
{
    const __m256i planar = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i halves = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(pixels, planar), halves);
    __m128i low = _mm256_castsi256_si128(bytes);
    _mm_storel_epi64((__m128i *)&planes->b[i], low);
    _mm_storel_epi64((__m128i *)&planes->g[i], _mm_srli_si128(low, 8));
    _mm_storel_epi64((__m128i *)&planes->r[i], _mm256_extracti128_si256(bytes, 1));
}

ISA static void blend(const cpu_span *span, cpu_planes *planes, int32_t count)
{
    const __m256i spread0 = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3,
                                             2, 3, 8, 9, 8, 9, 8, 9, 8, 9, 10, 11, 10,
                                             11, 10, 11, 10, 11);
    const __m256i spread2 = _mm256_add_epi8(spread0, _mm256_set1_epi8(4));
    const __m256i lanes0 = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    const __m256i lanes2 = _mm256_add_epi32(lanes0, _mm256_set1_epi32(2));
    for (int32_t i = 0; i < count; i += 8) {
        __m256i weight_x = _mm256_broadcastsi128_si256(
            _mm_load_si128((const __m128i *)&span->weight_x[i]));
        __m256i weight_y = _mm256_load_si256((const __m256i *)&span->weight_y[i]);
        __m256i low = blend_four(span, i, _mm256_shuffle_epi8(weight_x, spread0),
                                 weight_y, lanes0);
        __m256i high = blend_four(span, i + 2, _mm256_shuffle_epi8(weight_x, spread2),
                                  weight_y, lanes2);
        store_pixels(planes, i, _mm256_packus_epi16(low, high));
    }
}

typedef float vector __attribute__((vector_size(4 * LANES), may_alias));

ISA static inline vector fused(vector a, vector b, vector c)
{
    return _mm256_fmadd_ps(a, b, c);
}

ISA static inline vector larger(vector a, vector b)
{
    return _mm256_max_ps(a, b);
}

ISA static inline vector smaller(vector a, vector b)
{
    return _mm256_min_ps(a, b);
}

ISA static inline vector rounded_down(vector a)
{
    return _mm256_floor_ps(a);
}

ISA static inline void put_whole(int32_t *to, vector a)
{
    _mm256_store_si256((__m256i *)to, _mm256_cvttps_epi32(a));
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

/* Pixels first and first + 4 of a row of sums: b g r - as 32 bits each. */
ISA static inline __m256i sample_two(const uint16_t *sums, const int32_t *offset,
                                     __m256i weight, int32_t first)
{
    const __m256i interleave = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 14, 15));
    const __m256i quarter = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    __m256i pairs = _mm256_castsi128_si256(
        _mm_loadu_si128((const __m128i *)(const void *)(sums + offset[first])));
    pairs = _mm256_inserti128_si256(
        pairs,
        _mm_loadu_si128((const __m128i *)(const void *)(sums + offset[first + 4])), 1);
    __m256i lanes = _mm256_add_epi32(quarter, _mm256_set1_epi32(first));
    __m256i sum = _mm256_madd_epi16(_mm256_shuffle_epi8(pairs, interleave),
                                    _mm256_permutevar8x32_epi32(weight, lanes));
    return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(512)), 10);
}

ISA static void sample(const uint16_t *sums, const int32_t *offset,
                       const uint32_t *weight, cpu_planes *planes, int32_t count)
{
    for (int32_t i = 0; i < count; i += 8) {
        __m256i weights = _mm256_loadu_si256((const __m256i *)(weight + i));
        __m256i low = _mm256_packs_epi32(sample_two(sums, offset + i, weights, 0),
                                         sample_two(sums, offset + i, weights, 1));
        __m256i high = _mm256_packs_epi32(sample_two(sums, offset + i, weights, 2),
                                          sample_two(sums, offset + i, weights, 3));
        store_pixels(planes, i, _mm256_packus_epi16(low, high));
    }
}

ISA static void mix(cpu_planes *planes, const cpu_planes *other, double ratio,
                    int32_t count)
{
    loop_mix(planes->b, other->b, ratio, count);
    loop_mix(planes->g, other->g, ratio, count);
    loop_mix(planes->r, other->r, ratio, count);
}

ISA static void reverse(uint8_t *out, const uint8_t *plane, int32_t count)
{
    const __m256i mirror = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    int32_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i bytes = _mm256_load_si256((const __m256i *)(plane + i));
        bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, mirror), 0x4E);
        _mm256_storeu_si256((__m256i *)(out + count - 32 - i), bytes);
    }
    for (; i < count; i++) {
        out[count - 1 - i] = plane[i];
    }
}

const cpu_mosaic_kernels cpu_mosaic_avx2 = {
    .locate_affine = locate_affine,
    .locate_perspective = locate_perspective,
    .locate_floats = locate_floats,
    .gather = cpu_mosaic_gather_avx2,
    .weigh_rows = weigh_rows,
    .sample = sample,
    .blend = blend,
    .blend_floats = blend_floats,
    .mix = mix,
    .jitter = cpu_mosaic_jitter_avx2,
    .reverse = reverse,
};
#endif
