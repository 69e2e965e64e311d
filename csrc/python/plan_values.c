/* SPDX-License-Identifier: MIT
 * Parsing the values among the arguments of Plan.forward and Plan.backward: inputs,
 * outputs and their gradients.
 */
#include "python/plan_arguments.h"

#include <stdio.h>

PyObject *ym_sequence_of(PyObject *object, const char *name, int32_t count)
{
    char message[192];
    snprintf(message, sizeof message,
             "%s: is a %.90s, must be a sequence of %d entries", name,
             Py_TYPE(object)->tp_name, count);
    PyObject *list = PySequence_Fast(object, message);
    if (list != NULL && PySequence_Fast_GET_SIZE(list) != count) {
        PyErr_Format(PyExc_ValueError, "%s: has %zd entries, must have %d", name,
                     PySequence_Fast_GET_SIZE(list), count);
        Py_CLEAR(list);
    }
    return list;
}

void *ym_room_for(PyObject *list, size_t entry_bytes)
{
    if (list == NULL) {
        return NULL;
    }
    /* One more than needed: no bytes could be at NULL, which says that there is none.
     */
    void *room = PyMem_Calloc((size_t)PySequence_Fast_GET_SIZE(list) + 1, entry_bytes);
    return room != NULL ? room : PyErr_NoMemory();
}

int ym_require_device_of(const ym_array *array, const char *name, const ym_plan *plan)
{
    char found[32], wanted[32];
    if (array->device == plan->device) {
        return 0;
    }
    snprintf(found, sizeof found, array->device < 0 ? "the CPU" : "CUDA device %d",
             array->device);
    snprintf(wanted, sizeof wanted, plan->device < 0 ? "the CPU" : "CUDA device %d",
             plan->device);
    PyErr_Format(PyExc_ValueError, "%s: is on %s, the plan is for %s", name, found,
                 wanted);
    return -1;
}

/* One value in channels-last order, or an input as the plan packs it. */
static int parse_value(const ym_plan *plan, PyObject *object, const char *name,
                       const ym_value_list *rule, int32_t item, ym_tensor *value)
{
    ym_array array;
    const ym_item *made = &plan->program->item[item];
    const bool is_planar = rule->may_be_planar && ym_is_planar(plan->program, item);
    const ym_dtype dtype = is_planar ? made->u.input.form.dtype : plan->program->dtype;
    const int64_t packed[4] = {made->n, made->h, made->w, made->c};
    const int64_t planar[4] = {made->n, made->c, made->h, made->w};
    if (ym_parse_array(object, name, &array) < 0 ||
        ym_require_dtype(&array, name, dtype) < 0 ||
        ym_require_shape(&array, name, 4, is_planar ? planar : packed) < 0 ||
        ym_require_packed(&array, name) < 0 ||
        (rule->writes && ym_require_writable(&array, name) < 0)) {
        return -1;
    }
    if (ym_require_device_of(&array, name, plan) < 0) {
        return -1;
    }
    *value = (ym_tensor){array.data,
                         array.dtype,
                         made->n,
                         made->h,
                         made->w,
                         made->c,
                         is_planar ? 0 : made->c};
    return 0;
}

int ym_parse_values(const ym_plan *plan, PyObject *object, const ym_value_list *rule,
                    ym_tensor **values)
{
    PyObject *list = ym_sequence_of(object, rule->name, rule->count);
    *values = ym_room_for(list, sizeof **values);
    int status = *values != NULL ? 0 : -1;
    for (int32_t i = 0; status == 0 && i < rule->count; i++) {
        PyObject *entry = PySequence_Fast_GET_ITEM(list, i);
        const bool needed = rule->stage != NULL && rule->stage[i] == rule->needed_stage;
        if (entry == Py_None && !needed) {
            continue;
        }
        char name[64];
        snprintf(name, sizeof name, "%s[%d]", rule->name, i);
        status = parse_value(plan, entry, name, rule, rule->items[i], &(*values)[i]);
    }
    Py_XDECREF(list);
    return status;
}

int32_t *ym_input_items(const ym_plan *plan)
{
    const ym_program *p = plan->program;
    int32_t *items = PyMem_Calloc((size_t)plan->graph->input_count + 1, sizeof *items);
    if (items == NULL) {
        PyErr_NoMemory();
    }
    for (int32_t i = 0; items != NULL && i < p->item_count; i++) {
        if (p->item[i].kind == YM_ITEM_INPUT) {
            items[p->item[i].u.input.number] = i;
        }
    }
    return items;
}
