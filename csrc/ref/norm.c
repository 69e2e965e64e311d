/* SPDX-License-Identifier: MIT
 *
 * Batch norm statistics and the brick
 *
 *     z = term 0 + term 1,   out = activation(z) + residual,
 *     a term is v, or gamma * (v - mean) * rstd + beta
 *
 * Backward, with dz = dout * activation'(z), xhat = (v - mean) * rstd, M the number of
 * pixels:  dbeta = sum dz,  dgamma = sum dz xhat,
 *     dv = gamma rstd (dz - dbeta / M - xhat dgamma / M)   statistics of the batch
 *     dv = gamma rstd dz                                   running statistics
 */
#include "math/act.h"
#include "ref/ref.h"

#include <math.h>

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
    const int64_t pixels = ym_pixels(x);
    const double momentum = norm->momentum;
    YM_CHECK(&context->error, norm->batch_statistics || norm->running_mean != NULL,
             YM_ERR_ARGUMENT, "batch norm: no running statistics to normalise with");
    for (int32_t c = 0; c < x->c; c++) {
        if (!norm->batch_statistics) {
            mean[c] = norm->running_mean[c];
            rstd[c] = (float)(1.0 / sqrt((double)norm->running_var[c] + norm->eps));
            continue;
        }
        double m, square_sum;
        batch_statistics(x, c, &m, &square_sum);
        mean[c] = (float)m;
        rstd[c] = (float)(1.0 / sqrt(square_sum / (double)pixels + norm->eps));
        if (norm->update_running && norm->running_mean != NULL) {
            double unbiased = square_sum / (double)(pixels - 1);
            norm->running_mean[c] =
                (float)(momentum * m + (1.0 - momentum) * norm->running_mean[c]);
            norm->running_var[c] =
                (float)(momentum * unbiased + (1.0 - momentum) * norm->running_var[c]);
        }
    }
    return YM_OK;
}

static double term_normal(const ym_term *term, int64_t p, int32_t c)
{
    double v = ref_load(&term->value, p * term->value.pitch + c);
    return (v - term->mean[c]) * term->rstd[c];
}

static double term_scale(const ym_term *term, int32_t c)
{
    return term->norm.gamma != NULL ? term->norm.gamma[c] : 1.0;
}

static double before_activation(const ym_brick *brick, int64_t p, int32_t c)
{
    double z = 0.0;
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        if (!term->has_norm) {
            z += ref_load(&term->value, p * term->value.pitch + c);
            continue;
        }
        z += term_normal(term, p, c) * term_scale(term, c);
        z += term->norm.beta != NULL ? term->norm.beta[c] : 0.0;
    }
    return z;
}

ym_status ref_brick_forward(ym_context *context, const ym_brick *brick, ym_tensor *out)
{
    (void)context;
    for (int64_t p = 0; p < ym_pixels(out); p++) {
        for (int32_t c = 0; c < out->c; c++) {
            double z = before_activation(brick, p, c);
            double value = ym_activate_f64(brick->activation, z);
            if (brick->has_residual) {
                value += ref_load(&brick->residual, p * brick->residual.pitch + c);
            }
            ref_store(out, p * out->pitch + c, value);
        }
    }
    return YM_OK;
}

size_t ref_brick_scratch_bytes(const ym_tensor *out)
{
    (void)out;
    return 0;
}

static double gradient_before_activation(const ym_brick *brick, const ym_tensor *dout,
                                         int64_t p, int32_t c)
{
    double d = ref_load(dout, p * dout->pitch + c);
    if (brick->activation.kind == YM_IDENTITY) {
        return d;
    }
    return ym_activate_backward_f64(brick->activation, before_activation(brick, p, c),
                                    d);
}

static void put_param(float *to, double value, bool accumulate)
{
    if (to != NULL) {
        *to = (float)(accumulate ? *to + value : value);
    }
}

static double value_gradient(const ym_term *term, int64_t p, int32_t c, double dz,
                             const double mean_dz_xhat[2])
{
    if (!term->has_norm) {
        return dz;
    }
    if (term->norm.batch_statistics) {
        dz -= mean_dz_xhat[0] + term_normal(term, p, c) * mean_dz_xhat[1];
    }
    return dz * term_scale(term, c) * term->rstd[c];
}

static void brick_backward_channel(const ym_brick *brick, const ym_tensor *dout,
                                   ym_term_gradient gradient[2], int32_t c)
{
    const int64_t pixels = ym_pixels(dout);
    double mean[2][2] = {{0.0}}; /* of dz and of dz xhat, for each term */
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        if (!term->has_norm) {
            continue;
        }
        double sum = 0.0, product = 0.0;
        for (int64_t p = 0; p < pixels; p++) {
            double dz = gradient_before_activation(brick, dout, p, c);
            sum += dz;
            product += dz * term_normal(term, p, c);
        }
        put_param(term->norm.dbeta == NULL ? NULL : term->norm.dbeta + c, sum,
                  gradient[t].accumulate_beta);
        put_param(term->norm.dgamma == NULL ? NULL : term->norm.dgamma + c, product,
                  gradient[t].accumulate_gamma);
        mean[t][0] = sum / (double)pixels;
        mean[t][1] = product / (double)pixels;
    }
    for (int64_t p = 0; p < pixels; p++) {
        double dz = gradient_before_activation(brick, dout, p, c);
        for (int32_t t = 0; t < brick->term_count; t++) {
            ym_tensor *dvalue = &gradient[t].dvalue;
            if (dvalue->data != NULL) {
                ref_put(dvalue, p * dvalue->pitch + c,
                        value_gradient(&brick->term[t], p, c, dz, mean[t]),
                        gradient[t].accumulate);
            }
        }
    }
}

ym_status ref_brick_backward(ym_context *context, const ym_brick *brick,
                             const ym_tensor *dout, ym_term_gradient gradient[2])
{
    (void)context;
    for (int32_t c = 0; c < dout->c; c++) {
        brick_backward_channel(brick, dout, gradient, c);
    }
    return YM_OK;
}
