/* SPDX-License-Identifier: MIT
 * Greedy by size: the largest interval first, each at the lowest place that is free
 * during its whole life.
 */
#include "core/arena.h"

#include <stdlib.h>
#include <string.h>

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

ym_status ym_arena_pack(ym_interval *list, int32_t count, const ym_interval *fixed,
                        int32_t fixed_count, size_t boundary, size_t *extent,
                        ym_error *error)
{
    size_t most = (size_t)count + (size_t)fixed_count + 1;
    ym_interval *placed = malloc(most * sizeof *placed);
    YM_CHECK(error, placed != NULL, YM_ERR_MEMORY, "plan: out of memory");
    memcpy(placed, fixed, (size_t)fixed_count * sizeof *placed);
    qsort(placed, (size_t)fixed_count, sizeof *placed, by_offset);
    qsort(list, (size_t)count, sizeof *list, larger_first);
    *extent = boundary;
    for (int32_t i = 0; i < count; i++) {
        const int32_t before = fixed_count + i;
        list[i].offset = lowest_fit(&list[i], placed, before, boundary);
        insert(placed, before, &list[i]);
        if (list[i].offset + list[i].bytes > *extent) {
            *extent = list[i].offset + list[i].bytes;
        }
    }
    free(placed);
    return YM_OK;
}
