/* SPDX-License-Identifier: MIT
 * What a Plan tells about itself: sizes, segments, which gradients are reached.
 */
#include "python/plan_type.h"

static PyObject *get_saved_bytes(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(self->plan->forward.saved_bytes);
}

static PyObject *get_weight_bytes(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(self->plan->forward.weight_bytes);
}

static PyObject *get_forward_workspace(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(self->plan->forward.schedule->workspace_bytes);
}

static PyObject *get_backward_workspace(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(self->plan->backward->workspace_bytes);
}

static size_t workspace_bytes(const ym_plan *plan)
{
    size_t up = plan->forward.schedule->workspace_bytes;
    size_t down = plan->backward->workspace_bytes;
    return up > down ? up : down;
}

static PyObject *get_workspace(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(workspace_bytes(self->plan));
}

static PyObject *get_peak(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(self->plan->forward.saved_bytes +
                             workspace_bytes(self->plan));
}

static PyObject *get_rerun(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(self->plan->backward->rerun_convolutions);
}

static PyObject *get_rerun_flops(plan_object *self, void *closure)
{
    (void)closure;
    return PyFloat_FromDouble(self->plan->backward->rerun_flops);
}

static PyObject *get_segments(plan_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(self->plan->segment_count);
}

static PyObject *get_replays(plan_object *self, void *closure)
{
    (void)closure;
    const ym_replayer *r = self->plan->replayer;
    if (r == NULL) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue(
        "LLN", (long long)__atomic_load_n(&r->recorded, __ATOMIC_RELAXED),
        (long long)__atomic_load_n(&r->repeated, __ATOMIC_RELAXED),
        PyBool_FromLong(__atomic_load_n(&r->gave_up, __ATOMIC_RELAXED)));
}

static PyObject *get_output_shapes(plan_object *self, void *closure)
{
    (void)closure;
    const ym_program *p = self->plan->program;
    PyObject *list = PyList_New(p->graph->output_count);
    for (int32_t i = 0; list != NULL && i < p->graph->output_count; i++) {
        const ym_item *item = &p->item[p->output[i]];
        PyObject *shape = Py_BuildValue("(iiii)", item->n, item->h, item->w, item->c);
        if (shape == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, shape);
    }
    return list;
}

PyObject *ym_list_of_flags(const bool *flags, int32_t count)
{
    PyObject *list = PyList_New(count);
    for (int32_t i = 0; list != NULL && i < count; i++) {
        PyList_SET_ITEM(list, i, PyBool_FromLong(flags[i]));
    }
    return list;
}

/* The backward schedule for a mask argument; NULL with an exception set. */
static const ym_schedule *schedule_for(plan_object *self, PyObject *mask)
{
    bool *flags;
    if (ym_parse_flags(mask, "mask", self->plan->graph->output_count, &flags) < 0) {
        return NULL;
    }
    const ym_schedule *schedule = NULL;
    ym_error error;
    ym_status status = ym_plan_backward_schedule(self->plan, flags, &schedule, &error);
    PyMem_Free(flags);
    if (status != YM_OK) {
        ym_raise(status, &error);
        return NULL;
    }
    return schedule;
}

PyObject *ym_plan_backward_workspace_method(plan_object *self, PyObject *mask)
{
    const ym_schedule *s = schedule_for(self, mask);
    return s != NULL ? PyLong_FromSize_t(s->workspace_bytes) : NULL;
}

PyObject *ym_plan_reached_params_method(plan_object *self, PyObject *mask)
{
    const ym_schedule *s = schedule_for(self, mask);
    return s != NULL
               ? ym_list_of_flags(s->reached_param, self->plan->graph->param_count)
               : NULL;
}

PyObject *ym_plan_reached_inputs_method(plan_object *self, PyObject *mask)
{
    const ym_schedule *s = schedule_for(self, mask);
    return s != NULL
               ? ym_list_of_flags(s->reached_input, self->plan->graph->input_count)
               : NULL;
}

PyObject *ym_plan_touched_params_method(plan_object *self, PyObject *args)
{
    int segment;
    PyObject *mask = Py_None;
    if (!PyArg_ParseTuple(args, "i|O:touched_params", &segment, &mask)) {
        return NULL;
    }
    if (segment < 0 || segment >= self->plan->segment_count) {
        return PyErr_Format(PyExc_ValueError, "segment: is %d, must be in [0, %d)",
                            segment, self->plan->segment_count);
    }
    const ym_schedule *s = schedule_for(self, mask);
    int32_t count = self->plan->graph->param_count;
    bool *touched = PyMem_Calloc((size_t)count + 1, sizeof *touched);
    if (s == NULL || touched == NULL) {
        PyMem_Free(touched);
        return s == NULL ? NULL : PyErr_NoMemory();
    }
    ym_plan_touched_params(self->plan, s, segment, touched);
    PyObject *list = ym_list_of_flags(touched, count);
    PyMem_Free(touched);
    return list;
}

