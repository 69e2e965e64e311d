/* SPDX-License-Identifier: MIT
 *
 * The executor: walks the steps of a schedule and calls the backend. It decides
 * nothing: what runs, in which order and where is the plan's.
 */
#include "ops/run.h"

char *ym_run_arena(const ym_runner *r, size_t offset)
{
    size_t saved = r->plan->forward.saved_bytes;
    return offset < saved ? (char *)r->bindings->saved + offset
                          : (char *)r->bindings->workspace + (offset - saved);
}

ym_tensor ym_run_tensor(const ym_runner *r, ym_view view)
{
    ym_tensor x = {0};
    if (view.block < 0) {
        return x;
    }
    const ym_block *block = &r->schedule->block[view.block];
    switch (block->place) {
    case YM_PLACE_INPUT:
        x = r->bindings->inputs[block->index];
        break;
    case YM_PLACE_OUTPUT:
        x = r->bindings->outputs[block->index];
        break;
    case YM_PLACE_GRAD_OUTPUT:
        x = r->bindings->grad_outputs[block->index];
        break;
    case YM_PLACE_GRAD_INPUT:
        x = r->bindings->grad_inputs[block->index];
        break;
    default:
        x = (ym_tensor){ym_run_arena(r, block->offset),
                        r->plan->program->dtype,
                        block->n,
                        block->h,
                        block->w,
                        block->c,
                        block->c};
    }
    return ym_channels(x, view.first, view.count);
}

/* A step's weight, with its packed form if the plan has one. */
static ym_weight resolve_weight(const ym_runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    ym_weight w = r->bindings->params[item->u.conv.weight];
    if (step->weight >= 0) {
        w.packed = ym_run_arena(r, r->schedule->block[step->weight].offset);
    }
    return w;
}

const float *ym_run_param(const ym_runner *r, int32_t param)
{
    return param >= 0 ? r->bindings->params[param].data : NULL;
}

float *ym_run_gradient(const ym_runner *r, int32_t param)
{
    return param >= 0 && r->bindings->grad_params != NULL
               ? r->bindings->grad_params[param].data
               : NULL;
}

bool ym_run_accumulates(const ym_runner *r, int32_t param, bool again)
{
    return again || (param >= 0 && r->bindings->accumulate_params != NULL &&
                     r->bindings->accumulate_params[param]);
}

static ym_status run_pack_weights(const ym_runner *r)
{
    const ym_backend *backend = r->context->backend;
    const ym_dtype dtype = r->plan->program->dtype;
    const int32_t *block = r->plan->forward.weight_block;
    ym_weight list[YM_WEIGHTS_AT_ONCE];
    int32_t count = 0;
    for (int32_t i = 0; i < r->plan->graph->param_count; i++) {
        if (block[i] < 0) {
            continue;
        }
        list[count] = r->bindings->params[i];
        list[count].packed = ym_run_arena(r, r->schedule->block[block[i]].offset);
        if (++count == YM_WEIGHTS_AT_ONCE) {
            YM_TRY(backend->pack_weights(r->context, list, count, dtype));
            count = 0;
        }
    }
    return count > 0 ? backend->pack_weights(r->context, list, count, dtype) : YM_OK;
}

static ym_status run_conv_weight(const ym_runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    int32_t weight = item->u.conv.weight, bias = item->u.conv.bias;
    ym_tensor x = ym_run_tensor(r, step->in[0]), dy = ym_run_tensor(r, step->in[3]);
    ym_weight dw = {0};
    if (r->bindings->grad_params != NULL) {
        dw = r->bindings->grad_params[weight];
    }
    if (x.data == NULL) {
        /* For a bias alone x is absent: only its shape is read. */
        const ym_item *from = &r->plan->program->item[item->operand[0]];
        x = (ym_tensor){NULL, dy.dtype, from->n, from->h, from->w, from->c, from->c};
        dw.data = NULL;
    }
    return r->context->backend->conv_backward_weight(
        r->context, &item->u.conv.shape, &x, &dy, &dw,
        ym_run_accumulates(r, weight, step->accumulate_param[0]),
        ym_run_gradient(r, bias),
        ym_run_accumulates(r, bias, step->accumulate_param[1]));
}

static ym_status run_upsample(const ym_runner *r, const ym_resize *resize,
                              const ym_tensor *x, ym_tensor *y)
{
    const ym_backend *b = r->context->backend;
    if (resize->bilinear) {
        return b->bilinear_forward(r->context, resize, x, y);
    }
    return b->nearest_forward(r->context, resize, x, y);
}

static ym_status run_upsample_backward(const ym_runner *r, const ym_resize *resize,
                                       const ym_tensor *dy, ym_tensor *dx,
                                       bool accumulate)
{
    const ym_backend *b = r->context->backend;
    if (resize->bilinear) {
        return b->bilinear_backward(r->context, resize, dy, dx, accumulate);
    }
    return b->nearest_backward(r->context, resize, dy, dx, accumulate);
}

