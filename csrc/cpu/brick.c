/* SPDX-License-Identifier: MIT
 *
 * The brick, forward and backward (formulas: ref/brick.c). Backward makes the
 * pre-activation again from the terms in both of its passes, the sums and the values:
 * reading them twice costs less than writing dz out in between.
 */
#include "core/sharing.h"
#include "cpu/rows.h"

#include <string.h>

typedef struct run {
    const ym_brick *brick;
    const cpu_kernels *kernels;
    ym_tensor *out;        /* forward */
    const ym_tensor *dout; /* backward */
    ym_term_gradient *gradient;
    int32_t blocks;
    double *sums;  /* (blocks, 3, C): dz, dz (v0 - mean0), dz (v1 - mean1) */
    double pixels; /* that the sums are over */
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
        cpu_repeat(patch->row_pixels, patch->count, to->mean[t]);
        cpu_repeat(patch->row_pixels, patch->count, to->scale[t]);
    }
    cpu_repeat(patch->row_pixels, patch->count, to->shift);
}

typedef struct row_buffers {
    float value[2][CPU_ROW], d[CPU_ROW], out[2][CPU_ROW];
} row_buffers;

/* The parts of a row's description that are the same for the whole patch. */
static cpu_brick_row describe(const ym_brick *brick, const coefficients *k)
{
    return (cpu_brick_row){
        .terms = brick->term_count,
        .activation = brick->activation,
        .mean = {k->mean[0], k->mean[1]},
        .scale = {k->scale[0], k->scale[1]},
        .shift = k->shift,
    };
}

static void load_terms(const ym_brick *brick, const cpu_patch *patch, int64_t p,
                       cpu_brick_row *row, row_buffers *buffers)
{
    const int32_t pixels = cpu_row_pixels(patch, p);
    row->n = pixels * patch->count;
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_tensor *value = &brick->term[t].value;
        if (value->data == NULL) { /* backward of an identity needs no plain term */
            memset(buffers->value[t], 0, (size_t)row->n * sizeof(float));
            row->v[t] = buffers->value[t];
        } else {
            row->v[t] = cpu_row(value, patch, p, pixels, buffers->value[t]);
        }
    }
}

static void forward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const ym_brick *brick = r->brick;
    const cpu_patch patch = cpu_patch_of(r->out, r->blocks, index);
    coefficients k;
    row_buffers buffers;
    fill_coefficients(brick, &patch, &k);
    cpu_brick_row row = describe(brick, &k);
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        const int32_t pixels = cpu_row_pixels(&patch, p);
        load_terms(brick, &patch, p, &row, &buffers);
        if (brick->has_residual) {
            row.residual = cpu_row(&brick->residual, &patch, p, pixels, buffers.d);
        }
        row.out = cpu_row_to(r->out, &patch, p, pixels, buffers.out[0]);
        r->kernels->brick_forward(&row);
        cpu_row_done(r->out, &patch, p, pixels, row.out);
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
    return ((size_t)cpu_sum_blocks(out) * 3 * (size_t)out->c + 1) * sizeof(double);
}

static void flush(const run *r, float sum[3][CPU_ROW], double all[3][CPU_ROW])
{
    for (int32_t i = 0; i < 1 + r->brick->term_count; i++) {
        r->kernels->add_to_double(CPU_ROW, sum[i], all[i]);
        memset(sum[i], 0, CPU_ROW * sizeof sum[i][0]);
    }
}

static void sum_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t channels = r->dout->c;
    const cpu_patch patch = cpu_patch_of(r->dout, r->blocks, index);
    double *to = r->sums +
                 (int64_t)(index / cpu_channel_parts(channels)) * 3 * channels;
    coefficients k;
    row_buffers buffers;
    float sum[3][CPU_ROW] = {{0}};
    double all[3][CPU_ROW] = {{0}};
    int32_t waiting = 0;
    for (int32_t i = 0; i < 3; i++) {
        memset(to + (int64_t)i * channels + patch.channel, 0,
               (size_t)patch.count * sizeof *to);
    }
    fill_coefficients(r->brick, &patch, &k);
    cpu_brick_row row = describe(r->brick, &k);
    for (int32_t i = 0; i < 3; i++) {
        row.sum[i] = sum[i];
    }
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        load_terms(r->brick, &patch, p, &row, &buffers);
        row.d = cpu_row(r->dout, &patch, p, cpu_row_pixels(&patch, p), buffers.d);
        r->kernels->brick_sums(&row);
        if (++waiting == CPU_FLUSH_ROWS) {
            flush(r, sum, all);
            waiting = 0;
        }
    }
    flush(r, sum, all);
    for (int32_t i = 0; i < 3; i++) {
        cpu_fold(&patch, all[i], to + (int64_t)i * channels + patch.channel);
    }
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
        const ym_term_gradient *to = &r->gradient[t];
        for (int32_t c = 0; term->has_norm && c < channels; c++) {
            put_param(term->norm.dbeta, c, r->sums[c], to->accumulate_beta);
            put_param(term->norm.dgamma, c, product[c] * term->rstd[c],
                      to->accumulate_gamma);
        }
    }
}

