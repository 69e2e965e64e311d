/* SPDX-License-Identifier: MIT
 * Greedy: one interval after the other, each at the lowest place that is free during
 * its whole life; the largest first, or the earliest. The one that ends above the best
 * extent so far is in trouble where it is: it goes first in the next round.
 */
#include "core/arena.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 8 /* of each order */

static int larger_first(const void *a, const void *b)
{
    const ym_interval *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes < y->bytes ? 1 : -1;
    }
    if (x->first != y->first) {
        return x->first < y->first ? -1 : 1;
    }
    return (x->tag > y->tag) - (x->tag < y->tag);
}

static int earlier_first(const void *a, const void *b)
{
    const ym_interval *x = a, *y = b;
    if (x->first != y->first) {
        return x->first < y->first ? -1 : 1;
    }
    return larger_first(a, b);
}

static int by_offset(const void *a, const void *b)
{
    const ym_interval *x = a, *y = b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* The lowest offset at which the interval fits between those that live with it;
 * `placed` is in order of offset. */
static size_t lowest_fit(const ym_interval *wanted, const ym_interval *placed,
                         int32_t count, size_t boundary)
{
    const size_t bytes = wanted->bytes;
    size_t offset = bytes > boundary ? boundary : 0;
    for (int32_t i = 0; i < count; i++) {
        const ym_interval *other = &placed[i];
        if (other->first > wanted->last || wanted->first > other->last) {
            continue;
        }
        if (offset + bytes <= other->offset) {
            return offset;
        }
        const size_t end = other->offset + other->bytes;
        offset = end > offset ? end : offset;
        if (offset < boundary && offset + bytes > boundary) {
            offset = boundary;
        }
    }
    return offset;
}

/* Keeps the order of offsets. */
static void insert(ym_interval *placed, int32_t count, const ym_interval *interval)
{
    int32_t i = count;
    while (i > 0 && placed[i - 1].offset > interval->offset) {
        i--;
    }
    memmove(&placed[i + 1], &placed[i], (size_t)(count - i) * sizeof *placed);
    placed[i] = *interval;
}

typedef struct packer {
    const ym_interval *fixed; /* in order of offset */
    int32_t fixed_count, count;
    size_t boundary;
    ym_interval *list;   /* in the order of placing */
    ym_interval *placed; /* room for all */
} packer;

/* Places the list in its order, until one ends at `limit` or above; returns the number
 * of the one that ends highest. */
static int32_t pack_once(const packer *p, size_t limit, size_t *extent)
{
    memcpy(p->placed, p->fixed, (size_t)p->fixed_count * sizeof *p->placed);
    int32_t highest = 0;
    *extent = p->boundary;
    for (int32_t i = 0; i < p->count && *extent < limit; i++) {
        ym_interval *interval = &p->list[i];
        const int32_t before = p->fixed_count + i;
        interval->offset = lowest_fit(interval, p->placed, before, p->boundary);
        insert(p->placed, before, interval);
        if (interval->offset + interval->bytes > *extent) {
            *extent = interval->offset + interval->bytes;
            highest = i;
        }
    }
    return highest;
}

static void move_to_front(ym_interval *list, int32_t i)
{
    const ym_interval first = list[i];
    memmove(&list[1], &list[0], (size_t)i * sizeof *list);
    list[0] = first;
}

/* Improves on *extent and copies the list where it does, in `rounds` rounds or until
 * nothing above `enough` is needed. */
static void pack(const packer *p, int32_t rounds, size_t enough, size_t *extent,
                 ym_interval *best)
{
    for (int32_t i = 0; i < rounds && *extent > enough; i++) {
        size_t reached;
        const int32_t highest = pack_once(p, *extent, &reached);
        if (reached < *extent) {
            *extent = reached;
            memcpy(best, p->list, (size_t)p->count * sizeof *best);
        }
        move_to_front(p->list, highest);
    }
}

ym_status ym_arena_pack(ym_interval *list, int32_t count, ym_interval *fixed,
                        int32_t fixed_count, size_t boundary, size_t *extent,
                        ym_error *error)
{
    const size_t most = (size_t)count + (size_t)fixed_count + 1;
    const packer p = {.fixed = fixed,
                      .fixed_count = fixed_count,
                      .count = count,
                      .boundary = boundary,
                      .list = malloc(most * sizeof *p.list),
                      .placed = malloc(most * sizeof *p.placed)};
    const size_t enough = *extent > boundary ? *extent : boundary;
    const bool ready = p.list != NULL && p.placed != NULL;
    if (ready) {
        *extent = SIZE_MAX;
        qsort(fixed, (size_t)fixed_count, sizeof *fixed, by_offset);
        memcpy(p.list, list, (size_t)count * sizeof *list);
        qsort(p.list, (size_t)count, sizeof *list, larger_first);
        pack(&p, ROUNDS, enough, extent, list);
        qsort(p.list, (size_t)count, sizeof *list, earlier_first);
        pack(&p, ROUNDS, enough, extent, list);
    }
    free(p.list);
    free(p.placed);
    YM_CHECK(error, ready, YM_ERR_MEMORY, "plan: out of memory");
    return YM_OK;
}
