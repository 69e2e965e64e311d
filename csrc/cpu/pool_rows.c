/* SPDX-License-Identifier: MIT
 *
 * Pools by rows (pool_rows.h), forward. A task makes some rows of windows, by way of
 * what the columns of its windows make of each row of x.
 */
#include "cpu/pool_rows.h"

#include <math.h>
#include <string.h>

typedef struct run {
    const ym_pool *pool;
    const cpu_kernels *kernels;
    const ym_tensor *x;
    ym_tensor *y;
    bool average;
    int32_t bands, chunks; /* of rows and columns of windows, for tasks */
} run;

/* What the windows of a task hold, and a row of x under their columns. */
typedef struct band {
    const run *r;
    cpu_patch patch;
    cpu_window_row row;
    int32_t first, end; /* rows of windows */
    float under[CPU_ROW];
    float held[CPU_POOL_ROWS][CPU_ROW];
} band;

/* Pixels of a row at a stride: side by side in x where they are so. */
void cpu_walk_taps(const ym_pool *pool, const ym_tensor *x, const cpu_patch *patch,
                   const cpu_window_row *row, int32_t h, cpu_use_taps *use,
                   void *argument)
{
    const bool whole = x->pitch * pool->stride_w == patch->count;
    const bool wide = patch->count >= cpu_kernels_best()->lanes;
    float buffer[CPU_ROW];
    for (int32_t tap = 0; tap < pool->kernel_w; tap++) {
        int32_t first = row->first, end = row->end;
        cpu_clip_windows(pool, tap, 0, x->w, &first, &end);
        if (first >= end) {
            continue;
        }
        const int64_t pixel =
            ym_pixel_index(x, row->n, h, first * pool->stride_w - pool->pad_w + tap);
        const int64_t step = x->pitch * pool->stride_w;
        const int64_t index = pixel * x->pitch + patch->channel;
        const float *in_place = (const float *)x->data + index;
        if (x->dtype == YM_F32 && (whole || end - first == 1)) {
            use(argument, tap, first, end - first, in_place);
        } else if (x->dtype == YM_F32 && wide) {
            for (int32_t i = first; i < end; i++, in_place += step) {
                use(argument, tap, i, 1, in_place);
            }
        } else {
            cpu_load(x, index, end - first, patch->count, pool->stride_w, buffer,
                     patch->count);
            use(argument, tap, first, end - first, buffer);
        }
    }
}

static void fill(const band *b, float *row)
{
    const int32_t floats = (b->row.end - b->row.first) * b->patch.count;
    for (int32_t i = 0; i < floats; i++) {
        row[i] = b->r->average ? 0.0f : -INFINITY;
    }
}

static void join_tap(void *argument, int32_t tap, int32_t window, int32_t pixels,
                     const float *x)
{
    (void)tap;
    band *b = argument;
    const cpu_kernels *kernels = b->r->kernels;
    (b->r->average ? kernels->add : kernels->maximum)(
        pixels * b->patch.count, x,
        b->under + (window - b->row.first) * b->patch.count);
}

static void join_rows(band *b)
{
    const run *r = b->r;
    const ym_pool *p = r->pool;
    const int32_t floats = (b->row.end - b->row.first) * b->patch.count;
    const int32_t low = b->first * p->stride_h - p->pad_h;
    const int32_t high = (b->end - 1) * p->stride_h - p->pad_h + p->kernel_h;
    for (int32_t h = (int32_t)cpu_max(0, low); h < cpu_min(high, r->x->h); h++) {
        int32_t oh = cpu_first_window(h, p->kernel_h, p->stride_h, p->pad_h);
        const int32_t end = cpu_end_window(h, p->stride_h, p->pad_h, b->end);
        oh = (int32_t)cpu_max(oh, b->first);
        if (oh >= end) {
            continue; /* between windows */
        }
        fill(b, b->under);
        cpu_walk_taps(p, r->x, &b->patch, &b->row, h, join_tap, b);
        for (; oh < end; oh++) {
            (r->average ? r->kernels->add : r->kernels->maximum)(
                floats, b->under, b->held[oh - b->first]);
        }
    }
}

static void divide_row(const band *b, int32_t oh, float *held)
{
    const ym_pool *p = b->r->pool;
    const cpu_window h =
        cpu_window_of(oh, p->kernel_h, p->stride_h, p->pad_h, b->r->x->h);
    for (int32_t ow = b->row.first; ow < b->row.end; ow++, held += b->patch.count) {
        const cpu_window w =
            cpu_window_of(ow, p->kernel_w, p->stride_w, p->pad_w, b->r->x->w);
        b->r->kernels->divide(b->patch.count, cpu_window_divisor(p, h, w), held);
    }
}

static void store_rows(band *b)
{
    const run *r = b->r;
    for (int32_t oh = b->first; oh < b->end; oh++) {
        float *held = b->held[oh - b->first];
        if (r->average) {
            divide_row(b, oh, held);
        }
        const int64_t pixel = ym_pixel_index(r->y, b->row.n, oh, b->row.first);
        cpu_store(held, b->patch.count, b->row.end - b->row.first, b->patch.count, r->y,
                  pixel * r->y->pitch + b->patch.channel, 1);
    }
}

static void forward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t parts = cpu_channel_parts(r->y->c);
    const int32_t part = index % parts, chunk = index / parts % r->chunks;
    const int32_t place = index / parts / r->chunks;
    band b = {.r = r, .patch.channel = (int32_t)cpu_part(r->y->c, parts, part)};
    b.patch.count = (int32_t)cpu_part(r->y->c, parts, part + 1) - b.patch.channel;
    b.row.n = place / r->bands;
    b.row.first = (int32_t)cpu_part(r->y->w, r->chunks, chunk);
    b.row.end = (int32_t)cpu_part(r->y->w, r->chunks, chunk + 1);
    b.first = (int32_t)cpu_part(r->y->h, r->bands, place % r->bands);
    b.end = (int32_t)cpu_part(r->y->h, r->bands, place % r->bands + 1);
    for (int32_t i = 0; i < b.end - b.first; i++) {
        fill(&b, b.held[i]);
    }
    join_rows(&b);
    store_rows(&b);
}

ym_status cpu_pool_rows_forward(const ym_pool *pool, bool average, const ym_tensor *x,
                                ym_tensor *y)
{
    run r = {.pool = pool, .kernels = cpu_kernels_best(), .x = x, .y = y};
    r.average = average;
    r.bands = (y->h + CPU_POOL_ROWS - 1) / CPU_POOL_ROWS;
    const int32_t parts = cpu_channel_parts(y->c);
    const int32_t pixels = CPU_ROW / ((y->c + parts - 1) / parts);
    r.chunks = (y->w + pixels - 1) / pixels;
    ym_pool_run(forward_task, &r, y->n * r.bands * r.chunks * parts);
    return YM_OK;
}
