/* SPDX-License-Identifier: MIT
 *
 * Warps that keep rows level: pixels of one row of the image lie on one row of the
 * canvas, at columns that are the same for every row. So rows of the canvas are put
 * together from the tiles as far as they are seen, and no pixel asks for its tile.
 */
#include "cpu/mosaic.h"
#include "math/warp.h"

#include <string.h>

#define WIDEST 2624 /* canvas or image, pixels: 41 * 64 */
#define MARGIN 2    /* grey pixels before the canvas; as many behind */
#define ROW_BYTES ((WIDEST + 2 * MARGIN) * 3 + 64)

typedef struct canvas_row {
    int32_t y;                              /* INT32_MIN: none */
    _Alignas(64) uint8_t pixels[ROW_BYTES]; /* from column -MARGIN on */
} canvas_row;

typedef struct level_scene {
    const ym_scene *scene;
    int32_t
        offset[WIDEST]; /* of each column's left neighbour, values; from `seen` on */
    uint32_t weight[WIDEST];      /* 32 - fx, fx: two 16-bit halves */
    int32_t seen_first, seen_end; /* columns of the canvas */
    canvas_row row[2];
    _Alignas(64) uint16_t sums[ROW_BYTES]; /* two rows weighed, from seen_first on */
} level_scene;

bool cpu_mosaic_rows_fit(const ym_mosaic_job *job)
{
    for (int32_t s = 0; s < job->scene_count; s++) {
        const ym_scene *scene = &job->scene[s];
        bool level = scene->warp == YM_WARP_NONE ||
                     (scene->warp == YM_WARP_AFFINE && scene->inverse[1] == 0.0 &&
                      scene->inverse[3] == 0.0);
        if (!level || scene->width > WIDEST) {
            return false;
        }
    }
    return job->width <= WIDEST;
}

static ym_tap find_tap(const ym_scene *scene, int32_t x, int32_t y)
{
    if (scene->warp == YM_WARP_AFFINE) {
        return ym_affine_tap(scene->inverse, x, y);
    }
    return (ym_tap){x, y, 0, 0};
}

/* All is grey beyond the margin as in it. */
static int32_t clamp_column(const ym_scene *scene, int32_t x)
{
    x = x < -MARGIN ? -MARGIN : x;
    return x > scene->width ? scene->width : x;
}

static void begin_scene(level_scene *level, const ym_scene *scene, int32_t width)
{
    level->scene = scene;
    level->row[0].y = level->row[1].y = INT32_MIN;
    level->seen_first = INT32_MAX;
    level->seen_end = INT32_MIN;
    int32_t padded = (width + 31) / 32 * 32;
    for (int32_t i = 0; i < padded; i++) {
        ym_tap tap = find_tap(scene, i < width ? i : width - 1, 0);
        int32_t x = clamp_column(scene, tap.x);
        level->seen_first = x < level->seen_first ? x : level->seen_first;
        level->seen_end = x + 2 > level->seen_end ? x + 2 : level->seen_end;
        level->offset[i] = x * 3;
        level->weight[i] = (uint32_t)((32 - tap.fx) | tap.fx << 16);
    }
    for (int32_t i = 0; i < padded; i++) {
        level->offset[i] -= level->seen_first * 3;
    }
}

/* Columns first .. end - 1 of a row become what is mirrored from columns of `plain`. */
static void paste_run(const level_scene *level, canvas_row *row, const uint8_t *plain,
                      int32_t first, int32_t end)
{
    int32_t width = level->scene->width;
    first = first > level->seen_first ? first : level->seen_first;
    end = end < level->seen_end ? end : level->seen_end;
    uint8_t *to = row->pixels + (first + MARGIN) * 3;
    const uint8_t *from = plain + (width - 1 - first + MARGIN) * 3;
    for (int32_t x = first; x < end; x++, to += 3, from -= 3) {
        to[0] = from[0];
        to[1] = from[1];
        to[2] = from[2];
    }
}

