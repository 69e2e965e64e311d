/* SPDX-License-Identifier: MIT
 *
 * Gradients of values in backward: each is a sum over the readers of the value. The
 * first contribution is written, the others are added. The gradient of a slice is
 * written into its channels of the parent's gradient; a byte per channel remembers
 * which are written.
 */
#include "core/backward.h"

#include <stdlib.h>
#include <string.h>

static ym_view allocate(ym_backwarder *s, int32_t item)
{
    const ym_item *made = &s->b.program->item[item];
    if (made->kind == YM_ITEM_INPUT) {
        s->b.schedule->reached_input[made->u.input.number] = true;
        return ym_new_view(&s->b, YM_PLACE_GRAD_INPUT, made->u.input.number, item);
    }
    return ym_new_view(&s->b, YM_PLACE_WORKSPACE, 0, item);
}

static void add_zero(ym_backwarder *s, int32_t item, ym_view view)
{
    ym_step *step = ym_add_step(&s->b, YM_STEP_ZERO, item);
    step->out[0] = view;
    ym_finish_step(&s->b);
}

/* Zeroes what no slice has written in [first, first + count) and marks it written. */
static void cover(ym_backwarder *s, int32_t item, int32_t first, int32_t count)
{
    ym_gradient *g = &s->gradient[item];
    for (int32_t c = first; g->covered != NULL && c < first + count;) {
        int32_t end = c;
        while (end < first + count && !g->covered[end]) {
            end++;
        }
        if (end > c) {
            add_zero(s, item, ym_subview(g->view, c, end - c));
            memset(g->covered + c, 1, (size_t)(end - c));
        }
        c = end + 1;
    }
}

/* All of item's gradient is defined from here on. */
static void complete(ym_backwarder *s, int32_t item)
{
    cover(s, item, 0, s->b.program->item[item].c);
    free(s->gradient[item].covered);
    s->gradient[item].covered = NULL;
}

bool ym_has_gradient(const ym_backwarder *s, int32_t item)
{
    return s->gradient[item].view.block >= 0;
}

static bool is_writable(const ym_backwarder *s, ym_view view)
{
    return s->b.schedule->block[view.block].place != YM_PLACE_GRAD_OUTPUT;
}

/* A gradient that lies in the caller's output gradient moves before it is added to. */
static void make_writable(ym_backwarder *s, int32_t item)
{
    ym_view old = s->gradient[item].view;
    if (!is_writable(s, old)) {
        s->gradient[item].view = allocate(s, item);
        ym_add_copy(&s->b, item, old, s->gradient[item].view, false);
    }
}

static ym_view slice_target(ym_backwarder *s, int32_t slice, bool *accumulate)
{
    const ym_item *made = &s->b.program->item[slice];
    int32_t parent = made->operand[0], first = made->u.first_channel;
    ym_gradient *g = &s->gradient[parent];
    if (g->view.block < 0) {
        g->view = allocate(s, parent);
        g->covered = calloc((size_t)s->b.program->item[parent].c, 1);
        s->b.out_of_memory = s->b.out_of_memory || g->covered == NULL;
    } else {
        make_writable(s, parent);
    }
    bool fresh = g->covered != NULL;
    for (int32_t c = first; g->covered != NULL && c < first + made->c; c++) {
        fresh = fresh && !g->covered[c];
    }
    if (fresh) {
        memset(g->covered + first, 1, (size_t)made->c);
    } else {
        cover(s, parent, first, made->c);
    }
    *accumulate = !fresh;
    return ym_subview(g->view, first, made->c);
}

ym_view ym_gradient_target(ym_backwarder *s, int32_t item, bool *accumulate)
{
    if (s->b.program->item[item].kind == YM_ITEM_SLICE) {
        return slice_target(s, item, accumulate);
    }
    *accumulate = ym_has_gradient(s, item);
    if (*accumulate) {
        complete(s, item);
        make_writable(s, item);
    } else {
        s->gradient[item].view = allocate(s, item);
    }
    return s->gradient[item].view;
}

ym_view ym_read_gradient(ym_backwarder *s, int32_t item)
{
    if (ym_has_gradient(s, item)) {
        complete(s, item);
    }
    return s->gradient[item].view;
}

void ym_adopt_gradient(ym_backwarder *s, int32_t item, ym_view view)
{
    s->gradient[item].view = view;
}

/* A gradient may be given a value's memory only if the value is no slice and no input
 * (the input's gradient lies in the caller's memory). */
bool ym_can_adopt(const ym_backwarder *s, int32_t item)
{
    ym_item_kind kind = s->b.program->item[item].kind;
    return kind != YM_ITEM_SLICE && kind != YM_ITEM_INPUT && !ym_has_gradient(s, item);
}

ym_view ym_take_or_target(ym_backwarder *s, int32_t item, ym_view dout,
                          bool *dout_taken, bool *accumulate)
{
    bool strided = (s->b.backend->capabilities & YM_CAP_STRIDED_CONV) != 0;
    if (!*dout_taken && ym_can_adopt(s, item) && is_writable(s, dout) &&
        (strided || ym_is_packed(&s->b, dout))) {
        *dout_taken = true;
        *accumulate = false;
        ym_adopt_gradient(s, item, dout);
        return dout;
    }
    return ym_gradient_target(s, item, accumulate);
}
