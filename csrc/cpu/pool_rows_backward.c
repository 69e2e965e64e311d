/* SPDX-License-Identifier: MIT
 *
 * Pools by rows (pool_rows.h), backward, on tiles of the input, each owned by one task
 * as in pooling.c.
 *
 * The maxima are found again: first those of a window's columns in one row of x, which
 * serve all windows that meet the row, then those of the rows. The first maximum in
 * row-major order is the first row's, and in it the first column's.
 */
#include "cpu/pool_rows.h"

#include <math.h>
#include <string.h>

enum {
    TILE_ROWS = 8,
    TILE_CHANNELS = 64,
};

typedef struct run {
    const ym_pool *pool;
    const cpu_kernels *kernels;
    const ym_tensor *x, *dy; /* x: for its sizes only where values are not read */
    ym_tensor *dx;
    bool average, accumulate;
    int32_t parts, bands, chunks; /* of channels, rows and columns, for tasks */
} run;

/* Rows [h0, h1) and columns [w0, w1) of image row.n, and a row of windows. */
typedef struct tile {
    const run *r;
    cpu_patch patch;
    cpu_window_row row;
    int32_t h0, h1, w0, w1;
    float under[CPU_ROW]; /* of one row of x (maximum) or of windows (average) */
    int32_t code[CPU_ROW];
    float sum[TILE_ROWS * CPU_ROW];
} tile;

/* Maxima of the windows of some rows, and where in the tile's sum they are, or -1. */
typedef struct maxima {
    int32_t first, end;
    float most[CPU_POOL_ROWS][CPU_ROW];
    int32_t codes[CPU_POOL_ROWS][CPU_ROW];
} maxima;

static float *row_of(tile *t, int32_t h)
{
    return t->sum + (int64_t)(h - t->h0) * (t->w1 - t->w0) * t->patch.count;
}

static void find_tap(void *argument, int32_t tap, int32_t window, int32_t pixels,
                     const float *x)
{
    tile *t = argument;
    const int32_t from = (window - t->row.first) * t->patch.count;
    t->r->kernels->arg_maximum(pixels * t->patch.count, x, tap, t->under + from,
                               t->code + from);
}

/* From columns of the windows to places in the sum of row h of the tile, of which x may
 * have more rows. */
static void place_columns(tile *t, int32_t h)
{
    const ym_pool *p = t->r->pool;
    const int32_t count = t->patch.count, columns = t->w1 - t->w0;
    const bool outside = h < t->h0 || h >= t->h1;
    const int32_t base = outside ? 0 : (int32_t)(row_of(t, h) - t->sum);
    for (int32_t ow = t->row.first; ow < t->row.end; ow++) {
        int32_t *code = t->code + (ow - t->row.first) * count;
        const int32_t left = ow * p->stride_w - p->pad_w - t->w0;
        for (int32_t c = 0; c < count; c++) {
            const int32_t column = left + code[c];
            const bool inside = !outside && column >= 0 && column < columns;
            code[c] = inside ? base + column * count + c : -1;
        }
    }
}

/* The maxima of row h of x under the windows' columns. */
static void find_under(tile *t, int32_t h)
{
    const ym_pool *p = t->r->pool;
    const int32_t count = t->patch.count;
    for (int32_t ow = t->row.first; ow < t->row.end; ow++) {
        const int32_t from = (ow - t->row.first) * count;
        const int32_t first = (int32_t)cpu_max(0, p->pad_w - ow * p->stride_w);
        for (int32_t c = 0; c < count; c++) {
            t->under[from + c] = -INFINITY;
            t->code[from + c] = first;
        }
    }
    cpu_walk_taps(p, t->r->x, &t->patch, &t->row, h, find_tap, t);
    place_columns(t, h);
}

