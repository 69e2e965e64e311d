/* SPDX-License-Identifier: MIT
 *
 * The executor: walks the steps of a schedule and calls the backend. It decides
 * nothing: what runs, in which order and where is the plan's.
 */
#include <string.h>

#include "core/plan_parts.h"
#include "core/sharing.h"

typedef struct runner {
    const ym_plan *plan;
    const ym_schedule *schedule;
    ym_context *context;
    const ym_bindings *bindings;
} runner;

static char *arena(const runner *r, size_t offset)
{
    size_t saved = r->plan->forward.saved_bytes;
    return offset < saved ? (char *)r->bindings->saved + offset
                          : (char *)r->bindings->workspace + (offset - saved);
}

static ym_tensor resolve(const runner *r, ym_view view)
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
        x = (ym_tensor){arena(r, block->offset),
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
static ym_weight resolve_weight(const runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    ym_weight w = r->bindings->params[item->u.conv.weight];
    if (step->weight >= 0) {
        w.packed = arena(r, r->schedule->block[step->weight].offset);
    }
    return w;
}

static const float *param_data(const runner *r, int32_t param)
{
    return param >= 0 ? r->bindings->params[param].data : NULL;
}

static float *param_gradient(const runner *r, int32_t param)
{
    return param >= 0 && r->bindings->grad_params != NULL
               ? r->bindings->grad_params[param].data
               : NULL;
}

/* Whether a gradient is added to what its memory holds: a caller's sum, or what the run
 * has put there before. */
static bool accumulates(const runner *r, int32_t param, bool again)
{
    return again || (param >= 0 && r->bindings->accumulate_params != NULL &&
                     r->bindings->accumulate_params[param]);
}

static const float *offset_or_null(const float *vector, int32_t first)
{
    return vector != NULL ? vector + first : NULL;
}

static const ym_norm_module *norm_module(const runner *r, int32_t call)
{
    const ym_program *p = r->plan->program;
    return &p->graph->norm[p->norm_call[call].module];
}

/* A batch norm call as the backend wants it, from channel `first` on. */
static ym_norm resolve_norm(const runner *r, int32_t call, int32_t first)
{
    const ym_norm_module *module = norm_module(r, call);
    ym_norm norm = r->bindings->norms[r->plan->program->norm_call[call].module];
    norm.gamma = offset_or_null(param_data(r, module->gamma), first);
    norm.beta = offset_or_null(param_data(r, module->beta), first);
    norm.dgamma = param_gradient(r, module->gamma);
    norm.dbeta = param_gradient(r, module->beta);
    norm.sharing = module->sharing;
    norm.constant_mean = module->mean;
    norm.constant_rstd = module->rstd;
    return norm;
}

static float *saved_mean(const runner *r, int32_t call)
{
    const ym_norm_call *norm_call = &r->plan->program->norm_call[call];
    return (float *)((char *)r->bindings->saved + norm_call->saved_offset);
}

static ym_brick resolve_brick(const runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    int32_t first = step->first_channel;
    ym_brick brick = {.term_count = item->u.brick.term_count,
                      .activation = item->u.brick.activation,
                      .has_residual = item->u.brick.has_residual,
                      .residual = resolve(r, step->in[2])};
    for (int32_t t = 0; t < brick.term_count; t++) {
        int32_t call = item->u.brick.norm_call[t];
        brick.term[t].value = resolve(r, step->in[t]);
        if (call >= 0) {
            int32_t channels = r->plan->program->norm_call[call].channels;
            brick.term[t].has_norm = true;
            brick.term[t].norm = resolve_norm(r, call, first);
            brick.term[t].mean = saved_mean(r, call) + first;
            brick.term[t].rstd = saved_mean(r, call) + channels + first;
        }
    }
    return brick;
}

static ym_status run_pack_weights(const runner *r)
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
        list[count].packed = arena(r, r->schedule->block[block[i]].offset);
        if (++count == YM_WEIGHTS_AT_ONCE) {
            YM_TRY(backend->pack_weights(r->context, list, count, dtype));
            count = 0;
        }
    }
    return count > 0 ? backend->pack_weights(r->context, list, count, dtype) : YM_OK;
}

/* The others' places are 0: a sum over the processes fills in all parts. */
static ym_status run_shared_statistics(const runner *r, const ym_tensor *x,
                                       const ym_norm *norm, float *mean)
{
    ym_context *context = r->context;
    const int64_t count = ym_moment_count(x->c);
    const size_t bytes = ym_parts_bytes(&norm->sharing, x->c);
    double *parts = context->scratch;
    const int64_t all = norm->sharing.processes * count;
    ym_tensor zeros = {.data = parts,
                       .dtype = YM_F32,
                       .n = norm->sharing.processes,
                       .h = 1,
                       .w = 1,
                       .c = (int32_t)count * 2,
                       .pitch = count * 2};
    context->scratch = (char *)context->scratch + bytes;
    context->scratch_bytes -= bytes;
    YM_TRY(context->backend->fill_zero(context, &zeros));
    YM_TRY(
        context->backend->norm_moments(context, x, parts + norm->sharing.rank * count));
    YM_TRY(ym_sum_shared(context, &norm->sharing, parts, all));
    return context->backend->norm_merge(context, parts, x->c, norm, mean, mean + x->c);
}

static ym_status run_statistics(const runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    int32_t call = item->u.brick.norm_call[step->term];
    ym_tensor x = resolve(r, step->in[0]);
    ym_norm norm = resolve_norm(r, call, 0);
    float *mean = saved_mean(r, call);
    YM_CHECK(&r->context->error,
             !norm.batch_statistics || ym_pixels(&x) > 1 || norm.sharing.processes > 1,
             YM_ERR_ARGUMENT,
             "batch norm %s: a channel has one value, training needs more than one",
             item->name);
    if (ym_is_shared(&norm)) {
        return run_shared_statistics(r, &x, &norm, mean);
    }
    return r->context->backend->norm_statistics(r->context, &x, &norm, mean,
                                                mean + x.c);
}

