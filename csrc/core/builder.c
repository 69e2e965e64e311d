/* SPDX-License-Identifier: MIT */
#include "core/builder.h"

#include <stdlib.h>
#include <string.h>

#include "core/arena.h"

void ym_schedule_free(ym_schedule *schedule)
{
    if (schedule == NULL) {
        return;
    }
    free(schedule->block);
    free(schedule->step);
    free(schedule->segment_end);
    free(schedule->reached_param);
    free(schedule->reached_input);
    free(schedule->mask);
    free(schedule);
}

bool ym_builder_begin(ym_builder *b, int32_t segments)
{
    ym_schedule *s = calloc(1, sizeof *s);
    b->schedule = s;
    if (s == NULL) {
        return false;
    }
    const ym_graph *g = b->program->graph;
    s->reached_param = calloc((size_t)g->param_count + 1, sizeof(bool));
    s->reached_input = calloc((size_t)g->input_count + 1, sizeof(bool));
    s->mask = calloc((size_t)g->output_count + 1, sizeof(bool));
    s->segment_count = segments;
    s->segment_end = calloc((size_t)segments + 1, sizeof *s->segment_end);
    s->block = calloc(1, sizeof *s->block);
    s->step = calloc(1, sizeof *s->step);
    return s->reached_param != NULL && s->reached_input != NULL && s->mask != NULL &&
           s->segment_end != NULL && s->block != NULL && s->step != NULL;
}

/* Room for one more at powers of two; on failure the last element is written again. */
static int32_t next_index(ym_builder *b, void **list, int32_t *count, size_t bytes)
{
    int32_t n = *count;
    if (n > 0 && (n & (n - 1)) == 0) {
        void *moved = realloc(*list, 2 * (size_t)n * bytes);
        if (moved == NULL) {
            b->out_of_memory = true;
            return n - 1;
        }
        *list = moved;
    }
    (*count)++;
    memset((char *)*list + (size_t)n * bytes, 0, bytes);
    return n;
}

int32_t ym_add_block(ym_builder *b, ym_place place, int32_t index, int32_t item)
{
    ym_schedule *s = b->schedule;
    int32_t i = next_index(b, (void **)&s->block, &s->block_count, sizeof *s->block);
    ym_block *block = &s->block[i];
    const ym_item *shape = &b->program->item[item];
    *block = (ym_block){.place = place,
                        .index = index,
                        .n = shape->n,
                        .h = shape->h,
                        .w = shape->w,
                        .c = shape->c,
                        .bytes = ym_align(ym_item_bytes(b->program, item)),
                        .first = INT32_MAX,
                        .last = -1,
                        .item = item};
    return i;
}

int32_t ym_add_scratch(ym_builder *b, size_t bytes)
{
    ym_schedule *s = b->schedule;
    int32_t i = next_index(b, (void **)&s->block, &s->block_count, sizeof *s->block);
    s->block[i] = (ym_block){.place = YM_PLACE_WORKSPACE,
                             .bytes = ym_align(bytes),
                             .first = s->step_count - 1,
                             .last = s->step_count - 1,
                             .item = -1};
    return i;
}

ym_step *ym_add_step(ym_builder *b, ym_step_kind kind, int32_t item)
{
    ym_schedule *s = b->schedule;
    int32_t i = next_index(b, (void **)&s->step, &s->step_count, sizeof *s->step);
    ym_step *step = &s->step[i];
    *step = (ym_step){.kind = kind, .item = item, .scratch = -1, .weight = -1};
    for (int k = 0; k < 4; k++) {
        step->in[k] = YM_NO_VIEW;
    }
    step->out[0] = step->out[1] = YM_NO_VIEW;
    return step;
}

ym_view ym_new_view(ym_builder *b, ym_place place, int32_t index, int32_t item)
{
    return (ym_view){ym_add_block(b, place, index, item), 0, b->program->item[item].c};
}

ym_view ym_subview(ym_view whole, int32_t first, int32_t count)
{
    return (ym_view){whole.block, whole.first + first, count};
}

bool ym_is_packed(const ym_builder *b, ym_view view)
{
    return view.block >= 0 && b->schedule->block[view.block].c == view.count;
}

static void extend_life(ym_builder *b, int32_t number)
{
    if (number < 0) {
        return;
    }
    ym_block *block = &b->schedule->block[number];
    int32_t now = b->schedule->step_count - 1;
    block->first = block->first < now ? block->first : now;
    block->last = block->last > now ? block->last : now;
}

void ym_finish_step(ym_builder *b)
{
    ym_schedule *s = b->schedule;
    ym_step *step = &s->step[s->step_count - 1];
    for (int k = 0; k < 4; k++) {
        extend_life(b, step->in[k].block);
    }
    extend_life(b, step->out[0].block);
    extend_life(b, step->out[1].block);
    if (step->kind == YM_STEP_CONV || step->kind == YM_STEP_CONV_DATA) {
        step->weight = b->weight_block[b->program->item[step->item].u.conv.weight];
        extend_life(b, step->weight);
    }
    /* Out of memory, views share a block: the shapes of a step need not fit together,
     * and the plan comes to nothing. */
    size_t bytes = b->out_of_memory ? 0 : ym_step_scratch_bytes(b, step);
    if (bytes > 0) {
        int32_t scratch = ym_add_scratch(b, bytes);
        step->scratch = scratch;
    }
}

