/* SPDX-License-Identifier: MIT
 *
 * Arena: places blocks with known lifetimes in as little memory as possible.
 *
 * Saved blocks lie at fixed places in [0, boundary). Temporaries may use the same bytes
 * while no saved block lives there (before it is written in forward, after it was last
 * read in backward), or the workspace above the boundary:
 *
 *     0            saved             boundary        workspace
 *     | kept y0 | kept y1 | kept y2  |  temporaries ...
 *          ^ holes are used too      ^ two allocations: no block straddles it
 */
#ifndef YM_CORE_ARENA_H
#define YM_CORE_ARENA_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#define YM_ALIGNMENT 64

static inline size_t ym_align(size_t bytes)
{
    return (bytes + YM_ALIGNMENT - 1) / YM_ALIGNMENT * YM_ALIGNMENT;
}

typedef struct ym_interval {
    size_t bytes;        /* aligned, positive */
    int32_t first, last; /* steps from 0, inclusive */
    size_t offset;       /* in: of fixed intervals; out: of the others */
    int32_t tag;         /* the caller's */
} ym_interval;

/* Places `count` intervals beside `fixed_count` fixed ones; *extent: in, what is
 * needed in any order, where it ends to look for a better one; out, the first byte
 * above everything (at least boundary). Reorders both. */
ym_status ym_arena_pack(ym_interval *list, int32_t count, ym_interval *fixed,
                        int32_t fixed_count, size_t boundary, size_t *extent,
                        ym_error *error);

#endif
