/* SPDX-License-Identifier: MIT */
#include "core/refine.h"

#include <stdlib.h>
#include <string.h>

#include "core/arena.h"

#define MOST_VISITS 3000 /* items visited by all trials of a descent */
#define FILL_TRIES 8

static bool can_keep(const ym_program *p, int32_t item)
{
    return p->item[item].kind != YM_ITEM_INPUT && p->item[item].kind != YM_ITEM_SLICE;
}

ym_status ym_descend(const ym_trier *c, ym_trial *t)
{
    const ym_program *p = c->program;
    int32_t tries = MOST_VISITS / (p->item_count + 1);
    int32_t since = 0; /* items tried since the last that was changed */
    for (int32_t i = p->item_count - 1; tries > 0 && since < p->item_count; since++) {
        if (can_keep(p, i)) {
            ym_trial changed = *t;
            t->keep[i] = !t->keep[i];
            YM_TRY(ym_try(c, &changed));
            const bool promises = changed.peak_bytes <= t->peak_bytes;
            if (promises) {
                YM_TRY(ym_try_placed(c, &changed));
            }
            tries--;
            if (promises && ym_is_smaller(&changed, t)) {
                *t = changed;
                since = 0;
            } else {
                t->keep[i] = !t->keep[i];
            }
        }
        i = i > 0 ? i - 1 : p->item_count - 1;
    }
    return YM_OK;
}

/* The output of a convolution that runs again. */
typedef struct output {
    int32_t item;
    int32_t made;  /* last step of forward that has it */
    int32_t again; /* step of backward that makes it again */
    int64_t bytes;
    double terms; /* of the sum of one output: operations per byte */
} output;

/* Bytes live at each step of both directions, and who might join them. */
typedef struct room {
    int64_t *up, *down;
    int32_t up_count, down_count;
    output *list;
    int32_t count;
} room;

static int most_terms_first(const void *a, const void *b)
{
    const output *x = a, *y = b;
    if (x->terms != y->terms) {
        return x->terms > y->terms ? -1 : 1;
    }
    return (x->item < y->item) - (x->item > y->item);
}

static void free_room(room *r)
{
    free(r->up);
    free(r->down);
    free(r->list);
}

static ym_status measure_room(const ym_trier *c, const ym_trial *t, room *r)
{
    const ym_program *p = c->program;
    ym_forward forward;
    ym_schedule *backward;
    ym_trial same = *t;
    YM_TRY(ym_try_plan(c, &same, &forward, &backward));
    *r = (room){.up = ym_live_profile(forward.schedule),
                .down = ym_live_profile(backward),
                .up_count = forward.schedule->step_count,
                .down_count = backward->step_count,
                .list = malloc(((size_t)p->item_count + 1) * sizeof *r->list)};
    const bool made = r->up != NULL && r->down != NULL && r->list != NULL;
    for (int32_t k = 0; made && k < backward->step_count; k++) {
        const ym_step *step = &backward->step[k];
        const ym_item *item = &p->item[step->item];
        if (step->rebuilds && item->kind == YM_ITEM_CONV) {
            const int32_t block = forward.view[step->item].block;
            r->list[r->count++] =
                (output){step->item, forward.schedule->block[block].last, k,
                         (int64_t)ym_align(ym_item_bytes(p, step->item)),
                         ym_conv_terms(&item->u.conv)};
        }
    }
    ym_schedule_free(backward);
    ym_forward_free(&forward);
    if (!made) {
        return ym_fail(c->error, YM_ERR_MEMORY, "plan: out of memory");
    }
    qsort(r->list, (size_t)r->count, sizeof *r->list, most_terms_first);
    return YM_OK;
}

static bool has_room(const int64_t *live, int32_t begin, int32_t end, int64_t bytes,
                     int64_t limit)
{
    while (begin < end && live[begin] + bytes <= limit) {
        begin++;
    }
    return begin >= end;
}

static void occupy(int64_t *live, int32_t begin, int32_t end, int64_t bytes)
{
    for (int32_t k = begin; k < end; k++) {
        live[k] += bytes;
    }
}

/* Flags outputs for which no step gets above `limit`, up to `most` bytes; returns how
 * many. The room is used up. */
static int32_t take_room(room *r, int64_t limit, int64_t most, bool *keep)
{
    int32_t taken = 0;
    for (int32_t i = 0; i < r->count; i++) {
        const output *o = &r->list[i];
        if (o->bytes <= most && has_room(r->down, 0, o->again, o->bytes, limit) &&
            has_room(r->up, o->made + 1, r->up_count, o->bytes, limit)) {
            occupy(r->down, 0, o->again, o->bytes);
            occupy(r->up, o->made + 1, r->up_count, o->bytes);
            most -= o->bytes;
            keep[o->item] = true;
            taken++;
        }
    }
    return taken;
}

/* Gives back the room of those that are flagged. */
static void leave_room(room *r, const bool *keep)
{
    for (int32_t i = 0; i < r->count; i++) {
        const output *o = &r->list[i];
        if (keep[o->item]) {
            occupy(r->down, 0, o->again, -o->bytes);
            occupy(r->up, o->made + 1, r->up_count, -o->bytes);
        }
    }
}

/* A third of the room between what is kept and the peak stays free, for what others
 * have between forward and backward (the loss). */
static int64_t most_to_keep(const ym_trial *t)
{
    return (int64_t)((t->peak_bytes - t->saved_bytes) / 3 * 2);
}

/* Beside t's, flags in filled->keep what has room in `share` of what may be kept. */
static ym_status fill(const ym_trier *c, const ym_trial *t, room *r, double share,
                      ym_trial *filled)
{
    bool *keep = filled->keep;
    memcpy(keep, t->keep, (size_t)c->program->item_count * sizeof *keep);
    *filled = *t;
    filled->keep = keep;
    const int64_t most = (int64_t)(share * (double)most_to_keep(t));
    const int32_t taken = take_room(r, (int64_t)t->peak_bytes, most, keep);
    leave_room(r, keep);
    return taken > 0 ? ym_try_placed(c, filled) : YM_OK;
}

ym_status ym_fill_room(const ym_trier *c, size_t limit, ym_trial *t)
{
    const size_t items = (size_t)c->program->item_count;
    ym_trial filled = {.keep = malloc((items + 1) * sizeof *filled.keep)};
    YM_CHECK(c->error, filled.keep != NULL, YM_ERR_MEMORY, "plan: out of memory");
    room r = {0};
    ym_status status = measure_room(c, t, &r);
    bool found = false;
    /* Between the blocks there are gaps, that no one knows before they are placed. */
    for (int32_t left = FILL_TRIES; left > 0 && !found && status == YM_OK; left--) {
        status = fill(c, t, &r, (double)left / FILL_TRIES, &filled);
        found = status == YM_OK && filled.peak_bytes <= limit &&
                filled.rerun_flops < t->rerun_flops;
    }
    if (found) {
        memcpy(t->keep, filled.keep, items * sizeof *t->keep);
        bool *keep = t->keep;
        *t = filled;
        t->keep = keep;
    }
    free_room(&r);
    free(filled.keep);
    return status;
}
