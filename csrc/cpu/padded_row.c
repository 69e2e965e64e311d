/* SPDX-License-Identifier: MIT */
#include "cpu/padded_row.h"

#include <string.h>

cpu_inside cpu_inside_of(const ym_tensor *x, const cpu_image_row *row)
{
    const int32_t first = row->first, step = row->step;
    const int32_t left = first < 0 ? (-first + step - 1) / step : 0;
    int32_t end = first >= x->w ? 0 : (x->w - 1 - first) / step + 1;
    end = (int32_t)cpu_min(end, row->count);
    if (row->h < 0 || row->h >= x->h || left >= end) {
        return (cpu_inside){0, 0, 0};
    }
    const int64_t pixel = ym_pixel_index(x, row->n, row->h, first + left * step);
    return (cpu_inside){left, end - left, pixel};
}

float *cpu_zeros_around(const cpu_image_row *row, const cpu_inside *inside,
                        int64_t words, float *to)
{
    const int64_t end = inside->left + inside->count;
    memset(to, 0, (size_t)(inside->left * words) * sizeof *to);
    memset(to + end * words, 0, (size_t)((row->count - end) * words) * sizeof *to);
    return to + inside->left * words;
}
