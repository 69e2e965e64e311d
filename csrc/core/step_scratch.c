/* SPDX-License-Identifier: MIT
 *
 * What a step needs of memory while it runs, beside what it reads and writes.
 */
#include "core/builder.h"
#include "core/sharing.h"

static ym_tensor shape_of(const ym_builder *b, ym_view view)
{
    const ym_block *block = &b->schedule->block[view.block];
    return (ym_tensor){NULL,     b->program->dtype, block->n, block->h,
                       block->w, view.count,        block->c};
}

static size_t conv_scratch(const ym_builder *b, const ym_step *step)
{
    const ym_item *item = &b->program->item[step->item];
    const ym_conv *conv = &item->u.conv.shape;
    /* The weight step reads no x when only the bias has a gradient. */
    const ym_item *x = &b->program->item[item->operand[0]];
    ym_tensor in = {NULL, b->program->dtype, x->n, x->h, x->w, x->c, x->c};
    if (step->in[0].block >= 0) {
        in = shape_of(b, step->in[0]);
    }
    if (step->kind == YM_STEP_CONV) {
        ym_tensor y = shape_of(b, step->out[0]);
        return b->backend->conv_scratch_bytes(YM_CONV_FORWARD, conv, &in, &y);
    }
    ym_tensor dy = shape_of(b, step->in[3]);
    if (step->kind == YM_STEP_CONV_WEIGHT) {
        return b->backend->conv_scratch_bytes(YM_CONV_BACKWARD_WEIGHT, conv, &in, &dy);
    }
    ym_tensor dx = shape_of(b, step->out[0]);
    return b->backend->conv_scratch_bytes(YM_CONV_BACKWARD_DATA, conv, &dx, &dy);
}

/* To spread one number over channels, or to add up channels for one. */
static size_t spread_scratch(const ym_builder *b, int32_t channels)
{
    const ym_tensor one = {NULL, YM_F32, 1, 1, 1, 1, 1}, ones = {0};
    const ym_tensor each = {NULL, YM_F32, 1, 1, 1, channels, channels};
    const size_t out = b->backend->multiply_scratch_bytes(&one, &ones, &each);
    const size_t in = b->backend->multiply_scratch_bytes(&each, &ones, &one);
    return out > in ? out : in;
}

/* What the kernels need, and before it the parts of all processes that share. */
static size_t statistics_scratch(const ym_builder *b, const ym_step *step)
{
    const ym_program *p = b->program;
    const ym_tensor x = shape_of(b, step->in[0]);
    const int32_t call = p->item[step->item].u.brick.norm_call[step->term];
    const ym_sharing *sharing = &ym_norm_of(p, call)->sharing;
    const size_t bytes = ym_parts_bytes(sharing, x.c) +
                         b->backend->norm_scratch_bytes(&x);
    const size_t spread = ym_spread_count(p, call) > 0 ? spread_scratch(b, x.c) : 0;
    return bytes > spread ? bytes : spread;
}

/* The gradient of what is one number for all channels comes as a vector before it. */
static size_t brick_backward_scratch(const ym_builder *b, const ym_step *step)
{
    const ym_program *p = b->program;
    const ym_tensor dout = shape_of(b, step->in[3]);
    const ym_item *item = &p->item[step->item];
    const size_t bytes = b->backend->brick_scratch_bytes(&dout);
    int32_t vectors = 0;
    for (int32_t t = 0; t < item->u.brick.term_count; t++) {
        const int32_t call = item->u.brick.norm_call[t];
        vectors += call >= 0 ? ym_spread_count(p, call) : 0;
    }
    if (vectors == 0) {
        return bytes;
    }
    const size_t spread = spread_scratch(b, dout.c);
    return vectors * ym_spread_bytes(dout.c) + (bytes > spread ? bytes : spread);
}

size_t ym_step_scratch_bytes(const ym_builder *b, const ym_step *step)
{
    switch (step->kind) {
    case YM_STEP_CONV:
    case YM_STEP_CONV_WEIGHT:
    case YM_STEP_CONV_DATA:
        return conv_scratch(b, step);
    case YM_STEP_STATISTICS:
        return statistics_scratch(b, step);
    case YM_STEP_MAXIMUM: {
        const ym_tensor x = shape_of(b, step->in[0]), y = shape_of(b, step->out[0]);
        return b->backend->maximum_scratch_bytes(&x, &y);
    }
    case YM_STEP_MAXIMUM_BACKWARD: {
        const ym_tensor x = shape_of(b, step->in[0]), dy = shape_of(b, step->in[3]);
        return b->backend->maximum_scratch_bytes(&x, &dy);
    }
    case YM_STEP_MULTIPLY: {
        const ym_tensor a = shape_of(b, step->in[0]), y = shape_of(b, step->out[0]);
        const ym_tensor ones = {0};
        const ym_tensor other = step->in[1].block >= 0 ? shape_of(b, step->in[1])
                                                       : ones;
        return b->backend->multiply_scratch_bytes(&a, &other, &y);
    }
    case YM_STEP_BRICK_BACKWARD:
        return brick_backward_scratch(b, step);
    default:
        return 0;
    }
}
