/* SPDX-License-Identifier: MIT
 * Graph: append-only lists. Each public function checks its arguments before it changes
 * anything, so that a failed call leaves the graph as it was.
 */
#include "core/graph.h"

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

static ym_status check_value(const ym_graph *g, int32_t x, const char *what,
                             ym_error *error)
{
    YM_CHECK(error, x >= 0 && x < g->node_count, YM_ERR_ARGUMENT,
             "%s: value %d does not exist, the graph has %d", what, x, g->node_count);
    return YM_OK;
}

/* Appends a node with its operands; the caller fills the union of *made. */
static ym_status append(ym_graph *g, ym_op op, const int32_t *x, int32_t count,
                        const char *name, ym_node **made, ym_error *error)
{
    for (int32_t i = 0; i < count; i++) {
        YM_TRY(check_value(g, x[i], ym_op_name(op), error));
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
    YM_TRY(append(g, YM_OP_INPUT, NULL, 0, "", &node, error));
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

/* A vector parameter of `length`, or -1. */
static ym_status check_vector(const ym_graph *g, int32_t param, int32_t length,
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

ym_status ym_graph_norm(ym_graph *g, int32_t channels, int32_t gamma, int32_t beta,
                        const char *name, int32_t *made, ym_error *error)
{
    YM_CHECK(error, channels > 0, YM_ERR_ARGUMENT,
             "norm %s: channels is %d, must be positive", name, channels);
    YM_TRY(check_vector(g, gamma, channels, "norm gamma", error));
    YM_TRY(check_vector(g, beta, channels, "norm beta", error));
    YM_TRY(grow((void **)&g->norm, g->norm_count, sizeof *g->norm, error));
    char *copy = copy_text(name);
    YM_CHECK(error, copy != NULL, YM_ERR_MEMORY, "graph: out of memory");
    g->norm[g->norm_count] = (ym_norm_module){channels, gamma, beta, copy};
    *made = g->norm_count++;
    return YM_OK;
}

/* Both sides of what a window slides by or over. */
static ym_status check_sides(const char *op, const char *name, const char *what,
                             int32_t h, int32_t w, int32_t least, ym_error *error)
{
    YM_CHECK(error,
             h >= least && w >= least && h <= YM_MAX_WINDOW && w <= YM_MAX_WINDOW,
             YM_ERR_ARGUMENT, "%s %s: %s is (%d, %d), must be from %d to %d", op, name,
             what, h, w, least, YM_MAX_WINDOW);
    return YM_OK;
}

static ym_status check_conv(const ym_graph *g, int32_t x, const ym_conv *conv,
                            int32_t weight, const char *name, ym_error *error)
{
    YM_TRY(check_value(g, x, "conv", error));
    YM_CHECK(error, weight >= 0 && weight < g->param_count, YM_ERR_ARGUMENT,
             "conv %s: param %d does not exist, the graph has %d", name, weight,
             g->param_count);
    YM_TRY(check_sides("conv", name, "kernel", conv->r, conv->s, 1, error));
    YM_TRY(
        check_sides("conv", name, "stride", conv->stride_h, conv->stride_w, 1, error));
    YM_TRY(check_sides("conv", name, "dilation", conv->dilation_h, conv->dilation_w, 1,
                       error));
    YM_TRY(check_sides("conv", name, "padding", conv->pad_h, conv->pad_w, 0, error));
    YM_CHECK(error, conv->groups > 0, YM_ERR_ARGUMENT,
             "conv %s: groups is %d, must be positive", name, conv->groups);
    int32_t channels = g->node[x].channels;
    YM_CHECK(
        error,
        conv->c == channels && conv->c % conv->groups == 0 &&
            conv->k % conv->groups == 0,
        YM_ERR_ARGUMENT,
        "conv %s: input has %d channels, weight wants %d in %d groups for %d outputs",
        name, channels, conv->c, conv->groups, conv->k);
    const ym_param *w = &g->param[weight];
    YM_CHECK(error,
             w->k == conv->k && w->c == conv->c / conv->groups && w->r == conv->r &&
                 w->s == conv->s,
             YM_ERR_ARGUMENT,
             "conv %s: weight is (%d, %d, %d, %d), must be (%d, %d, %d, %d)", name,
             w->k, w->c, w->r, w->s, conv->k, conv->c / conv->groups, conv->r, conv->s);
    return YM_OK;
}

ym_status ym_graph_conv(ym_graph *g, int32_t x, const ym_conv *conv, int32_t weight,
                        int32_t bias, const char *name, int32_t *made, ym_error *error)
{
    YM_TRY(check_conv(g, x, conv, weight, name, error));
    YM_TRY(check_vector(g, bias, conv->k, "conv bias", error));
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_CONV, &x, 1, name, &node, error));
    node->channels = conv->k;
    node->u.conv.shape = *conv;
    node->u.conv.weight = weight;
    node->u.conv.bias = bias;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_batch_norm(ym_graph *g, int32_t x, int32_t norm, const char *name,
                              int32_t *made, ym_error *error)
{
    YM_TRY(check_value(g, x, "batch_norm", error));
    YM_CHECK(error, norm >= 0 && norm < g->norm_count, YM_ERR_ARGUMENT,
             "batch_norm %s: norm %d does not exist, the graph has %d", name, norm,
             g->norm_count);
    YM_CHECK(error, g->node[x].channels == g->norm[norm].channels, YM_ERR_ARGUMENT,
             "batch_norm %s: input has %d channels, must be %d", name,
             g->node[x].channels, g->norm[norm].channels);
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_BATCH_NORM, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.norm = norm;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_activation(ym_graph *g, int32_t x, ym_activation activation,
                              const char *name, int32_t *made, ym_error *error)
{
    YM_CHECK(error, activation.kind != YM_HARDTANH || activation.low <= activation.high,
             YM_ERR_ARGUMENT, "activation: low is %g, must be at most high, %g",
             (double)activation.low, (double)activation.high);
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_ACTIVATION, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.activation = activation;
    *made = g->node_count - 1;
    return YM_OK;
}

/* Longer sums become a chain of pairs, added from the left. */
ym_status ym_graph_add(ym_graph *g, const int32_t *x, int32_t count, const char *name,
                       int32_t *made, ym_error *error)
{
    YM_CHECK(error, count >= 1, YM_ERR_ARGUMENT, "add: needs at least one value");
    for (int32_t i = 0; i < count; i++) {
        YM_TRY(check_value(g, x[i], "add", error));
        YM_CHECK(error, g->node[x[i]].channels == g->node[x[0]].channels,
                 YM_ERR_ARGUMENT, "add %s: addend %d has %d channels, the first %d",
                 name, i, g->node[x[i]].channels, g->node[x[0]].channels);
    }
    int32_t sum = x[0];
    for (int32_t i = count > 1 ? 1 : 0; i < count; i++) {
        ym_node *node = NULL;
        int32_t pair[2] = {sum, x[i]};
        YM_TRY(append(g, YM_OP_ADD, pair, count > 1 ? 2 : 1, name, &node, error));
        node->channels = g->node[x[0]].channels;
        sum = g->node_count - 1;
    }
    *made = sum;
    return YM_OK;
}

ym_status ym_graph_concat(ym_graph *g, const int32_t *x, int32_t count,
                          const char *name, int32_t *made, ym_error *error)
{
    YM_CHECK(error, count >= 1, YM_ERR_ARGUMENT, "concat: needs at least one value");
    int64_t channels = 0;
    for (int32_t i = 0; i < count; i++) {
        YM_TRY(check_value(g, x[i], "concat", error));
        channels += g->node[x[i]].channels;
    }
    YM_CHECK(error, channels <= INT32_MAX, YM_ERR_ARGUMENT,
             "concat %s: %lld channels are too many", name, (long long)channels);
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_CONCAT, x, count, name, &node, error));
    node->channels = (int32_t)channels;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_slice(ym_graph *g, int32_t x, int32_t first, int32_t count,
                         const char *name, int32_t *made, ym_error *error)
{
    YM_TRY(check_value(g, x, "slice", error));
    YM_CHECK(error,
             first >= 0 && count > 0 && (int64_t)first + count <= g->node[x].channels,
             YM_ERR_ARGUMENT, "slice %s: channels [%d, %lld) of %d do not exist", name,
             first, (long long)first + count, g->node[x].channels);
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_SLICE, &x, 1, name, &node, error));
    node->channels = count;
    node->u.first_channel = first;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_pool(ym_graph *g, ym_op op, int32_t x, const ym_pool *window,
                        bool ceil_mode, const char *name, int32_t *made,
                        ym_error *error)
{
    YM_CHECK(error, op == YM_OP_MAX_POOL || op == YM_OP_AVG_POOL, YM_ERR_ARGUMENT,
             "pool %s: op is neither max_pool nor avg_pool", name);
    const char *call = ym_op_name(op);
    YM_TRY(check_sides(call, name, "kernel", window->kernel_h, window->kernel_w, 1,
                       error));
    YM_TRY(check_sides(call, name, "stride", window->stride_h, window->stride_w, 1,
                       error));
    YM_CHECK(error,
             window->pad_h >= 0 && window->pad_h <= window->kernel_h / 2 &&
                 window->pad_w >= 0 && window->pad_w <= window->kernel_w / 2,
             YM_ERR_ARGUMENT,
             "%s %s: padding is (%d, %d), must be at most half of the kernel, (%d, %d)",
             call, name, window->pad_h, window->pad_w, window->kernel_h,
             window->kernel_w);
    ym_node *node = NULL;
    YM_TRY(append(g, op, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.pool.window = *window;
    node->u.pool.ceil_mode = ceil_mode;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_upsample(ym_graph *g, int32_t x, const ym_upsample *upsample,
                            const char *name, int32_t *made, ym_error *error)
{
    bool by_factor = upsample->factor_h > 0 && upsample->factor_w > 0;
    bool by_size = upsample->out_h > 0 && upsample->out_w > 0;
    YM_CHECK(error, by_factor != by_size, YM_ERR_ARGUMENT,
             "upsample %s: needs either a positive whole factor or a positive size",
             name);
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_UPSAMPLE, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.upsample = *upsample;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_multiply(ym_graph *g, int32_t a, int32_t b, const char *name,
                            int32_t *made, ym_error *error)
{
    const int32_t pair[2] = {a, b};
    YM_TRY(check_value(g, a, "multiply", error));
    YM_TRY(check_value(g, b, "multiply", error));
    const int32_t left = g->node[a].channels, right = g->node[b].channels;
    YM_CHECK(error, left == right || left == 1 || right == 1, YM_ERR_ARGUMENT,
             "multiply %s: factors have %d and %d channels, must have as many, or one",
             name, left, right);
    ym_node *node = NULL;
    YM_TRY(append(g, YM_OP_MULTIPLY, pair, 2, name, &node, error));
    node->channels = left == 1 ? right : left;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_reduce(ym_graph *g, ym_op op, int32_t x, ym_axes axes,
                          const char *name, int32_t *made, ym_error *error)
{
    YM_CHECK(error, op == YM_OP_MEAN || op == YM_OP_MAXIMUM, YM_ERR_ARGUMENT,
             "reduce %s: op is neither mean nor maximum", name);
    const char *call = ym_op_name(op);
    YM_TRY(check_value(g, x, call, error));
    YM_CHECK(error, axes.h || axes.w || axes.c, YM_ERR_ARGUMENT,
             "%s %s: needs at least one of the axes h, w and c", call, name);
    YM_CHECK(error, op == YM_OP_MEAN || axes.c != (axes.h || axes.w), YM_ERR_ARGUMENT,
             "%s %s: is over pixels or over channels, not over both", call, name);
    ym_node *node = NULL;
    YM_TRY(append(g, op, &x, 1, name, &node, error));
    node->channels = axes.c ? 1 : g->node[x].channels;
    node->u.axes = axes;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_output(ym_graph *g, int32_t x, ym_error *error)
{
    YM_TRY(check_value(g, x, "output", error));
    YM_TRY(grow((void **)&g->output, g->output_count, sizeof *g->output, error));
    YM_TRY(grow((void **)&g->output_stage, g->output_count, sizeof *g->output, error));
    g->output_stage[g->output_count] = g->stage_count - 1;
    g->output[g->output_count++] = x;
    return YM_OK;
}
