/* SPDX-License-Identifier: MIT
 * Gathering for AVX-512, sixteen pixels at a time.
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>
#include <string.h>

#define AVX512 TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

/* Lanes with 0 <= value < limit; limit may be negative. */
AVX512 static inline uint32_t lanes_below(__m512i value, int32_t limit)
{
    return _mm512_cmplt_epu32_mask(value, _mm512_set1_epi32(limit > 0 ? limit : 0));
}

/* Lanes whose pixels one tile shows with all their neighbours. */
AVX512 static inline void load_lanes(cpu_span *span, const ym_tile *tile, int32_t i,
                                     const int32_t offset[16], uint32_t lanes)
{
    const uint8_t *upper = tile->pixels, *lower = upper + tile->row_bytes;
    if (lanes == 0xFFFF) {
        for (int32_t k = 0; k < 16; k++) {
            memcpy(&span->upper[i + k], upper + offset[k], 8);
            memcpy(&span->lower[i + k], lower + offset[k], 8);
        }
        return;
    }
    for (; lanes != 0; lanes &= lanes - 1) {
        int32_t k = __builtin_ctz(lanes);
        memcpy(&span->upper[i + k], upper + offset[k], 8);
        memcpy(&span->lower[i + k], lower + offset[k], 8);
    }
}

AVX512 static inline void fill_grey(uint64_t *pairs, uint32_t lanes)
{
    const __m512i grey = _mm512_set1_epi8(YM_MOSAIC_FILL);
    _mm512_mask_storeu_epi64(pairs, (__mmask8)lanes, grey);
    _mm512_mask_storeu_epi64(pairs + 8, (__mmask8)(lanes >> 8), grey);
}

/* The lanes `wanted` of a group, x as given; returns those left to do singly. */
AVX512 static uint32_t gather_lanes(cpu_span *span, cpu_source *source, int32_t i,
                                    __m512i x, uint32_t wanted)
{
    const __m512i one = _mm512_set1_epi32(1);
    _Alignas(64) int32_t offset[16];
    __m512i y = _mm512_load_si512(&span->y[i]);
    uint32_t singly = 0;
    int32_t count = source->scene->tile_count;
    int32_t t = source->disjoint ? source->last_tile : count - 1;
    for (int32_t asked = 0; asked < count && wanted != 0; asked++) {
        const ym_tile *tile = &source->scene->tile[t];
        __m512i column = _mm512_sub_epi32(x, _mm512_set1_epi32(tile->x));
        __m512i row = _mm512_sub_epi32(y, _mm512_set1_epi32(tile->y));
        uint32_t touched = wanted &
                           lanes_below(_mm512_add_epi32(column, one), tile->width + 1) &
                           lanes_below(_mm512_add_epi32(row, one), tile->height + 1);
        uint32_t inside = touched & lanes_below(column, tile->width - 2) &
                          lanes_below(row, tile->height - 1);
        inside = source->offsets_fit ? inside : 0;
        if (inside != 0) {
            __m512i start =
                _mm512_mullo_epi32(row, _mm512_set1_epi32((int32_t)tile->row_bytes));
            __m512i triple = _mm512_add_epi32(column, _mm512_add_epi32(column, column));
            _mm512_store_si512(offset, _mm512_add_epi32(start, triple));
            load_lanes(span, tile, i, offset, inside);
        }
        singly |= touched & ~inside;
        wanted &= ~touched;
        source->last_tile = inside != 0 ? t : source->last_tile;
        t = t > 0 ? t - 1 : count - 1;
    }
    fill_grey(&span->upper[i], wanted);
    fill_grey(&span->lower[i], wanted);
    return singly;
}

/* Two bits of each lane's row of the mask, from bit `at` on. */
AVX512 static inline __m512i read_bits(const uint8_t *bits, __m512i start, __m512i at,
                                       uint32_t lanes)
{
    __m512i byte = _mm512_add_epi32(start, _mm512_srli_epi32(at, 3));
    __m512i word = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), (__mmask16)lanes,
                                               byte, (const int *)(const void *)bits,
                                               1);
    __m512i shift = _mm512_and_si512(at, _mm512_set1_epi32(7));
    return _mm512_and_si512(_mm512_srlv_epi32(word, shift), _mm512_set1_epi32(3));
}

