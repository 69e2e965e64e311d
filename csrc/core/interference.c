/* SPDX-License-Identifier: MIT */
#include "core/interference.h"

#include <stdlib.h>

/* Those that begin during the life of list[i] follow it, up to here. */
static int32_t end_of_followers(const ym_interval *list, int32_t count, int32_t i)
{
    int32_t end = i + 1;
    while (end < count && list[end].first <= list[i].last) {
        end++;
    }
    return end;
}

static bool find_others(ym_interference *made, const ym_interval *list, int32_t count)
{
    ym_range *others = made->others;
    for (int32_t i = 0; i < count; i++) { /* counts them in `end` */
        const int32_t end = end_of_followers(list, count, i);
        others[i].end += (size_t)(end - i - 1);
        for (int32_t k = i + 1; k < end; k++) {
            others[k].end++;
        }
    }
    size_t pairs = 0;
    for (int32_t i = 0; i < count; i++) {
        const size_t own = others[i].end;
        others[i] = (ym_range){pairs, pairs};
        pairs += own;
        made->most = own > made->most ? own : made->most;
    }
    made->other = malloc((pairs + 1) * sizeof *made->other);
    for (int32_t i = 0; made->other != NULL && i < count; i++) {
        const int32_t end = end_of_followers(list, count, i);
        for (int32_t k = i + 1; k < end; k++) {
            made->other[others[i].end++] = k;
            made->other[others[k].end++] = i;
        }
    }
    return made->other != NULL;
}

/* At a step: how many fixed intervals have begun, and how many were over before. */
typedef struct progress {
    int32_t begun, over;
} progress;

/* By step. The caller frees it; NULL: out of memory. */
static progress *follow(const ym_interval *list, int32_t count,
                        const ym_interval *fixed, int32_t fixed_count)
{
    int32_t last = 0;
    for (int32_t i = 0; i < count; i++) {
        last = list[i].last > last ? list[i].last : last;
    }
    for (int32_t i = 0; i < fixed_count; i++) {
        last = fixed[i].last > last ? fixed[i].last : last;
    }
    progress *at = calloc((size_t)last + 2, sizeof *at);
    for (int32_t i = 0; at != NULL && i < fixed_count; i++) {
        at[fixed[i].first].begun++;
        at[fixed[i].last + 1].over++;
    }
    for (int32_t step = 1; at != NULL && step <= last; step++) {
        at[step].begun += at[step - 1].begun;
        at[step].over += at[step - 1].over;
    }
    return at;
}

/* Lists what fixed intervals cover while this one lives, neighbours as one; `span` has
 * room for all of them. Returns how many there are. */
static size_t cover(const ym_interval *interval, const ym_interval *fixed,
                    int32_t fixed_count, ym_span *span)
{
    size_t count = 0;
    for (int32_t i = 0; i < fixed_count; i++) {
        if (fixed[i].first > interval->last || interval->first > fixed[i].last) {
            continue;
        }
        const size_t begin = fixed[i].offset, end = begin + fixed[i].bytes;
        if (count > 0 && span[count - 1].end == begin) {
            span[count - 1].end = end;
        } else {
            span[count++] = (ym_span){begin, end};
        }
    }
    return count;
}

static bool reserve(ym_interference *made, size_t used, size_t more, size_t *room)
{
    if (used + more <= *room) {
        return true;
    }
    const size_t larger = 2 * (used + more);
    ym_span *moved = realloc(made->fixed_span, larger * sizeof *moved);
    if (moved != NULL) {
        made->fixed_span = moved;
        *room = larger;
    }
    return moved != NULL;
}

/* Intervals that begin one after the other mostly live with the same fixed ones: as
 * many of those have begun and as many were over. They share a list. */
static bool find_fixed(ym_interference *made, const ym_interval *list, int32_t count,
                       const ym_interval *fixed, int32_t fixed_count)
{
    progress *at = follow(list, count, fixed, fixed_count);
    bool ready = at != NULL;
    progress known = {-1, -1};
    ym_range spans = {0, 0};
    size_t room = 0, most = 0;
    for (int32_t i = 0; ready && i < count; i++) {
        const progress own = {at[list[i].last].begun, at[list[i].first].over};
        const bool same = own.begun == known.begun && own.over == known.over;
        ready = same || reserve(made, spans.end, (size_t)fixed_count + 1, &room);
        if (ready && !same) {
            const size_t covered =
                cover(&list[i], fixed, fixed_count, &made->fixed_span[spans.end]);
            spans = (ym_range){spans.end, spans.end + covered};
            most = covered > most ? covered : most;
            known = own;
        }
        made->fixed_spans[i] = spans;
    }
    made->most += most;
    free(at);
    return ready;
}

bool ym_interference_find(ym_interference *made, const ym_interval *list, int32_t count,
                          const ym_interval *fixed, int32_t fixed_count)
{
    *made = (ym_interference){0};
    made->others = calloc((size_t)count + 1, sizeof *made->others);
    made->fixed_spans = calloc((size_t)count + 1, sizeof *made->fixed_spans);
    return made->others != NULL && made->fixed_spans != NULL &&
           find_others(made, list, count) &&
           find_fixed(made, list, count, fixed, fixed_count);
}

void ym_interference_free(ym_interference *interference)
{
    free(interference->other);
    free(interference->others);
    free(interference->fixed_span);
    free(interference->fixed_spans);
}
