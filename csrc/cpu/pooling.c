/* SPDX-License-Identifier: MIT
 *
 * Max and average pooling (rules: ref/pooling.c), vectors along the channels; by rows
 * where pool_rows.h says so. Backward works on tiles of the input, each owned by one
 * task: the windows that touch the tile are visited in order and what falls into it is
 * summed in float, so no two tasks write the same element and the result is rounded
 * once.
 */
#include "cpu/pool_rows.h"

#include <math.h>
#include <string.h>

enum {
    TILE = 8, /* pixels a side */
    TILE_CHANNELS = 64,
};

typedef struct run {
    const ym_pool *pool;
    const cpu_kernels *kernels;
    const ym_tensor *x, *dy; /* x: for its sizes only where values are not read */
    ym_tensor *y;            /* y or dx */
    bool average, accumulate;
} run;

static cpu_window rows_of(const run *r, int32_t oh, int32_t size)
{
    return cpu_window_of(oh, r->pool->kernel_h, r->pool->stride_h, r->pool->pad_h,
                         size);
}

static cpu_window columns_of(const run *r, int32_t ow, int32_t size)
{
    return cpu_window_of(ow, r->pool->kernel_w, r->pool->stride_w, r->pool->pad_w,
                         size);
}

/* One pixel of a patch's channels. */
static const float *pixel_at(const ym_tensor *x, const cpu_patch *patch, int32_t n,
                             int32_t h, int32_t w, float *buffer)
{
    return cpu_row(x, patch, ym_pixel_index(x, n, h, w), 1, buffer);
}

static void pool_pixel(const run *r, const cpu_patch *patch, const int32_t at[3])
{
    const cpu_window h = rows_of(r, at[1], r->x->h), w = columns_of(r, at[2], r->x->w);
    float result[CPU_ROW], buffer[CPU_ROW];
    for (int32_t i = 0; i < patch->count; i++) {
        result[i] = r->average ? 0.0f : -INFINITY;
    }
    for (int32_t i = h.first; i < h.end; i++) {
        for (int32_t j = w.first; j < w.end; j++) {
            const float *x = pixel_at(r->x, patch, at[0], i, j, buffer);
            (r->average ? r->kernels->add : r->kernels->maximum)(patch->count, x,
                                                                 result);
        }
    }
    if (r->average) {
        r->kernels->divide(patch->count, cpu_window_divisor(r->pool, h, w), result);
    }
    cpu_store(result, patch->count, 1, patch->count, r->y,
              (((int64_t)at[0] * r->y->h + at[1]) * r->y->w + at[2]) * r->y->pitch +
                  patch->channel,
              1);
}

static cpu_patch channel_part(int32_t channels, int32_t parts, int32_t part)
{
    cpu_patch patch = {.channel = (int32_t)cpu_part(channels, parts, part)};
    patch.count = (int32_t)cpu_part(channels, parts, part + 1) - patch.channel;
    patch.row_pixels = 1;
    return patch;
}

static void forward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t parts = cpu_channel_parts(r->y->c);
    const cpu_patch patch = channel_part(r->y->c, parts, index % parts);
    const int32_t row = index / parts;
    for (int32_t ow = 0; ow < r->y->w; ow++) {
        const int32_t at[3] = {row / r->y->h, row % r->y->h, ow};
        pool_pixel(r, &patch, at);
    }
}

static ym_status forward(const ym_pool *pool, bool average, const ym_tensor *x,
                         ym_tensor *y)
{
    if (cpu_pools_by_rows(pool, x)) {
        return cpu_pool_rows_forward(pool, average, x, y);
    }
    run r = {.pool = pool, .kernels = cpu_kernels_best(), .x = x, .y = y};
    r.average = average;
    ym_pool_run(forward_task, &r, y->n * y->h * cpu_channel_parts(y->c));
    return YM_OK;
}

ym_status cpu_max_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    return forward(pool, false, x, y);
}

ym_status cpu_avg_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    return forward(pool, true, x, y);
}

typedef struct tile {
    cpu_patch patch;
    int32_t n, h0, h1, w0, w1;
    float sum[TILE * TILE * TILE_CHANNELS];
} tile;

static float *tile_pixel(tile *t, int32_t h, int32_t w)
{
    return t->sum + ((h - t->h0) * TILE + w - t->w0) * t->patch.count;
}

