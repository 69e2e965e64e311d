/* SPDX-License-Identifier: MIT */
#include "cpu/by_lane.h"

#include <string.h>

enum {
    MOST_OUTPUTS = 2,  /* of a group */
    BUFFER_PIXELS = 4, /* widened at a time */
};

bool cpu_fits_lanes(int32_t groups, int32_t in_count, int32_t out_count)
{
    return groups > 1 && out_count <= MOST_OUTPUTS &&
           (int64_t)in_count * out_count <= CPU_LANE_INPUTS;
}

void cpu_lane_block_of(int32_t in_count, int32_t out_count, int32_t channel,
                       int32_t columns, cpu_lane_block *block)
{
    const int32_t width = (int32_t)cpu_padded_count(columns);
    const int32_t first = channel / out_count,
                  last = (channel + columns - 1) / out_count;
    block->in_count = in_count;
    block->columns = columns;
    block->width = width;
    block->first = first * in_count;
    block->span = (last - first + 1) * in_count;
    block->same = in_count == 1 && out_count == 1;
    for (int32_t j = 0; j < width; j++) {
        const int32_t column = channel + (int32_t)cpu_min(j, columns - 1);
        for (int32_t i = 0; i < in_count; i++) {
            block->from[i * width + j] = (column / out_count - first) * in_count + i;
        }
    }
}

static void pick_lanes(const ym_tensor *x, const cpu_lane_block *block, int64_t index,
                       int64_t pixels, int64_t step, float *to)
{
    const cpu_kernels *kernels = cpu_kernels_best();
    const int32_t count = block->in_count * block->width, span = block->span;
    if (x->dtype == YM_F32) {
        kernels->pick(pixels, count, (const float *)x->data + index, x->pitch * step,
                      block->from, to);
        return;
    }
    float buffer[BUFFER_PIXELS * CPU_LANE_INPUTS * CPU_LANE_COLUMNS];
    for (int64_t p = 0; p < pixels; p += BUFFER_PIXELS) {
        const int64_t part = cpu_min(BUFFER_PIXELS, pixels - p);
        cpu_load(x, index + p * x->pitch * step, part, span, step, buffer, span);
        kernels->pick(part, count, buffer, span, block->from, to + p * count);
    }
}

/* `pixels` pixels of x from element `index` (of channel 0) on, `step` apart, into
 * (pixel, input, lane). */
static void load_lanes(const ym_tensor *x, const cpu_lane_block *block, int64_t index,
                       int64_t pixels, int64_t step, float *to)
{
    index += block->first;
    if (!block->same) {
        pick_lanes(x, block, index, pixels, step, to);
        return;
    }
    if (block->columns < block->width) {
        memset(to, 0, (size_t)(pixels * block->width) * sizeof *to);
    }
    cpu_load(x, index, pixels, block->columns, step, to, block->width);
}

void cpu_load_lane_row(const ym_tensor *x, const cpu_lane_block *block,
                       const cpu_image_row *row, float *to)
{
    const int64_t words = (int64_t)block->in_count * block->width;
    const cpu_inside inside = cpu_inside_of(x, row);
    to = cpu_zeros_around(row, &inside, words, to);
    load_lanes(x, block, inside.pixel * x->pitch, inside.count, row->step, to);
}
