/* SPDX-License-Identifier: MIT
 *
 * Rows are stretched once each and blended in pairs. OpenCV replaces an exact halving
 * by the mean of 2x2 pixels, and so does this.
 */
#include "cpu/image.h"

#include "cpu/mosaic_loops.h"
#include "math/resize.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef struct resizer {
    const ym_image *source, *out;
    int32_t *first;   /* (out width) the left neighbour's column */
    uint32_t *weight; /* (out width) of it and the next: two 16-bit halves */
    int16_t *row[2];  /* (out width, 3) and 4 spare, stretched, in 1/128 */
    int32_t held[2];  /* the source row in each, -1: none */
    int32_t roomy;    /* columns whose neighbours have two more bytes behind them */
    bool avx2;
} resizer;

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

size_t cpu_resize_scratch_bytes(int32_t width)
{
    size_t columns = (size_t)width;
    return 2 * aligned(columns * sizeof(int32_t)) +
           2 * aligned((columns * 3 + 4) * sizeof(int16_t));
}

static void prepare(resizer *r, char *scratch)
{
    int32_t width = r->out->width;
    size_t column_bytes = aligned((size_t)width * sizeof(int32_t));
    r->first = (int32_t *)scratch;
    r->weight = (uint32_t *)(scratch + column_bytes);
    r->row[0] = (int16_t *)(scratch + 2 * column_bytes);
    r->row[1] = r->row[0] + aligned(((size_t)width * 3 + 4) * 2) / 2;
    r->held[0] = r->held[1] = -1;
    r->roomy = 0;
    for (int32_t x = 0; x < width; x++) {
        ym_lerp lerp = ym_resize_column(x, r->source->width, width);
        r->first[x] = lerp.first;
        r->weight[x] = (uint32_t)(lerp.weight0 | lerp.weight1 << 16);
        r->roomy = lerp.first <= r->source->width - 3 ? x + 1 : r->roomy;
    }
    r->avx2 = false;
#if defined(__x86_64__)
    __builtin_cpu_init();
    r->avx2 = __builtin_cpu_supports("avx2");
#endif
}

static void stretch_plain(const resizer *r, const uint8_t *row, int32_t x, int16_t *out)
{
    int32_t last = r->source->width - 1;
    for (; x < r->out->width; x++) {
        const uint8_t *a = row + (int64_t)r->first[x] * 3;
        const uint8_t *b = r->first[x] < last ? a + 3 : a;
        int32_t left = (int32_t)(r->weight[x] & 0xFFFF);
        int32_t right = (int32_t)(r->weight[x] >> 16);
        for (int32_t c = 0; c < 3; c++) {
            out[3 * x + c] = (int16_t)((a[c] * left + b[c] * right) >> 4);
        }
    }
}

#if defined(__x86_64__)
/* Two columns at a time, as far as neighbours can be read as words of 8 bytes. */
TARGET("avx2")
static int32_t stretch_avx2(const resizer *r, const uint8_t *row, int16_t *out)
{
    const __m256i interleave = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 14, 15));
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    int32_t x = 0;
    for (; x + 2 <= r->roomy; x += 2) {
        const uint8_t *a = row + (int64_t)r->first[x] * 3;
        const uint8_t *b = row + (int64_t)r->first[x + 1] * 3;
        __m128i bytes =
            _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(const void *)a),
                               _mm_loadl_epi64((const __m128i *)(const void *)b));
        __m256i weight = _mm256_castsi128_si256(
            _mm_loadl_epi64((const __m128i *)(const void *)&r->weight[x]));
        weight = _mm256_permutevar8x32_epi32(weight, spread);
        __m256i pairs = _mm256_shuffle_epi8(_mm256_cvtepu8_epi16(bytes), interleave);
        __m256i sums = _mm256_srai_epi32(_mm256_madd_epi16(pairs, weight), 4);
        sums = _mm256_packs_epi32(sums, sums);
        _mm_storel_epi64((__m128i *)(void *)(out + 3 * x),
                         _mm256_castsi256_si128(sums));
        _mm_storel_epi64((__m128i *)(void *)(out + 3 * x + 3),
                         _mm256_extracti128_si256(sums, 1));
    }
    return x;
}
#endif