/* Which lanes show nothing pasted, and which nothing else. */
AVX512 static void split_pasted(const cpu_span *span, const ym_scene *scene, int32_t i,
                                uint32_t *none, uint32_t *all)
{
    const __m512i one = _mm512_set1_epi32(1), three = _mm512_set1_epi32(3);
    __m512i x = _mm512_load_si512(&span->x[i]);
    __m512i y = _mm512_load_si512(&span->y[i]);
    uint32_t seen = lanes_below(_mm512_add_epi32(x, one), scene->width + 1) &
                    lanes_below(_mm512_add_epi32(y, one), scene->height + 1);
    uint32_t on = lanes_below(x, scene->width - 1) & lanes_below(y, scene->height - 1);
    __m512i beyond = _mm512_sub_epi32(x, _mm512_set1_epi32(span->x[i]));
    bool one_row = _mm512_cmpeq_epi32_mask(y, _mm512_set1_epi32(span->y[i])) == 0xFFFF;
    if (on == 0xFFFF && one_row && lanes_below(beyond, 48) == 0xFFFF) {
        cpu_pasted pasted =
            cpu_mosaic_pasted(scene, scene->width - 1 - span->x[i], span->y[i]);
        *none = pasted == CPU_PASTED_NONE ? 0xFFFF : 0;
        *all = pasted == CPU_PASTED_ALL ? 0xFFFF : 0;
        if (pasted != CPU_PASTED_SOME) {
            return;
        }
    }
    __m512i row_bytes = _mm512_set1_epi32((int32_t)scene->paste_row_bytes);
    __m512i start = _mm512_mullo_epi32(y, row_bytes);
    __m512i at = _mm512_sub_epi32(_mm512_set1_epi32(scene->width - 2), x);
    __m512i upper = read_bits(scene->paste, start, at, on);
    __m512i lower = read_bits(scene->paste, _mm512_add_epi32(start, row_bytes), at, on);
    uint32_t some = _mm512_test_epi32_mask(_mm512_or_si512(upper, lower), three);
    *none = (~seen & 0xFFFF) | (on & ~some);
    *all = on & _mm512_cmpeq_epi32_mask(_mm512_and_si512(upper, lower), three);
}

/* Left and right neighbours exchanged. */
AVX512 static inline void swap_pairs(uint64_t *pairs, uint32_t lanes)
{
    const __m512i order = _mm512_broadcast_i32x4(
        _mm_setr_epi8(3, 4, 5, 0, 1, 2, 6, 7, 11, 12, 13, 8, 9, 10, 14, 15));
    for (int32_t k = 0; k < 16; k += 8) {
        __m512i swapped = _mm512_shuffle_epi8(_mm512_load_si512(pairs + k), order);
        _mm512_mask_storeu_epi64(pairs + k, (__mmask8)(lanes >> k), swapped);
    }
}

AVX512 static uint32_t gather_pasted(cpu_span *span, cpu_source *source, int32_t i)
{
    const ym_scene *scene = source->scene;
    uint32_t none, all;
    split_pasted(span, scene, i, &none, &all);
    __m512i x = _mm512_load_si512(&span->x[i]);
    uint32_t singly = ~(none | all) & 0xFFFF;
    if (none != 0) {
        singly |= gather_lanes(span, source, i, x, none);
    }
    if (all != 0) {
        __m512i mirrored = _mm512_sub_epi32(_mm512_set1_epi32(scene->width - 2), x);
        singly |= gather_lanes(span, source, i, mirrored, all);
        swap_pairs(&span->upper[i], all);
        swap_pairs(&span->lower[i], all);
    }
    return singly;
}

AVX512 void cpu_mosaic_gather_avx512(cpu_span *span, cpu_source *source, int32_t count)
{
    for (int32_t i = 0; i < count; i += 16) {
        __m512i x = _mm512_load_si512(&span->x[i]);
        uint32_t singly = source->scene->paste == NULL
                              ? gather_lanes(span, source, i, x, 0xFFFF)
                              : gather_pasted(span, source, i);
        for (; singly != 0; singly &= singly - 1) {
            cpu_mosaic_gather_singly(span, source->scene, i + __builtin_ctz(singly));
        }
    }
}
#endif
