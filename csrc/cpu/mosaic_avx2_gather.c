/* SPDX-License-Identifier: MIT
 * Gathering for AVX2, eight pixels at a time.
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>
#include <string.h>

#define ISA TARGET("avx2,fma")
#define LANES 8

typedef int32_t vector __attribute__((vector_size(4 * LANES), may_alias));

ISA static inline uint32_t lanes_below(vector value, int32_t limit)
{
    const vector below = (value < limit) & ~(value >> 31);
    return (uint32_t)_mm256_movemask_ps((__m256)below);
}

ISA static inline vector read_bits(const uint8_t *bits, vector start, vector at,
                                   uint32_t lanes)
{
    const vector bit = {1, 2, 4, 8, 16, 32, 64, 128};
    const __m256i wanted = (__m256i)(((int32_t)lanes & bit) == bit);
    const __m256i byte = (__m256i)(start + (at >> 3));
    const vector word = (vector)_mm256_mask_i32gather_epi32(
        _mm256_setzero_si256(), (const int *)(const void *)bits, byte, wanted, 1);
    return (vector)_mm256_srlv_epi32((__m256i)word, (__m256i)(at & 7)) & 3;
}

static void fill_grey(uint64_t *pairs, uint32_t lanes)
{
    for (; lanes != 0; lanes &= lanes - 1) {
        memset(&pairs[__builtin_ctz(lanes)], YM_MOSAIC_FILL, sizeof *pairs);
    }
}

static void swap_pairs(uint64_t *pairs, uint32_t lanes)
{
    for (; lanes != 0; lanes &= lanes - 1) {
        uint64_t *pair = &pairs[__builtin_ctz(lanes)];
        *pair = (*pair & 0xFFFFFF) << 24 | (*pair >> 24 & 0xFFFFFF);
    }
}

#include "cpu/mosaic_gather_lanes.h"

ISA void cpu_mosaic_gather_avx2(cpu_span *span, cpu_source *source, int32_t count)
{
    gather(span, source, count);
}
#endif
