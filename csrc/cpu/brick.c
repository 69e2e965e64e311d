/* SPDX-License-Identifier: MIT
 *
 * The brick, forward and backward (formulas: ref/norm.c). Backward makes the
 * pre-activation again from the terms in both of its passes, the sums and the values:
 * reading them twice costs less than writing dz out in between.
 */
#include "cpu/rows.h"

#include <string.h>

typedef struct run {
    const ym_brick *brick;
    const cpu_kernels *kernels;
    ym_tensor *out;        /* forward */
    const ym_tensor *dout; /* backward */
    ym_term_gradient *gradient;
    int32_t blocks;
    double *sums; /* (blocks, 3, C): dz, dz (v0 - mean0), dz (v1 - mean1) */
} run;

/* z = (v0 - mean0) scale0 + (v1 - mean1) scale1 + shift, a row of each. */
typedef struct coefficients {
    float mean[2][CPU_ROW], scale[2][CPU_ROW], shift[CPU_ROW];
} coefficients;

static float scale_of(const ym_term *term, int32_t c)
{
    if (!term->has_norm) {
        return 1.0f;
    }
    return (term->norm.gamma != NULL ? term->norm.gamma[c] : 1.0f) * term->rstd[c];
}

static void fill_coefficients(const ym_brick *brick, const cpu_patch *patch,
                              coefficients *to)
{
    memset(to->shift, 0, sizeof to->shift);
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        for (int32_t i = 0; i < patch->count; i++) {
            const int32_t c = patch->channel + i;
            to->mean[t][i] = term->has_norm ? term->mean[c] : 0.0f;
            to->scale[t][i] = scale_of(term, c);
            if (term->has_norm && term->norm.beta != NULL) {
                to->shift[i] += term->norm.beta[c];
            }
        }
        cpu_repeat(patch, to->mean[t]);
        cpu_repeat(patch, to->scale[t]);
    }
    cpu_repeat(patch, to->shift);
}

typedef struct row_buffers {
    float value[2][CPU_ROW], d[CPU_ROW], z[CPU_ROW], dvalue[CPU_ROW];
    const float *v[2];
} row_buffers;

static void load_terms(const run *r, const cpu_patch *patch, int64_t p, int32_t pixels,
                       row_buffers *rows)
{
    for (int32_t t = 0; t < r->brick->term_count; t++) {
        rows->v[t] = cpu_row(&r->brick->term[t].value, patch, p, pixels, rows->value[t]);
    }
}

static void combine_terms(const run *r, const coefficients *k, int32_t n,
                          const row_buffers *rows, float *z)
{
    r->kernels->affine(n, rows->v[0], k->mean[0], k->scale[0], k->shift, z);
    if (r->brick->term_count > 1) {
        r->kernels->affine_add(n, rows->v[1], k->mean[1], k->scale[1], z);
    }
}

static void forward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_brick *brick = r->brick;
    const cpu_patch patch = cpu_patch_of(r->out, r->blocks, index);
    coefficients k;
    row_buffers rows;
    fill_coefficients(brick, &patch, &k);
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        const int32_t pixels = cpu_row_pixels(&patch, p), n = pixels * patch.count;
        float *z = cpu_row_to(r->out, &patch, p, pixels, rows.z);
        load_terms(r, &patch, p, pixels, &rows);
        combine_terms(r, &k, n, &rows, z);
        r->kernels->activate(n, brick->activation, brick->slope, z);
        if (brick->has_residual) {
            r->kernels->add(n, cpu_row(&brick->residual, &patch, p, pixels, rows.d), z);
        }
        cpu_row_done(r->out, &patch, p, pixels, z);
    }
}

ym_status cpu_brick_forward(ym_context *context, const ym_brick *brick, ym_tensor *out)
{
    (void)context;
    run r = {.brick = brick, .kernels = cpu_kernels_best(), .out = out};
    r.blocks = cpu_map_blocks(out);
    ym_pool_run(forward_task, &r, r.blocks * cpu_channel_parts(out->c));
    return YM_OK;
}