static ym_status run_brick_backward(const runner *r, const ym_step *step)
{
    const int32_t *norm_call = r->plan->program->item[step->item].u.brick.norm_call;
    ym_brick brick = resolve_brick(r, step);
    ym_tensor dout = resolve(r, step->in[3]);
    ym_term_gradient gradient[2];
    for (int32_t t = 0; t < brick.term_count; t++) {
        if (brick.term[t].has_norm && step->in[t].block < 0) {
            brick.term[t].value = dout; /* any memory of its size: nothing depends */
        }
        if (step->reads_result) {
            brick.term[t].norm.beta = NULL; /* the result has it already */
        }
    }
    for (int32_t t = 0; t < 2; t++) {
        gradient[t] = (ym_term_gradient){.dvalue = resolve(r, step->out[t]),
                                         .accumulate = step->accumulate[t]};
        if (t < brick.term_count && brick.term[t].has_norm) {
            const ym_norm_module *module = norm_module(r, norm_call[t]);
            const bool *again = &step->accumulate_param[2 * t];
            gradient[t].accumulate_gamma = accumulates(r, module->gamma, again[0]);
            gradient[t].accumulate_beta = accumulates(r, module->beta, again[1]);
        }
    }
    brick.has_residual = false;
    return r->context->backend->brick_backward(r->context, &brick, &dout, gradient);
}

static ym_status run_conv_weight(const runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    int32_t weight = item->u.conv.weight, bias = item->u.conv.bias;
    ym_tensor x = resolve(r, step->in[0]), dy = resolve(r, step->in[3]);
    ym_weight dw = {0};
    if (r->bindings->grad_params != NULL) {
        dw = r->bindings->grad_params[weight];
    }
    if (x.data == NULL) {
        /* Only the bias: any memory of the right size stands for x, nothing reads it.
         */
        const ym_item *from = &r->plan->program->item[item->operand[0]];
        x = (ym_tensor){NULL, dy.dtype, from->n, from->h, from->w, from->c, from->c};
        dw.data = NULL;
    }
    return r->context->backend->conv_backward_weight(
        r->context, &item->u.conv.shape, &x, &dy, &dw,
        accumulates(r, weight, step->accumulate_param[0]), param_gradient(r, bias),
        accumulates(r, bias, step->accumulate_param[1]));
}

static ym_status run_upsample(const runner *r, const ym_resize *resize,
                              const ym_tensor *x, ym_tensor *y)
{
    const ym_backend *b = r->context->backend;
    if (resize->bilinear) {
        return b->bilinear_forward(r->context, resize, x, y);
    }
    return b->nearest_forward(r->context, resize, x, y);
}

static ym_status run_upsample_backward(const runner *r, const ym_resize *resize,
                                       const ym_tensor *dy, ym_tensor *dx,
                                       bool accumulate)
{
    const ym_backend *b = r->context->backend;
    if (resize->bilinear) {
        return b->bilinear_backward(r->context, resize, dy, dx, accumulate);
    }
    return b->nearest_backward(r->context, resize, dy, dx, accumulate);
}

static ym_status run_forward_step(const runner *r, const ym_step *step)
{
    const ym_backend *backend = r->context->backend;
    const ym_item *item = &r->plan->program->item[step->item];
    ym_tensor x = resolve(r, step->in[0]), y = resolve(r, step->out[0]);
    switch (step->kind) {
    case YM_STEP_CONV: {
        const ym_weight w = resolve_weight(r, step);
        return backend->conv_forward(r->context, &item->u.conv.shape, &x, &w,
                                     param_data(r, item->u.conv.bias), &y);
    }
    case YM_STEP_BRICK: {
        ym_brick brick = resolve_brick(r, step);
        return backend->brick_forward(r->context, &brick, &y);
    }
    case YM_STEP_MAX_POOL:
        return backend->max_pool_forward(r->context, &item->u.pool, &x, &y);
    case YM_STEP_AVG_POOL:
        return backend->avg_pool_forward(r->context, &item->u.pool, &x, &y);
    case YM_STEP_MAXIMUM:
        return backend->maximum_forward(r->context, &x, &y);
    case YM_STEP_UPSAMPLE:
        return run_upsample(r, &item->u.resize, &x, &y);
    case YM_STEP_MULTIPLY: {
        const ym_tensor other = resolve(r, step->in[1]);
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

static ym_status run_backward_step(const runner *r, const ym_step *step)
{
    const ym_backend *backend = r->context->backend;
    const ym_item *item = &r->plan->program->item[step->item];
    ym_tensor x = resolve(r, step->in[0]), dy = resolve(r, step->in[3]);
    ym_tensor dx = resolve(r, step->out[0]);
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

static ym_status run_step(const runner *r, const ym_step *step)
{
    r->context->scratch = NULL;
    r->context->scratch_bytes = 0;
    if (step->scratch >= 0) {
        const ym_block *block = &r->schedule->block[step->scratch];
        r->context->scratch = arena(r, block->offset);
        r->context->scratch_bytes = block->bytes;
    }
    switch (step->kind) {
    case YM_STEP_PACK_WEIGHTS:
        return run_pack_weights(r);
    case YM_STEP_STATISTICS:
        return run_statistics(r, step);
    case YM_STEP_CONV_WEIGHT:
        return run_conv_weight(r, step);
    case YM_STEP_BRICK_BACKWARD:
        return run_brick_backward(r, step);
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
    runner r = {plan, schedule, context, bindings};
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
