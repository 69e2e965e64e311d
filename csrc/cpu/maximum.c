/* SPDX-License-Identifier: MIT
 *
 * Maxima over the pixels or the channels of an image (rules: ref/maximum.c). Backward
 * finds the place of each maximum first; then each element of dx asks whether it is
 * that one.
 */
#include "cpu/rows.h"

#include <math.h>
#include <string.h>

typedef struct run {
    const ym_tensor *x, *dy; /* dy NULL: forward */
    ym_tensor *y;            /* y or dx */
    const cpu_kernels *kernels;
    bool accumulate;
} run;

/* The pixels of one image that make one element of y. */
typedef struct window {
    int32_t first_h, end_h, first_w, end_w;
} window;

static const ym_tensor *made_of(const run *r)
{
    return r->dy != NULL ? r->dy : r->y;
}

static window window_of(const ym_tensor *x, const ym_tensor *y, int32_t h, int32_t w)
{
    const bool each_h = y->h == x->h, each_w = y->w == x->w;
    return (window){each_h ? h : 0, each_h ? h + 1 : x->h, each_w ? w : 0,
                    each_w ? w + 1 : x->w};
}

/* The maxima of a window's channels and the pixels, as numbers within the image, where
 * they are. */
static void scan(const run *r, const cpu_patch *patch, int32_t n, window over,
                 float *most, int32_t *places)
{
    float buffer[CPU_ROW];
    for (int32_t c = 0; c < patch->count; c++) {
        most[c] = -INFINITY;
        places[c] = over.first_h * r->x->w + over.first_w;
    }
    for (int32_t h = over.first_h; h < over.end_h; h++) {
        for (int32_t w = over.first_w; w < over.end_w; w++) {
            const float *x =
                cpu_row(r->x, patch, ym_pixel_index(r->x, n, h, w), 1, buffer);
            r->kernels->arg_maximum(patch->count, x, h * r->x->w + w, most, places);
        }
    }
}

/* dx of the pixels of a window. */
static void give_back(const run *r, const cpu_patch *patch, int32_t n, window over,
                      const float *d, const int32_t *places)
{
    float row[CPU_ROW], buffer[CPU_ROW];
    for (int32_t h = over.first_h; h < over.end_h; h++) {
        for (int32_t w = over.first_w; w < over.end_w; w++) {
            const int64_t pixel = ym_pixel_index(r->y, n, h, w);
            const int32_t here = h * r->x->w + w;
            for (int32_t c = 0; c < patch->count; c++) {
                row[c] = places[c] == here ? d[c] : 0;
            }
            if (r->accumulate) {
                r->kernels->add(patch->count, cpu_row(r->y, patch, pixel, 1, buffer),
                                row);
            }
            cpu_store(row, patch->count, 1, patch->count, r->y,
                      pixel * r->y->pitch + patch->channel, 1);
        }
    }
}

/* Some channels of one row of y or dy. */
static void pixels_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_tensor *y = made_of(r);
    const int32_t parts = cpu_channel_parts(y->c), row = index / parts;
    const cpu_patch patch = cpu_patch_of(y, 1, index % parts);
    const int32_t n = row / y->h, h = row % y->h;
    float most[CPU_ROW], buffer[CPU_ROW];
    int32_t places[CPU_ROW];
    for (int32_t w = 0; w < y->w; w++) {
        const window over = window_of(r->x, y, h, w);
        const int64_t pixel = ym_pixel_index(y, n, h, w);
        scan(r, &patch, n, over, most, places);
        if (r->dy == NULL) {
            cpu_store(most, patch.count, 1, patch.count, r->y,
                      pixel * y->pitch + patch.channel, 1);
        } else {
            give_back(r, &patch, n, over, cpu_row(y, &patch, pixel, 1, buffer), places);
        }
    }
}

/* The channel of a pixel's maximum. */
static int32_t greatest(const run *r, int64_t pixel, float *most)
{
    int32_t place = 0;
    *most = -INFINITY;
    for (int32_t part = 0; part < cpu_channel_parts(r->x->c); part++) {
        const cpu_patch patch = cpu_patch_of(r->x, 1, part);
        float buffer[CPU_ROW];
        const float *x = cpu_row(r->x, &patch, pixel, 1, buffer);
        for (int32_t c = 0; c < patch.count; c++) {
            if (x[c] > *most || isnan(x[c])) {
                *most = x[c];
                place = patch.channel + c;
            }
        }
    }
    return place;
}

/* One row of pixels. */
static void channels_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_tensor *x = r->x;
    for (int64_t p = (int64_t)index * x->w; p < (int64_t)(index + 1) * x->w; p++) {
        float most;
        const int32_t place = greatest(r, p, &most);
        if (r->dy == NULL) {
            cpu_store(&most, 1, 1, 1, r->y, p * r->y->pitch, 1);
            continue;
        }
        float d;
        cpu_load(r->dy, p * r->dy->pitch, 1, 1, 1, &d, 1);
        for (int32_t part = 0; part < cpu_channel_parts(x->c); part++) {
            const cpu_patch patch = cpu_patch_of(x, 1, part);
            float row[CPU_ROW] = {0}, buffer[CPU_ROW];
            if (place >= patch.channel && place < patch.channel + patch.count) {
                row[place - patch.channel] = d;
            }
            if (r->accumulate) {
                r->kernels->add(patch.count, cpu_row(r->y, &patch, p, 1, buffer), row);
            }
            cpu_store(row, patch.count, 1, patch.count, r->y,
                      p * r->y->pitch + patch.channel, 1);
        }
    }
}

static ym_status all(run *r)
{
    const ym_tensor *y = made_of(r);
    r->kernels = cpu_kernels_best();
    if (y->c < r->x->c) {
        ym_pool_run(channels_task, r, y->n * y->h);
    } else {
        ym_pool_run(pixels_task, r, y->n * y->h * cpu_channel_parts(y->c));
    }
    return YM_OK;
}

size_t cpu_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y)
{
    (void)x, (void)y;
    return 0;
}

ym_status cpu_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    run r = {.x = x, .y = y};
    return all(&r);
}

ym_status cpu_maximum_backward(ym_context *context, const ym_tensor *x,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    run r = {.x = x, .dy = dy, .y = dx, .accumulate = accumulate};
    return all(&r);
}