/* By value of a place, the first or the last segment to run in which it must be there;
 * -1: none. */
static PyObject *segments_of(const ym_schedule *schedule, ym_place place, int32_t count,
                             bool last)
{
    int32_t *found = PyMem_Malloc(((size_t)count + 1) * sizeof *found);
    PyObject *list = found != NULL ? PyList_New(count) : PyErr_NoMemory();
    for (int32_t i = 0; list != NULL && i < count; i++) {
        found[i] = -1;
    }
    for (int32_t k = schedule->segment_count - 1; list != NULL && k >= 0; k--) {
        for (int32_t i = 0; i < schedule->block_count; i++) {
            const ym_block *block = &schedule->block[i];
            if (block->place == place && ym_block_lives(schedule, block, k) &&
                (last || found[block->index] < 0)) {
                found[block->index] = k;
            }
        }
    }
    for (int32_t i = 0; list != NULL && i < count; i++) {
        PyList_SET_ITEM(list, i, PyLong_FromLong(found[i]));
    }
    PyMem_Free(found);
    return list;
}

PyObject *ym_plan_gradient_segments_method(plan_object *self, PyObject *mask)
{
    const ym_schedule *s = schedule_for(self, mask);
    if (s == NULL) {
        return NULL;
    }
    const ym_graph *g = self->plan->graph;
    return Py_BuildValue("(NN)",
                         segments_of(s, YM_PLACE_GRAD_INPUT, g->input_count, false),
                         segments_of(s, YM_PLACE_GRAD_OUTPUT, g->output_count, true));
}

PyObject *ym_plan_input_segments_method(plan_object *self, PyObject *mask)
{
    const ym_schedule *s = schedule_for(self, mask);
    if (s == NULL) {
        return NULL;
    }
    const int32_t count = self->plan->graph->input_count;
    return Py_BuildValue("(NN)", segments_of(s, YM_PLACE_INPUT, count, false),
                         segments_of(s, YM_PLACE_INPUT, count, true));
}

PyObject *ym_plan_input_stages_method(plan_object *self, PyObject *unused)
{
    (void)unused;
    const ym_graph *g = self->plan->graph;
    const ym_schedule *s = self->plan->forward.schedule;
    PyObject *list = segments_of(s, YM_PLACE_INPUT, g->input_count, true);
    for (int32_t i = 0; list != NULL && i < g->input_count; i++) {
        const long segment = PyLong_AsLong(PyList_GET_ITEM(list, i));
        const long stage = segment < 0 ? -1 : g->stage_count - 1 - segment;
        PyList_SetItem(list, i, PyLong_FromLong(stage));
    }
    return list;
}

PyObject *ym_plan_param_segments_method(plan_object *self, PyObject *unused)
{
    (void)unused;
    int32_t count = self->plan->graph->param_count;
    PyObject *list = PyList_New(count);
    for (int32_t i = 0; list != NULL && i < count; i++) {
        PyList_SET_ITEM(list, i, PyLong_FromLong(self->plan->param_segment[i]));
    }
    return list;
}

PyObject *ym_plan_segment_stages_method(plan_object *self, PyObject *unused)
{
    (void)unused;
    int32_t count = self->plan->segment_count;
    PyObject *list = PyList_New(count);
    for (int32_t i = 0; list != NULL && i < count; i++) {
        PyList_SET_ITEM(list, i, PyLong_FromLong(self->plan->segment_stage[i]));
    }
    return list;
}

PyGetSetDef ym_plan_getset[] = {
    {"saved_bytes", (getter)get_saved_bytes, NULL,
     "Bytes kept from forward to backward.", NULL},
    {"weight_bytes", (getter)get_weight_bytes, NULL,
     "Of saved_bytes: the weights in the values' type, where the backend wants them.",
     NULL},
    {"forward_workspace_bytes", (getter)get_forward_workspace, NULL,
     "Bytes that forward needs beside saved.", NULL},
    {"backward_workspace_bytes", (getter)get_backward_workspace, NULL,
     "Bytes that backward needs beside saved, when every output has a gradient.", NULL},
    {"workspace_bytes", (getter)get_workspace, NULL,
     "The larger of the two workspaces.", NULL},
    {"peak_bytes", (getter)get_peak, NULL, "saved_bytes + workspace_bytes.", NULL},
    {"rerun_convolutions", (getter)get_rerun, NULL,
     "How many convolutions backward runs again.", NULL},
    {"rerun_flops", (getter)get_rerun_flops, NULL,
     "Floating point operations of those convolutions.", NULL},
    {"segments", (getter)get_segments, NULL, "Parts of backward.", NULL},
    {"replays", (getter)get_replays, NULL,
     "(graphs recorded, times one was repeated, whether recording failed and was given "
     "up), or None.",
     NULL},
    {"output_shapes", (getter)get_output_shapes, NULL, "(N, H, W, C) of each output.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
