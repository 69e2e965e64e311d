/* SPDX-License-Identifier: MIT
 *
 * Batch norm statistics. Groups of rows that fit the second-level cache are read twice,
 * for their mean and for the deviations from it, and merged in double (math/norm.h):
 * one pass over memory and no cancellation when |mean| >> std.
 */
#include "core/sharing.h"
#include "cpu/rows.h"
#include "math/norm.h"

#include <math.h>
#include <string.h>

enum { GROUP_ROWS = 64 };

typedef struct run {
    const ym_tensor *x;
    const cpu_kernels *kernels;
    int32_t blocks;
    double *partials; /* (blocks, 2, C): mean, sum of squared deviations */
} run;

size_t cpu_norm_scratch_bytes(const ym_tensor *x)
{
    return (size_t)cpu_sum_blocks(x) * 2 * (size_t)x->c * sizeof(double);
}

/* In double: a mean far smaller than the values is as exact as they are. */
static void group_mean(const run *r, const cpu_patch *patch, int64_t first, int64_t end,
                       double *mean)
{
    float buffer[CPU_ROW];
    double sum[CPU_ROW] = {0};
    memset(mean, 0, (size_t)patch->count * sizeof *mean);
    for (int64_t p = first; p < end; p += patch->row_pixels) {
        const int32_t pixels = (int32_t)cpu_min(patch->row_pixels, end - p);
        const float *row = cpu_row(r->x, patch, p, pixels, buffer);
        r->kernels->add_to_double(pixels * patch->count, row, sum);
    }
    cpu_fold(patch, sum, mean);
    for (int32_t c = 0; c < patch->count; c++) {
        mean[c] /= (double)(end - first);
    }
}

static void add_group(const run *r, const cpu_patch *patch, int64_t first, int64_t end,
                      double *mean_of, double *squares_of)
{
    float near[CPU_ROW], buffer[CPU_ROW], squares[CPU_ROW] = {0};
    double mean[CPU_ROW], row_squares[CPU_ROW] = {0}, all_squares[CPU_ROW] = {0};
    const double count = (double)(end - first), before = (double)(first - patch->first);
    group_mean(r, patch, first, end, mean);
    for (int32_t c = 0; c < patch->count; c++) {
        near[c] = (float)mean[c];
    }
    cpu_repeat(patch->row_pixels, patch->count, near);
    for (int64_t p = first; p < end; p += patch->row_pixels) {
        const int32_t pixels = (int32_t)cpu_min(patch->row_pixels, end - p);
        const float *row = cpu_row(r->x, patch, p, pixels, buffer);
        r->kernels->add_squares(pixels * patch->count, row, near, squares);
    }
    r->kernels->add_to_double(CPU_ROW, squares, row_squares);
    cpu_fold(patch, row_squares, all_squares);
    for (int32_t c = 0; c < patch->count; c++) {
        const double off = mean[c] - near[c];
        ym_merge_moments(&mean_of[c], &squares_of[c], before, count, mean[c],
                         all_squares[c] - off * off * count);
    }
}

static void statistics_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_patch patch = cpu_patch_of(r->x, r->blocks, index);
    const int32_t block = index / cpu_channel_parts(r->x->c);
    double *mean = r->partials + (int64_t)block * 2 * r->x->c + patch.channel;
    double *squares = mean + r->x->c;
    const int64_t step = (int64_t)GROUP_ROWS * patch.row_pixels;
    memset(mean, 0, (size_t)patch.count * sizeof *mean);
    memset(squares, 0, (size_t)patch.count * sizeof *squares);
    for (int64_t p = patch.first; p < patch.end; p += step) {
        add_group(r, &patch, p, cpu_min(p + step, patch.end), mean, squares);
    }
}

/* The blocks' partials, merged. */
static void merge_blocks(const run *r, int32_t c, double *mean, double *squares)
{
    const int64_t pixels = ym_pixels(r->x);
    *mean = *squares = 0.0;
    for (int32_t block = 0; block < r->blocks; block++) {
        const double *partial = r->partials + (int64_t)block * 2 * r->x->c + c;
        const int64_t before = cpu_part(pixels, r->blocks, block);
        const int64_t count = cpu_part(pixels, r->blocks, block + 1) - before;
        ym_merge_moments(mean, squares, (double)before, (double)count, partial[0],
                         partial[r->x->c]);
    }
}

static ym_status make_partials(ym_context *context, const ym_tensor *x, run *r)
{
    YM_CHECK(&context->error, context->scratch_bytes >= cpu_norm_scratch_bytes(x),
             YM_ERR_ARGUMENT, "batch norm: %zu bytes of scratch are too few",
             context->scratch_bytes);
    *r = (run){.x = x,
               .kernels = cpu_kernels_best(),
               .blocks = cpu_sum_blocks(x),
               .partials = context->scratch};
    ym_pool_run(statistics_task, r, r->blocks * cpu_channel_parts(x->c));
    return YM_OK;
}

ym_status cpu_norm_statistics(ym_context *context, const ym_tensor *x,
                              const ym_norm *norm, float *mean, float *rstd)
{
    run r;
    if (!norm->batch_statistics) {
        for (int32_t c = 0; c < x->c; c++) {
            ym_known_statistics(norm, c, mean, rstd);
        }
        return YM_OK;
    }
    YM_TRY(make_partials(context, x, &r));
    for (int32_t c = 0; c < x->c; c++) {
        double m, squares;
        merge_blocks(&r, c, &m, &squares);
        ym_finish_statistics(norm, c, (double)ym_pixels(x), m, squares, mean, rstd);
    }
    return YM_OK;
}

ym_status cpu_norm_moments(ym_context *context, const ym_tensor *x, double *part)
{
    run r;
    YM_TRY(make_partials(context, x, &r));
    for (int32_t c = 0; c < x->c; c++) {
        merge_blocks(&r, c, &part[c], &part[x->c + c]);
    }
    part[ym_moment_count(x->c) - 1] = (double)ym_pixels(x);
    return YM_OK;
}
