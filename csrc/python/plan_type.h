/* SPDX-License-Identifier: MIT
 * The Python type Plan and what its files share.
 */
#ifndef YM_PYTHON_PLAN_TYPE_H
#define YM_PYTHON_PLAN_TYPE_H

#include "core/plan_parts.h"
#include "python/arguments.h"

typedef struct plan_object {
    PyObject_HEAD ym_plan *plan;
    PyObject *graph;   /* owned: keeps the ym_graph alive */
    PyObject *backend; /* owned: what the caller named it by, perhaps a capsule */
} plan_object;

/* plan_run.c */
PyObject *ym_plan_forward_method(plan_object *self, PyObject *args);
PyObject *ym_plan_backward_method(plan_object *self, PyObject *args);

/* plan_values.c: a sequence of exactly `count` entries, as a new reference; NULL with
 * an exception. */
PyObject *ym_sequence_of(PyObject *object, const char *name, int32_t count);
/* Zeroed memory for what becomes of the entries of `list`, freed by PyMem_Free; NULL
 * with an exception, that of ym_sequence_of where this has given no list. */
void *ym_room_for(PyObject *list, size_t entry_bytes);

/* plan_type.c: a list of flags, one per output, or None: all. Returns -1 with an
 * exception set; the result is freed by PyMem_Free and NULL for None. */
int ym_parse_flags(PyObject *object, const char *name, int32_t count, bool **flags);

/* plan_backend.c */
int ym_parse_backend(PyObject *object, ym_plan_request *request);

/* plan_recompute.c */
PyObject *ym_plan_recompute_method(plan_object *self, PyObject *args);
PyObject *ym_plan_recompute_needs_method(plan_object *self, PyObject *unused);

/* plan_queries.c: a list of Python's truth values, or NULL with an exception set. */
PyObject *ym_list_of_flags(const bool *flags, int32_t count);
extern PyGetSetDef ym_plan_getset[];
PyObject *ym_plan_backward_workspace_method(plan_object *self, PyObject *mask);
PyObject *ym_plan_reached_params_method(plan_object *self, PyObject *mask);
PyObject *ym_plan_reached_inputs_method(plan_object *self, PyObject *mask);
PyObject *ym_plan_touched_params_method(plan_object *self, PyObject *args);
PyObject *ym_plan_gradient_segments_method(plan_object *self, PyObject *mask);
PyObject *ym_plan_input_segments_method(plan_object *self, PyObject *mask);
PyObject *ym_plan_input_stages_method(plan_object *self, PyObject *unused);
PyObject *ym_plan_param_segments_method(plan_object *self, PyObject *unused);
PyObject *ym_plan_segment_stages_method(plan_object *self, PyObject *unused);

/* plan_table.c */
PyObject *ym_plan_table_method(plan_object *self, PyObject *unused);

#endif
