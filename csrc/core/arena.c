/* SPDX-License-Identifier: MIT
 * Greedy: one interval after the other, each at the lowest place that is free during
 * its whole life; the largest first, or the earliest. The one that ends above the best
 * extent so far is in trouble where it is: it goes first in the next round.
 *
 * Most intervals then get the place that they had. It is looked for again only where
 * one that goes before and lives at the same time is new there, or lies elsewhere.
 */
#include "core/arena.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/interference.h"

#define ROUNDS 8 /* of each order */

/* Intervals are numbered in the order in which they begin. */
static int earlier_first(const void *a, const void *b)
{
    const ym_interval *x = a, *y = b;
    if (x->first != y->first) {
        return x->first < y->first ? -1 : 1;
    }
    if (x->bytes != y->bytes) {
        return x->bytes < y->bytes ? 1 : -1;
    }
    return (x->tag > y->tag) - (x->tag < y->tag);
}

static int by_offset(const void *a, const void *b)
{
    const ym_interval *x = a, *y = b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

typedef struct sized {
    size_t bytes;
    int32_t number;
} sized;

static int larger_first(const void *a, const void *b)
{
    const sized *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes < y->bytes ? 1 : -1;
    }
    return (x->number > y->number) - (x->number < y->number);
}

/* Where an interval lies. */
typedef struct spot {
    ym_span span;
    int32_t round; /* in which it was placed last */
    bool open;     /* it has to be looked for (again) */
} spot;

typedef struct packer {
    ym_interval *list; /* in order of first; its offsets are the best ones so far */
    int32_t count;
    size_t boundary;
    ym_interference interference;
    spot *spot;
    int32_t *order; /* of placing */
    int32_t round;
    ym_span *taken; /* room for what lives with one interval */
} packer;

/* The lowest offset at which `bytes` meet no span. The spans come in any order: those
 * that are met lift the offset, and those below it are dropped from the next pass. */
static size_t lowest_fit(size_t bytes, size_t boundary, ym_span *taken, size_t count)
{
    size_t offset = bytes > boundary ? boundary : 0;
    bool lifted = true;
    while (lifted) {
        lifted = false;
        size_t left = 0;
        for (size_t i = 0; i < count; i++) {
            if (taken[i].end <= offset) {
                continue;
            }
            if (taken[i].begin >= offset + bytes) {
                taken[left++] = taken[i];
                continue;
            }
            offset = taken[i].end;
            if (offset < boundary && offset + bytes > boundary) {
                offset = boundary;
            }
            lifted = true;
        }
        count = left;
    }
    return offset;
}

/* Those that live with it and are not placed yet in this round see another place. */
static void reopen_others(packer *p, int32_t number)
{
    const ym_range others = p->interference.others[number];
    for (size_t i = others.begin; i < others.end; i++) {
        spot *other = &p->spot[p->interference.other[i]];
        other->open = other->open || other->round != p->round;
    }
}

static void find_spot(packer *p, int32_t number)
{
    const ym_interference *all = &p->interference;
    const ym_range others = all->others[number], fixed = all->fixed_spans[number];
    size_t count = 0;
    for (size_t i = fixed.begin; i < fixed.end; i++) {
        p->taken[count++] = all->fixed_span[i];
    }
    for (size_t i = others.begin; i < others.end; i++) {
        const spot *other = &p->spot[all->other[i]];
        p->taken[count] = other->span;
        count += other->round == p->round; /* no branch: half of them are not */
    }
    const size_t bytes = p->list[number].bytes;
    const size_t offset = lowest_fit(bytes, p->boundary, p->taken, count);
    spot *own = &p->spot[number];
    if (offset != own->span.begin) {
        reopen_others(p, number);
    }
    own->span = (ym_span){offset, offset + bytes};
    own->open = false;
}

/* Places the intervals in their order, until one ends at `limit` or above; returns the
 * place in the order of the one that ends highest. */
static int32_t pack_once(packer *p, size_t limit, size_t *extent)
{
    int32_t highest = 0;
    *extent = p->boundary;
    for (int32_t i = 0; i < p->count && *extent < limit; i++) {
        const int32_t number = p->order[i];
        if (p->spot[number].open) {
            find_spot(p, number);
        }
        spot *own = &p->spot[number];
        own->round = p->round;
        if (own->span.end > *extent) {
            *extent = own->span.end;
            highest = i;
        }
    }
    return highest;
}

static void move_to_front(packer *p, int32_t place)
{
    const int32_t number = p->order[place];
    memmove(&p->order[1], &p->order[0], (size_t)place * sizeof *p->order);
    p->order[0] = number;
    p->spot[number].open = true;
    reopen_others(p, number);
}

/* Improves on *extent and keeps the offsets where it does, in some rounds or until
 * nothing above `enough` is needed. */
static void pack(packer *p, size_t enough, size_t *extent)
{
    for (int32_t i = 0; i < p->count; i++) {
        p->spot[i].open = true;
    }
    for (int32_t left = ROUNDS; left > 0 && *extent > enough; left--) {
        size_t reached;
        const int32_t highest = pack_once(p, *extent, &reached);
        if (reached < *extent) {
            *extent = reached;
            for (int32_t i = 0; i < p->count; i++) {
                p->list[i].offset = p->spot[i].span.begin;
            }
        }
        p->round++;
        move_to_front(p, highest);
    }
}

static void order_by_size(packer *p, sized *list)
{
    for (int32_t i = 0; i < p->count; i++) {
        list[i] = (sized){p->list[i].bytes, i};
    }
    qsort(list, (size_t)p->count, sizeof *list, larger_first);
    for (int32_t i = 0; i < p->count; i++) {
        p->order[i] = list[i].number;
    }
}

static void order_by_time(packer *p)
{
    for (int32_t i = 0; i < p->count; i++) {
        p->order[i] = i;
    }
}

static bool prepare(packer *p, const ym_interval *fixed, int32_t fixed_count)
{
    const size_t count = (size_t)p->count + 1;
    p->spot = calloc(count, sizeof *p->spot);
    p->order = calloc(count, sizeof *p->order);
    const bool found =
        ym_interference_find(&p->interference, p->list, p->count, fixed, fixed_count);
    p->taken = malloc((p->interference.most + 1) * sizeof *p->taken);
    p->round = 1;
    return found && p->spot != NULL && p->order != NULL && p->taken != NULL;
}

ym_status ym_arena_pack(ym_interval *list, int32_t count, ym_interval *fixed,
                        int32_t fixed_count, size_t boundary, size_t *extent,
                        ym_error *error)
{
    const size_t enough = *extent > boundary ? *extent : boundary;
    packer p = {.list = list, .count = count, .boundary = boundary};
    qsort(list, (size_t)count, sizeof *list, earlier_first);
    qsort(fixed, (size_t)fixed_count, sizeof *fixed, by_offset);
    sized *sizes = malloc(((size_t)count + 1) * sizeof *sizes);
    const bool ready = prepare(&p, fixed, fixed_count) && sizes != NULL;
    if (ready && count > 0) {
        *extent = SIZE_MAX;
        order_by_size(&p, sizes);
        pack(&p, enough, extent);
        order_by_time(&p);
        pack(&p, enough, extent);
    } else if (ready) {
        *extent = boundary;
    }
    ym_interference_free(&p.interference);
    free(p.spot);
    free(p.order);
    free(p.taken);
    free(sizes);
    YM_CHECK(error, ready, YM_ERR_MEMORY, "plan: out of memory");
    return YM_OK;
}
