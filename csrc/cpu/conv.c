/* SPDX-License-Identifier: MIT
 *
 * Convolution forward and its data gradient, as correlations with repacked weights. The
 * data gradient of a convolution with stride s is s * s correlations: the pixels h with
 * the same (h + pad) % s meet the same taps of the kernel, one dy row apart. A stride
 * beyond the image has no more phases than there are pixels.
 */
#include "cpu/scratch.h"
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

/* Leaves out the taps that meet padding alone, of kernels larger than the image. */
static void trim(cpu_axis *axis, int32_t size)
{
    const int32_t reach = (axis->out_count - 1) * axis->in_step;
    while (axis->tap_count > 0 && reach + axis->tap_first < 0) {
        axis->tap_first += axis->tap_step;
        axis->weight_first += axis->weight_step;
        axis->tap_count--;
    }
    while (axis->tap_count > 0 &&
           axis->tap_first + (axis->tap_count - 1) * axis->tap_step >= size) {
        axis->tap_count--;
    }
}

/* An image of one column is as one of one row, whose pixels fill register tiles. */
static void turn_column(cpu_correlation *c)
{
    if (c->in.w != 1 || c->out.w != 1 || c->w.tap_count != 1) {
        return;
    }
    const cpu_axis w = c->w;
    c->w = c->h;
    c->h = w;
    c->in.w = c->in.h;
    c->out.w = c->out.h;
    c->in.h = c->out.h = 1;
    c->turned = true;
}

/* By lane all output channels are as one group's: see by_lane.h. */
static void choose_way(cpu_correlation *c)
{
    trim(&c->h, c->in.h);
    trim(&c->w, c->in.w);
    turn_column(c);
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

/* Inputs and outputs of a group are `in_step` and `out_step` apart. */
static void view_weights(cpu_correlation *c, const ym_weight *w, int64_t group_step,
                         int64_t in_step, int64_t out_step)
{
    c->view = (cpu_weight_view){w->data,
                                group_step,
                                in_step,
                                out_step,
                                c->turned ? w->stride_s : w->stride_r,
                                c->turned ? w->stride_r : w->stride_s};
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

/* Weights, `beside` floats, panels. */
static cpu_scratch scratch_of(const cpu_correlation *c, const ym_conv *conv,
                              int64_t beside)
{
    return (cpu_scratch){packed_floats(c, conv) + beside, cpu_correlate_panel_floats(c),
                         cpu_correlate_tasks(c)};
}

size_t cpu_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                              const ym_tensor *x, const ym_tensor *y)
{
    if (pass == YM_CONV_BACKWARD_WEIGHT) {
        return cpu_conv_weight_scratch_bytes(conv, x, y);
    }
    if (pass == YM_CONV_FORWARD) {
        const cpu_correlation c = forward_correlation(conv, x, y);
        return cpu_scratch_bytes(scratch_of(&c, conv, bias_floats(&c)));
    }
    const int64_t phases = phase_count(conv, x);
    size_t most = 0;
    for (int64_t phase = 0; phase < phases; phase++) {
        const cpu_correlation c = backward_correlation(conv, x, y, phase);
        const size_t bytes = cpu_scratch_bytes(scratch_of(&c, conv, 0));
        most = bytes > most ? bytes : most;
    }
    return most;
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
    const cpu_scratch scratch = scratch_of(&c, conv, bias_floats(&c));
    int32_t threads = 1;
    YM_TRY(cpu_scratch_threads(context, scratch, "convolution", &threads));
    c.weights = context->scratch;
    float *panels = c.weights + scratch.shared;
    if (bias != NULL) {
        float *padded = panels - bias_floats(&c);
        pad_bias(&c, bias, padded);
        c.bias = padded;
    }
    view_weights(&c, w, conv->k / conv->groups * w->stride_k, w->stride_c, w->stride_k);
    cpu_pack(&c);
    cpu_correlate(&c, panels, scratch.panel, threads);
    return YM_OK;
}

ym_status cpu_conv_backward_data(ym_context *context, const ym_conv *conv,
                                 const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                                 bool accumulate)
{
    const int64_t phases = phase_count(conv, dx);
    for (int64_t phase = 0; phase < phases; phase++) {
        cpu_correlation c = backward_correlation(conv, dx, dy, phase);
        const cpu_scratch scratch = scratch_of(&c, conv, 0);
        int32_t threads = 1;
        YM_TRY(cpu_scratch_threads(context, scratch, "data gradient", &threads));
        c.weights = context->scratch;
        c.accumulate = accumulate;
        view_weights(&c, w, c.in_count * w->stride_k, w->stride_k, w->stride_c);
        cpu_pack(&c);
        cpu_correlate(&c, c.weights + scratch.shared, scratch.panel, threads);
    }
    return YM_OK;
}
