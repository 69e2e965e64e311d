/* SPDX-License-Identifier: MIT
 *
 * Bilinear resizing (rules: ref/bilinear.c) in runs of neighbouring outputs of a row:
 * forward blends the columns that they lie between across two rows, then along the row;
 * backward sums the run's columns across rows, then spreads them along the row.
 */
#include "cpu/rows.h"
#include "math/bilinear.h"

#include <string.h>

enum { RUN = 4 * CPU_ROW }; /* floats of outputs, and of the columns around them */

typedef struct job {
    const ym_tensor *from;
    ym_tensor *to;
    ym_side rows, columns;
    const cpu_kernels *kernels;
    int32_t bands; /* of rows */
    bool accumulate;
} job;

typedef struct run {
    int32_t first, pixels;   /* outputs */
    int32_t origin, columns; /* of the source */
    ym_between at[CPU_ROW];
} run;

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* The run from output `first` on, of `count` channels. Where columns of the source lie
 * between those that are wanted, it is one output. */
static void find_run(run *t, ym_side side, int32_t first, int32_t count)
{
    const int32_t most = side.scale > 2 ? 2 : RUN / count;
    const int32_t pixels = least(least(RUN / count, CPU_ROW), side.outputs - first);
    t->first = first;
    t->columns = 0;
    for (t->pixels = 0; t->pixels < pixels; t->pixels++) {
        const ym_between at = ym_between_of(side, first + t->pixels);
        t->origin = t->pixels == 0 ? at.source[0] : t->origin;
        if (at.source[1] - t->origin >= most) {
            return;
        }
        t->at[t->pixels] = at;
        t->columns = at.source[1] - t->origin + 1;
    }
}

/* Columns of the source, blended across the two rows that output row `row` lies
 * between, counted over the images. */
static void blend_rows(const job *j, const cpu_patch *patch, const run *t, int32_t row,
                       float *blended)
{
    const ym_between at = ym_between_of(j->rows, row % j->to->h);
    const int32_t n = row / j->to->h;
    const float *x[2];
    float buffer[2][RUN];
    for (int k = 0; k < 2; k++) {
        const int64_t pixel = ym_pixel_index(j->from, n, at.source[k], t->origin);
        x[k] = cpu_row(j->from, patch, pixel, t->columns, buffer[k]);
    }
    j->kernels->blend(t->columns * patch->count, at.weight[0], x[0], at.weight[1], x[1],
                      blended);
}

/* A band of rows: what lies along one is found once for all. */
static void forward_task(void *argument, int32_t index)
{
    const job *j = argument;
    ym_tensor *y = j->to;
    const int32_t parts = cpu_channel_parts(y->c), band = index / parts;
    const cpu_patch patch = cpu_patch_of(y, 1, index % parts);
    const int64_t rows = (int64_t)y->n * y->h;
    const int32_t end = (int32_t)cpu_part(rows, j->bands, band + 1);
    float blended[RUN], buffer[RUN];
    run t;
    for (int32_t first = 0; first < y->w; first += t.pixels) {
        find_run(&t, j->columns, first, patch.count);
        for (int32_t row = (int32_t)cpu_part(rows, j->bands, band); row < end; row++) {
            const int64_t pixel = (int64_t)row * y->w + first;
            blend_rows(j, &patch, &t, row, blended);
            float *made = cpu_row_to(y, &patch, pixel, t.pixels, buffer);
            j->kernels->interpolate(t.pixels, patch.count, t.at, t.origin, blended,
                                    made);
            cpu_row_done(y, &patch, pixel, t.pixels, made);
        }
    }
}

ym_status cpu_bilinear_forward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    job j = {.from = x, .to = y, .kernels = cpu_kernels_best()};
    j.rows = ym_rows_between(resize, x, y);
    j.columns = ym_columns_between(resize, x, y);
    j.bands = least(cpu_map_blocks(y), y->n * y->h);
    ym_pool_run(forward_task, &j, j.bands * cpu_channel_parts(y->c));
    return YM_OK;
}

/* The run's columns of dy, summed over the rows that have something of row `row` of dx,
 * counted over the images. */
static void sum_rows(const job *j, const cpu_patch *patch, const run *t, int32_t row,
                     float *sum)
{
    const int32_t n = row / j->to->h, h = row % j->to->h;
    const int32_t end = ym_first_output(j->rows, h + 1),
                  floats = t->pixels * patch->count;
    float buffer[RUN];
    memset(sum, 0, (size_t)floats * sizeof *sum);
    for (int32_t oh = ym_first_output(j->rows, h - 1); oh < end; oh++) {
        const int64_t pixel = ym_pixel_index(j->from, n, oh, t->first);
        const float *dy = cpu_row(j->from, patch, pixel, t->pixels, buffer);
        j->kernels->blend(floats, ym_weight_of(j->rows, oh, h), dy, 1.0f, sum, sum);
    }
}

/* Sums of `columns` neighbouring columns of a row of dx, from column `first` on. */
typedef struct window {
    int32_t row, first, columns;
    float sum[RUN];
} window;

/* It has at least so many columns; new ones are zeros. */
static void widen_window(window *t, int32_t columns, int32_t count)
{
    if (t->columns < columns) {
        const int32_t more = (columns - t->columns) * count;
        memset(t->sum + t->columns * count, 0, (size_t)more * sizeof *t->sum);
        t->columns = columns;
    }
}

/* Columns before `end` are complete: they go to dx. */
static void finish_columns(const job *j, const cpu_patch *patch, window *t, int32_t end)
{
    ym_tensor *dx = j->to;
    const int32_t count = patch->count;
    while (t->first < end) {
        const int32_t columns = least(end - t->first, RUN / count);
        const int64_t pixel = (int64_t)t->row * dx->w + t->first;
        float buffer[RUN];
        widen_window(t, columns, count);
        if (j->accumulate) {
            j->kernels->add(columns * count, cpu_row(dx, patch, pixel, columns, buffer),
                            t->sum);
        }
        cpu_store(t->sum, count, columns, count, dx, pixel * dx->pitch + patch->channel,
                  1);
        t->first += columns;
        t->columns -= columns;
        memmove(t->sum, t->sum + columns * count,
                (size_t)(t->columns * count) * sizeof *t->sum);
    }
}

static void backward_task(void *argument, int32_t index)
{
    const job *j = argument;
    const int32_t parts = cpu_channel_parts(j->to->c);
    const cpu_patch patch = cpu_patch_of(j->to, 1, index % parts);
    window made;
    made.row = index / parts;
    made.first = made.columns = 0;
    float sum[RUN];
    run t;
    for (int32_t first = 0; first < j->from->w; first += t.pixels) {
        find_run(&t, j->columns, first, patch.count);
        finish_columns(j, &patch, &made, t.origin);
        sum_rows(j, &patch, &t, made.row, sum);
        widen_window(&made, t.columns, patch.count);
        j->kernels->spread(t.pixels, patch.count, t.at, t.origin, sum, made.sum);
    }
    finish_columns(j, &patch, &made, j->to->w);
}

ym_status cpu_bilinear_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    job j = {.from = dy, .to = dx, .kernels = cpu_kernels_best()};
    j.rows = ym_rows_between(resize, dx, dy);
    j.columns = ym_columns_between(resize, dx, dy);
    j.accumulate = accumulate;
    ym_pool_run(backward_task, &j, dx->n * dx->h * cpu_channel_parts(dx->c));
    return YM_OK;
}