/* Source row y, clamped to the image, stretched. */
static const int16_t *find_row(resizer *r, int32_t y)
{
    y = y < 0 ? 0 : y;
    y = y >= r->source->height ? r->source->height - 1 : y;
    int32_t slot = y & 1;
    if (r->held[slot] != y) {
        const uint8_t *row = r->source->pixels + y * r->source->row_bytes;
        int32_t done = 0;
#if defined(__x86_64__)
        done = r->avx2 ? stretch_avx2(r, row, r->row[slot]) : 0;
#endif
        stretch_plain(r, row, done, r->row[slot]);
        r->held[slot] = y;
    }
    return r->row[slot];
}

LOOP void loop_blend_rows(const int16_t *restrict upper, const int16_t *restrict lower,
                          ym_lerp weights, int32_t count, uint8_t *restrict out)
{
    int16_t weight0 = (int16_t)weights.weight0, weight1 = (int16_t)weights.weight1;
    for (int32_t i = 0; i < count; i++) {
        out[i] = ym_resize_blend(upper[i], lower[i], weight0, weight1);
    }
}

static void blend_plain(const int16_t *upper, const int16_t *lower, ym_lerp weights,
                        int32_t count, uint8_t *out)
{
    loop_blend_rows(upper, lower, weights, count, out);
}

#if defined(__x86_64__)
TARGET("avx2")
static void blend_avx2(const int16_t *upper, const int16_t *lower, ym_lerp weights,
                       int32_t count, uint8_t *out)
{
    loop_blend_rows(upper, lower, weights, count, out);
}
#endif

static void resize_bilinear(resizer *r)
{
    for (int32_t y = 0; y < r->out->height; y++) {
        ym_lerp lerp = ym_resize_row(y, r->source->height, r->out->height);
        const int16_t *upper = find_row(r, lerp.first);
        const int16_t *lower = find_row(r, lerp.first + 1);
        uint8_t *out = r->out->pixels + y * r->out->row_bytes;
#if defined(__x86_64__)
        if (r->avx2) {
            blend_avx2(upper, lower, lerp, r->out->width * 3, out);
            continue;
        }
#endif
        blend_plain(upper, lower, lerp, r->out->width * 3, out);
    }
}

static void halve(const ym_image *source, const ym_image *out)
{
    for (int32_t y = 0; y < out->height; y++) {
        const uint8_t *upper = source->pixels + 2 * y * source->row_bytes;
        const uint8_t *lower = upper + source->row_bytes;
        uint8_t *to = out->pixels + y * out->row_bytes;
        for (int32_t x = 0; x < out->width; x++, upper += 6, lower += 6, to += 3) {
            for (int32_t c = 0; c < 3; c++) {
                to[c] =
                    (uint8_t)((upper[c] + upper[c + 3] + lower[c] + lower[c + 3] + 2) >>
                              2);
            }
        }
    }
}

static ym_status check_image(const ym_image *image, const char *name, ym_error *error)
{
    YM_CHECK(error,
             image->height >= 1 && image->width >= 1 &&
                 image->height <= YM_MOSAIC_MAX_SIDE &&
                 image->width <= YM_MOSAIC_MAX_SIDE,
             YM_ERR_ARGUMENT, "resize: %s is %dx%d, sides must be 1 to %d", name,
             image->width, image->height, YM_MOSAIC_MAX_SIDE);
    return YM_OK;
}

ym_status cpu_resize_image(const ym_image *source, const ym_image *out, void *scratch,
                           ym_error *error)
{
    YM_TRY(check_image(source, "the source", error));
    YM_TRY(check_image(out, "the result", error));
    if (source->height == 2 * out->height && source->width == 2 * out->width) {
        halve(source, out);
        return YM_OK;
    }
    resizer r = {.source = source, .out = out};
    prepare(&r, scratch);
    resize_bilinear(&r);
    return YM_OK;
}
