/* SPDX-License-Identifier: MIT
 *
 * The forward schedule: every item once, in the order of the calls, and where each
 * value lies. A value that is concatenated is written straight into its channels of the
 * concat buffer; kept values are written into `saved`, outputs into the caller's
 * memory.
 */
#ifndef YM_CORE_FORWARD_H
#define YM_CORE_FORWARD_H

#include "core/builder.h"

typedef struct ym_forward {
    ym_schedule *schedule;
    ym_view *view;         /* by item: where its value lies */
    size_t saved_bytes;    /* statistics, packed weights and kept values */
    int32_t *weight_block; /* by param: its packed form; -1: there is none */
    size_t weight_bytes;   /* of saved_bytes: packed weights */
} ym_forward;

/* keep[item]: the value survives to backward. Also sets the norm calls' saved_offset.
 * Offsets in the workspace are given by ym_place_blocks. */
ym_status ym_forward_create(ym_program *program, const ym_backend *backend,
                            const bool *keep, ym_forward *made, ym_error *error);
void ym_forward_free(ym_forward *forward);

/* Is `reader` so close behind `item` that they may share one buffer? A far reader (a
 * backbone value in a neck's concat) would hold the whole buffer all the way. */
bool ym_is_near(const int32_t *conv_count, int32_t item, int32_t reader);
int32_t *ym_count_convolutions(const ym_program *program); /* before each item */

#endif
