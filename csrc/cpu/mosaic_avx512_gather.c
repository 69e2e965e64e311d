/* SPDX-License-Identifier: MIT
 * Gathering for AVX-512, sixteen pixels at a time.
 */
#if defined(__x86_64__)
#include "cpu/mosaic_loops.h"

#include <immintrin.h>
#include <string.h>

#define ISA TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define LANES 16

typedef int32_t vector __attribute__((vector_size(4 * LANES), may_alias));

/* As unsigned numbers those below 0 are large. */
ISA static inline uint32_t lanes_below(vector value, int32_t limit)
{
    const __m512i most = _mm512_set1_epi32(limit > 0 ? limit : 0);
    return _mm512_cmplt_epu32_mask((__m512i)value, most);
}

ISA static inline vector read_bits(const uint8_t *bits, vector start, vector at,
                                   uint32_t lanes)
{
    const __m512i byte = (__m512i)(start + (at >> 3));
    const __m512i word =
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), (__mmask16)lanes, byte,
                                    (const int *)(const void *)bits, 1);
    return (vector)_mm512_srlv_epi32(word, (__m512i)(at & 7)) & 3;
}

ISA static inline void fill_grey(uint64_t *pairs, uint32_t lanes)
{
    const __m512i grey = _mm512_set1_epi8(YM_MOSAIC_FILL);
    _mm512_mask_storeu_epi64(pairs, (__mmask8)lanes, grey);
    _mm512_mask_storeu_epi64(pairs + 8, (__mmask8)(lanes >> 8), grey);
}

ISA static inline void swap_pairs(uint64_t *pairs, uint32_t lanes)
{
    const __m512i order = _mm512_broadcast_i32x4(
        _mm_setr_epi8(3, 4, 5, 0, 1, 2, 6, 7, 11, 12, 13, 8, 9, 10, 14, 15));
    for (int32_t k = 0; k < LANES; k += 8) {
        const __m512i swapped =
            _mm512_shuffle_epi8(_mm512_load_si512(pairs + k), order);
        _mm512_mask_storeu_epi64(pairs + k, (__mmask8)(lanes >> k), swapped);
    }
}

#include "cpu/mosaic_gather_lanes.h"

ISA void cpu_mosaic_gather_avx512(cpu_span *span, cpu_source *source, int32_t count)
{
    gather(span, source, count);
}
#endif
