/* SPDX-License-Identifier: MIT
 *
 * Batch norm statistics: mean and rstd of each channel, from the batch, of the parts of
 * several processes, or as they are known (math/norm.h).
 */
#include "core/sharing.h"
#include "math/norm.h"
#include "ref/ref.h"

size_t ref_norm_scratch_bytes(const ym_tensor *x)
{
    (void)x;
    return 0;
}

static void batch_statistics(const ym_tensor *x, int32_t c, double *mean,
                             double *square_sum)
{
    const int64_t pixels = ym_pixels(x);
    double sum = 0.0;
    for (int64_t p = 0; p < pixels; p++) {
        sum += ref_load(x, p * x->pitch + c);
    }
    *mean = sum / (double)pixels;
    *square_sum = 0.0;
    for (int64_t p = 0; p < pixels; p++) {
        double d = ref_load(x, p * x->pitch + c) - *mean;
        *square_sum += d * d;
    }
}

ym_status ref_norm_statistics(ym_context *context, const ym_tensor *x,
                              const ym_norm *norm, float *mean, float *rstd)
{
    (void)context;
    for (int32_t c = 0; c < x->c; c++) {
        if (!norm->batch_statistics) {
            ym_known_statistics(norm, c, mean, rstd);
            continue;
        }
        double m, square_sum;
        batch_statistics(x, c, &m, &square_sum);
        ym_finish_statistics(norm, c, (double)ym_pixels(x), m, square_sum, mean, rstd);
    }
    return YM_OK;
}

ym_status ref_norm_moments(ym_context *context, const ym_tensor *x, double *part)
{
    (void)context;
    for (int32_t c = 0; c < x->c; c++) {
        batch_statistics(x, c, &part[c], &part[x->c + c]);
    }
    part[ym_moment_count(x->c) - 1] = (double)ym_pixels(x);
    return YM_OK;
}

ym_status ref_norm_merge(ym_context *context, const double *parts, int32_t channels,
                         const ym_norm *norm, float *mean, float *rstd)
{
    (void)context;
    for (int32_t c = 0; c < channels; c++) {
        ym_merge_parts(parts, channels, norm, c, mean, rstd);
    }
    return YM_OK;
}
