/* SPDX-License-Identifier: MIT */
#include "cpu/weight_panels.h"

#include <string.h>

static int64_t element_of(const cpu_rows *r, int32_t row)
{
    return ((int64_t)r->n * r->of->h + row) * r->of->w * r->of->pitch + r->channel;
}

/* `count` channels of `pixels` pixels from element `index` of the first image on. */
static void pair_images(const cpu_rows *r, int64_t index, int64_t pixels, int32_t count,
                        float *to, int64_t to_pitch)
{
    const ym_tensor *x = r->of;
    const uint16_t *first = (const uint16_t *)x->data + index;
    const int64_t image = (int64_t)x->h * x->w * x->pitch;
    cpu_kernels_best()->pair_images(pixels, count, first,
                                    r->n + 1 < x->n ? first + image : NULL, x->pitch,
                                    (uint32_t *)(void *)to, to_pitch);
}

/* A row as floats, in place or in the buffer. */
static const float *float_row(const cpu_rows *r, int64_t index, float *buffer,
                              int64_t *pitch)
{
    if (r->of->dtype == YM_F32) {
        *pitch = r->of->pitch;
        return (const float *)r->of->data + index;
    }
    *pitch = r->count;
    cpu_load(r->of, index, r->of->w, r->count, 1, buffer, r->count);
    return buffer;
}

void cpu_pack_parts(const cpu_rows *r, float *buffer, float *panel)
{
    const int32_t width = r->of->w, height = r->end - r->first;
    const int32_t parts = cpu_part_count(r->count);
    for (int32_t i = 0; i < height; i++) {
        const int64_t index = element_of(r, r->first + i);
        int64_t pitch = 0;
        const float *from = r->pairs ? NULL : float_row(r, index, buffer, &pitch);
        for (int32_t part = 0, c = 0; part < parts; part++) {
            const int32_t size = cpu_part_size(r->count, part);
            float *to = panel + ((int64_t)c * height + i * size) * width;
            if (r->pairs) {
                pair_images(r, index + c, width, size, to, size);
            } else {
                cpu_kernels_best()->pack(width, size, from + c, pitch, to);
            }
            c += size;
        }
    }
}

void cpu_pack_columns(const cpu_rows *r, float *panel)
{
    const int64_t pixels = (int64_t)(r->end - r->first) * r->of->w;
    const int64_t width = cpu_padded_count(r->count);
    const int64_t index = element_of(r, r->first);
    if (width > r->count) {
        memset(panel, 0, (size_t)(pixels * width) * sizeof *panel);
    }
    if (r->pairs) {
        pair_images(r, index, pixels, r->count, panel, width);
    } else {
        cpu_load(r->of, index, pixels, r->count, 1, panel, width);
    }
}
