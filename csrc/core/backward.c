/* SPDX-License-Identifier: MIT */
#include "core/backward.h"

#include <stdlib.h>
#include <string.h>

static bool reach_param(ym_backwarder *s, int32_t param)
{
    bool again = s->param_written[param];
    s->param_written[param] = true;
    s->b.schedule->reached_param[param] = true;
    return again;
}

/* again: of each of the item's params (ym_item_params), is the gradient added to what
 * another item has written? */
static void reach_params(ym_backwarder *s, int32_t i, bool again[4])
{
    const ym_program *p = s->b.program;
    int32_t params[4];
    ym_item_params(p, i, params);
    for (int k = 0; k < 4; k++) {
        again[k] = params[k] >= 0 && p->param_grad[params[k]] &&
                   reach_param(s, params[k]);
    }
}

static void visit_conv_weight(ym_backwarder *s, int32_t i, ym_view dy)
{
    const ym_item *item = &s->b.program->item[i];
    if (!ym_wants_params(s->b.program, i)) {
        return;
    }
    /* For a bias alone x is absent: only its shape is read. */
    ym_view x = YM_NO_VIEW;
    if (s->b.program->param_grad[item->u.conv.weight]) {
        x = ym_packed_view(&s->b, item->operand[0], ym_read_value(s, item->operand[0]));
    }
    const bool is_adjoint = item->u.conv.is_transposed;
    ym_step *step = ym_add_step(&s->b, YM_STEP_CONV_WEIGHT, i);
    step->in[0] = is_adjoint ? dy : x;
    step->in[3] = is_adjoint ? x : dy;
    reach_params(s, i, step->accumulate_param);
    ym_finish_step(&s->b);
}

static void visit_conv(ym_backwarder *s, int32_t i, ym_view dy)
{
    int32_t x = s->b.program->item[i].operand[0];
    dy = ym_packed_view(&s->b, i, dy);
    visit_conv_weight(s, i, dy);
    if (!ym_needs_grad(s, x)) {
        return;
    }
    bool accumulate;
    ym_view dx = ym_gradient_target(s, x, &accumulate);
    const bool is_adjoint = s->b.program->item[i].u.conv.is_transposed;
    bool direct = (s->b.backend->capabilities & YM_CAP_STRIDED_CONV) != 0 ||
                  ym_is_packed(&s->b, dx);
    direct = direct && !(is_adjoint && accumulate); /* a convolution adds nothing */
    ym_view out = direct ? dx : ym_new_view(&s->b, YM_PLACE_WORKSPACE, 0, x);
    ym_step *step =
        ym_add_step(&s->b, is_adjoint ? YM_STEP_CONV : YM_STEP_CONV_DATA, i);
    step->in[is_adjoint ? 0 : 3] = dy;
    step->out[0] = out;
    step->accumulate[0] = direct && accumulate;
    ym_finish_step(&s->b);
    if (!direct) {
        ym_add_copy(&s->b, x, out, dx, accumulate);
    }
}

static void add_to_gradient(ym_backwarder *s, int32_t item, ym_view from)
{
    bool accumulate;
    ym_view to = ym_gradient_target(s, item, &accumulate);
    ym_add_copy(&s->b, item, from, to, accumulate);
}

static bool is_term(const ym_item *brick, int32_t item)
{
    return brick->operand[0] == item ||
           (brick->u.brick.term_count == 2 && brick->operand[1] == item);
}

/* The residual's gradient is dout itself. Returns whether it has taken dout's memory.
 */
static bool visit_residual(ym_backwarder *s, const ym_item *brick, ym_view dout)
{
    if (!brick->u.brick.has_residual) {
        return false;
    }
    int32_t residual = brick->operand[brick->u.brick.term_count];
    if (!ym_needs_grad(s, residual)) {
        return false;
    }
    if (ym_can_adopt(s, residual) && !is_term(brick, residual)) {
        ym_adopt_gradient(s, residual, dout);
        return true;
    }
    add_to_gradient(s, residual, dout);
    return false;
}

/* What backward reads for term t: the kept result, where that tells as much. */
static ym_view read_term(ym_backwarder *s, int32_t i, int32_t t, bool *is_result)
{
    bool kept = s->value[i].view.block >= 0 && s->value[i].lasting;
    *is_result = kept && ym_result_tells(s->b.program, i);
    return ym_read_value(s, *is_result ? i : s->b.program->item[i].operand[t]);
}