static ym_status share_sums(ym_context *context, run *r)
{
    const ym_sharing *sharing = ym_shared_sums(r->brick, r->gradient);
    const int64_t count = ym_shared_sum_count(r->brick, r->dout->c);
    r->pixels = (double)ym_pixels(r->dout);
    if (sharing != NULL) {
        r->sums[count - 1] = r->pixels;
        YM_TRY(ym_sum_shared(context, sharing, r->sums, count));
        r->pixels = r->sums[count - 1];
    }
    return YM_OK;
}

/* dz's mean, and the factor of v - mean; zeros where nothing but dz is propagated, or
 * nothing at all: the sums are made for the terms that want them. */
static void fill_back_coefficients(const run *r, const cpu_patch *patch, int32_t t,
                                   float *d_mean, float *back)
{
    const ym_term *term = &r->brick->term[t];
    memset(d_mean, 0, CPU_ROW * sizeof *d_mean);
    memset(back, 0, CPU_ROW * sizeof *back);
    if (r->gradient[t].dvalue.data == NULL || !term->has_norm ||
        !term->norm.batch_statistics) {
        return;
    }
    for (int32_t i = 0; i < patch->count; i++) {
        const int32_t c = patch->channel + i;
        const double product = r->sums[(int64_t)(1 + t) * r->dout->c + c];
        const double rstd = term->rstd[c];
        d_mean[i] = (float)(r->sums[c] / r->pixels);
        back[i] = (float)(scale_of(term, c) * rstd * rstd * product / r->pixels);
    }
    cpu_repeat(patch->row_pixels, patch->count, d_mean);
    cpu_repeat(patch->row_pixels, patch->count, back);
}

/* Where the kernel writes the row of a term's gradient: a buffer if it must be added to
 * what is there, converted, or thrown away. */
static float *gradient_row(ym_term_gradient *gradient, const cpu_patch *patch,
                           int64_t p, int32_t pixels, float *buffer)
{
    if (gradient->dvalue.data == NULL || gradient->accumulate) {
        return buffer;
    }
    return cpu_row_to(&gradient->dvalue, patch, p, pixels, buffer);
}

static void put_gradient(const run *r, ym_term_gradient *gradient,
                         const cpu_patch *patch, int64_t p, float *row)
{
    const int32_t pixels = cpu_row_pixels(patch, p);
    ym_tensor *dvalue = &gradient->dvalue;
    float old[CPU_ROW];
    if (dvalue->data == NULL) {
        return;
    }
    if (!gradient->accumulate) {
        cpu_row_done(dvalue, patch, p, pixels, row);
        return;
    }
    r->kernels->add(pixels * patch->count, cpu_row(dvalue, patch, p, pixels, old), row);
    cpu_store(row, patch->count, pixels, patch->count, dvalue,
              p * dvalue->pitch + patch->channel, 1);
}

static void backward_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t terms = r->brick->term_count;
    const cpu_patch patch = cpu_patch_of(r->dout, r->blocks, index);
    coefficients k;
    row_buffers buffers;
    float d_mean[2][CPU_ROW], back[2][CPU_ROW];
    fill_coefficients(r->brick, &patch, &k);
    cpu_brick_row row = describe(r->brick, &k);
    for (int32_t t = 0; t < terms; t++) {
        fill_back_coefficients(r, &patch, t, d_mean[t], back[t]);
        row.d_mean[t] = d_mean[t];
        row.back[t] = back[t];
    }
    for (int64_t p = patch.first; p < patch.end; p += patch.row_pixels) {
        const int32_t pixels = cpu_row_pixels(&patch, p);
        load_terms(r->brick, &patch, p, &row, &buffers);
        row.d = cpu_row(r->dout, &patch, p, pixels, buffers.d);
        for (int32_t t = 0; t < terms; t++) {
            row.dv[t] =
                gradient_row(&r->gradient[t], &patch, p, pixels, buffers.out[t]);
        }
        r->kernels->brick_values(&row);
        for (int32_t t = 0; t < terms; t++) {
            put_gradient(r, &r->gradient[t], &patch, p, row.dv[t]);
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
        YM_CHECK(&context->error,
                 context->scratch_bytes >= cpu_brick_scratch_bytes(dout),
                 YM_ERR_ARGUMENT, "brick: %zu bytes of scratch are too few",
                 context->scratch_bytes);
        r.sums = context->scratch;
        r.blocks = cpu_sum_blocks(dout);
        ym_pool_run(sum_task, &r, r.blocks * cpu_channel_parts(dout->c));
        finish_sums(&r);
        YM_TRY(share_sums(context, &r));
    }
    if (values) {
        r.blocks = cpu_map_blocks(dout);
        ym_pool_run(backward_task, &r, r.blocks * cpu_channel_parts(dout->c));
    }
    return YM_OK;
}
