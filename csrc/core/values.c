/* SPDX-License-Identifier: MIT
 * Values in backward: found in `saved` or rebuilt on demand.
 */
#include "core/backward.h"

#include <stdlib.h>

void ym_adopt_saved(ym_backwarder *s)
{
    const ym_forward *forward = s->request->forward;
    ym_schedule *schedule = s->b.schedule;
    int32_t *copy = malloc(((size_t)forward->schedule->block_count + 1) * sizeof *copy);
    if (copy == NULL) {
        s->b.out_of_memory = true;
        return;
    }
    for (int32_t i = 0; i < forward->schedule->block_count; i++) {
        const ym_block *block = &forward->schedule->block[i];
        copy[i] = -1;
        const bool is_value = block->place == YM_PLACE_INPUT &&
                              !ym_is_planar(s->b.program, block->item);
        if (block->place != YM_PLACE_SAVED && !is_value) {
            continue;
        }
        copy[i] = ym_add_block(&s->b, block->place, block->index,
                               block->item >= 0 ? block->item : 0);
        schedule->block[copy[i]] = *block;
        /* An input need not be there before it is read. */
        const bool waits = block->place == YM_PLACE_INPUT;
        schedule->block[copy[i]].first = waits ? INT32_MAX : 0;
        schedule->block[copy[i]].last = block->item < 0 ? INT32_MAX - 1 : -1;
    }
    for (int32_t i = 0; i < s->b.program->item_count; i++) {
        ym_view view = forward->view[i];
        s->value[i] = (ym_resident){YM_NO_VIEW, 0, false};
        if (view.block >= 0 && copy[view.block] >= 0) {
            view.block = copy[view.block];
            s->value[i] = (ym_resident){view, 0, true};
        }
    }
    free(copy);
}

/* An input is, unless it comes planar. */
static bool is_resident(const ym_backwarder *s, int32_t item)
{
    const ym_resident *value = &s->value[item];
    return value->view.block >= 0 &&
           (value->lasting || value->last_read - s->now <= s->request->patience);
}

static void remember(ym_backwarder *s, int32_t item, ym_view view)
{
    bool convolution = s->b.program->item[item].kind == YM_ITEM_CONV;
    s->value[item] = (ym_resident){view, s->now, convolution};
}

/* Some channels of a brick, without the rest of it. */
static ym_view rebuild_slice(ym_backwarder *s, int32_t slice)
{
    const ym_item *made = &s->b.program->item[slice];
    int32_t parent = made->operand[0], first = made->u.first_channel;
    const ym_item *brick = &s->b.program->item[parent];
    ym_view operand[3];
    for (int32_t k = 0; k < brick->operand_count; k++) {
        operand[k] = ym_subview(ym_read_value(s, brick->operand[k]), first, made->c);
    }
    ym_view out = ym_new_view(&s->b, YM_PLACE_WORKSPACE, 0, slice);
    ym_add_forward_step(&s->b, parent, operand, out, first, true);
    return out;
}

static ym_view read_slice(ym_backwarder *s, int32_t slice)
{
    const ym_item *made = &s->b.program->item[slice];
    int32_t parent = made->operand[0];
    if (s->b.program->item[parent].kind != YM_ITEM_BRICK || is_resident(s, parent)) {
        return ym_subview(ym_read_value(s, parent), made->u.first_channel, made->c);
    }
    if (!is_resident(s, slice)) {
        remember(s, slice, rebuild_slice(s, slice));
    }
    s->value[slice].last_read = s->now;
    return s->value[slice].view;
}

static void rebuild_concat(ym_backwarder *s, int32_t item, ym_view out)
{
    const ym_item *made = &s->b.program->item[item];
    int32_t first = 0;
    for (int32_t k = 0; k < made->operand_count; k++) {
        int32_t member = made->operand[k], count = s->b.program->item[member].c;
        ym_view part = ym_subview(out, first, count);
        ym_item_kind kind = s->b.program->item[member].kind;
        bool ready = kind == YM_ITEM_SLICE || kind == YM_ITEM_CONV ||
                     is_resident(s, member);
        if (ready) {
            ym_add_copy(&s->b, item, ym_read_value(s, member), part, false);
        } else {
            ym_rebuild_into(s, member, part);
            remember(s, member, part);
        }
        first += count;
    }
}

void ym_rebuild_into(ym_backwarder *s, int32_t item, ym_view out)
{
    const ym_item *made = &s->b.program->item[item];
    if (made->kind == YM_ITEM_CONCAT) {
        rebuild_concat(s, item, out);
        return;
    }
    if (made->kind == YM_ITEM_INPUT) {
        ym_add_pack_step(&s->b, item, out, true);
        return;
    }
    ym_view operand[3];
    for (int32_t k = 0; k < made->operand_count; k++) {
        operand[k] = ym_read_value(s, made->operand[k]);
        if (made->kind == YM_ITEM_CONV) {
            operand[k] = ym_packed_view(&s->b, made->operand[k], operand[k]);
        }
    }
    ym_add_forward_step(&s->b, item, operand, out, 0, true);
}

ym_view ym_read_value(ym_backwarder *s, int32_t item)
{
    if (!is_resident(s, item)) {
        if (s->b.program->item[item].kind == YM_ITEM_SLICE) {
            return read_slice(s, item);
        }
        ym_view out = ym_new_view(&s->b, YM_PLACE_WORKSPACE, 0, item);
        ym_rebuild_into(s, item, out);
        remember(s, item, out);
    }
    s->value[item].last_read = s->now;
    return s->value[item].view;
}
