/* SPDX-License-Identifier: MIT */
#include "core/recompute.h"

#include <stdlib.h>

#include "core/backward.h"

static void build(ym_backwarder *s, int32_t output)
{
    const ym_program *p = s->b.program;
    const int32_t item = p->output[output];
    ym_adopt_saved(s);
    if (s->b.out_of_memory) {
        return;
    }
    const ym_view out = ym_new_view(&s->b, YM_PLACE_OUTPUT, output, item);
    if (s->value[item].view.block >= 0 || p->item[item].kind == YM_ITEM_SLICE) {
        ym_add_copy(&s->b, item, ym_read_value(s, item), out, false);
    } else {
        ym_rebuild_into(s, item, out);
    }
    s->b.schedule->segment_end[0] = s->b.schedule->step_count;
}

static bool asks_for_more(const ym_schedule *s)
{
    bool reads_input = false;
    for (int32_t i = 0; i < s->block_count; i++) {
        const ym_block *block = &s->block[i];
        reads_input = reads_input ||
                      (block->place == YM_PLACE_INPUT && block->last >= 0);
    }
    return reads_input || s->rerun_convolutions > 0;
}

/* Backward needs all that is saved. */
static void hold_saved(ym_schedule *s)
{
    for (int32_t i = 0; i < s->block_count; i++) {
        if (s->block[i].place == YM_PLACE_SAVED) {
            s->block[i].first = 0;
            s->block[i].last = s->step_count - 1;
        }
    }
}

static ym_status place(ym_builder *b, ym_schedule **made, ym_error *error)
{
    if (b->out_of_memory) {
        return ym_fail(error, YM_ERR_MEMORY, "plan: out of memory");
    }
    if (asks_for_more(b->schedule)) {
        return YM_OK;
    }
    hold_saved(b->schedule);
    if (!ym_builder_end(b)) {
        return ym_fail(error, YM_ERR_MEMORY, "plan: out of memory");
    }
    YM_TRY(ym_place_blocks(b->schedule, b->saved_bytes, 0, error));
    *made = b->schedule;
    return YM_OK;
}

ym_status ym_recompute_create(const ym_program *program, const ym_backend *backend,
                              const ym_forward *forward, int32_t output,
                              ym_schedule **made, ym_error *error)
{
    const ym_backward_request request = {
        .program = program, .backend = backend, .forward = forward};
    ym_backwarder s = {.request = &request};
    s.b = (ym_builder){.program = program,
                       .backend = backend,
                       .saved_bytes = forward->saved_bytes,
                       .weight_block = forward->weight_block};
    s.value = calloc((size_t)program->item_count + 1, sizeof *s.value);
    *made = NULL;
    ym_status status = YM_ERR_MEMORY;
    if (ym_builder_begin(&s.b, 1) && s.value != NULL) {
        build(&s, output);
        status = place(&s.b, made, error);
    } else {
        ym_fail(error, status, "plan: out of memory");
    }
    free(s.value);
    if (*made == NULL) {
        ym_schedule_free(s.b.schedule);
    }
    return status;
}

/* Both have the blocks of what is saved as their first ones. */
static void hold(ym_backwarder *s, const ym_schedule *recompute, ym_view view,
                 int32_t step)
{
    if (view.block >= 0 && recompute->block[view.block].place == YM_PLACE_SAVED) {
        int32_t *last = &s->b.schedule->block[view.block].last;
        *last = *last > step ? *last : step;
    }
}

void ym_hold_for_output(ym_backwarder *s, const ym_schedule *recompute, int32_t step)
{
    for (int32_t i = 0; i < recompute->step_count; i++) {
        for (int k = 0; k < 4; k++) {
            hold(s, recompute, recompute->step[i].in[k], step);
        }
    }
}
