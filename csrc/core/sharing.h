/* SPDX-License-Identifier: MIT
 *
 * Batch norms whose statistics several processes share (SyncBatchNorm). Forward puts
 * together what each process has of its part of the batch, its moments; backward sums
 * dz and dz (v - mean) over all parts before it makes dv of them. What is exchanged are
 * sums in double, so all processes go on with the same bits.
 */
#ifndef YM_CORE_SHARING_H
#define YM_CORE_SHARING_H

#include "core/arena.h"
#include "core/backend.h"

/* One process's moments: means (C), sums of squared deviations (C), number of pixels.
 */
static inline int64_t ym_moment_count(int32_t channels)
{
    return 2 * (int64_t)channels + 1;
}

/* Of the moments of all who share, in a row: 0 where nobody does. */
static inline size_t ym_parts_bytes(const ym_sharing *sharing, int32_t channels)
{
    const size_t bytes = (size_t)ym_moment_count(channels) * sizeof(double);
    return sharing->group > 0 ? ym_align((size_t)sharing->processes * bytes) : 0;
}

static inline bool ym_is_shared(const ym_norm *norm)
{
    return norm->batch_statistics && norm->sharing.group > 0;
}

/* The sharing that a brick's backward has to sum for, or NULL. Terms of one brick whose
 * gradients need sums share with the same processes, or not at all. */
static inline const ym_sharing *ym_shared_sums(const ym_brick *brick,
                                               const ym_term_gradient gradient[2])
{
    for (int32_t t = 0; t < brick->term_count; t++) {
        const ym_term *term = &brick->term[t];
        if (term->has_norm && gradient[t].dvalue.data != NULL &&
            ym_is_shared(&term->norm)) {
            return &term->norm.sharing;
        }
    }
    return NULL;
}

/* The sums of a brick's backward: of dz, of dz (v - mean) of each term, for each
 * channel, then the number of pixels. */
static inline int64_t ym_shared_sum_count(const ym_brick *brick, int32_t channels)
{
    return (1 + (int64_t)brick->term_count) * channels + 1;
}

static inline ym_status ym_sum_shared(ym_context *context, const ym_sharing *sharing,
                                      double *values, int64_t count)
{
    YM_CHECK(&context->error, context->sum != NULL, YM_ERR_ARGUMENT,
             "batch norm: its statistics are shared by %d processes, and nothing was "
             "given that sums over them",
             sharing->processes);
    return context->sum(context, sharing->group, values, count);
}

#endif
