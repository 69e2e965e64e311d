/* SPDX-License-Identifier: MIT
 * Greedy by size: the largest interval first, each at the lowest place that is free
 * during its whole life.
 */
#include "core/arena.h"

#include <stdbool.h>
#include <stdlib.h>

typedef struct span {
    size_t begin, end;
} span;

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

static int by_begin(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static bool live_together(const ym_interval *a, const ym_interval *b)
{
    return a->first <= b->last && b->first <= a->last;
}

static int32_t collect(const ym_interval *wanted, const ym_interval *list,
                       int32_t count, span *busy, int32_t used)
{
    for (int32_t i = 0; i < count; i++) {
        if (live_together(wanted, &list[i])) {
            busy[used++] = (span){list[i].offset, list[i].offset + list[i].bytes};
        }
    }
    return used;
}

/* The lowest offset at which `bytes` fit between the busy spans. */
static size_t lowest_fit(size_t bytes, span *busy, int32_t count, size_t boundary)
{
    qsort(busy, (size_t)count, sizeof *busy, by_begin);
    size_t offset = 0;
    for (int32_t i = 0; i <= count; i++) {
        if (offset < boundary && offset + bytes > boundary) {
            offset = boundary;
        }
        /* Only now: moving up to the boundary may have reached this span. */
        if (i == count || offset + bytes <= busy[i].begin) {
            return offset;
        }
        if (busy[i].end > offset) {
            offset = busy[i].end;
        }
    }
    return offset;
}

ym_status ym_arena_pack(ym_interval *list, int32_t count, const ym_interval *fixed,
                        int32_t fixed_count, size_t boundary, size_t *extent,
                        ym_error *error)
{
    size_t most = (size_t)count + (size_t)fixed_count + 1;
    span *busy = malloc(most * sizeof *busy);
    YM_CHECK(error, busy != NULL, YM_ERR_MEMORY, "plan: out of memory");
    qsort(list, (size_t)count, sizeof *list, larger_first);
    *extent = boundary;
    for (int32_t i = 0; i < count; i++) {
        int32_t used = collect(&list[i], fixed, fixed_count, busy, 0);
        used = collect(&list[i], list, i, busy, used);
        list[i].offset = lowest_fit(list[i].bytes, busy, used, boundary);
        if (list[i].offset + list[i].bytes > *extent) {
            *extent = list[i].offset + list[i].bytes;
        }
    }
    free(busy);
    return YM_OK;
}