static void find_maxima(tile *t, maxima *m)
{
    const ym_pool *p = t->r->pool;
    const int32_t floats = (t->row.end - t->row.first) * t->patch.count;
    const int32_t low = m->first * p->stride_h - p->pad_h;
    const int32_t high = (m->end - 1) * p->stride_h - p->pad_h + p->kernel_h;
    memset(m->codes, -1, sizeof m->codes);
    for (int32_t h = (int32_t)cpu_max(0, low); h < cpu_min(high, t->r->x->h); h++) {
        int32_t oh = cpu_first_window(h, p->kernel_h, p->stride_h, p->pad_h);
        const int32_t end = cpu_end_window(h, p->stride_h, p->pad_h, m->end);
        oh = (int32_t)cpu_max(oh, m->first);
        if (oh >= end) {
            continue; /* between windows */
        }
        find_under(t, h);
        for (; oh < end; oh++) {
            float *most = m->most[oh - m->first];
            int32_t *codes = m->codes[oh - m->first];
            if (h == cpu_max(0, oh * p->stride_h - p->pad_h)) {
                memcpy(most, t->under, (size_t)floats * sizeof *most);
                memcpy(codes, t->code, (size_t)floats * sizeof *codes);
            } else {
                t->r->kernels->join_maximum(floats, t->under, t->code, most, codes);
            }
        }
    }
}

/* dy of the row of windows, as floats. */
static const float *gradients(const tile *t, int32_t oh, float *buffer)
{
    const int64_t pixel = ym_pixel_index(t->r->dy, t->row.n, oh, t->row.first);
    return cpu_row(t->r->dy, &t->patch, pixel, t->row.end - t->row.first, buffer);
}

static void max_windows(tile *t, int32_t first, int32_t end)
{
    const int32_t floats = (t->row.end - t->row.first) * t->patch.count;
    maxima m = {.first = first, .end = end};
    find_maxima(t, &m);
    for (int32_t oh = first; oh < end; oh++) {
        float buffer[CPU_ROW];
        const float *dy = gradients(t, oh, buffer);
        const int32_t *codes = m.codes[oh - first];
        for (int32_t i = 0; i < floats; i++) {
            if (codes[i] >= 0) {
                t->sum[codes[i]] += dy[i];
            }
        }
    }
}

/* Adds the windows' shares to the tile's columns that they have. */
static void spread_shares(tile *t, const float *shares)
{
    const ym_pool *p = t->r->pool;
    const int32_t count = t->patch.count;
    const int32_t at_once = p->stride_w == 1 ? CPU_ROW : 1;
    memset(t->under, 0, sizeof t->under);
    for (int32_t tap = 0; tap < p->kernel_w; tap++) {
        int32_t ow = t->row.first, end = t->row.end;
        cpu_clip_windows(p, tap, t->w0, t->w1, &ow, &end);
        for (int32_t pixels = 0; ow < end; ow += pixels) {
            pixels = (int32_t)cpu_min(at_once, end - ow);
            const int32_t column = ow * p->stride_w - p->pad_w + tap - t->w0;
            t->r->kernels->add(pixels * count, shares + (ow - t->row.first) * count,
                               t->under + column * count);
        }
    }
}

static void average_windows(tile *t, int32_t first, int32_t end)
{
    const ym_pool *p = t->r->pool;
    const int32_t count = t->patch.count, columns = t->w1 - t->w0;
    for (int32_t oh = first; oh < end; oh++) {
        const cpu_window h =
            cpu_window_of(oh, p->kernel_h, p->stride_h, p->pad_h, t->r->dx->h);
        float buffer[CPU_ROW], shares[CPU_ROW];
        const float *dy = gradients(t, oh, buffer);
        memcpy(shares, dy,
               (size_t)((t->row.end - t->row.first) * count) * sizeof *shares);
        for (int32_t ow = t->row.first; ow < t->row.end; ow++) {
            const cpu_window w =
                cpu_window_of(ow, p->kernel_w, p->stride_w, p->pad_w, t->r->dx->w);
            t->r->kernels->divide(count, cpu_window_divisor(p, h, w),
                                  shares + (ow - t->row.first) * count);
        }
        spread_shares(t, shares);
        const int32_t from = (int32_t)cpu_max(h.first, t->h0);
        for (int32_t i = from; i < cpu_min(h.end, t->h1); i++) {
            t->r->kernels->add(columns * count, t->under, row_of(t, i));
        }
    }
}

