/* SPDX-License-Identifier: MIT
 *
 * Nearest upsampling, copies and zeros (rules: ref/resize.c).
 */
#include "cpu/rows.h"

#include <string.h>

typedef struct run {
    const ym_tensor *from;
    ym_tensor *to;
    const cpu_kernels *kernels;
    float scale_h, scale_w;
    int32_t blocks;
    bool accumulate;
} run;

static int32_t nearest(int32_t o, float scale, int32_t size)
{
    const int32_t i = (int32_t)((float)o * scale);
    return i < size - 1 ? i : size - 1;
}

static char *pixel_of(const ym_tensor *x, int64_t pixel)
{
    return (char *)x->data + (size_t)(pixel * x->pitch) * ym_dtype_bytes(x->dtype);
}

static void upsample_task(void *argument, int32_t row)
{
    const run *r = argument;
    const ym_tensor *x = r->from, *y = r->to;
    const size_t bytes = (size_t)y->c * ym_dtype_bytes(y->dtype);
    const int64_t source = (int64_t)(row / y->h) * x->h +
                           nearest(row % y->h, r->scale_h, x->h);
    for (int32_t ow = 0; ow < y->w; ow++) {
        memcpy(pixel_of(y, (int64_t)row * y->w + ow),
               pixel_of(x, source * x->w + nearest(ow, r->scale_w, x->w)), bytes);
    }
}

ym_status cpu_upsample_forward(ym_context *context, float scale_h, float scale_w,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    run r = {.from = x, .to = y, .scale_h = scale_h, .scale_w = scale_w};
    ym_pool_run(upsample_task, &r, y->n * y->h);
    return YM_OK;
}

/* The outputs [first, end) that come from input i: they are neighbours. */
static void sources_of(int32_t i, float scale, int32_t size, int32_t out_size,
                       int32_t *first, int32_t *end)
{
    while (*first < out_size && nearest(*first, scale, size) < i) {
        ++*first;
    }
    *end = *first;
    while (*end < out_size && nearest(*end, scale, size) == i) {
        ++*end;
    }
}

static void upsample_back_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_tensor *dy = r->from, *dx = r->to;
    const int32_t parts = cpu_channel_parts(dx->c), row = index / parts;
    const cpu_patch patch = cpu_patch_of(dx, 1, index % parts);
    int32_t first_h = 0, end_h, first_w = 0, end_w;
    float sum[CPU_ROW], buffer[CPU_ROW];
    sources_of(row % dx->h, r->scale_h, dx->h, dy->h, &first_h, &end_h);
    for (int32_t w = 0; w < dx->w; w++) {
        const int64_t pixel = (int64_t)row * dx->w + w;
        memset(sum, 0, (size_t)patch.count * sizeof *sum);
        sources_of(w, r->scale_w, dx->w, dy->w, &first_w, &end_w);
        for (int64_t oh = first_h; oh < end_h; oh++) {
            for (int32_t ow = first_w; ow < end_w; ow++) {
                const int64_t from = ((int64_t)(row / dx->h) * dy->h + oh) * dy->w + ow;
                r->kernels->add(patch.count, cpu_row(dy, &patch, from, 1, buffer), sum);
            }
        }
        if (r->accumulate) {
            r->kernels->add(patch.count, cpu_row(dx, &patch, pixel, 1, buffer), sum);
        }
        cpu_store(sum, patch.count, 1, patch.count, dx,
                  pixel * dx->pitch + patch.channel, 1);
    }
}

ym_status cpu_upsample_backward(ym_context *context, float scale_h, float scale_w,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    run r = {.from = dy, .to = dx, .scale_h = scale_h, .scale_w = scale_w};
    r.kernels = cpu_kernels_best();
    r.accumulate = accumulate;
    ym_pool_run(upsample_back_task, &r, dx->n * dx->h * cpu_channel_parts(dx->c));
    return YM_OK;
}

static void add_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_patch patch = cpu_patch_of(r->to, r->blocks, index);
    float from[CPU_ROW], old[CPU_ROW], sum[CPU_ROW];
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        const int32_t pixels = cpu_row_pixels(&patch, p), n = pixels * patch.count;
        memcpy(sum, cpu_row(r->to, &patch, p, pixels, old), (size_t)n * sizeof *sum);
        r->kernels->add(n, cpu_row(r->from, &patch, p, pixels, from), sum);
        cpu_store(sum, patch.count, pixels, patch.count, r->to,
                  p * r->to->pitch + patch.channel, 1);
    }
}

static void copy_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int64_t pixels = ym_pixels(r->to);
    const int64_t end = cpu_part(pixels, r->blocks, index + 1);
    const size_t bytes = (size_t)r->to->c * ym_dtype_bytes(r->to->dtype);
    for (int64_t p = cpu_part(pixels, r->blocks, index); p < end; p++) {
        if (r->from == NULL) {
            memset(pixel_of(r->to, p), 0, bytes);
        } else {
            memcpy(pixel_of(r->to, p), pixel_of(r->from, p), bytes);
        }
    }
}

ym_status cpu_copy(ym_context *context, const ym_tensor *x, ym_tensor *y,
                   bool accumulate)
{
    (void)context;
    run r = {.from = x, .to = y, .kernels = cpu_kernels_best()};
    r.blocks = cpu_map_blocks(y);
    if (accumulate) {
        ym_pool_run(add_task, &r, r.blocks * cpu_channel_parts(y->c));
    } else {
        ym_pool_run(copy_task, &r, r.blocks);
    }
    return YM_OK;
}

ym_status cpu_fill_zero(ym_context *context, ym_tensor *y)
{
    (void)context;
    run r = {.to = y, .blocks = cpu_map_blocks(y)};
    ym_pool_run(copy_task, &r, r.blocks);
    return YM_OK;
}
