/* SPDX-License-Identifier: MIT
 *
 * Convolution forward and its data gradient, as correlations with repacked weights. The
 * data gradient of a convolution with stride s is s * s correlations: the pixels h with
 * the same (h + pad) % s meet the same taps of the kernel, one dy row apart. A stride
 * beyond the image has no more phases than there are pixels.
 */
#include "cpu/winograd.h"

#include <string.h>

static cpu_axis forward_axis(int32_t out_size, int32_t taps, int32_t stride,
                             int32_t pad, int32_t dilation)
{
    return (cpu_axis){
        .out_count = out_size,
        .out_step = 1,
        .in_step = stride,
        .tap_count = taps,
        .tap_first = -pad,
        .tap_step = dilation,
        .weight_step = 1,
    };
}

static int32_t phases_of(int32_t stride, int32_t size)
{
    return (int32_t)cpu_min(stride, size);
}

/* The pixels h = phase, phase + stride, ... of a side of `size` pixels. Kernel rows r
 * with (phase + pad - r * dilation) % stride == 0 reach them: an arithmetic series, the
 * last of which reads the lowest dy. */
static cpu_axis backward_axis(int32_t size, int32_t taps, int32_t stride, int32_t pad,
                              int32_t dilation, int32_t phase)
{
    cpu_axis axis = {.out_first = phase, .out_step = stride, .in_step = 1};
    axis.out_count = (size - 1 - phase) / stride + 1;
    int32_t previous = -1;
    for (int32_t r = 0; r < taps; r++) {
        if ((phase + pad - r * dilation) % stride != 0) {
            continue;
        }
        axis.weight_step = previous < 0 ? 0 : previous - r;
        axis.tap_first = (phase + pad - r * dilation) / stride;
        axis.weight_first = previous = r;
        axis.tap_count++;
    }
    axis.tap_step = -axis.weight_step * dilation / stride;
    return axis;
}

/* By lane all output channels are as one group's: see by_lane.h. */
static void choose_way(cpu_correlation *c)
{
    if (cpu_fits_lanes(c->groups, c->in_count, c->out_count)) {
        c->lane_outputs = c->out_count;
        c->out_count *= c->groups;
        c->groups = 1;
        c->pairs = false;
    }
    c->winograd = cpu_winograd_fits(c);
}

static cpu_correlation forward_correlation(const ym_conv *conv, const ym_tensor *x,
                                           const ym_tensor *y)
{
    cpu_correlation c = {
        .h = forward_axis(y->h, conv->r, conv->stride_h, conv->pad_h, conv->dilation_h),
        .w = forward_axis(y->w, conv->s, conv->stride_w, conv->pad_w, conv->dilation_w),
        .in = *x,
        .out = *y,
        .groups = conv->groups,
        .in_count = conv->c / conv->groups,
        .out_count = conv->k / conv->groups,
        .pairs = cpu_pairs(x),
    };
    choose_way(&c);
    return c;
}

static cpu_correlation backward_correlation(const ym_conv *conv, const ym_tensor *dx,
                                            const ym_tensor *dy, int64_t phase)
{
    const int32_t columns = phases_of(conv->stride_w, dx->w);
    cpu_correlation c = {
        .h = backward_axis(dx->h, conv->r, conv->stride_h, conv->pad_h,
                           conv->dilation_h, (int32_t)(phase / columns)),
        .w = backward_axis(dx->w, conv->s, conv->stride_w, conv->pad_w,
                           conv->dilation_w, (int32_t)(phase % columns)),
        .in = *dy,
        .out = *dx,
        .groups = conv->groups,
        .in_count = conv->k / conv->groups,
        .out_count = conv->c / conv->groups,
        .pairs = cpu_pairs(dy),
    };
    choose_way(&c);
    return c;
}

static int64_t phase_count(const ym_conv *conv, const ym_tensor *dx)
{
    return (int64_t)phases_of(conv->stride_h, dx->h) * phases_of(conv->stride_w, dx->w);
}

static int64_t packed_floats(const cpu_correlation *c, const ym_conv *conv)
{
    return cpu_round_up(cpu_packed_floats(c, conv->r * conv->s), 16);
}

static int64_t bias_floats(const cpu_correlation *c)
{
    return cpu_round_up(c->groups * cpu_padded_count(c->out_count), 16);
}

