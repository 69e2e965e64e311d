/* SPDX-License-Identifier: MIT
 *
 * Interference: which intervals live at the same time, so that they may not share a
 * byte. Found once, and asked many times while places are looked for.
 */
#ifndef YM_CORE_INTERFERENCE_H
#define YM_CORE_INTERFERENCE_H

#include "core/arena.h"

#include <stdbool.h>

/* Bytes [begin, end). */
typedef struct ym_span {
    size_t begin, end;
} ym_span;

/* A part of a list. */
typedef struct ym_range {
    size_t begin, end;
} ym_range;

typedef struct ym_interference {
    int32_t *other; /* intervals that live with one; which of them: */
    ym_range *others;
    ym_span *fixed_span; /* what fixed intervals that live with one cover; which: */
    ym_range *fixed_spans;
    size_t most; /* others and fixed spans together, of one interval */
} ym_interference;

/* list: in order of first; fixed: in order of offset. false: out of memory; to be freed
 * in either case. */
bool ym_interference_find(ym_interference *made, const ym_interval *list, int32_t count,
                          const ym_interval *fixed, int32_t fixed_count);
void ym_interference_free(ym_interference *interference);

#endif
