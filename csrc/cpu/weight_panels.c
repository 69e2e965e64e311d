/* SPDX-License-Identifier: MIT */
#include "cpu/weight_panels.h"
#include "cpu/padded_row.h"

#include <string.h>

enum { TOGETHER = 16 }; /* input channels: a line of the cache */

static int64_t element_of(const cpu_rows *r, int32_t row)
{
    return ((int64_t)r->n * r->of->h + row) * r->of->w * r->of->pitch + r->channel;
}

/* `count` channels of `pixels` pixels from element `index` of the first image on. */
static void pair_images(const cpu_rows *r, int64_t index, int64_t pixels, int32_t count,
                        float *to, int64_t to_pitch)
{
    const ym_tensor *x = r->of;
    if (x->pitch == count && to_pitch == count && count * pixels <= INT32_MAX) {
        count *= (int32_t)pixels; /* one long row */
        pixels = 1;
    }
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

void cpu_pack_part(const cpu_rows *r, int32_t part, float *panel)
{
    const int32_t size = cpu_part_size(r->count, part), width = r->of->w;
    const int32_t c = cpu_part_first(r->count, part);
    for (int32_t row = r->first; row < r->end; row++, panel += width * size) {
        const int64_t index = element_of(r, row) + c;
        if (r->pairs) {
            pair_images(r, index, width, size, panel, size);
        } else if (r->of->dtype == YM_F32) {
            cpu_kernels_best()->pack(width, size, (const float *)r->of->data + index,
                                     r->of->pitch, panel);
        } else {
            cpu_load(r->of, index, width, size, 1, panel, size);
        }
    }
}

void cpu_pack_padded(const cpu_rows *r, int32_t left, int32_t width, float *panel)
{
    cpu_image_row row = {
        .n = r->n, .h = r->first, .first = -left, .count = width, .step = 1};
    for (; row.h < r->end; row.h++, panel += (int64_t)width * r->count) {
        const cpu_inside inside = cpu_inside_of(r->of, &row);
        const int64_t index = inside.pixel * r->of->pitch + r->channel;
        float *to = cpu_zeros_around(&row, &inside, r->count, panel);
        if (r->pairs) {
            pair_images(r, index, inside.count, r->count, to, r->count);
        } else {
            cpu_load(r->of, index, inside.count, r->count, 1, to, r->count);
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

/* The outputs of [first, end) whose tap falls inside the image. */
static void valid_range(int32_t offset, int32_t stride, int32_t size, int32_t *first,
                        int32_t *end)
{
    int32_t low = offset < 0 ? (-offset + stride - 1) / stride : 0;
    int32_t high = offset >= size ? 0 : (size - 1 - offset) / stride + 1;
    *first = (int32_t)cpu_max(*first, low);
    *end = (int32_t)cpu_max(*first, cpu_min(*end, high));
}

bool cpu_meet(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy,
              const cpu_visit *v, const int32_t tap[2], int64_t c, cpu_product *product)
{
    const int32_t width = x->w;
    const int32_t h = tap[0] * conv->dilation_h - conv->pad_h;
    const int32_t w = tap[1] * conv->dilation_w - conv->pad_w;
    int32_t first_h = v->first, end_h = v->end, first_w = 0, end_w = dy->w;
    valid_range(h, conv->stride_h, x->h, &first_h, &end_h);
    valid_range(w, conv->stride_w, width, &first_w, &end_w);
    if (first_h == end_h || first_w == end_w) {
        return false;
    }
    const int64_t rows = product->rows, b_step = product->c_row;
    const int64_t x_row = first_h * conv->stride_h + h - v->low;
    const int64_t x_column = first_w * conv->stride_w + w;
    product->loop[1] =
        (cpu_loop){end_h - first_h, conv->stride_h * rows * width, dy->w * b_step};
    product->loop[2] = (cpu_loop){end_w - first_w, conv->stride_w * rows, b_step};
    product->a = v->x + c * (v->high - v->low) * width +
                 (x_row * width + x_column) * rows;
    product->b = v->dy + ((int64_t)(first_h - v->first) * dy->w + first_w) * b_step;
    return true;
}

bool cpu_meet_row(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy,
                  const cpu_visit *v, int32_t row, cpu_product *product)
{
    const int32_t h = row * conv->dilation_h - conv->pad_h;
    int32_t first = v->first, end = v->end;
    valid_range(h, conv->stride_h, x->h, &first, &end);
    if (first == end) {
        return false;
    }
    const int64_t b_step = product->c_row, count = conv->c / conv->groups;
    const int64_t width = cpu_joined_width(conv, dy) * count;
    product->loop[1] = (cpu_loop){end - first, conv->stride_h * width, dy->w * b_step};
    product->loop[2] = (cpu_loop){dy->w, conv->stride_w * count, b_step};
    product->a = v->x + (first * (int64_t)conv->stride_h + h - v->low) * width;
    product->b = v->dy + (int64_t)(first - v->first) * dy->w * b_step;
    return true;
}

/* A column at a time, as weights lie in memory; `to` is of the first. */
static void store_columns(const ym_weight *dw, int32_t columns, int32_t count,
                          const float *sums, bool accumulate, float *to)
{
    const int64_t width = cpu_padded_count(columns);
    for (int32_t j = 0; j < columns; j++, to += dw->stride_k) {
        for (int32_t i = 0; i < count; i++) {
            float *element = to + i * dw->stride_c;
            const float sum = sums[i * width + j];
            *element = accumulate ? *element + sum : sum;
        }
    }
}

/* With few channels, a column's neighbouring taps at a time: tap by tap, what lies a
 * large kernel apart would evict one another from the cache. */
static void store_taps(const ym_conv *conv, const ym_weight *dw,
                       const cpu_weight_patch *p, int32_t first, const float *sums,
                       bool accumulate)
{
    const int64_t width = cpu_padded_count(p->columns);
    const int32_t taps = (int32_t)cpu_min(TOGETHER, conv->r * conv->s - first);
    int64_t offset[TOGETHER];
    for (int32_t i = 0; i < taps; i++) {
        offset[i] = (first + i) / conv->s * dw->stride_r +
                    (first + i) % conv->s * dw->stride_s;
    }
    for (int32_t j = 0; j < p->columns; j++) {
        for (int32_t c = 0; c < p->count; c++) {
            float *to = dw->data + (p->k + j) * dw->stride_k +
                        (p->c + c) * dw->stride_c;
            for (int32_t i = 0; i < taps; i++) {
                const float sum =
                    sums[((int64_t)(first + i) * p->count + c) * width + j];
                to[offset[i]] = accumulate ? to[offset[i]] + sum : sum;
            }
        }
    }
}

/* Some input channels of all taps at a time, as taps are neighbours. */
void cpu_store_weights(const ym_conv *conv, const ym_weight *dw,
                       const cpu_weight_patch *p, const float *sums, bool accumulate)
{
    const int64_t width = cpu_padded_count(p->columns);
    if (p->count < TOGETHER / 2) {
        for (int32_t first = 0; first < conv->r * conv->s; first += TOGETHER) {
            store_taps(conv, dw, p, first, sums, accumulate);
        }
        return;
    }
    for (int32_t c = 0; c < p->count; c += TOGETHER) {
        const int32_t count = (int32_t)cpu_min(TOGETHER, p->count - c);
        float *to = dw->data + p->k * dw->stride_k + (p->c + c) * dw->stride_c;
        for (int32_t tap = 0; tap < conv->r * conv->s; tap++) {
            store_columns(dw, p->columns, count,
                          sums + ((int64_t)tap * p->count + c) * width, accumulate,
                          to + tap / conv->s * dw->stride_r +
                              tap % conv->s * dw->stride_s);
        }
    }
}
