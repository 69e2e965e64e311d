/* SPDX-License-Identifier: MIT
 *
 * The brick
 *
 *     z = term 0 + term 1,   out = activation(z) + residual,
 *     a term is v, or gamma * (v - mean) * rstd + beta
 *
 * Backward, with dz = dout * activation'(z), xhat = (v - mean) * rstd, M the number of
 * pixels:  dbeta = sum dz,  dgamma = sum dz xhat,
 *     dv = gamma rstd (dz - dbeta / M - xhat dgamma / M)   statistics of the batch
 *     dv = gamma rstd dz                                   running statistics
 */
#include "core/sharing.h"
#include "math/act.h"
#include "ref/ref.h"

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
                             double mean_dz, double mean_product)
{
    if (!term->has_norm) {
        return dz;
    }
    if (term->norm.batch_statistics) {
        const double v = ref_load(&term->value, p * term->value.pitch + c);
        const double rstd = term->rstd[c];
        dz -= mean_dz + (v - term->mean[c]) * rstd * rstd * mean_product;
    }
    return dz * term_scale(term, c) * term->rstd[c];
}

/* sum: of dz, and of dz (v - mean) of each term, (C) each. */
static void sum_channel(const ym_brick *brick, const ym_tensor *dout, int32_t c,
                        double *sum)
{
    for (int32_t i = 0; i < 1 + brick->term_count; i++) {
        sum[(int64_t)i * dout->c + c] = 0.0;
    }
    for (int64_t p = 0; p < ym_pixels(dout); p++) {
        const double dz = gradient_before_activation(brick, dout, p, c);
        sum[c] += dz;
        for (int32_t t = 0; t < brick->term_count; t++) {
            const ym_term *term = &brick->term[t];
            if (term->has_norm) {
                const double v = ref_load(&term->value, p * term->value.pitch + c);
                sum[(1 + (int64_t)t) * dout->c + c] += dz * (v - term->mean[c]);
            }
        }
    }
}

static void put_params(const ym_brick *brick, const ym_term_gradient gradient[2],
                       int32_t channels, int32_t c, const double *sum)
{
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        const double product = sum[(1 + (int64_t)t) * channels + c];
        if (term->has_norm) {
            put_param(term->norm.dbeta == NULL ? NULL : term->norm.dbeta + c, sum[c],
                      gradient[t].accumulate_beta);
            put_param(term->norm.dgamma == NULL ? NULL : term->norm.dgamma + c,
                      product * term->rstd[c], gradient[t].accumulate_gamma);
        }
    }
}

static void put_values(const ym_brick *brick, const ym_tensor *dout,
                       ym_term_gradient gradient[2], const double *sum, double pixels)
{
    for (int64_t p = 0; p < ym_pixels(dout); p++) {
        for (int32_t c = 0; c < dout->c; c++) {
            const double dz = gradient_before_activation(brick, dout, p, c);
            for (int32_t t = 0; t < brick->term_count; t++) {
                ym_tensor *dvalue = &gradient[t].dvalue;
                const double product = sum[(1 + (int64_t)t) * dout->c + c];
                if (dvalue->data != NULL) {
                    ref_put(dvalue, p * dvalue->pitch + c,
                            value_gradient(&brick->term[t], p, c, dz, sum[c] / pixels,
                                           product / pixels),
                            gradient[t].accumulate);
                }
            }
        }
    }
}

size_t ref_brick_scratch_bytes(const ym_tensor *out)
{
    return (3 * (size_t)out->c + 1) * sizeof(double);
}

ym_status ref_brick_backward(ym_context *context, const ym_brick *brick,
                             const ym_tensor *dout, ym_term_gradient gradient[2])
{
    const ym_sharing *sharing = ym_shared_sums(brick, gradient);
    const int64_t count = ym_shared_sum_count(brick, dout->c);
    double *sum = context->scratch;
    YM_CHECK(&context->error, context->scratch_bytes >= ref_brick_scratch_bytes(dout),
             YM_ERR_ARGUMENT, "brick: %zu bytes of scratch are too few",
             context->scratch_bytes);
    for (int32_t c = 0; c < dout->c; c++) {
        sum_channel(brick, dout, c, sum);
        put_params(brick, gradient, dout->c, c, sum);
    }
    sum[count - 1] = (double)ym_pixels(dout);
    if (sharing != NULL) {
        YM_TRY(ym_sum_shared(context, sharing, sum, count));
    }
    put_values(brick, dout, gradient, sum, sum[count - 1]);
    return YM_OK;
}
