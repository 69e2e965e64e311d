/* SPDX-License-Identifier: MIT
 * yolov9mem._core.Graph: a Python object around core/graph.h.
 */
#ifndef YM_PYTHON_GRAPH_TYPE_H
#define YM_PYTHON_GRAPH_TYPE_H

#include "core/graph.h"
#include "python/module.h"

/* The graph inside a Graph object, owned by it; NULL with TypeError for other objects.
 */
ym_graph *ym_graph_of(PyObject *object);

/* Around the making of a plan, which reads the graph: nothing can be added meanwhile.
 * A plan that was made reads it as long as it lives and seals it; where none was made,
 * the graph can be added to as before. The object must be a Graph. */
void ym_graph_hold(PyObject *object);
void ym_graph_let_go(PyObject *object, bool seal);

/* For the methods: the graph to add to, or NULL with an exception when it is sealed;
 * and the number made, or the exception of a failed status. */
ym_graph *ym_graph_open(PyObject *object);
PyObject *ym_graph_made(ym_status status, int32_t made, const ym_error *error);

#endif
