/* SPDX-License-Identifier: MIT
 * A run as a replayer takes it: what its steps find in the bindings as a key.
 *
 * A caller's image comes at other addresses than the arenas do, and one step alone
 * reads it, which packs it: that one is queued each time, between runs of steps that
 * are repeated, or every new address would be another record of all of them.
 */
#include "core/replay.h"

#include <stdlib.h>
#include <string.h>

#include "core/plan_parts.h"

/* One launch costs as much as the start of a graph, which holds memory besides. */
#define FEWEST_STEPS 4

/* Steps [begin, end). */
typedef struct run_call {
    const ym_plan *plan;
    const ym_schedule *schedule;
    int32_t begin, end;
    const ym_bindings *bindings;
} run_call;

static ym_status queue_run(ym_context *context, const void *what)
{
    const run_call *call = what;
    return ym_plan_run_steps(call->plan, call->schedule, call->begin, call->end,
                             context, call->bindings);
}

/* Counts the words; writes them where there is memory for them. */
typedef struct key_writer {
    uint64_t *word;
    size_t count;
} key_writer;

static void put(key_writer *to, uint64_t word)
{
    if (to->word != NULL) {
        to->word[to->count] = word;
    }
    to->count++;
}

static void put_pointer(key_writer *to, const void *pointer)
{
    put(to, (uint64_t)(uintptr_t)pointer);
}

static void put_weight(key_writer *to, const ym_weight *w)
{
    put_pointer(to, w->data);
    put(to, (uint64_t)w->stride_k);
    put(to, (uint64_t)w->stride_c);
    put(to, (uint64_t)w->stride_r);
    put(to, (uint64_t)w->stride_s);
}

static void put_param(key_writer *to, const run_call *call, int32_t param)
{
    const ym_bindings *b = call->bindings;
    if (param < 0) {
        return;
    }
    put_weight(to, &b->params[param]);
    if (b->grad_params != NULL) {
        put_weight(to, &b->grad_params[param]);
        put(to, b->accumulate_params != NULL && b->accumulate_params[param]);
    }
}

static void put_norm(key_writer *to, const run_call *call, int32_t norm_call)
{
    const int32_t module = call->plan->program->norm_call[norm_call].module;
    const ym_norm *norm = &call->bindings->norms[module];
    uint64_t eps, momentum;
    memcpy(&eps, &norm->eps, sizeof eps);
    memcpy(&momentum, &norm->momentum, sizeof momentum);
    put_pointer(to, norm->running_mean);
    put_pointer(to, norm->running_var);
    put(to, eps);
    put(to, momentum);
    put(to, (uint64_t)norm->batch_statistics << 1 | norm->update_running);
}

static void put_params(key_writer *to, const run_call *call, int32_t item)
{
    int32_t params[4];
    ym_item_params(call->plan->program, item, params);
    for (int k = 0; k < 4; k++) {
        put_param(to, call, params[k]);
    }
}

/* Sizes are the plan's, and so are places in the arenas. */
static void put_view(key_writer *to, const run_call *call, ym_view view)
{
    const ym_bindings *b = call->bindings;
    const ym_block *block = view.block < 0 ? NULL : &call->schedule->block[view.block];
    const ym_tensor *list = NULL;
    if (block != NULL) {
        list = block->place == YM_PLACE_INPUT         ? b->inputs
               : block->place == YM_PLACE_OUTPUT      ? b->outputs
               : block->place == YM_PLACE_GRAD_OUTPUT ? b->grad_outputs
               : block->place == YM_PLACE_GRAD_INPUT  ? b->grad_inputs
                                                      : NULL;
    }
    if (list != NULL) {
        put_pointer(to, list[block->index].data);
    }
}

static void put_packed_weights(key_writer *to, const run_call *call)
{
    for (int32_t i = 0; i < call->plan->graph->param_count; i++) {
        if (call->plan->forward.weight_block[i] >= 0) {
            put_weight(to, &call->bindings->params[i]);
        }
    }
}

static void put_step(key_writer *to, const run_call *call, const ym_step *step)
{
    const ym_item *item = &call->plan->program->item[step->item];
    for (int i = 0; i < 4; i++) {
        put_view(to, call, step->in[i]);
    }
    for (int i = 0; i < 2; i++) {
        put_view(to, call, step->out[i]);
    }
    switch (step->kind) {
    case YM_STEP_PACK_WEIGHTS:
        put_packed_weights(to, call);
        break;
    case YM_STEP_CONV:
    case YM_STEP_CONV_WEIGHT:
    case YM_STEP_CONV_DATA:
        put_params(to, call, step->item);
        break;
    case YM_STEP_STATISTICS:
    case YM_STEP_BRICK:
    case YM_STEP_BRICK_BACKWARD:
        for (int32_t t = 0; t < item->u.brick.term_count; t++) {
            if (item->u.brick.norm_call[t] >= 0) {
                put_norm(to, call, item->u.brick.norm_call[t]);
            }
        }
        put_params(to, call, step->item);
        break;
    default:
        break;
    }
}

/* Only what these steps read and write: the loss leaves the network's gradients in
 * other memory each time, and one segment alone reads those. */
static void put_run(key_writer *to, const run_call *call)
{
    put_pointer(to, call->bindings->saved);
    put(to, call->bindings->saved_bytes);
    put_pointer(to, call->bindings->workspace);
    put(to, call->bindings->workspace_bytes);
    for (int32_t i = call->begin; i < call->end; i++) {
        put_step(to, call, &call->schedule->step[i]);
    }
}

static ym_status repeat(ym_context *context, const run_call *call)
{
    if (call->end - call->begin < FEWEST_STEPS) {
        return queue_run(context, call);
    }
    key_writer writer = {0};
    put_run(&writer, call);
    uint64_t *const word = malloc(writer.count * sizeof *word);
    if (word == NULL) {
        return queue_run(context, call);
    }
    writer = (key_writer){.word = word};
    put_run(&writer, call);
    const ym_replay_key key = {call->schedule, call->begin, word, writer.count};
    ym_replayer *const replayer = call->plan->replayer;
    const ym_status status = replayer->run(replayer, context, &key, queue_run, call);
    free(word);
    return status;
}

/* How many steps from `begin` on are done in one way. */
static int32_t steps_alike(const ym_schedule *schedule, int32_t begin, int32_t end)
{
    int32_t i = begin;
    while (i < end && schedule->step[i].kind != YM_STEP_PACK_INPUT) {
        i++;
    }
    return i > begin ? i - begin : 1;
}

ym_status ym_plan_run(const ym_plan *plan, const ym_schedule *schedule, int32_t segment,
                      ym_context *context, const ym_bindings *bindings)
{
    run_call call = {.plan = plan, .schedule = schedule, .bindings = bindings};
    int32_t end;
    ym_segment_steps(schedule, segment, &call.begin, &end);
    if (plan->replayer == NULL) {
        return ym_plan_run_steps(plan, schedule, call.begin, end, context, bindings);
    }
    for (; call.begin < end; call.begin = call.end) {
        call.end = call.begin + steps_alike(schedule, call.begin, end);
        YM_TRY(repeat(context, &call));
    }
    return YM_OK;
}