size_t cpu_brick_scratch_bytes(const ym_tensor *out)
{
    return (size_t)cpu_sum_blocks(out) * 3 * (size_t)out->c * sizeof(double);
}

/* rows->z = dz of the row at pixel p; the terms are in rows->v. */
static void row_dz(const run *r, const cpu_patch *patch, const coefficients *k, int64_t p,
                   int32_t pixels, row_buffers *rows)
{
    const ym_brick *brick = r->brick;
    const int32_t n = pixels * patch->count;
    const float *d = cpu_row(r->dout, patch, p, pixels, rows->d);
    load_terms(r, patch, p, pixels, rows);
    if (brick->activation != YM_IDENTITY) {
        combine_terms(r, k, n, rows, rows->z);
    }
    r->kernels->activate_backward(n, brick->activation, brick->slope, d, rows->z);
}

static void flush(const cpu_patch *patch, int32_t channels, float sum[3][CPU_ROW],
                  double *to)
{
    for (int32_t i = 0; i < 3; i++) {
        cpu_fold(patch, sum[i]);
        for (int32_t c = 0; c < patch->count; c++) {
            to[(int64_t)i * channels + patch->channel + c] += sum[i][c];
        }
        memset(sum[i], 0, CPU_ROW * sizeof sum[i][0]);
    }
}

static void sum_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t channels = r->dout->c;
    const cpu_patch patch = cpu_patch_of(r->dout, r->blocks, index);
    double *to =
        r->sums + (int64_t)(index / cpu_channel_parts(channels)) * 3 * channels;
    coefficients k;
    row_buffers rows;
    float sum[3][CPU_ROW] = {{0}};
    int32_t waiting = 0;
    for (int32_t i = 0; i < 3; i++) {
        memset(to + (int64_t)i * channels + patch.channel, 0,
               (size_t)patch.count * sizeof *to);
    }
    fill_coefficients(r->brick, &patch, &k);
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        const int32_t pixels = cpu_row_pixels(&patch, p), n = pixels * patch.count;
        row_dz(r, &patch, &k, p, pixels, &rows);
        r->kernels->add(n, rows.z, sum[0]);
        for (int32_t t = 0; t < r->brick->term_count; t++) {
            if (r->brick->term[t].has_norm) {
                r->kernels->add_product(n, rows.z, rows.v[t], k.mean[t], sum[1 + t]);
            }
        }
        if (++waiting == CPU_FLUSH_ROWS) {
            flush(&patch, channels, sum, to);
            waiting = 0;
        }
    }
    flush(&patch, channels, sum, to);
}

static void put_param(float *to, int32_t c, double value, bool accumulate)
{
    if (to != NULL) {
        to[c] = (float)(accumulate ? to[c] + value : value);
    }
}

/* Brings the blocks' sums together in block 0 and writes dgamma and dbeta. */
static void finish_sums(const run *r)
{
    const int32_t channels = r->dout->c;
    for (int32_t block = 1; block < r->blocks; block++) {
        const double *more = r->sums + (int64_t)block * 3 * channels;
        for (int32_t i = 0; i < 3 * channels; i++) {
            r->sums[i] += more[i];
        }
    }
    for (int32_t t = 0; t < r->brick->term_count; t++) {
        const ym_term *term = &r->brick->term[t];
        const double *product = r->sums + (int64_t)(1 + t) * channels;
        const bool accumulate = r->gradient[t].accumulate_param;
        for (int32_t c = 0; term->has_norm && c < channels; c++) {
            put_param(term->norm.dbeta, c, r->sums[c], accumulate);
            put_param(term->norm.dgamma, c, product[c] * term->rstd[c], accumulate);
        }
    }
}

