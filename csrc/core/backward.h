/* SPDX-License-Identifier: MIT
 *
 * The backward schedule for one set of outputs with gradients. Items are visited from
 * the last to the first. Before an item's gradient steps, the values that they read are
 * made resident: found in `saved`, or rebuilt into the workspace from what is there (a
 * rebuilt convolution output stays until its last reader, so that no convolution runs
 * more than twice; cheaper values expire when they are not read for `patience` items).
 */
#ifndef YM_CORE_BACKWARD_H
#define YM_CORE_BACKWARD_H

#include "core/forward.h"

typedef struct ym_backward_request {
    const ym_program *program;
    const ym_backend *backend;
    const ym_forward *forward;
    const bool *output_has_grad; /* NULL: all */
    int32_t patience;
    const int32_t *segment_first; /* first item of each segment, ascending; from 0 */
    int32_t segment_count;
    /* By output, what recomputes it before its stage's turn, or NULL; NULL: none. */
    ym_schedule *const *recompute;
} ym_backward_request;

/* Sizes only: ym_place_blocks gives the offsets. */
ym_status ym_backward_create(const ym_backward_request *request, ym_schedule **made,
                             ym_error *error);

/* The state of a visit. */
typedef struct ym_resident {
    ym_view view;      /* block -1: not there */
    int32_t last_read; /* item at whose visit it was read last */
    bool lasting;      /* never expires */
} ym_resident;

typedef struct ym_gradient {
    ym_view view;
    uint8_t *covered; /* by channel, while only some slices are written; else NULL */
} ym_gradient;

typedef struct ym_backwarder {
    ym_builder b;
    const ym_backward_request *request;
    ym_resident *value;
    ym_gradient *gradient;
    bool *param_written;
    int32_t *conv_count;
    int32_t now; /* the item being visited */
} ym_backwarder;

static inline bool ym_needs_grad(const ym_backwarder *s, int32_t item)
{
    return s->b.program->item[item].needs_grad;
}

/* values.c: what forward kept is resident from the start, at the same offsets, in the
 * first blocks. */
void ym_adopt_saved(ym_backwarder *s);
/* Where item's value can be read now. */
ym_view ym_read_value(ym_backwarder *s, int32_t item);
/* Writes the value of an item, not a slice, into `out`. */
void ym_rebuild_into(ym_backwarder *s, int32_t item, ym_view out);

/* recompute.c: what such a schedule reads of what forward kept lives until this step.
 */
void ym_hold_for_output(ym_backwarder *s, const ym_schedule *recompute, int32_t step);

/* gradients.c: where to write the gradient of item's value; says whether to add. */
ym_view ym_gradient_target(ym_backwarder *s, int32_t item, bool *accumulate);
/* The finished gradient of item, or no view: no gradient reached it. */
ym_view ym_read_gradient(ym_backwarder *s, int32_t item);
bool ym_has_gradient(const ym_backwarder *s, int32_t item);
/* Makes `view` the gradient of item, which has none, without a copy. */
void ym_adopt_gradient(ym_backwarder *s, int32_t item, ym_view view);
bool ym_can_adopt(const ym_backwarder *s, int32_t item);
/* As ym_gradient_target, for a kernel that reads dout element by element: in place of
 * dout, unless that is taken or must stay. */
ym_view ym_take_or_target(ym_backwarder *s, int32_t item, ym_view dout,
                          bool *dout_taken, bool *accumulate);

/* multiply.c */
void ym_visit_multiply(ym_backwarder *s, int32_t item, ym_view dout);
void ym_visit_mean(ym_backwarder *s, int32_t item, ym_view dout);

#endif
