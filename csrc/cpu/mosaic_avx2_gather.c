/* SPDX-License-Identifier: MIT
 * Gathering for AVX2, eight pixels at a time.
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>
#include <string.h>

#define AVX2 TARGET("avx2,fma")

/* Bits of the lanes with 0 <= value < limit; limit may be negative. */
AVX2 static inline uint32_t lanes_below(__m256i value, int32_t limit)
{
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), value);
    below = _mm256_andnot_si256(_mm256_srai_epi32(value, 31), below);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(below));
}

/* All bits of the lanes whose bit is set. */
AVX2 static inline __m256i widen_lanes(uint32_t lanes)
{
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32((int32_t)lanes), bit);
    return _mm256_cmpeq_epi32(set, bit);
}

/* Lanes whose pixels one tile shows with all their neighbours. */
AVX2 static inline void load_lanes(cpu_span *span, const ym_tile *tile, int32_t i,
                                   const int32_t offset[8], uint32_t lanes)
{
    const uint8_t *upper = tile->pixels, *lower = upper + tile->row_bytes;
    if (lanes == 0xFF) {
        for (int32_t k = 0; k < 8; k++) {
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

static void fill_grey(uint64_t *pairs, uint32_t lanes)
{
    for (; lanes != 0; lanes &= lanes - 1) {
        memset(&pairs[__builtin_ctz(lanes)], YM_MOSAIC_FILL, sizeof *pairs);
    }
}

/* The lanes `wanted` of a group, x as given; returns those left to do singly. */
AVX2 static uint32_t gather_lanes(cpu_span *span, cpu_source *source, int32_t i,
                                  __m256i x, uint32_t wanted)
{
    const __m256i one = _mm256_set1_epi32(1);
    _Alignas(32) int32_t offset[8];
    __m256i y = _mm256_load_si256((const __m256i *)&span->y[i]);
    uint32_t singly = 0;
    int32_t count = source->scene->tile_count;
    int32_t t = source->disjoint ? source->last_tile : count - 1;
    for (int32_t asked = 0; asked < count && wanted != 0; asked++) {
        const ym_tile *tile = &source->scene->tile[t];
        __m256i column = _mm256_sub_epi32(x, _mm256_set1_epi32(tile->x));
        __m256i row = _mm256_sub_epi32(y, _mm256_set1_epi32(tile->y));
        uint32_t touched = wanted &
                           lanes_below(_mm256_add_epi32(column, one), tile->width + 1) &
                           lanes_below(_mm256_add_epi32(row, one), tile->height + 1);
        uint32_t inside = touched & lanes_below(column, tile->width - 2) &
                          lanes_below(row, tile->height - 1);
        inside = source->offsets_fit ? inside : 0;
        if (inside != 0) {
            __m256i start =
                _mm256_mullo_epi32(row, _mm256_set1_epi32((int32_t)tile->row_bytes));
            __m256i triple = _mm256_add_epi32(column, _mm256_add_epi32(column, column));
            _mm256_store_si256((__m256i *)offset, _mm256_add_epi32(start, triple));
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
AVX2 static inline __m256i read_bits(const uint8_t *bits, __m256i start, __m256i at,
                                     __m256i lanes)
{
    __m256i byte = _mm256_add_epi32(start, _mm256_srli_epi32(at, 3));
    __m256i word = _mm256_mask_i32gather_epi32(
        _mm256_setzero_si256(), (const int *)(const void *)bits, byte, lanes, 1);
    __m256i shift = _mm256_and_si256(at, _mm256_set1_epi32(7));
    return _mm256_and_si256(_mm256_srlv_epi32(word, shift), _mm256_set1_epi32(3));
}

/* Which lanes show nothing pasted, and which nothing else. */
AVX2 static void split_pasted(const cpu_span *span, const ym_scene *scene, int32_t i,
                              uint32_t *none, uint32_t *all)
{
    const __m256i one = _mm256_set1_epi32(1);
    __m256i x = _mm256_load_si256((const __m256i *)&span->x[i]);
    __m256i y = _mm256_load_si256((const __m256i *)&span->y[i]);
    uint32_t seen = lanes_below(_mm256_add_epi32(x, one), scene->width + 1) &
                    lanes_below(_mm256_add_epi32(y, one), scene->height + 1);
    uint32_t on = lanes_below(x, scene->width - 1) & lanes_below(y, scene->height - 1);
    __m256i beyond = _mm256_sub_epi32(x, _mm256_set1_epi32(span->x[i]));
    __m256i other_row = _mm256_sub_epi32(y, _mm256_set1_epi32(span->y[i]));
    if (on == 0xFF && lanes_below(other_row, 1) == 0xFF &&
        lanes_below(beyond, 48) == 0xFF) {
        cpu_pasted pasted =
            cpu_mosaic_pasted(scene, scene->width - 1 - span->x[i], span->y[i]);
        *none = pasted == CPU_PASTED_NONE ? 0xFF : 0;
        *all = pasted == CPU_PASTED_ALL ? 0xFF : 0;
        if (pasted != CPU_PASTED_SOME) {
            return;
        }
    }
    __m256i row_bytes = _mm256_set1_epi32((int32_t)scene->paste_row_bytes);
    __m256i start = _mm256_mullo_epi32(y, row_bytes);
    __m256i at = _mm256_sub_epi32(_mm256_set1_epi32(scene->width - 2), x);
    __m256i lanes = widen_lanes(on);
    __m256i upper = read_bits(scene->paste, start, at, lanes);
    __m256i lower =
        read_bits(scene->paste, _mm256_add_epi32(start, row_bytes), at, lanes);
    uint32_t unset = lanes_below(_mm256_or_si256(upper, lower), 1);
    uint32_t partly = lanes_below(_mm256_and_si256(upper, lower), 3);
    *none = (~seen & 0xFF) | (on & unset);
    *all = on & ~partly;
}

/* Left and right neighbours exchanged. */
static void swap_pairs(uint64_t *pairs, uint32_t lanes)
{
    for (; lanes != 0; lanes &= lanes - 1) {
        uint64_t *pair = &pairs[__builtin_ctz(lanes)];
        *pair = (*pair & 0xFFFFFF) << 24 | (*pair >> 24 & 0xFFFFFF);
    }
}

AVX2 static uint32_t gather_pasted(cpu_span *span, cpu_source *source, int32_t i)
{
    const ym_scene *scene = source->scene;
    uint32_t none, all;
    split_pasted(span, scene, i, &none, &all);
    __m256i x = _mm256_load_si256((const __m256i *)&span->x[i]);
    uint32_t singly = ~(none | all) & 0xFF;
    if (none != 0) {
        singly |= gather_lanes(span, source, i, x, none);
    }
    if (all != 0) {
        __m256i mirrored = _mm256_sub_epi32(_mm256_set1_epi32(scene->width - 2), x);
        singly |= gather_lanes(span, source, i, mirrored, all);
        swap_pairs(&span->upper[i], all);
        swap_pairs(&span->lower[i], all);
    }
    return singly;
}

AVX2 void cpu_mosaic_gather_avx2(cpu_span *span, cpu_source *source, int32_t count)
{
    for (int32_t i = 0; i < count; i += 8) {
        __m256i x = _mm256_load_si256((const __m256i *)&span->x[i]);
        uint32_t singly = source->scene->paste == NULL
                              ? gather_lanes(span, source, i, x, 0xFF)
                              : gather_pasted(span, source, i);
        for (; singly != 0; singly &= singly - 1) {
            cpu_mosaic_gather_singly(span, source->scene, i + __builtin_ctz(singly));
        }
    }
}
#endif