static ym_status run_forward_step(const ym_runner *r, const ym_step *step)
{
    const ym_backend *backend = r->context->backend;
    const ym_item *item = &r->plan->program->item[step->item];
    ym_tensor x = ym_run_tensor(r, step->in[0]), y = ym_run_tensor(r, step->out[0]);
    switch (step->kind) {
    case YM_STEP_CONV: {
        const ym_weight w = resolve_weight(r, step);
        return backend->conv_forward(r->context, &item->u.conv.shape, &x, &w,
                                     ym_run_param(r, item->u.conv.bias), &y);
    }
    case YM_STEP_BRICK:
        return ym_run_brick(r, step);
    case YM_STEP_MAX_POOL:
        return backend->max_pool_forward(r->context, &item->u.pool, &x, &y);
    case YM_STEP_AVG_POOL:
        return backend->avg_pool_forward(r->context, &item->u.pool, &x, &y);
    case YM_STEP_MAXIMUM:
        return backend->maximum_forward(r->context, &x, &y);
    case YM_STEP_UPSAMPLE:
        return run_upsample(r, &item->u.resize, &x, &y);
    case YM_STEP_MULTIPLY: {
        const ym_tensor other = ym_run_tensor(r, step->in[1]);
        return backend->multiply(r->context, &x, &other, step->scale, &y,
                                 step->accumulate[0]);
    }
    case YM_STEP_PACK_INPUT:
        return backend->pack_planes(r->context, &x, &y);
    case YM_STEP_COPY:
        return backend->copy(r->context, &x, &y, step->accumulate[0]);
    default:
        return backend->fill_zero(r->context, &y);
    }
}

static ym_status run_backward_step(const ym_runner *r, const ym_step *step)
{
    const ym_backend *backend = r->context->backend;
    const ym_item *item = &r->plan->program->item[step->item];
    ym_tensor x = ym_run_tensor(r, step->in[0]), dy = ym_run_tensor(r, step->in[3]);
    ym_tensor dx = ym_run_tensor(r, step->out[0]);
    bool accumulate = step->accumulate[0];
    switch (step->kind) {
    case YM_STEP_CONV_DATA: {
        const ym_weight w = resolve_weight(r, step);
        return backend->conv_backward_data(r->context, &item->u.conv.shape, &dy, &w,
                                           &dx, accumulate);
    }
    case YM_STEP_MAX_POOL_BACKWARD:
        return backend->max_pool_backward(r->context, &item->u.pool, &x, &dy, &dx,
                                          accumulate);
    case YM_STEP_MAXIMUM_BACKWARD:
        return backend->maximum_backward(r->context, &x, &dy, &dx, accumulate);
    case YM_STEP_AVG_POOL_BACKWARD:
        return backend->avg_pool_backward(r->context, &item->u.pool, &dy, &dx,
                                          accumulate);
    default:
        return run_upsample_backward(r, &item->u.resize, &dy, &dx, accumulate);
    }
}

static ym_status run_step(const ym_runner *r, const ym_step *step)
{
    r->context->scratch = NULL;
    r->context->scratch_bytes = 0;
    if (step->scratch >= 0) {
        const ym_block *block = &r->schedule->block[step->scratch];
        r->context->scratch = ym_run_arena(r, block->offset);
        r->context->scratch_bytes = block->bytes;
    }
    switch (step->kind) {
    case YM_STEP_PACK_WEIGHTS:
        return run_pack_weights(r);
    case YM_STEP_STATISTICS:
        return ym_run_statistics(r, step);
    case YM_STEP_CONV_WEIGHT:
        return run_conv_weight(r, step);
    case YM_STEP_BRICK_BACKWARD:
        return ym_run_brick_backward(r, step);
    case YM_STEP_CONV_DATA:
    case YM_STEP_MAX_POOL_BACKWARD:
    case YM_STEP_AVG_POOL_BACKWARD:
    case YM_STEP_UPSAMPLE_BACKWARD:
    case YM_STEP_MAXIMUM_BACKWARD:
        return run_backward_step(r, step);
    default:
        return run_forward_step(r, step);
    }
}

ym_status ym_plan_run_steps(const ym_plan *plan, const ym_schedule *schedule,
                            int32_t begin, int32_t end, ym_context *context,
                            const ym_bindings *bindings)
{
    ym_runner r = {plan, schedule, context, bindings};
    YM_CHECK(&context->error, bindings->saved_bytes >= plan->forward.saved_bytes,
             YM_ERR_ARGUMENT, "saved: %zu bytes given, the plan needs %zu",
             bindings->saved_bytes, plan->forward.saved_bytes);
    YM_CHECK(&context->error, bindings->workspace_bytes >= schedule->workspace_bytes,
             YM_ERR_ARGUMENT, "workspace: %zu bytes given, the plan needs %zu",
             bindings->workspace_bytes, schedule->workspace_bytes);
    for (int32_t i = begin; i < end; i++) {
        YM_TRY(run_step(&r, &schedule->step[i]));
    }
    return YM_OK;
}

ym_status ym_plan_recompute(const ym_plan *plan, int32_t output, ym_context *context,
                            const ym_bindings *bindings)
{
    const ym_schedule *recompute = plan->recompute[output];
    YM_CHECK(&context->error, recompute != NULL, YM_ERR_ARGUMENT,
             "output %d: cannot be recomputed without inputs or convolutions", output);
    return ym_plan_run_steps(plan, recompute, 0, recompute->step_count, context,
                             bindings);
}
