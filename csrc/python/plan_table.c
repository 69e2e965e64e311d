/* SPDX-License-Identifier: MIT
 * The plan as a table: what is kept, what is rebuilt, and the bytes of each value.
 */
#include "python/plan_type.h"

/* How often backward computes each item again. */
static int32_t *count_rebuilds(const ym_plan *plan)
{
    int32_t *count = PyMem_Calloc((size_t)plan->program->item_count + 1, sizeof *count);
    const ym_schedule *s = plan->backward;
    for (int32_t i = 0; count != NULL && i < s->step_count; i++) {
        if (s->step[i].rebuilds) {
            count[s->step[i].item]++;
        }
    }
    return count;
}

static const char *state_of(const ym_plan *plan, int32_t item, int32_t rebuilds)
{
    const ym_view view = plan->forward.view[item];
    ym_place place = plan->forward.schedule->block[view.block].place;
    ym_item_kind kind = plan->program->item[item].kind;
    if (place == YM_PLACE_SAVED) {
        return kind == YM_ITEM_SLICE ? "part of a kept value" : "kept";
    }
    if (place == YM_PLACE_INPUT) {
        return kind == YM_ITEM_SLICE ? "part of an input" : "input";
    }
    if (rebuilds > 0) {
        return "rebuilt";
    }
    return place == YM_PLACE_OUTPUT ? "output" : "not kept";
}

static PyObject *row_of(const ym_plan *plan, int32_t i, int32_t rebuilds)
{
    const ym_item *item = &plan->program->item[i];
    char op[YM_OP_ROOM];
    return Py_BuildValue("{s:s,s:s,s:(iiii),s:n,s:s,s:i,s:O}", "name", item->name, "op",
                         ym_item_op(plan->program, item, op), "shape", item->n, item->h,
                         item->w, item->c, "bytes",
                         (Py_ssize_t)ym_item_bytes(plan->program, i), "state",
                         state_of(plan, i, rebuilds), "rebuilds", rebuilds,
                         "needs_grad", item->needs_grad ? Py_True : Py_False);
}

PyObject *ym_plan_table_method(plan_object *self, PyObject *unused)
{
    (void)unused;
    const ym_plan *plan = self->plan;
    int32_t *rebuilds = count_rebuilds(plan);
    if (rebuilds == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *list = PyList_New(plan->program->item_count);
    for (int32_t i = 0; list != NULL && i < plan->program->item_count; i++) {
        PyObject *row = row_of(plan, i, rebuilds[i]);
        if (row == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, row);
    }
    PyMem_Free(rebuilds);
    return list;
}
