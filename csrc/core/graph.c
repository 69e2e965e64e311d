/* SPDX-License-Identifier: MIT
 * Graph: append-only lists. Each public function checks its arguments before it changes
 * anything, so that a failed call leaves the graph as it was.
 */
#include "core/graph_parts.h"

#include <stdlib.h>
#include <string.h>

/* The planner recurses along chains of calls, of which yolov9-e has 2,000. */
#define YM_MAX_NODES 8192

const char *ym_op_name(ym_op op)
{
    static const char *const names[] = {
        "input",    "conv",     "batch_norm", "activation", "add",  "concat", "slice",
        "max_pool", "avg_pool", "upsample",   "multiply",   "mean", "maximum"};
    return names[op];
}

ym_graph *ym_graph_create(void)
{
    ym_graph *graph = calloc(1, sizeof *graph);
    if (graph != NULL) {
        graph->stage_count = 1;
    }
    return graph;
}

void ym_graph_stage(ym_graph *g)
{
    g->stage_count++;
}

void ym_graph_free(ym_graph *graph)
{
    if (graph == NULL) {
        return;
    }
    for (int32_t i = 0; i < graph->node_count; i++) {
        free(graph->node[i].operand);
        free(graph->node[i].name);
    }
    for (int32_t i = 0; i < graph->param_count; i++) {
        free(graph->param[i].name);
    }
    for (int32_t i = 0; i < graph->norm_count; i++) {
        free(graph->norm[i].name);
    }
    free(graph->node);
    free(graph->param);
    free(graph->norm);
    free(graph->input);
    free(graph->output);
    free(graph->output_stage);
    free(graph);
}

/* Makes room for one more element: lists grow by doubling at powers of two. */
static ym_status grow(void **list, int32_t count, size_t element_bytes, ym_error *error)
{
    if (count > 0 && (count & (count - 1)) != 0) {
        return YM_OK;
    }
    size_t capacity = count > 0 ? 2 * (size_t)count : 1;
    void *moved = realloc(*list, capacity * element_bytes);
    YM_CHECK(error, moved != NULL, YM_ERR_MEMORY, "graph: out of memory");
    *list = moved;
    return YM_OK;
}

static char *copy_text(const char *text)
{
    size_t bytes = strlen(text != NULL ? text : "") + 1;
    char *copy = malloc(bytes);
    if (copy != NULL) {
        memcpy(copy, text != NULL ? text : "", bytes);
    }
    return copy;
}

ym_status ym_graph_check_value(const ym_graph *g, int32_t x, const char *what,
                               ym_error *error)
{
    YM_CHECK(error, x >= 0 && x < g->node_count, YM_ERR_ARGUMENT,
             "%s: value %d does not exist, the graph has %d", what, x, g->node_count);
    return YM_OK;
}

ym_status ym_graph_append(ym_graph *g, ym_op op, const int32_t *x, int32_t count,
                          const char *name, ym_node **made, ym_error *error)
{
    for (int32_t i = 0; i < count; i++) {
        YM_TRY(ym_graph_check_value(g, x[i], ym_op_name(op), error));
    }
    YM_CHECK(error, g->node_count < YM_MAX_NODES, YM_ERR_ARGUMENT,
             "graph: more than %d calls", YM_MAX_NODES);
    YM_TRY(grow((void **)&g->node, g->node_count, sizeof *g->node, error));
    ym_node node = {.op = op, .operand_count = count, .stage = g->stage_count - 1};
    node.operand = malloc((count > 0 ? (size_t)count : 1) * sizeof *node.operand);
    node.name = copy_text(name);
    if (node.operand == NULL || node.name == NULL) {
        free(node.operand);
        free(node.name);
        return ym_fail(error, YM_ERR_MEMORY, "graph: out of memory");
    }
    for (int32_t i = 0; i < count; i++) {
        node.operand[i] = x[i];
    }
    g->node[g->node_count] = node;
    *made = &g->node[g->node_count++];
    return YM_OK;
}

ym_status ym_graph_input(ym_graph *g, int32_t channels, int32_t *made, ym_error *error)
{
    YM_CHECK(error, channels > 0, YM_ERR_ARGUMENT,
             "input: channels is %d, must be positive", channels);
    YM_TRY(grow((void **)&g->input, g->input_count, sizeof *g->input, error));
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_INPUT, NULL, 0, "", &node, error));
    node->channels = channels;
    *made = g->node_count - 1;
    g->input[g->input_count++] = *made;
    return YM_OK;
}

