/* SPDX-License-Identifier: MIT */
#include "core/plan.h"

#include <stdlib.h>
#include <string.h>

#include "core/plan_parts.h"

static ym_status check_request(const ym_graph *g, const ym_plan_request *r,
                               ym_error *error)
{
    YM_CHECK(error, g->output_count > 0, YM_ERR_ARGUMENT,
             "plan: the graph has no output");
    YM_CHECK(error, r->dtype <= YM_F16, YM_ERR_DTYPE,
             "plan: dtype is %s, must be float32, bfloat16 or float16",
             ym_dtype_name(r->dtype));
    for (int32_t i = 0; r->input_form != NULL && i < g->input_count; i++) {
        const ym_input_form *form = &r->input_form[i];
        YM_CHECK(error,
                 !form->is_planar || form->dtype == YM_F32 || form->dtype == r->dtype,
                 YM_ERR_DTYPE,
                 "input %d: comes planar in %s, must be float32 or the plan's %s", i,
                 ym_dtype_name(form->dtype), ym_dtype_name(r->dtype));
    }
    YM_CHECK(error, r->segment_count >= 1, YM_ERR_ARGUMENT,
             "plan: segment_count is %d, must be at least 1", r->segment_count);
    return YM_OK;
}

/* The first item that uses each param: its gradient is complete after that visit. */
static void find_first_users(const ym_program *p, int32_t *first_user)
{
    for (int32_t i = 0; i < p->graph->param_count; i++) {
        first_user[i] = -1;
    }
    for (int32_t i = p->item_count - 1; i >= 0; i--) {
        int32_t params[4];
        ym_item_params(p, i, params);
        for (int k = 0; k < 4; k++) {
            if (params[k] >= 0) {
                first_user[params[k]] = i;
            }
        }
    }
}

static double param_elements(const ym_graph *g, int32_t param)
{
    const ym_param *w = &g->param[param];
    return (double)w->k * w->c * w->r * w->s;
}

/* A segment lies in one stage, and each stage has one, if an empty one. begin: the
 * first items of `count` segments, ascending. */
static ym_status cut_at_stages(ym_plan *plan, int32_t *begin, int32_t count,
                               ym_error *error)
{
    const ym_program *p = plan->program;
    const int32_t stages = plan->graph->stage_count;
    const size_t most = (size_t)count + (size_t)stages;
    plan->segment_first = calloc(most, sizeof *plan->segment_first);
    plan->segment_stage = calloc(most, sizeof *plan->segment_stage);
    YM_CHECK(error, plan->segment_first != NULL && plan->segment_stage != NULL,
             YM_ERR_MEMORY, "plan: out of memory");
    int32_t made = 0, cut = 0, end = 0;
    for (int32_t stage = 0; stage < stages; stage++) {
        const int32_t first = end;
        while (end < p->item_count && p->item[end].stage == stage) {
            end++;
        }
        plan->segment_stage[made] = stage;
        plan->segment_first[made++] = first;
        for (; cut < count && begin[cut] < end; cut++) {
            if (begin[cut] > first) {
                plan->segment_stage[made] = stage;
                plan->segment_first[made++] = begin[cut];
            }
        }
    }
    plan->segment_count = made;
    return YM_OK;
}

/* Cuts the items so that each segment completes about the same bytes of parameter
 * gradients, counted from the end, where backward starts. */
static ym_status cut_segments(ym_plan *plan, int32_t wanted, ym_error *error)
{
    const ym_program *p = plan->program;
    const ym_graph *g = p->graph;
    double *weight = calloc((size_t)p->item_count + 1, sizeof *weight);
    int32_t *first = calloc((size_t)g->param_count + 1, sizeof *first);
    int32_t *begin = calloc((size_t)wanted + 1, sizeof *begin);
    plan->param_segment =
        calloc((size_t)g->param_count + 1, sizeof *plan->param_segment);
    if (weight == NULL || first == NULL || begin == NULL ||
        plan->param_segment == NULL) {
        free(weight);
        free(first);
        free(begin);
        return ym_fail(error, YM_ERR_MEMORY, "plan: out of memory");
    }
    find_first_users(p, first);
    double total = 0, passed = 0;
    for (int32_t i = 0; i < g->param_count; i++) {
        if (first[i] >= 0 && p->param_grad[i]) {
            weight[first[i]] += param_elements(g, i);
            total += param_elements(g, i);
        }
    }
    int32_t cuts = 0; /* from the last segment on */
    for (int32_t i = p->item_count - 1; i > 0; i--) {
        passed += weight[i];
        if (cuts < wanted - 1 && weight[i] > 0 &&
            passed >= total * (cuts + 1) / wanted) {
            begin[cuts++] = i;
        }
    }
    begin[cuts] = 0;
    for (int32_t k = 0; k < (cuts + 1) / 2; k++) {
        int32_t swapped = begin[k];
        begin[k] = begin[cuts - k];
        begin[cuts - k] = swapped;
    }
    const ym_status status = cut_at_stages(plan, begin, cuts + 1, error);
    for (int32_t i = 0; status == YM_OK && i < g->param_count; i++) {
        int32_t k = plan->segment_count - 1;
        while (first[i] >= 0 && first[i] < plan->segment_first[k]) {
            k--;
        }
        plan->param_segment[i] = first[i] >= 0 && p->param_grad[i] ? k : -1;
    }
    free(weight);
    free(first);
    free(begin);
    return status;
}