static void visit_brick(ym_backwarder *s, int32_t i, ym_view dout)
{
    const ym_item *brick = &s->b.program->item[i];
    int32_t terms = brick->u.brick.term_count;
    ym_view in[4] = {YM_NO_VIEW, YM_NO_VIEW, YM_NO_VIEW, dout};
    ym_view out[2] = {YM_NO_VIEW, YM_NO_VIEW};
    bool accumulate[2] = {false, false};
    bool same = terms == 2 && brick->operand[0] == brick->operand[1];
    bool any = ym_wants_params(s->b.program, i), reads_result = false;
    for (int32_t t = 0; t < terms; t++) {
        any = any || ym_needs_grad(s, brick->operand[t]);
        if (ym_backward_reads(s->b.program, i, t)) {
            in[t] = read_term(s, i, t, &reads_result);
        }
    }
    bool dout_taken = visit_residual(s, brick, dout);
    if (!any) {
        return;
    }
    for (int32_t t = 0; t < terms; t++) {
        if (ym_needs_grad(s, brick->operand[t])) {
            out[t] = t == 1 && same
                         ? ym_new_view(&s->b, YM_PLACE_WORKSPACE, 0, brick->operand[1])
                         : ym_take_or_target(s, brick->operand[t], dout, &dout_taken,
                                             &accumulate[t]);
        }
    }
    ym_step *step = ym_add_step(&s->b, YM_STEP_BRICK_BACKWARD, i);
    step->reads_result = reads_result;
    memcpy(step->in, in, sizeof in);
    memcpy(step->out, out, sizeof out);
    memcpy(step->accumulate, accumulate, sizeof accumulate);
    reach_params(s, i, step->accumulate_param);
    ym_finish_step(&s->b);
    if (same && out[1].block >= 0) {
        add_to_gradient(s, brick->operand[1], out[1]);
    }
}

static void visit_concat(ym_backwarder *s, int32_t i, ym_view dout)
{
    const ym_item *item = &s->b.program->item[i];
    int32_t first = 0;
    for (int32_t k = 0; k < item->operand_count; k++) {
        int32_t member = item->operand[k], count = s->b.program->item[member].c;
        ym_view part = ym_subview(dout, first, count);
        first += count;
        if (!ym_needs_grad(s, member)) {
            continue;
        }
        if (ym_can_adopt(s, member) && ym_is_near(s->conv_count, member, i)) {
            ym_adopt_gradient(s, member, part);
        } else {
            add_to_gradient(s, member, part);
        }
    }
}

static void visit_window(ym_backwarder *s, int32_t i, ym_view dout)
{
    const ym_item *item = &s->b.program->item[i];
    int32_t x = item->operand[0];
    if (!ym_needs_grad(s, x)) {
        return;
    }
    ym_view in = YM_NO_VIEW;
    if (ym_backward_reads(s->b.program, i, 0)) {
        in = ym_read_value(s, x);
    }
    bool accumulate;
    ym_view dx = ym_gradient_target(s, x, &accumulate);
    ym_step_kind kind = item->kind == YM_ITEM_MAX_POOL   ? YM_STEP_MAX_POOL_BACKWARD
                        : item->kind == YM_ITEM_AVG_POOL ? YM_STEP_AVG_POOL_BACKWARD
                        : item->kind == YM_ITEM_MAXIMUM  ? YM_STEP_MAXIMUM_BACKWARD
                                                         : YM_STEP_UPSAMPLE_BACKWARD;
    ym_step *step = ym_add_step(&s->b, kind, i);
    step->in[0] = in;
    step->in[3] = dout;
    step->out[0] = dx;
    step->accumulate[0] = accumulate;
    ym_finish_step(&s->b);
}

static void visit(ym_backwarder *s, int32_t i)
{
    const ym_item *item = &s->b.program->item[i];
    /* A slice has no gradient of its own: it was written into its parent's. */
    if (!item->needs_grad || item->kind == YM_ITEM_SLICE || !ym_has_gradient(s, i)) {
        return;
    }
    s->now = i;
    ym_view dout = ym_read_gradient(s, i);
    switch (item->kind) {
    case YM_ITEM_CONV:
        visit_conv(s, i, dout);
        break;
    case YM_ITEM_BRICK:
        visit_brick(s, i, dout);
        break;
    case YM_ITEM_CONCAT:
        visit_concat(s, i, dout);
        break;
    case YM_ITEM_MULTIPLY:
        ym_visit_multiply(s, i, dout);
        break;
    case YM_ITEM_MEAN:
        ym_visit_mean(s, i, dout);
        break;
    case YM_ITEM_INPUT:
        break;
    default:
        visit_window(s, i, dout);
    }
}