/* The last two rows of normalise_backward: dz's mean and the slope over v - mean. */
static void fill_back_coefficients(const run *r, const cpu_patch *patch, int32_t t,
                                   float *d_mean, float *slope)
{
    const ym_term *term = &r->brick->term[t];
    const double pixels = (double)ym_pixels(r->dout);
    memset(d_mean, 0, CPU_ROW * sizeof *d_mean);
    memset(slope, 0, CPU_ROW * sizeof *slope);
    if (!term->has_norm || !term->norm.batch_statistics) {
        return;
    }
    for (int32_t i = 0; i < patch->count; i++) {
        const int32_t c = patch->channel + i;
        const double product = r->sums[(int64_t)(1 + t) * r->dout->c + c];
        const double rstd = term->rstd[c];
        d_mean[i] = (float)(r->sums[c] / pixels);
        slope[i] = (float)(scale_of(term, c) * rstd * rstd * product / pixels);
    }
    cpu_repeat(patch, d_mean);
    cpu_repeat(patch, slope);
}

static void put_gradient(const run *r, const cpu_patch *patch, int64_t p, int32_t pixels,
                         int32_t t, const float *const channel[4], row_buffers *rows)
{
    ym_term_gradient *gradient = &r->gradient[t];
    const int32_t n = pixels * patch->count;
    float *to = rows->dvalue;
    if (!gradient->accumulate) {
        to = cpu_row_to(&gradient->dvalue, patch, p, pixels, rows->dvalue);
    }
    if (r->brick->term[t].has_norm) {
        r->kernels->normalise_backward(n, rows->z, rows->v[t], channel, to);
    } else {
        memcpy(to, rows->z, (size_t)n * sizeof *to);
    }
    if (gradient->accumulate) {
        r->kernels->add(n, cpu_row(&gradient->dvalue, patch, p, pixels, rows->d), to);
        cpu_store(to, patch->count, pixels, patch->count, &gradient->dvalue,
                  p * gradient->dvalue.pitch + patch->channel, 1);
    } else {
        cpu_row_done(&gradient->dvalue, patch, p, pixels, to);
    }
}

static void backward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_patch patch = cpu_patch_of(r->dout, r->blocks, index);
    coefficients k;
    row_buffers rows;
    float d_mean[2][CPU_ROW], slope[2][CPU_ROW];
    fill_coefficients(r->brick, &patch, &k);
    for (int32_t t = 0; t < r->brick->term_count; t++) {
        fill_back_coefficients(r, &patch, t, d_mean[t], slope[t]);
    }
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        const int32_t pixels = cpu_row_pixels(&patch, p);
        row_dz(r, &patch, &k, p, pixels, &rows);
        for (int32_t t = 0; t < r->brick->term_count; t++) {
            const float *const channel[4] = {k.mean[t], k.scale[t], d_mean[t], slope[t]};
            if (r->gradient[t].dvalue.data != NULL) {
                put_gradient(r, &patch, p, pixels, t, channel, &rows);
            }
        }
    }
}

ym_status cpu_brick_backward(ym_context *context, const ym_brick *brick,
                             const ym_tensor *dout, ym_term_gradient gradient[2])
{
    run r = {.brick = brick, .kernels = cpu_kernels_best(), .dout = dout};
    bool sums = false, values = false;
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_norm *norm = &brick->term[t].norm;
        const bool wanted = gradient[t].dvalue.data != NULL;
        values = values || wanted;
        sums = sums || (brick->term[t].has_norm &&
                        ((wanted && norm->batch_statistics) || norm->dgamma != NULL ||
                         norm->dbeta != NULL));
    }
    r.gradient = gradient;
    if (sums) {
        YM_CHECK(&context->error, context->scratch_bytes >= cpu_brick_scratch_bytes(dout),
                 YM_ERR_ARGUMENT, "brick: %zu bytes of scratch are too few",
                 context->scratch_bytes);
        r.sums = context->scratch;
        r.blocks = cpu_sum_blocks(dout);
        ym_pool_run(sum_task, &r, r.blocks * cpu_channel_parts(dout->c));
        finish_sums(&r);
    }
    if (values) {
        r.blocks = cpu_map_blocks(dout);
        ym_pool_run(backward_task, &r, r.blocks * cpu_channel_parts(dout->c));
    }
    return YM_OK;
}