ym_status ym_graph_param(ym_graph *g, const int32_t shape[4], const char *name,
                         int32_t *made, ym_error *error)
{
    for (int i = 0; i < 4; i++) {
        YM_CHECK(error, shape[i] > 0, YM_ERR_ARGUMENT,
                 "param %s: dimension %d is %d, must be positive", name, i, shape[i]);
    }
    YM_TRY(grow((void **)&g->param, g->param_count, sizeof *g->param, error));
    char *copy = copy_text(name);
    YM_CHECK(error, copy != NULL, YM_ERR_MEMORY, "graph: out of memory");
    g->param[g->param_count] = (ym_param){shape[0], shape[1], shape[2], shape[3], copy};
    *made = g->param_count++;
    return YM_OK;
}

ym_status ym_graph_check_vector(const ym_graph *g, int32_t param, int32_t length,
                                const char *what, ym_error *error)
{
    if (param == -1) {
        return YM_OK;
    }
    YM_CHECK(error, param >= 0 && param < g->param_count, YM_ERR_ARGUMENT,
             "%s: param %d does not exist, the graph has %d", what, param,
             g->param_count);
    const ym_param *p = &g->param[param];
    YM_CHECK(error, p->k == length && p->c == 1 && p->r == 1 && p->s == 1,
             YM_ERR_ARGUMENT,
             "%s: param %s is (%d, %d, %d, %d), must be a vector of %d", what, p->name,
             p->k, p->c, p->r, p->s, length);
    return YM_OK;
}

ym_status ym_graph_check_each(const ym_graph *g, int32_t param, int32_t channels,
                              const char *what, ym_error *error)
{
    const bool is_number = param >= 0 && param < g->param_count &&
                           g->param[param].k == 1;
    return ym_graph_check_vector(g, param, is_number ? 1 : channels, what, error);
}

ym_status ym_graph_norm(ym_graph *g, int32_t channels, int32_t gamma, int32_t beta,
                        const char *name, int32_t *made, ym_error *error)
{
    YM_CHECK(error, channels > 0, YM_ERR_ARGUMENT,
             "norm %s: channels is %d, must be positive", name, channels);
    YM_TRY(ym_graph_check_each(g, gamma, channels, "norm gamma", error));
    YM_TRY(ym_graph_check_each(g, beta, channels, "norm beta", error));
    YM_TRY(grow((void **)&g->norm, g->norm_count, sizeof *g->norm, error));
    char *copy = copy_text(name);
    YM_CHECK(error, copy != NULL, YM_ERR_MEMORY, "graph: out of memory");
    g->norm[g->norm_count] = (ym_norm_module){
        .channels = channels, .gamma = gamma, .beta = beta, .name = copy};
    *made = g->norm_count++;
    return YM_OK;
}

ym_status ym_graph_share(ym_graph *g, int32_t norm, ym_sharing sharing, ym_error *error)
{
    YM_CHECK(error, norm >= 0 && norm < g->norm_count, YM_ERR_ARGUMENT,
             "share: norm %d does not exist, the graph has %d", norm, g->norm_count);
    ym_norm_module *module = &g->norm[norm];
    YM_CHECK(error, !module->is_constant, YM_ERR_ARGUMENT,
             "share: norm %d is an affine call, which has no statistics", norm);
    YM_CHECK(error, sharing.group > 0, YM_ERR_ARGUMENT,
             "norm %s: group is %d, must be positive", module->name, sharing.group);
    YM_CHECK(error, sharing.processes > 0 && sharing.processes <= YM_MOST_PROCESSES,
             YM_ERR_ARGUMENT, "norm %s: is shared by %d processes, must be 1 to %d",
             module->name, sharing.processes, YM_MOST_PROCESSES);
    YM_CHECK(error, sharing.rank >= 0 && sharing.rank < sharing.processes,
             YM_ERR_ARGUMENT, "norm %s: rank is %d, must be in [0, %d)", module->name,
             sharing.rank, sharing.processes);
    module->sharing = sharing;
    return YM_OK;
}

ym_status ym_graph_output(ym_graph *g, int32_t x, ym_error *error)
{
    YM_TRY(ym_graph_check_value(g, x, "output", error));
    YM_TRY(grow((void **)&g->output, g->output_count, sizeof *g->output, error));
    YM_TRY(grow((void **)&g->output_stage, g->output_count, sizeof *g->output, error));
    g->output_stage[g->output_count] = g->stage_count - 1;
    g->output[g->output_count++] = x;
    return YM_OK;
}