/* Weights, and a panel for each thread that has a task. */
static int64_t scratch_floats(const cpu_correlation *c, const ym_conv *conv)
{
    const int64_t threads = cpu_min(ym_pool_threads(), cpu_correlate_tasks(c));
    return packed_floats(c, conv) + threads * cpu_correlate_panel_floats(c);
}

size_t cpu_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                              const ym_tensor *x, const ym_tensor *y)
{
    if (pass == YM_CONV_BACKWARD_WEIGHT) {
        return cpu_conv_weight_scratch_bytes(conv, x, y);
    }
    if (pass == YM_CONV_FORWARD) {
        cpu_correlation c = forward_correlation(conv, x, y);
        return (size_t)(scratch_floats(&c, conv) + bias_floats(&c)) * sizeof(float);
    }
    const int64_t phases = phase_count(conv, x);
    int64_t most = 0;
    for (int64_t phase = 0; phase < phases; phase++) {
        cpu_correlation c = backward_correlation(conv, x, y, phase);
        most = cpu_max(most, scratch_floats(&c, conv));
    }
    return (size_t)most * sizeof(float);
}

/* How many threads the scratch has panels for: the plan may have been made for fewer.
 */
static ym_status threads_for(ym_context *context, int64_t fixed_floats,
                             int64_t panel_floats, int32_t *threads)
{
    const int64_t floats = (int64_t)(context->scratch_bytes / sizeof(float));
    const int64_t panels = panel_floats == 0 ? INT32_MAX
                                             : (floats - fixed_floats) / panel_floats;
    YM_CHECK(&context->error, floats >= fixed_floats && panels > 0, YM_ERR_ARGUMENT,
             "convolution: %zu bytes of scratch are too few", context->scratch_bytes);
    *threads = (int32_t)cpu_min(panels, ym_pool_threads());
    return YM_OK;
}

static void pad_bias(const cpu_correlation *c, const float *bias, float *padded)
{
    const int64_t width = cpu_padded_count(c->out_count);
    memset(padded, 0, (size_t)(c->groups * width) * sizeof *padded);
    for (int32_t group = 0; group < c->groups; group++) {
        memcpy(padded + group * width, bias + group * c->out_count,
               (size_t)c->out_count * sizeof *padded);
    }
}

ym_status cpu_conv_forward(ym_context *context, const ym_conv *conv, const ym_tensor *x,
                           const ym_weight *w, const float *bias, ym_tensor *y)
{
    cpu_correlation c = forward_correlation(conv, x, y);
    const int64_t packed = packed_floats(&c, conv);
    const int64_t panel = cpu_correlate_panel_floats(&c);
    float *scratch = context->scratch;
    int32_t threads = 1;
    YM_TRY(threads_for(context, packed + bias_floats(&c), panel, &threads));
    if (bias != NULL) {
        pad_bias(&c, bias, scratch + packed);
        c.bias = scratch + packed;
    }
    c.weights = scratch;
    c.view = (cpu_weight_view){w->data,     conv->k / conv->groups * w->stride_k,
                               w->stride_c, w->stride_k,
                               w->stride_r, w->stride_s};
    cpu_pack(&c);
    cpu_correlate(&c, scratch + packed + bias_floats(&c), panel, threads);
    return YM_OK;
}

ym_status cpu_conv_backward_data(ym_context *context, const ym_conv *conv,
                                 const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                                 bool accumulate)
{
    const int64_t phases = phase_count(conv, dx);
    float *scratch = context->scratch;
    for (int64_t phase = 0; phase < phases; phase++) {
        cpu_correlation c = backward_correlation(conv, dx, dy, phase);
        const int64_t packed = packed_floats(&c, conv);
        const int64_t panel = cpu_correlate_panel_floats(&c);
        int32_t threads = 1;
        YM_TRY(threads_for(context, packed, panel, &threads));
        c.weights = scratch;
        c.accumulate = accumulate;
        c.view = (cpu_weight_view){w->data,     c.in_count * w->stride_k,
                                   w->stride_k, w->stride_c,
                                   w->stride_r, w->stride_s};
        cpu_pack(&c);
        cpu_correlate(&c, scratch + packed, panel, threads);
    }
    return YM_OK;
}