static void store_tile(tile *t)
{
    const run *r = t->r;
    const int32_t pixels = t->w1 - t->w0, count = t->patch.count;
    for (int32_t h = t->h0; h < t->h1; h++) {
        float *sum = row_of(t, h), buffer[CPU_ROW];
        const int64_t pixel = ym_pixel_index(r->dx, t->row.n, h, t->w0);
        if (r->accumulate) {
            r->kernels->add(pixels * count,
                            cpu_row(r->dx, &t->patch, pixel, pixels, buffer), sum);
        }
        cpu_store(sum, count, pixels, count, r->dx,
                  pixel * r->dx->pitch + t->patch.channel, 1);
    }
}

static void backward_tile(tile *t)
{
    const ym_pool *p = t->r->pool;
    const ym_tensor *dy = t->r->dy;
    const int32_t end_h = cpu_end_window(t->h1 - 1, p->stride_h, p->pad_h, dy->h);
    const int32_t end_w = cpu_end_window(t->w1 - 1, p->stride_w, p->pad_w, dy->w);
    const int32_t first_h = cpu_first_window(t->h0, p->kernel_h, p->stride_h, p->pad_h);
    const int32_t first_w = cpu_first_window(t->w0, p->kernel_w, p->stride_w, p->pad_w);
    for (int32_t oh = first_h; oh < end_h; oh += CPU_POOL_ROWS) {
        const int32_t end = (int32_t)cpu_min(oh + CPU_POOL_ROWS, end_h);
        for (int32_t ow = first_w; ow < end_w; ow = t->row.end) {
            t->row.first = ow;
            t->row.end = (int32_t)cpu_min(ow + CPU_ROW / t->patch.count, end_w);
            (t->r->average ? average_windows : max_windows)(t, oh, end);
        }
    }
}

static void backward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_tensor *dx = r->dx;
    const int32_t part = index % r->parts, chunk = index / r->parts % r->chunks;
    const int32_t place = index / r->parts / r->chunks;
    tile t = {.r = r, .patch.channel = (int32_t)cpu_part(dx->c, r->parts, part)};
    t.patch.count = (int32_t)cpu_part(dx->c, r->parts, part + 1) - t.patch.channel;
    t.row.n = place / r->bands;
    t.h0 = (int32_t)cpu_part(dx->h, r->bands, place % r->bands);
    t.h1 = (int32_t)cpu_part(dx->h, r->bands, place % r->bands + 1);
    t.w0 = (int32_t)cpu_part(dx->w, r->chunks, chunk);
    t.w1 = (int32_t)cpu_part(dx->w, r->chunks, chunk + 1);
    backward_tile(&t);
    store_tile(&t);
}

ym_status cpu_pool_rows_backward(const ym_pool *pool, const ym_tensor *x,
                                 const ym_tensor *dy, ym_tensor *dx, bool average,
                                 bool accumulate)
{
    run r = {.pool = pool,
             .kernels = cpu_kernels_best(),
             .x = x,
             .dy = dy,
             .dx = dx,
             .average = average,
             .accumulate = accumulate};
    r.parts = (dx->c + TILE_CHANNELS - 1) / TILE_CHANNELS;
    const int32_t pixels = CPU_ROW / ((dx->c + r.parts - 1) / r.parts);
    r.bands = (dx->h + TILE_ROWS - 1) / TILE_ROWS;
    r.chunks = (dx->w + pixels - 1) / pixels;
    ym_pool_run(backward_task, &r, dx->n * r.bands * r.chunks * r.parts);
    return YM_OK;
}
