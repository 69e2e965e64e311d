/* SPDX-License-Identifier: MIT
 *
 * One pixel of a span, from the tiles: each in plain C, and what the vector forms leave
 * out; and which pixels of a row are pasted.
 */
#include "cpu/mosaic.h"
#include "math/warp.h"

#include <string.h>

/* Three bytes, the first lowest, as a little-endian load has them. */
static uint64_t pack_pixel(const uint8_t *bgr)
{
    return bgr != NULL
               ? (uint64_t)bgr[0] | (uint64_t)bgr[1] << 8 | (uint64_t)bgr[2] << 16
               : (uint64_t)YM_MOSAIC_FILL * 0x010101;
}

static uint64_t pack_pair(const ym_scene *scene, int32_t x, int32_t y)
{
    return pack_pixel(ym_scene_pixel(scene, x, y)) |
           pack_pixel(ym_scene_pixel(scene, x + 1, y)) << 24;
}

void cpu_mosaic_gather_singly(cpu_span *span, const ym_scene *scene, int32_t i)
{
    span->upper[i] = pack_pair(scene, span->x[i], span->y[i]);
    span->lower[i] = pack_pair(scene, span->x[i], span->y[i] + 1);
}

static uint64_t load_word(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The tile that shows all four neighbours, with two more bytes to read behind them;
 * NULL: they must be looked up one by one. */
static const ym_tile *find_tile(const ym_scene *scene, int32_t x, int32_t y)
{
    for (int32_t i = scene->tile_count - 1; i >= 0; i--) {
        const ym_tile *tile = &scene->tile[i];
        int32_t column = x - tile->x, row = y - tile->y;
        if (column >= 0 && column < tile->width - 2 && row >= 0 &&
            row < tile->height - 1) {
            return tile;
        }
        if (column >= -1 && column < tile->width && row >= -1 && row < tile->height) {
            return NULL;
        }
    }
    return NULL;
}

static bool load_pairs(cpu_span *span, const ym_scene *scene, int32_t i, int32_t x)
{
    const ym_tile *tile = find_tile(scene, x, span->y[i]);
    if (tile == NULL) {
        return false;
    }
    const uint8_t *at = tile->pixels + (span->y[i] - tile->y) * tile->row_bytes +
                        (int64_t)(x - tile->x) * 3;
    span->upper[i] = load_word(at);
    span->lower[i] = load_word(at + tile->row_bytes);
    return true;
}

static uint64_t swap_pair(uint64_t pair)
{
    return (pair & 0xFFFFFF) << 24 | (pair >> 24 & 0xFFFFFF);
}

/* How many of the four neighbours show their mirror image, -1: some are off the canvas.
 */
static int32_t count_pasted(const ym_scene *scene, int32_t x, int32_t y)
{
    if (x < 0 || y < 0 || x >= scene->width - 1 || y >= scene->height - 1) {
        return -1;
    }
    const uint8_t *bits = scene->paste + y * scene->paste_row_bytes;
    const uint8_t *below = bits + scene->paste_row_bytes;
    int32_t right = scene->width - 1 - x, left = right - 1;
    return (bits[right >> 3] >> (right & 7) & 1) + (bits[left >> 3] >> (left & 7) & 1) +
           (below[right >> 3] >> (right & 7) & 1) +
           (below[left >> 3] >> (left & 7) & 1);
}

cpu_pasted cpu_mosaic_pasted(const ym_scene *scene, int32_t last, int32_t y)
{
    int32_t first = last > 49 ? last - 49 : 0;
    const uint8_t *bits = scene->paste + y * scene->paste_row_bytes + (first >> 3);
    uint64_t stretch = UINT64_MAX >> (63 - (last - first)) << (first & 7);
    uint64_t upper = load_word(bits) & stretch;
    uint64_t lower = load_word(bits + scene->paste_row_bytes) & stretch;
    if ((upper | lower) == 0) {
        return CPU_PASTED_NONE;
    }
    return (upper & lower) == stretch ? CPU_PASTED_ALL : CPU_PASTED_SOME;
}

void cpu_mosaic_gather_pixel(cpu_span *span, const ym_scene *scene, int32_t i)
{
    int32_t pasted = scene->paste == NULL ? 0
                                          : count_pasted(scene, span->x[i], span->y[i]);
    bool done = false;
    if (pasted == 0) {
        done = load_pairs(span, scene, i, span->x[i]);
    } else if (pasted == 4) {
        done = load_pairs(span, scene, i, scene->width - 2 - span->x[i]);
        span->upper[i] = swap_pair(span->upper[i]);
        span->lower[i] = swap_pair(span->lower[i]);
    }
    if (!done) {
        cpu_mosaic_gather_singly(span, scene, i);
    }
}
