/* SPDX-License-Identifier: MIT
 *
 * Convolution and its two gradients:
 *
 *     y(n, oh, ow, k)  = bias(k) + sum over c, r, s of x(n, h, w, c) w(k, c, r, s)
 *     dx(n, h, w, c)   = sum over k, r, s of dy(n, oh, ow, k) w(k, c, r, s)
 *     dw(k, c, r, s)   = sum over n, oh, ow of x(n, h, w, c) dy(n, oh, ow, k)
 *
 * with h = oh * stride_h - pad_h + r * dilation_h, likewise w, and x = 0 outside.
 */
#include "ref/ref.h"

static bool source(int32_t o, int32_t tap, int32_t stride, int32_t pad,
                   int32_t dilation, int32_t size, int32_t *found)
{
    *found = o * stride - pad + tap * dilation;
    return *found >= 0 && *found < size;
}

/* The output that tap `tap` brings pixel i to, if there is one. */
static bool target(int32_t i, int32_t tap, int32_t stride, int32_t pad,
                   int32_t dilation, int32_t size, int32_t *found)
{
    int32_t scaled = i + pad - tap * dilation;
    *found = scaled / stride;
    return scaled >= 0 && scaled % stride == 0 && *found < size;
}

static double weight_at(const ym_weight *w, int32_t k, int32_t c, int32_t r, int32_t s)
{
    return w
        ->data[k * w->stride_k + c * w->stride_c + r * w->stride_r + s * w->stride_s];
}

size_t ref_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                              const ym_tensor *x, const ym_tensor *y)
{
    (void)pass, (void)conv, (void)x, (void)y;
    return 0;
}

static double output_at(const ym_conv *conv, const ym_tensor *x, const ym_weight *w,
                        ym_extent at)
{
    const int32_t c_count = conv->c / conv->groups;
    const int32_t k = at.c, group = k / (conv->k / conv->groups);
    double sum = 0.0;
    for (int32_t r = 0; r < conv->r; r++) {
        for (int32_t s = 0; s < conv->s; s++) {
            int32_t h, v;
            if (!source(at.h, r, conv->stride_h, conv->pad_h, conv->dilation_h, x->h,
                        &h) ||
                !source(at.w, s, conv->stride_w, conv->pad_w, conv->dilation_w, x->w,
                        &v)) {
                continue;
            }
            int64_t first = ref_index(x, at.n, h, v, group * c_count);
            for (int32_t c = 0; c < c_count; c++) {
                sum += ref_load(x, first + c) * weight_at(w, k, c, r, s);
            }
        }
    }
    return sum;
}

ym_status ref_conv_forward(ym_context *context, const ym_conv *conv, const ym_tensor *x,
                           const ym_weight *w, const float *bias, ym_tensor *y)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(y); i++) {
        const ym_extent at = ref_element(y, i);
        double sum = output_at(conv, x, w, at);
        ref_store(y, ref_index_of(y, at), sum + (bias != NULL ? bias[at.c] : 0.0));
    }
    return YM_OK;
}

static double input_gradient_at(const ym_conv *conv, const ym_tensor *dy,
                                const ym_weight *w, ym_extent at)
{
    const int32_t c_count = conv->c / conv->groups, k_count = conv->k / conv->groups;
    const int32_t c = at.c % c_count, first_k = at.c / c_count * k_count;
    double sum = 0.0;
    for (int32_t r = 0; r < conv->r; r++) {
        for (int32_t s = 0; s < conv->s; s++) {
            int32_t oh, ow;
            if (!target(at.h, r, conv->stride_h, conv->pad_h, conv->dilation_h, dy->h,
                        &oh) ||
                !target(at.w, s, conv->stride_w, conv->pad_w, conv->dilation_w, dy->w,
                        &ow)) {
                continue;
            }
            int64_t first = ref_index(dy, at.n, oh, ow, first_k);
            for (int32_t k = 0; k < k_count; k++) {
                sum += ref_load(dy, first + k) * weight_at(w, first_k + k, c, r, s);
            }
        }
    }
    return sum;
}

ym_status ref_conv_backward_data(ym_context *context, const ym_conv *conv,
                                 const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                                 bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(dx); i++) {
        const ym_extent at = ref_element(dx, i);
        ref_put(dx, ref_index_of(dx, at), input_gradient_at(conv, dy, w, at),
                accumulate);
    }
    return YM_OK;
}

static double weight_gradient_at(const ym_conv *conv, const ym_tensor *x,
                                 const ym_tensor *dy, const int32_t at[4])
{
    const int32_t k = at[0], group = k / (conv->k / conv->groups);
    const int32_t c = group * (conv->c / conv->groups) + at[1];
    double sum = 0.0;
    for (int64_t p = 0; p < ym_pixels(dy); p++) {
        const ym_extent o = ref_element(dy, p * dy->c + k);
        int32_t h, w;
        if (source(o.h, at[2], conv->stride_h, conv->pad_h, conv->dilation_h, x->h,
                   &h) &&
            source(o.w, at[3], conv->stride_w, conv->pad_w, conv->dilation_w, x->w,
                   &w)) {
            sum += ref_load(x, ref_index(x, o.n, h, w, c)) *
                   ref_load(dy, ref_index_of(dy, o));
        }
    }
    return sum;
}

static void bias_gradient(const ym_tensor *dy, float *dbias, bool accumulate)
{
    for (int32_t k = 0; k < dy->c; k++) {
        double sum = accumulate ? dbias[k] : 0.0;
        for (int64_t p = 0; p < ym_pixels(dy); p++) {
            sum += ref_load(dy, p * dy->pitch + k);
        }
        dbias[k] = (float)sum;
    }
}

ym_status ref_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate_dw, float *dbias,
                                   bool accumulate_dbias)
{
    (void)context;
    const int32_t c_count = conv->c / conv->groups, taps = conv->r * conv->s;
    const int64_t count = (int64_t)conv->k * c_count * taps;
    for (int64_t i = 0; dw->data != NULL && i < count; i++) {
        const int32_t at[4] = {(int32_t)(i / taps / c_count),
                               (int32_t)(i / taps % c_count),
                               (int32_t)(i % taps / conv->s), (int32_t)(i % conv->s)};
        float *to = dw->data + at[0] * dw->stride_k + at[1] * dw->stride_c +
                    at[2] * dw->stride_r + at[3] * dw->stride_s;
        double sum = weight_gradient_at(conv, x, dy, at);
        *to = (float)(accumulate_dw ? *to + sum : sum);
    }
    if (dbias != NULL) {
        bias_gradient(dy, dbias, accumulate_dbias);
    }
    return YM_OK;
}
