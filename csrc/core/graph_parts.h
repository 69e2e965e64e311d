/* SPDX-License-Identifier: MIT
 * What graph.c and graph_calls.c share.
 */
#ifndef YM_CORE_GRAPH_PARTS_H
#define YM_CORE_GRAPH_PARTS_H

#include "core/graph.h"

/* Does value x exist? */
ym_status ym_graph_check_value(const ym_graph *g, int32_t x, const char *what,
                               ym_error *error);
/* Is it a vector parameter of `length`, or -1? */
ym_status ym_graph_check_vector(const ym_graph *g, int32_t param, int32_t length,
                                const char *what, ym_error *error);
/* Is it one of as many numbers as there are channels, or of one for all, or -1? */
ym_status ym_graph_check_each(const ym_graph *g, int32_t param, int32_t channels,
                              const char *what, ym_error *error);
/* Adds a node with its operands; the caller fills the union of *made. */
ym_status ym_graph_append(ym_graph *g, ym_op op, const int32_t *x, int32_t count,
                          const char *name, ym_node **made, ym_error *error);

#endif
