/* SPDX-License-Identifier: MIT
 *
 * Products of two tensors, repeated and summed along sides of 1 (rules:
 * core/backend.h). Both work on chunks: some pixels of one image row and some of their
 * channels, as many as a row of floats holds (cpu/rows.h).
 */
#include "cpu/rows.h"

#include <string.h>

enum {
    TASKS = 16, /* that a sum over all pixels is made of at least, if it can be */
    SUMS = 8,   /* of doubles at a time */
};

typedef struct run {
    const ym_tensor *a, *b; /* b NULL: ones */
    ym_tensor *y;
    const cpu_kernels *kernels;
    ym_extent all; /* that is multiplied */
    int32_t parts; /* of the channels, for tasks */
    float divisor; /* 1 / scale, which is whole where it is not 1 */
    bool accumulate;
} run;

typedef struct chunk {
    int32_t n, h, w, pixels;
    int32_t channel, count;
} chunk;

static bool is_reduced(const run *r)
{
    const ym_tensor *y = r->y;
    return y->n < r->all.n || y->h < r->all.h || y->w < r->all.w || y->c < r->all.c;
}

/* One scalar for each pixel becomes `count` of them. */
static void spread(const float *scalars, int32_t pixels, int32_t count, float *row)
{
    for (int32_t p = 0; p < pixels; p++) {
        for (int32_t i = 0; i < count; i++) {
            row[p * count + i] = scalars[p];
        }
    }
}

/* A factor's chunk as floats: in x itself or in the buffer. */
static const float *factor(const ym_tensor *x, const chunk *at, float *buffer)
{
    const bool wide = x->w > 1 || at->pixels == 1, deep = x->c > 1 || at->count == 1;
    const int64_t pixel =
        ((int64_t)(x->n == 1 ? 0 : at->n) * x->h + (x->h == 1 ? 0 : at->h)) * x->w +
        (x->w == 1 ? 0 : at->w);
    const int64_t index = pixel * x->pitch + (x->c == 1 ? 0 : at->channel);
    const int32_t pixels = wide ? at->pixels : 1, count = deep ? at->count : 1;
    if (wide && deep && x->dtype == YM_F32 && (pixels == 1 || x->pitch == count)) {
        return (const float *)x->data + index;
    }
    float scalars[CPU_ROW];
    float *loaded = deep ? buffer : scalars;
    cpu_load(x, index, pixels, count, 1, loaded, count);
    if (!deep && wide) {
        spread(scalars, pixels, at->count, buffer);
    } else if (!deep) {
        spread(scalars, 1, at->pixels * at->count, buffer);
    } else if (!wide) {
        cpu_repeat(at->pixels, count, buffer);
    }
    return buffer;
}

static int64_t place_in(const ym_tensor *y, const chunk *at)
{
    return (((int64_t)at->n * y->h + at->h) * y->w + at->w) * y->pitch + at->channel;
}

static void store(const run *r, const chunk *at, float *row)
{
    const int64_t index = place_in(r->y, at);
    const int32_t floats = at->pixels * at->count;
    if (r->divisor != 1) {
        r->kernels->divide(floats, r->divisor, row);
    }
    if (r->accumulate) {
        float old[CPU_ROW];
        cpu_load(r->y, index, at->pixels, at->count, 1, old, at->count);
        r->kernels->add(floats, old, row);
    }
    cpu_store(row, at->count, at->pixels, at->count, r->y, index, 1);
}

/* Where y has all sides in full: one image row. */
static void map_task(void *argument, int32_t row)
{
    const run *r = argument;
    for (int32_t part = 0; part < r->parts; part++) {
        chunk at = {.n = row / r->all.h, .h = row % r->all.h};
        at.channel = (int32_t)cpu_part(r->all.c, r->parts, part);
        at.count = (int32_t)cpu_part(r->all.c, r->parts, part + 1) - at.channel;
        const int32_t most = CPU_ROW / at.count;
        for (at.w = 0; at.w < r->all.w; at.w += at.pixels) {
            float result[CPU_ROW], buffer[CPU_ROW];
            at.pixels = (int32_t)cpu_min(most, r->all.w - at.w);
            const int32_t floats = at.pixels * at.count;
            const float *a = factor(r->a, &at, result);
            if (a != result) {
                memcpy(result, a, (size_t)floats * sizeof *result);
            }
            if (r->b != NULL) {
                r->kernels->multiply(floats, factor(r->b, &at, buffer), result);
            }
            store(r, &at, result);
        }
    }
}

/* The images or image rows [first, end) that make one of y: itself, or all. */
typedef struct range {
    int32_t first, end;
} range;

static range sources_of(int32_t i, int32_t of_y, int32_t side)
{
    return of_y == side ? (range){i, i + 1} : (range){0, side};
}

