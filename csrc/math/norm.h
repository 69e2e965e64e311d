/* SPDX-License-Identifier: MIT
 *
 * Batch norm statistics of one channel, from the mean and the sum of squared deviations
 * of its values. Parts are merged as in Chan, Golub, LeVeque 1979.
 */
#ifndef YM_MATH_NORM_H
#define YM_MATH_NORM_H

#include <math.h>

#include "core/backend.h"
#include "math/function.h"

/* Merges `count` more values into the moments of those before. */
YM_MATH void ym_merge_moments(double *mean, double *squares, double before,
                              double count, double more_mean, double more_squares)
{
    const double delta = more_mean - *mean, all = before + count;
    *mean += delta * count / all;
    *squares += more_squares + delta * delta * before * count / all;
}

/* Those that the batch does not tell: running ones, or constants. */
YM_MATH void ym_known_statistics(const ym_norm *norm, int32_t c, float *mean_out,
                                 float *rstd_out)
{
    const bool runs = norm->running_mean != NULL;
    mean_out[c] = runs ? norm->running_mean[c] : norm->constant_mean;
    rstd_out[c] = runs ? (float)(1.0 / sqrt((double)norm->running_var[c] + norm->eps))
                       : norm->constant_rstd;
}

/* mean, rstd = 1 / sqrt(biased variance + eps), and the running statistics, which take
 * the unbiased variance. */
YM_MATH void ym_finish_statistics(const ym_norm *norm, int32_t c, double count,
                                  double mean, double squares, float *mean_out,
                                  float *rstd_out)
{
    mean_out[c] = (float)mean;
    rstd_out[c] = (float)(1.0 / sqrt(squares / count + norm->eps));
    if (norm->update_running && norm->running_mean != NULL) {
        const double momentum = norm->momentum, unbiased = squares / (count - 1.0);
        norm->running_mean[c] =
            (float)(momentum * mean + (1.0 - momentum) * norm->running_mean[c]);
        norm->running_var[c] =
            (float)(momentum * unbiased + (1.0 - momentum) * norm->running_var[c]);
    }
}

/* The same from the moments of several processes (core/sharing.h), in their order. */
YM_MATH void ym_merge_parts(const double *parts, int32_t channels, const ym_norm *norm,
                            int32_t c, float *mean_out, float *rstd_out)
{
    double count = 0, mean = 0, squares = 0;
    for (int32_t p = 0; p < norm->sharing.processes; p++) {
        const double *part = parts + p * (2 * (int64_t)channels + 1);
        const double more = part[2 * (int64_t)channels];
        if (more > 0) {
            ym_merge_moments(&mean, &squares, count, more, part[c], part[channels + c]);
        }
        count += more;
    }
    ym_finish_statistics(norm, c, count, mean, squares, mean_out, rstd_out);
}

#endif
