/* SPDX-License-Identifier: MIT
 *
 * Copies, sums in place and zeros.
 */
#include "cpu/rows.h"

#include <string.h>

typedef struct run {
    const ym_tensor *from;
    ym_tensor *to;
    const cpu_kernels *kernels;
    int32_t blocks;
} run;

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
            memset(cpu_pixel(r->to, p), 0, bytes);
        } else {
            memcpy(cpu_pixel(r->to, p), cpu_pixel(r->from, p), bytes);
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