static int32_t next_bit(const uint8_t *bits, int32_t from, int32_t end, bool set)
{
    for (int32_t i = from; i < end;) {
        unsigned byte = set ? bits[i >> 3] : (unsigned)~bits[i >> 3] & 255;
        byte >>= i & 7;
        if (byte != 0) {
            i += __builtin_ctz(byte);
            return i < end ? i : end;
        }
        i = (i | 7) + 1;
    }
    return end;
}

static void paste_row(const level_scene *level, canvas_row *row, const uint8_t *plain)
{
    const ym_scene *scene = level->scene;
    const uint8_t *bits = scene->paste + row->y * scene->paste_row_bytes;
    int32_t width = scene->width;
    int32_t first = next_bit(bits, 0, width, true);
    while (first < width) {
        int32_t end = next_bit(bits, first, width, false);
        paste_run(level, row, plain, width - end, width - first);
        first = next_bit(bits, end, width, true);
    }
}

/* The part of the canvas' row from column first to end - 1, without copy-paste. */
static void compose_plain(const ym_scene *scene, int32_t y, int32_t first, int32_t end,
                          uint8_t *pixels)
{
    memset(pixels + (first + MARGIN) * 3, YM_MOSAIC_FILL, (size_t)(end - first) * 3);
    for (int32_t i = 0; i < scene->tile_count; i++) {
        const ym_tile *tile = &scene->tile[i];
        int32_t left = tile->x > first ? tile->x : first;
        int32_t right = tile->x + tile->width < end ? tile->x + tile->width : end;
        if (y >= tile->y && y < tile->y + tile->height && left < right) {
            memcpy(pixels + (left + MARGIN) * 3,
                   tile->pixels + (y - tile->y) * tile->row_bytes +
                       (int64_t)(left - tile->x) * 3,
                   (size_t)(right - left) * 3);
        }
    }
}

static const uint8_t *find_row(level_scene *level, int32_t y)
{
    const ym_scene *scene = level->scene;
    y = y < -1 || y > scene->height ? -1 : y; /* all grey */
    canvas_row *row = &level->row[y & 1];
    if (row->y != y) {
        row->y = y;
        compose_plain(scene, y, level->seen_first, level->seen_end, row->pixels);
        if (scene->paste != NULL && y >= 0 && y < scene->height) {
            uint8_t plain[ROW_BYTES];
            int32_t first = scene->width - level->seen_end;
            int32_t end = scene->width - level->seen_first;
            first = first > 0 ? first : 0;
            end = end < scene->width ? end : scene->width;
            compose_plain(scene, y, first, end, plain);
            paste_row(level, row, plain);
        }
    }
    return row->pixels + (level->seen_first + MARGIN) * 3;
}

static void weigh_row(const cpu_output *output, level_scene *level, int32_t y)
{
    ym_tap tap = find_tap(level->scene, 0, y);
    const uint8_t *upper = find_row(level, tap.y);
    const uint8_t *lower = find_row(level, tap.y + 1);
    int32_t count = (level->seen_end - level->seen_first) * 3;
    output->kernels->weigh_rows(upper, lower, tap.fy, count, level->sums);
}

void cpu_mosaic_by_rows(cpu_output *output)
{
    const ym_mosaic_job *job = output->job;
    level_scene level[2];
    for (int32_t s = 0; s < job->scene_count; s++) {
        begin_scene(&level[s], &job->scene[s], job->width);
    }
    for (int32_t y = 0; y < job->height; y++) {
        for (int32_t s = 0; s < job->scene_count; s++) {
            weigh_row(output, &level[s], y);
        }
        for (int32_t first = 0; first < job->width; first += CPU_SPAN) {
            cpu_mosaic_begin_span(output, first);
            for (int32_t s = 0; s < job->scene_count; s++) {
                output->kernels->sample(level[s].sums, level[s].offset + first,
                                        level[s].weight + first, &output->planes[s],
                                        output->padded);
            }
            cpu_mosaic_finish_span(output, y);
        }
    }
}