/* Adds the chunk of each image row to the total, in float for some rows at a time. */
static void sum_rows(const run *r, range images, range rows, chunk at, double *total)
{
    const int32_t floats = at.pixels * at.count;
    float sum[CPU_ROW] = {0}, left[CPU_ROW], right[CPU_ROW];
    int32_t summed = 0;
    for (at.n = images.first; at.n < images.end; at.n++) {
        for (at.h = rows.first; at.h < rows.end; at.h++) {
            const float *a = factor(r->a, &at, left);
            if (r->b != NULL) {
                r->kernels->add_product(floats, a, factor(r->b, &at, right), sum);
            } else {
                r->kernels->add(floats, a, sum);
            }
            const bool is_last = at.n + 1 == images.end && at.h + 1 == rows.end;
            if (++summed < CPU_FLUSH_ROWS && !is_last) {
                continue;
            }
            r->kernels->add_to_double(floats, sum, total);
            memset(sum, 0, (size_t)floats * sizeof *sum);
            summed = 0;
        }
    }
}

/* Several sums at a time: one after the other each would wait for the one before. */
static double sum_of(const double *x, int32_t count)
{
    double part[SUMS] = {0}, sum = 0;
    int32_t i = 0;
    for (; i + SUMS <= count; i += SUMS) {
        for (int32_t j = 0; j < SUMS; j++) {
            part[j] += x[i + j];
        }
    }
    for (; i < count; i++) {
        sum += x[i];
    }
    for (int32_t j = 0; j < SUMS; j++) {
        sum += part[j];
    }
    return sum;
}

/* Sums up the pixels, the channels or both of a chunk. */
static void fold(const double *total, const chunk *at, bool each_pixel,
                 bool each_channel, double *out)
{
    if (!each_pixel && !each_channel) {
        *out += sum_of(total, at->pixels * at->count);
        return;
    }
    for (int32_t p = 0; p < at->pixels; p++, total += at->count) {
        if (!each_channel) {
            out[p] += sum_of(total, at->count);
            continue;
        }
        double *to = out + (each_pixel ? p * at->count : 0);
        for (int32_t i = 0; i < at->count; i++) {
            to[i] += total[i];
        }
    }
}

/* The sums of one row of y, of the channels [first, end). */
static void sum_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_tensor *y = r->y;
    const bool each_pixel = y->w == r->all.w, each_channel = y->c == r->all.c;
    const int32_t row = index / r->parts, part = index % r->parts;
    const int32_t first = (int32_t)cpu_part(r->all.c, r->parts, part);
    const int32_t end = (int32_t)cpu_part(r->all.c, r->parts, part + 1);
    const int32_t most_channels = (int32_t)cpu_min(end - first, CPU_ROW);
    const range images = sources_of(row / y->h, y->n, r->all.n);
    const range rows = sources_of(row % y->h, y->h, r->all.h);
    double out[CPU_ROW] = {0};
    chunk at = {0};
    for (int32_t w = 0; w < r->all.w; w += at.pixels) {
        at = (chunk){.w = w, .channel = first};
        at.pixels = (int32_t)cpu_min(CPU_ROW / most_channels, r->all.w - w);
        for (; at.channel < end; at.channel += at.count) {
            double total[CPU_ROW] = {0};
            at.count = (int32_t)cpu_min(most_channels, end - at.channel);
            sum_rows(r, images, rows, at, total);
            fold(total, &at, each_pixel, each_channel, out);
        }
        if (!each_pixel && w + at.pixels < r->all.w) {
            continue;
        }
        const chunk to = {.n = row / y->h,
                          .h = row % y->h,
                          .w = each_pixel ? w : 0,
                          .pixels = each_pixel ? at.pixels : 1,
                          .channel = each_channel ? first : 0,
                          .count = each_channel ? end - first : 1};
        float result[CPU_ROW];
        for (int32_t i = 0; i < to.pixels * to.count; i++) {
            result[i] = (float)out[i];
            out[i] = 0;
        }
        store(r, &to, result);
    }
}

/* Tasks have whole rows of floats, and are some even where y is one image of one
 * pixel. What a task sums does not depend on how many threads there are. */
static int32_t channel_parts(const run *r)
{
    int32_t parts = cpu_channel_parts(r->all.c);
    while (r->y->n * r->y->h * parts < TASKS && r->all.c / parts >= 64) {
        parts *= 2;
    }
    return parts;
}

size_t cpu_multiply_scratch_bytes(const ym_tensor *a, const ym_tensor *b,
                                  const ym_tensor *y)
{
    (void)a, (void)b, (void)y;
    return 0;
}

ym_status cpu_multiply(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                       double scale, ym_tensor *y, bool accumulate)
{
    (void)context;
    run r = {.a = a, .b = b->data != NULL ? b : NULL, .y = y};
    r.kernels = cpu_kernels_best();
    r.all = ym_span(a, b, y);
    r.divisor = (float)(1 / scale);
    r.accumulate = accumulate;
    if (!is_reduced(&r)) {
        r.parts = cpu_channel_parts(r.all.c);
        ym_pool_run(map_task, &r, r.all.n * r.all.h);
        return YM_OK;
    }
    r.parts = y->c == r.all.c ? channel_parts(&r) : 1;
    ym_pool_run(sum_task, &r, y->n * y->h * r.parts);
    return YM_OK;
}
