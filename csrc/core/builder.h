/* SPDX-License-Identifier: MIT
 *
 * Builder: what forward.c and backward.c share: appending blocks and steps, lifetimes
 * and placing. An allocation failure is remembered and reported once, at the end, so
 * that the planning code reads as the algorithm that it is.
 */
#ifndef YM_CORE_BUILDER_H
#define YM_CORE_BUILDER_H

#include "core/schedule.h"

typedef struct ym_builder {
    const ym_program *program;
    const ym_backend *backend;
    ym_schedule *schedule;
    size_t saved_bytes;
    const int32_t *weight_block; /* by param: of its packed form, or -1 */
    bool out_of_memory;
} ym_builder;

/* segments: into which the steps are divided; the caller fills in their ends. */
bool ym_builder_begin(ym_builder *b, int32_t segments);

int32_t ym_add_block(ym_builder *b, ym_place place, int32_t index, int32_t item);
int32_t ym_add_scratch(ym_builder *b, size_t bytes);
ym_step *ym_add_step(ym_builder *b, ym_step_kind kind, int32_t item);

/* A block as large as the item's value, and the view of all its channels. */
ym_view ym_new_view(ym_builder *b, ym_place place, int32_t index, int32_t item);
ym_view ym_subview(ym_view whole, int32_t first, int32_t count);
bool ym_is_packed(const ym_builder *b, ym_view view);

/* step_scratch.c */
size_t ym_step_scratch_bytes(const ym_builder *b, const ym_step *step);

/* The newest step is complete: books its scratch and extends the lives of its views. */
void ym_finish_step(ym_builder *b);

/* Appends the step that computes item's value into `out` from the operand views. */
void ym_add_forward_step(ym_builder *b, int32_t item, const ym_view *operand,
                         ym_view out, int32_t first_channel, bool rebuilds);
/* The same for an input that comes planar. */
void ym_add_pack_step(ym_builder *b, int32_t item, ym_view out, bool rebuilds);
void ym_add_copy(ym_builder *b, int32_t item, ym_view from, ym_view to,
                 bool accumulate);

/* The view as a convolution may read it: a backend without YM_CAP_STRIDED_CONV gets a
 * packed copy of item's value or gradient. */
ym_view ym_packed_view(ym_builder *b, int32_t item, ym_view view);

/* Bytes live at each step; saved blocks count for their life. The caller frees it;
 * NULL: out of memory. */
int64_t *ym_live_profile(const ym_schedule *schedule);
/* The schedule is complete: notes the most of them, or at least what is saved. false:
 * out of memory, now or before. */
bool ym_builder_end(ym_builder *b);

/* Gives every block of the workspace its offset, and knows the peak then. It looks for
 * no place below what is live, or below `enough`, if that is more. */
ym_status ym_place_blocks(ym_schedule *schedule, size_t saved_bytes, size_t enough,
                          ym_error *error);

#endif
