/* SPDX-License-Identifier: MIT
 *
 * Planes of images, (n, c, h, w), to packed pixels (rules: ref/planes.c): a tile at a
 * time that fits the first-level cache.
 */
#include "cpu/rows.h"

/* Of a tile at most: of a plane it has a line of the cache then. */
#define TILE_CHANNELS 32

typedef struct job {
    const ym_tensor *x;
    ym_tensor *y;
    int32_t blocks; /* of pixels */
} job;

typedef struct tile {
    int32_t image;
    int64_t first; /* pixel of the image */
    int32_t pixels, channel, channels;
} tile;

static void pack_tile(const ym_tensor *x, ym_tensor *y, tile t)
{
    const int64_t plane = (int64_t)y->h * y->w;
    const int64_t to = (t.image * plane + t.first) * y->pitch + t.channel;
    const bool in_place = y->dtype == YM_F32;
    float packed[CPU_ROW], buffer[CPU_ROW];
    float *pixel = in_place ? (float *)y->data + to : packed;
    const int64_t step = in_place ? y->pitch : t.channels;
    for (int32_t c = 0; c < t.channels; c++) {
        const int64_t from = ((int64_t)t.image * y->c + t.channel + c) * plane +
                             t.first;
        const float *row = (const float *)x->data + from;
        if (x->dtype != YM_F32) {
            cpu_load(x, from, 1, t.pixels, 1, buffer, t.pixels);
            row = buffer;
        }
        for (int32_t p = 0; p < t.pixels; p++) {
            pixel[p * step + c] = row[p];
        }
    }
    if (!in_place) {
        cpu_store(packed, t.channels, t.pixels, t.channels, y, to, 1);
    }
}

static void pack_task(void *argument, int32_t index)
{
    const job *j = argument;
    const int64_t plane = (int64_t)j->y->h * j->y->w, pixels = ym_pixels(j->y);
    const int64_t end = cpu_part(pixels, j->blocks, index + 1);
    const int32_t channels = (int32_t)cpu_min(j->y->c, TILE_CHANNELS);
    for (int64_t p = cpu_part(pixels, j->blocks, index); p < end;) {
        tile t = {.image = (int32_t)(p / plane), .first = p % plane};
        t.pixels =
            (int32_t)cpu_min(cpu_min(CPU_ROW / channels, end - p), plane - t.first);
        for (; t.channel < j->y->c; t.channel += t.channels) {
            t.channels = (int32_t)cpu_min(channels, j->y->c - t.channel);
            pack_tile(j->x, j->y, t);
        }
        p += t.pixels;
    }
}

ym_status cpu_pack_planes(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    job j = {.x = x, .y = y, .blocks = cpu_map_blocks(y)};
    ym_pool_run(pack_task, &j, j.blocks);
    return YM_OK;
}