static ym_status make_backward(ym_plan *plan, const bool *mask, ym_schedule **made,
                               ym_error *error)
{
    ym_backward_request request = {.program = plan->program,
                                   .backend = plan->backend,
                                   .forward = &plan->forward,
                                   .output_has_grad = mask,
                                   .patience = plan->patience,
                                   .segment_first = plan->segment_first,
                                   .segment_count = plan->segment_count,
                                   .recompute = plan->recompute};
    ym_schedule *backward;
    YM_TRY(ym_backward_create(&request, &backward, error));
    ym_status status = ym_place_blocks(backward, plan->forward.saved_bytes, 0, error);
    if (status != YM_OK) {
        ym_schedule_free(backward);
        return status;
    }
    *made = backward;
    return YM_OK;
}

static ym_status make_recompute(ym_plan *plan, ym_error *error)
{
    const int32_t count = plan->graph->output_count;
    plan->recompute = calloc((size_t)count + 1, sizeof(ym_schedule *));
    YM_CHECK(error, plan->recompute != NULL, YM_ERR_MEMORY, "plan: out of memory");
    for (int32_t o = 0; o < count; o++) {
        YM_TRY(ym_recompute_create(plan->program, plan->backend, &plan->forward, o,
                                   &plan->recompute[o], error));
    }
    return YM_OK;
}

static ym_status build(ym_plan *plan, const ym_plan_request *request, ym_error *error)
{
    YM_TRY(ym_program_create(plan->graph, request, &plan->program, error));
    ym_choice choice;
    YM_TRY(ym_choose(plan->program, request, &choice, error));
    plan->patience = choice.patience;
    ym_status status = ym_forward_create(plan->program, plan->backend, choice.keep,
                                         &plan->forward, error);
    free(choice.keep);
    YM_TRY(status);
    YM_TRY(
        ym_place_blocks(plan->forward.schedule, plan->forward.saved_bytes, 0, error));
    YM_TRY(cut_segments(plan, request->segment_count, error));
    YM_TRY(make_recompute(plan, error));
    return make_backward(plan, NULL, &plan->backward, error);
}

/* What other processes have to say in the middle of a run can't be repeated. */
static bool is_shared(const ym_graph *graph)
{
    bool shared = false;
    for (int32_t i = 0; i < graph->norm_count; i++) {
        shared = shared || graph->norm[i].sharing.group > 0;
    }
    return shared;
}

ym_status ym_plan_create(const ym_graph *graph, const ym_plan_request *request,
                         ym_plan **made, ym_error *error)
{
    YM_TRY(check_request(graph, request, error));
    ym_plan *plan = calloc(1, sizeof *plan);
    YM_CHECK(error, plan != NULL, YM_ERR_MEMORY, "plan: out of memory");
    plan->graph = graph;
    plan->backend = request->backend;
    plan->device = request->device;
    ym_status status = build(plan, request, error);
    const bool replays = request->replays && !is_shared(graph);
    if (status == YM_OK && replays && plan->backend->make_replayer != NULL) {
        plan->replayer = plan->backend->make_replayer();
        if (plan->replayer == NULL) {
            status = ym_fail(error, YM_ERR_MEMORY, "plan: out of memory");
        }
    }
    if (status != YM_OK) {
        ym_plan_free(plan);
        return status;
    }
    *made = plan;
    return YM_OK;
}