static ym_step_kind forward_kind(const ym_item *item)
{
    switch (item->kind) {
    case YM_ITEM_CONV:
        return item->u.conv.is_transposed ? YM_STEP_CONV_DATA : YM_STEP_CONV;
    case YM_ITEM_MAX_POOL:
        return YM_STEP_MAX_POOL;
    case YM_ITEM_AVG_POOL:
        return YM_STEP_AVG_POOL;
    case YM_ITEM_UPSAMPLE:
        return YM_STEP_UPSAMPLE;
    case YM_ITEM_MAXIMUM:
        return YM_STEP_MAXIMUM;
    case YM_ITEM_MULTIPLY:
    case YM_ITEM_MEAN:
        return YM_STEP_MULTIPLY;
    default:
        return YM_STEP_BRICK;
    }
}

void ym_add_forward_step(ym_builder *b, int32_t item, const ym_view *operand,
                         ym_view out, int32_t first_channel, bool rebuilds)
{
    const ym_item *made = &b->program->item[item];
    ym_step *step = ym_add_step(b, forward_kind(made), item);
    const bool is_adjoint = step->kind == YM_STEP_CONV_DATA;
    for (int32_t k = 0; k < made->operand_count; k++) {
        bool is_residual = made->kind == YM_ITEM_BRICK && k == made->u.brick.term_count;
        step->in[is_adjoint ? 3 : is_residual ? 2 : k] = operand[k];
    }
    step->out[0] = out;
    step->scale = made->kind == YM_ITEM_MEAN ? ym_share(b->program, item) : 1;
    step->first_channel = first_channel;
    step->rebuilds = rebuilds;
    ym_finish_step(b);
    if (rebuilds && made->kind == YM_ITEM_CONV) {
        b->schedule->rerun_convolutions++;
        b->schedule->rerun_flops += 2.0 * made->n * made->h * made->w * made->c *
                                    ym_conv_terms(&made->u.conv);
    }
    if (rebuilds) {
        b->schedule->rebuilt_bytes += (int64_t)ym_item_bytes(b->program, item);
    }
}

void ym_add_pack_step(ym_builder *b, int32_t item, ym_view out, bool rebuilds)
{
    const int32_t number = b->program->item[item].u.input.number;
    const ym_view given = ym_new_view(b, YM_PLACE_INPUT, number, item);
    ym_step *step = ym_add_step(b, YM_STEP_PACK_INPUT, item);
    step->in[0] = given;
    step->out[0] = out;
    step->rebuilds = rebuilds;
    ym_finish_step(b);
    if (rebuilds) {
        b->schedule->rebuilt_bytes += (int64_t)ym_item_bytes(b->program, item);
    }
}

void ym_add_copy(ym_builder *b, int32_t item, ym_view from, ym_view to, bool accumulate)
{
    ym_step *step = ym_add_step(b, YM_STEP_COPY, item);
    step->in[0] = from;
    step->out[0] = to;
    step->accumulate[0] = accumulate;
    ym_finish_step(b);
}

ym_view ym_packed_view(ym_builder *b, int32_t item, ym_view view)
{
    bool strided = (b->backend->capabilities & YM_CAP_STRIDED_CONV) != 0;
    if (strided || ym_is_packed(b, view)) {
        return view;
    }
    ym_view copy = ym_new_view(b, YM_PLACE_WORKSPACE, 0, item);
    ym_add_copy(b, item, view, copy, false);
    return copy;
}

static bool in_arena(const ym_block *block)
{
    return block->place <= YM_PLACE_SAVED && block->last >= 0;
}

int64_t *ym_live_profile(const ym_schedule *s)
{
    int64_t *live = calloc((size_t)s->step_count + 2, sizeof *live);
    if (live == NULL) {
        return NULL;
    }
    for (int32_t i = 0; i < s->block_count; i++) {
        const ym_block *block = &s->block[i];
        if (in_arena(block)) {
            live[block->first < 0 ? 0 : block->first] += (int64_t)block->bytes;
            live[block->last + 1] -= (int64_t)block->bytes;
        }
    }
    for (int32_t i = 1; i < s->step_count; i++) {
        live[i] += live[i - 1];
    }
    return live;
}

bool ym_builder_end(ym_builder *b)
{
    int64_t *live = b->out_of_memory ? NULL : ym_live_profile(b->schedule);
    if (live == NULL) {
        return false;
    }
    int64_t most = (int64_t)b->saved_bytes;
    for (int32_t i = 0; i < b->schedule->step_count; i++) {
        most = live[i] > most ? live[i] : most;
    }
    free(live);
    b->schedule->live_bytes = (size_t)most;
    return true;
}

ym_status ym_place_blocks(ym_schedule *s, size_t saved_bytes, size_t enough,
                          ym_error *error)
{
    size_t most = (size_t)s->block_count + 1;
    ym_interval *list = calloc(most, sizeof *list);
    ym_interval *fixed = calloc(most, sizeof *fixed);
    ym_status status = YM_ERR_MEMORY;
    if (list == NULL || fixed == NULL) {
        ym_fail(error, status, "plan: out of memory");
        goto done;
    }
    int32_t count = 0, fixed_count = 0;
    for (int32_t i = 0; i < s->block_count; i++) {
        const ym_block *block = &s->block[i];
        ym_interval interval = {block->bytes, block->first, block->last, block->offset,
                                i};
        if (in_arena(block) && block->place == YM_PLACE_SAVED) {
            fixed[fixed_count++] = interval;
        } else if (in_arena(block)) {
            list[count++] = interval;
        }
    }
    size_t extent = s->live_bytes > enough ? s->live_bytes : enough;
    status =
        ym_arena_pack(list, count, fixed, fixed_count, saved_bytes, &extent, error);
    if (status != YM_OK) {
        goto done;
    }
    for (int32_t i = 0; i < count; i++) {
        s->block[list[i].tag].offset = list[i].offset;
    }
    s->workspace_bytes = extent - saved_bytes;
    s->peak_bytes = extent;
done:
    free(list);
    free(fixed);
    return status;
}