/* Finds the maxima again and adds dy to those that lie in the tile. */
static void max_window(const run *r, tile *t, cpu_window h, cpu_window w,
                       const float *dy)
{
    const int32_t count = t->patch.count;
    float most[TILE_CHANNELS], buffer[TILE_CHANNELS];
    int32_t codes[TILE_CHANNELS];
    bool first = true;
    for (int32_t i = h.first; i < h.end; i++) {
        for (int32_t j = w.first; j < w.end; j++) {
            const bool in_tile = i >= t->h0 && i < t->h1 && j >= t->w0 && j < t->w1;
            const int32_t code = in_tile ? (int32_t)(tile_pixel(t, i, j) - t->sum) : -1;
            for (int32_t c = 0; first && c < count; c++) {
                most[c] = -INFINITY;
                codes[c] = code;
            }
            first = false;
            const float *x = pixel_at(r->x, &t->patch, t->n, i, j, buffer);
            r->kernels->arg_maximum(count, x, code, most, codes);
        }
    }
    for (int32_t c = 0; !first && c < count; c++) {
        if (codes[c] >= 0) {
            t->sum[codes[c] + c] += dy[c];
        }
    }
}

static void average_window(const run *r, tile *t, cpu_window h, cpu_window w,
                           const float *dy)
{
    float share[TILE_CHANNELS];
    memcpy(share, dy, (size_t)t->patch.count * sizeof *share);
    r->kernels->divide(t->patch.count, cpu_window_divisor(r->pool, h, w), share);
    for (int32_t i = (int32_t)cpu_max(h.first, t->h0); i < cpu_min(h.end, t->h1); i++) {
        for (int32_t j = (int32_t)cpu_max(w.first, t->w0); j < cpu_min(w.end, t->w1);
             j++) {
            r->kernels->add(t->patch.count, share, tile_pixel(t, i, j));
        }
    }
}

static void store_tile(const run *r, tile *t)
{
    float buffer[TILE_CHANNELS];
    for (int32_t i = t->h0; i < t->h1; i++) {
        for (int32_t j = t->w0; j < t->w1; j++) {
            float *sum = tile_pixel(t, i, j);
            const int64_t pixel = ((int64_t)t->n * r->y->h + i) * r->y->w + j;
            if (r->accumulate) {
                r->kernels->add(t->patch.count,
                                cpu_row(r->y, &t->patch, pixel, 1, buffer), sum);
            }
            cpu_store(sum, t->patch.count, 1, t->patch.count, r->y,
                      pixel * r->y->pitch + t->patch.channel, 1);
        }
    }
}

static void backward_tile(const run *r, tile *t)
{
    const ym_pool *p = r->pool;
    const ym_tensor *dy = r->dy;
    float buffer[TILE_CHANNELS];
    const int32_t end_h = cpu_end_window(t->h1 - 1, p->stride_h, p->pad_h, dy->h);
    const int32_t end_w = cpu_end_window(t->w1 - 1, p->stride_w, p->pad_w, dy->w);
    const int32_t first_w = cpu_first_window(t->w0, p->kernel_w, p->stride_w, p->pad_w);
    memset(t->sum, 0, sizeof t->sum);
    for (int32_t oh = cpu_first_window(t->h0, p->kernel_h, p->stride_h, p->pad_h);
         oh < end_h; oh++) {
        const cpu_window h = rows_of(r, oh, r->y->h);
        for (int32_t ow = first_w; ow < end_w; ow++) {
            const cpu_window w = columns_of(r, ow, r->y->w);
            const float *d = pixel_at(dy, &t->patch, t->n, oh, ow, buffer);
            (r->average ? average_window : max_window)(r, t, h, w, d);
        }
    }
    store_tile(r, t);
}

static int32_t tiles(int32_t size)
{
    return (size + TILE - 1) / TILE;
}

static int32_t tile_channel_parts(int32_t channels)
{
    return (channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
}

static void backward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t parts = tile_channel_parts(r->y->c);
    const int32_t tiles_w = tiles(r->y->w), tiles_h = tiles(r->y->h);
    const int32_t part = index % parts, place = index / parts;
    tile t = {.patch = channel_part(r->y->c, parts, part)};
    t.n = place / tiles_w / tiles_h;
    t.h0 = place / tiles_w % tiles_h * TILE;
    t.w0 = place % tiles_w * TILE;
    t.h1 = (int32_t)cpu_min(t.h0 + TILE, r->y->h);
    t.w1 = (int32_t)cpu_min(t.w0 + TILE, r->y->w);
    backward_tile(r, &t);
}

static ym_status backward(run *r)
{
    const ym_tensor *dx = r->y;
    if (cpu_pools_by_rows(r->pool, dx)) {
        return cpu_pool_rows_backward(r->pool, r->x != NULL ? r->x : dx, r->dy, r->y,
                                      r->average, r->accumulate);
    }
    r->kernels = cpu_kernels_best();
    ym_pool_run(backward_task, r,
                dx->n * tiles(dx->h) * tiles(dx->w) * tile_channel_parts(dx->c));
    return YM_OK;
}

ym_status cpu_max_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                bool accumulate)
{
    (void)context;
    run r = {.pool = pool, .x = x, .dy = dy, .y = dx, .accumulate = accumulate};
    return backward(&r);
}

ym_status cpu_avg_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    run r = {
        .pool = pool, .dy = dy, .y = dx, .average = true, .accumulate = accumulate};
    return backward(&r);
}
