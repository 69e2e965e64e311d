/* SPDX-License-Identifier: MIT
 *
 * Nearest upsampling (rules: ref/nearest.c), a row at a time.
 */
#include "cpu/rows.h"
#include "math/nearest.h"

#include <string.h>

typedef struct job {
    const ym_tensor *from;
    ym_tensor *to;
    const cpu_kernels *kernels;
    float scale_h, scale_w;
    bool accumulate;
} job;

static void forward_task(void *argument, int32_t row)
{
    const job *j = argument;
    const ym_tensor *x = j->from, *y = j->to;
    const size_t bytes = (size_t)y->c * ym_dtype_bytes(y->dtype);
    const int64_t source = (int64_t)(row / y->h) * x->h +
                           ym_nearest_source(row % y->h, j->scale_h, x->h);
    for (int32_t ow = 0; ow < y->w; ow++) {
        memcpy(cpu_pixel(y, (int64_t)row * y->w + ow),
               cpu_pixel(x, source * x->w + ym_nearest_source(ow, j->scale_w, x->w)),
               bytes);
    }
}

ym_status cpu_nearest_forward(ym_context *context, const ym_resize *resize,
                              const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    job j = {
        .from = x, .to = y, .scale_h = resize->scale_h, .scale_w = resize->scale_w};
    ym_pool_run(forward_task, &j, y->n * y->h);
    return YM_OK;
}

/* The outputs [first, end) that come from input i: they are neighbours. */
static void sources_of(int32_t i, float scale, int32_t size, int32_t out_size,
                       int32_t *first, int32_t *end)
{
    while (*first < out_size && ym_nearest_source(*first, scale, size) < i) {
        ++*first;
    }
    *end = *first;
    while (*end < out_size && ym_nearest_source(*end, scale, size) == i) {
        ++*end;
    }
}

static void backward_task(void *argument, int32_t index)
{
    const job *j = argument;
    const ym_tensor *dy = j->from, *dx = j->to;
    const int32_t parts = cpu_channel_parts(dx->c), row = index / parts;
    const cpu_patch patch = cpu_patch_of(dx, 1, index % parts);
    int32_t first_h = 0, end_h, first_w = 0, end_w;
    float sum[CPU_ROW], buffer[CPU_ROW];
    sources_of(row % dx->h, j->scale_h, dx->h, dy->h, &first_h, &end_h);
    for (int32_t w = 0; w < dx->w; w++) {
        const int64_t pixel = (int64_t)row * dx->w + w;
        memset(sum, 0, (size_t)patch.count * sizeof *sum);
        sources_of(w, j->scale_w, dx->w, dy->w, &first_w, &end_w);
        for (int32_t oh = first_h; oh < end_h; oh++) {
            for (int32_t ow = first_w; ow < end_w; ow++) {
                const int64_t from = ym_pixel_index(dy, row / dx->h, oh, ow);
                j->kernels->add(patch.count, cpu_row(dy, &patch, from, 1, buffer), sum);
            }
        }
        if (j->accumulate) {
            j->kernels->add(patch.count, cpu_row(dx, &patch, pixel, 1, buffer), sum);
        }
        cpu_store(sum, patch.count, 1, patch.count, dx,
                  pixel * dx->pitch + patch.channel, 1);
    }
}

ym_status cpu_nearest_backward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    job j = {
        .from = dy, .to = dx, .scale_h = resize->scale_h, .scale_w = resize->scale_w};
    j.kernels = cpu_kernels_best();
    j.accumulate = accumulate;
    ym_pool_run(backward_task, &j, dx->n * dx->h * cpu_channel_parts(dx->c));
    return YM_OK;
}
