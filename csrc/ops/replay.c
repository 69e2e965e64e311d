/* SPDX-License-Identifier: MIT
 * A run as a replayer takes it: its bindings as a key.
 */
#include "core/replay.h"

#include <stdlib.h>
#include <string.h>

#include "core/plan_parts.h"

typedef struct run_call {
    const ym_plan *plan;
    const ym_schedule *schedule;
    int32_t segment;
    const ym_bindings *bindings;
} run_call;

static ym_status queue_run(ym_context *context, const void *what)
{
    const run_call *call = what;
    return ym_plan_run(call->plan, call->schedule, call->segment, context,
                       call->bindings);
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

/* Their sizes are the plan's. */
static void put_tensors(key_writer *to, const ym_tensor *list, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        put_pointer(to, list != NULL ? list[i].data : NULL);
    }
}

static void put_weights(key_writer *to, const ym_weight *list, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const ym_weight none = {0}, *w = list != NULL ? &list[i] : &none;
        put_pointer(to, w->data);
        put(to, (uint64_t)w->stride_k);
        put(to, (uint64_t)w->stride_c);
        put(to, (uint64_t)w->stride_r);
        put(to, (uint64_t)w->stride_s);
    }
}

static void put_norms(key_writer *to, const ym_norm *list, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        uint32_t eps, momentum;
        memcpy(&eps, &list[i].eps, sizeof eps);
        memcpy(&momentum, &list[i].momentum, sizeof momentum);
        put_pointer(to, list[i].running_mean);
        put_pointer(to, list[i].running_var);
        put(to, (uint64_t)eps << 32 | momentum);
        put(to, (uint64_t)list[i].batch_statistics << 1 | list[i].update_running);
    }
}

static void put_bindings(key_writer *to, const ym_graph *g, const ym_bindings *b)
{
    put_pointer(to, b->saved);
    put(to, b->saved_bytes);
    put_pointer(to, b->workspace);
    put(to, b->workspace_bytes);
    put_tensors(to, b->inputs, g->input_count);
    put_tensors(to, b->outputs, g->output_count);
    put_tensors(to, b->grad_outputs, g->output_count);
    put_tensors(to, b->grad_inputs, g->input_count);
    put_weights(to, b->params, g->param_count);
    put_weights(to, b->grad_params, g->param_count);
    for (int32_t i = 0; i < g->param_count; i++) {
        put(to, b->accumulate_params != NULL && b->accumulate_params[i]);
    }
    put_norms(to, b->norms, g->norm_count);
}

ym_status ym_plan_replay(const ym_plan *plan, const ym_schedule *schedule,
                         int32_t segment, ym_context *context,
                         const ym_bindings *bindings)
{
    if (plan->replayer == NULL) {
        return ym_plan_run(plan, schedule, segment, context, bindings);
    }
    key_writer writer = {0};
    put_bindings(&writer, plan->graph, bindings);
    uint64_t *const word = malloc(writer.count * sizeof *word);
    if (word == NULL) {
        return ym_plan_run(plan, schedule, segment, context, bindings);
    }
    writer = (key_writer){.word = word};
    put_bindings(&writer, plan->graph, bindings);
    const ym_replay_key key = {schedule, segment, word, writer.count};
    const run_call call = {plan, schedule, segment, bindings};
    const ym_status status =
        plan->replayer->run(plan->replayer, context, &key, queue_run, &call);
    free(word);
    return status;
}
