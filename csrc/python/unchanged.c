/* SPDX-License-Identifier: MIT
 *
 * Whether objects are as they were: what yolov9mem.torch.recording.fingerprint asks of
 * a thousand modules at every forward. Only "yes" is an answer; after a "no" Python
 * looks for what it is.
 */
#include "python/module.h"

#include <stdbool.h>
#include <string.h>

/* A new reference, None where the object is gone. */
static PyObject *object_of(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *found = NULL;
    return PyWeakref_GetRef(reference, &found) > 0 ? found : Py_NewRef(Py_None);
#else
    PyObject *found = PyWeakref_GetObject(reference);
    Py_INCREF(found);
    return found;
#endif
}

/* The values by name equal those given; == may run any code, so both are held. */
static bool has_values(PyObject *dict, PyObject *names, PyObject *values)
{
    bool same = PyTuple_GET_SIZE(names) == PyTuple_GET_SIZE(values);
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *found = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(names, i));
        Py_XINCREF(found);
        same = found != NULL &&
               PyObject_RichCompareBool(PyTuple_GET_ITEM(values, i), found, Py_EQ) == 1;
        Py_XDECREF(found);
    }
    return same;
}

/* The dict by that name has these values, told by their addresses, in this order. */
static bool has_members(PyObject *dict, PyObject *name, PyObject *addresses)
{
    PyObject *members = PyDict_GetItemWithError(dict, name);
    if (members == NULL || !PyDict_Check(members) || !PyBytes_Check(addresses)) {
        return false;
    }
    const size_t bytes = (size_t)PyDict_GET_SIZE(members) * sizeof(void *);
    if (bytes != (size_t)PyBytes_GET_SIZE(addresses)) {
        return false;
    }
    const char *known = PyBytes_AS_STRING(addresses);
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (; PyDict_Next(members, &position, &key, &value); known += sizeof value) {
        if (memcmp(known, &value, sizeof value) != 0) {
            return false;
        }
    }
    return true;
}

static bool all_have_members(PyObject *dict, PyObject *pairs)
{
    bool same = true;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(pairs); i++) {
        PyObject *pair = PyTuple_GET_ITEM(pairs, i);
        same = PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 &&
               has_members(dict, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1));
    }
    return same;
}

/* The dicts by these names have nothing in them. */
static bool are_empty(PyObject *dict, PyObject *names)
{
    bool empty = true;
    for (Py_ssize_t i = 0; empty && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *found = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(names, i));
        empty = found != NULL && PyDict_Check(found) && PyDict_GET_SIZE(found) == 0;
    }
    return empty;
}

/* empty: NULL: not asked for. */
static bool is_unchanged(PyObject *state, PyObject *empty)
{
    PyObject *reference, *kind, *names, *values, *members;
    Py_ssize_t size;
    if (!PyTuple_Check(state) ||
        !PyArg_ParseTuple(state, "OOnO!O!O!", &reference, &kind, &size, &PyTuple_Type,
                          &names, &PyTuple_Type, &values, &PyTuple_Type, &members) ||
        !PyWeakref_Check(reference)) {
        return false;
    }
    PyObject *object = object_of(reference);
    PyObject *dict = (PyObject *)Py_TYPE(object) == kind
                         ? PyObject_GenericGetDict(object, NULL)
                         : NULL;
    const bool same = dict != NULL && PyDict_Check(dict) &&
                      PyDict_GET_SIZE(dict) == size &&
                      has_values(dict, names, values) &&
                      all_have_members(dict, members) &&
                      (empty == NULL || are_empty(dict, empty));
    Py_XDECREF(dict);
    Py_DECREF(object);
    return same;
}

PyDoc_STRVAR(
    unchanged_doc,
    "unchanged($module, states, empty, /)\n--\n\n"
    "Whether every object is as its state says: (weak reference, class, length of\n"
    "__dict__, names, their values, ((name of a dict, addresses of its values as\n"
    "bytes), ...)). empty: names of dicts that must be empty in all but the first\n"
    "object. False also where a comparison raises.");

static PyObject *unchanged(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *states, *empty;
    if (!PyArg_ParseTuple(args, "O!O!:unchanged", &PyTuple_Type, &states, &PyTuple_Type,
                          &empty)) {
        return NULL;
    }
    bool same = true;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(states); i++) {
        same = is_unchanged(PyTuple_GET_ITEM(states, i), i > 0 ? empty : NULL);
    }
    PyErr_Clear();
    return PyBool_FromLong(same);
}

PyMethodDef ym_unchanged_methods[] = {
    {"unchanged", unchanged, METH_VARARGS, unchanged_doc},
    {NULL, NULL, 0, NULL},
};