/* The caller's gradients of a stage's outputs start the sums. */
static void seed(ym_backwarder *s, int32_t stage)
{
    const ym_program *p = s->b.program;
    for (int32_t o = 0; o < p->graph->output_count; o++) {
        int32_t item = p->output[o];
        bool wanted = s->request->output_has_grad == NULL ||
                      s->request->output_has_grad[o];
        s->b.schedule->mask[o] = wanted;
        if (!wanted || !ym_needs_grad(s, item) || p->graph->output_stage[o] != stage) {
            continue;
        }
        ym_view given = ym_new_view(&s->b, YM_PLACE_GRAD_OUTPUT, o, item);
        if (ym_can_adopt(s, item)) {
            ym_adopt_gradient(s, item, given);
        } else {
            add_to_gradient(s, item, given);
        }
    }
}

/* What recomputes outputs of the stage finds what it reads until the stage's turn. */
static void hold_for_outputs(ym_backwarder *s, int32_t stage)
{
    const ym_program *p = s->b.program;
    const int32_t before = s->b.schedule->step_count - 1;
    for (int32_t o = 0; s->request->recompute != NULL && o < p->graph->output_count;
         o++) {
        if (s->request->recompute[o] != NULL && p->graph->output_stage[o] == stage) {
            ym_hold_for_output(s, s->request->recompute[o], before);
        }
    }
}

/* Visits the items from the last to the first, segment by segment. */
static void build(ym_backwarder *s)
{
    ym_schedule *schedule = s->b.schedule;
    int32_t segments = s->request->segment_count;
    ym_adopt_saved(s);
    if (s->b.out_of_memory) {
        return;
    }
    for (int32_t i = 0; i < s->b.program->item_count; i++) {
        s->gradient[i] = (ym_gradient){YM_NO_VIEW, NULL};
    }
    s->now = s->b.program->item_count;
    int32_t end = s->b.program->item_count, stage = s->b.program->graph->stage_count;
    for (int32_t k = segments - 1; k >= 0; k--) {
        for (int32_t i = end - 1; i >= s->request->segment_first[k]; i--) {
            while (stage > s->b.program->item[i].stage) {
                hold_for_outputs(s, --stage);
                seed(s, stage);
            }
            visit(s, i);
        }
        end = s->request->segment_first[k];
        schedule->segment_end[segments - 1 - k] = schedule->step_count;
    }
    int32_t last = schedule->step_count > 0 ? schedule->step_count - 1 : 0;
    for (int32_t i = 0; i < schedule->block_count; i++) {
        if (schedule->block[i].last > last) {
            schedule->block[i].last = last;
        }
    }
}

static void free_state(ym_backwarder *s)
{
    for (int32_t i = 0; s->gradient != NULL && i < s->b.program->item_count; i++) {
        free(s->gradient[i].covered);
    }
    free(s->value);
    free(s->gradient);
    free(s->param_written);
    free(s->conv_count);
}

ym_status ym_backward_create(const ym_backward_request *request, ym_schedule **made,
                             ym_error *error)
{
    const ym_program *p = request->program;
    size_t items = (size_t)p->item_count + 1;
    ym_backwarder s = {.request = request};
    s.b = (ym_builder){.program = p,
                       .backend = request->backend,
                       .saved_bytes = request->forward->saved_bytes,
                       .weight_block = request->forward->weight_block};
    s.value = calloc(items, sizeof *s.value);
    s.gradient = calloc(items, sizeof *s.gradient);
    s.param_written = calloc((size_t)p->graph->param_count + 1, sizeof(bool));
    s.conv_count = ym_count_convolutions(p);
    ym_status status = YM_ERR_MEMORY;
    bool ready = ym_builder_begin(&s.b, request->segment_count);
    if (ready && s.value != NULL && s.gradient != NULL && s.param_written != NULL &&
        s.conv_count != NULL) {
        build(&s);
        status = ym_builder_end(&s.b) ? YM_OK : YM_ERR_MEMORY;
    }
    free_state(&s);
    if (status != YM_OK) {
        ym_schedule_free(s.b.schedule);
        return ym_fail(error, status, "plan: out of memory");
    }
    *made = s.b.schedule;
    return YM_OK;
}