void ym_plan_free(ym_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    for (ym_schedule *s = plan->backward; s != NULL;) {
        ym_schedule *next = s->next;
        ym_schedule_free(s);
        s = next;
    }
    for (int32_t o = 0; plan->recompute != NULL && o < plan->graph->output_count; o++) {
        ym_schedule_free(plan->recompute[o]);
    }
    free(plan->recompute);
    if (plan->replayer != NULL) {
        plan->replayer->free(plan->replayer);
    }
    ym_forward_free(&plan->forward);
    ym_program_free(plan->program);
    free(plan->segment_first);
    free(plan->segment_stage);
    free(plan->param_segment);
    free(plan);
}

const ym_schedule *ym_plan_forward_schedule(const ym_plan *plan)
{
    return plan->forward.schedule;
}

ym_status ym_plan_backward_schedule(ym_plan *plan, const bool *output_has_grad,
                                    const ym_schedule **made, ym_error *error)
{
    size_t bytes = (size_t)plan->graph->output_count * sizeof(bool);
    ym_schedule *s = plan->backward;
    while (output_has_grad != NULL && s != NULL &&
           memcmp(s->mask, output_has_grad, bytes) != 0) {
        s = s->next;
    }
    if (s == NULL) {
        YM_TRY(make_backward(plan, output_has_grad, &s, error));
        s->next = plan->backward->next;
        plan->backward->next = s;
    }
    *made = s;
    return YM_OK;
}

void ym_segment_steps(const ym_schedule *schedule, int32_t segment, int32_t *begin,
                      int32_t *end)
{
    *begin = 0;
    *end = schedule->step_count;
    if (schedule->segment_count > 0) {
        int32_t turn = schedule->segment_count - 1 - segment;
        *begin = turn > 0 ? schedule->segment_end[turn - 1] : 0;
        *end = schedule->segment_end[turn];
    }
}

bool ym_block_lives(const ym_schedule *schedule, const ym_block *block, int32_t segment)
{
    int32_t begin, end;
    ym_segment_steps(schedule, segment, &begin, &end);
    return block->first < end && block->last >= begin;
}

void ym_plan_touched_params(const ym_plan *plan, const ym_schedule *schedule,
                            int32_t segment, bool *touched)
{
    int32_t begin, end;
    ym_segment_steps(schedule, segment, &begin, &end);
    const ym_program *p = plan->program;
    for (int32_t i = begin; i < end; i++) {
        const ym_step *step = &schedule->step[i];
        if (step->kind != YM_STEP_CONV_WEIGHT && step->kind != YM_STEP_BRICK_BACKWARD) {
            continue;
        }
        int32_t params[4];
        ym_item_params(p, step->item, params);
        for (int k = 0; k < 4; k++) {
            if (params[k] >= 0 && p->param_grad[params[k]]) {
                touched[params[k]] = true;
            }
        }
    }
}

/* The weights that the first step of forward casts. */
static void read_packed_weights(const ym_plan *plan, bool *params)
{
    for (int32_t i = 0; i < plan->graph->param_count; i++) {
        params[i] = params[i] || plan->forward.weight_block[i] >= 0;
    }
}

static void read_item(const ym_program *p, int32_t i, bool *params, bool *norms)
{
    const ym_item *item = &p->item[i];
    int32_t own[4];
    ym_item_params(p, i, own);
    for (int k = 0; k < 4; k++) {
        if (own[k] >= 0) {
            params[own[k]] = true;
        }
    }
    for (int32_t t = 0; item->kind == YM_ITEM_BRICK && t < item->u.brick.term_count;
         t++) {
        const int32_t call = item->u.brick.norm_call[t];
        if (call >= 0) {
            norms[p->norm_call[call].module] = true;
        }
    }
}

void ym_plan_reads(const ym_plan *plan, const ym_schedule *schedule, int32_t segment,
                   bool *params, bool *norms)
{
    int32_t begin, end;
    ym_segment_steps(schedule, segment, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        const ym_step *step = &schedule->step[i];
        switch (step->kind) {
        case YM_STEP_PACK_WEIGHTS:
            read_packed_weights(plan, params);
            break;
        case YM_STEP_CONV:
        case YM_STEP_CONV_DATA:
        case YM_STEP_CONV_WEIGHT:
        case YM_STEP_STATISTICS:
        case YM_STEP_BRICK:
        case YM_STEP_BRICK_BACKWARD:
            read_item(plan->program, step->item, params, norms);
            break;
        default:
            break;
        }
    }
}
