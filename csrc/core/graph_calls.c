/* SPDX-License-Identifier: MIT
 * The calls that a graph is made of: each checks its arguments, then adds its node.
 */
#include "core/graph_parts.h"

#include <math.h>
#include <stdlib.h>

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

static ym_status check_conv(const ym_graph *g, int32_t x, const ym_conv_call *call,
                            const char *name, ym_error *error)
{
    const char *op = call->is_transposed ? "conv_transpose" : "conv";
    const ym_conv *conv = &call->shape;
    YM_TRY(ym_graph_check_value(g, x, op, error));
    YM_CHECK(error, call->weight >= 0 && call->weight < g->param_count, YM_ERR_ARGUMENT,
             "%s %s: param %d does not exist, the graph has %d", op, name, call->weight,
             g->param_count);
    YM_TRY(check_sides(op, name, "kernel", conv->r, conv->s, 1, error));
    YM_TRY(check_sides(op, name, "stride", conv->stride_h, conv->stride_w, 1, error));
    YM_TRY(check_sides(op, name, "dilation", conv->dilation_h, conv->dilation_w, 1,
                       error));
    YM_TRY(check_sides(op, name, "padding", conv->pad_h, conv->pad_w, 0, error));
    YM_CHECK(error, conv->groups > 0, YM_ERR_ARGUMENT,
             "%s %s: groups is %d, must be positive", op, name, conv->groups);
    const int32_t channels = g->node[x].channels;
    const int32_t wanted = call->is_transposed ? conv->k : conv->c;
    YM_CHECK(
        error,
        wanted == channels && conv->c % conv->groups == 0 &&
            conv->k % conv->groups == 0,
        YM_ERR_ARGUMENT,
        "%s %s: input has %d channels, weight wants %d in %d groups for %d outputs", op,
        name, channels, wanted, conv->groups, conv->k + conv->c - wanted);
    const ym_param *w = &g->param[call->weight];
    YM_CHECK(error,
             w->k == conv->k && w->c == conv->c / conv->groups && w->r == conv->r &&
                 w->s == conv->s,
             YM_ERR_ARGUMENT,
             "%s %s: weight is (%d, %d, %d, %d), must be (%d, %d, %d, %d)", op, name,
             w->k, w->c, w->r, w->s, conv->k, conv->c / conv->groups, conv->r, conv->s);
    return YM_OK;
}

static ym_status append_conv(ym_graph *g, int32_t x, const ym_conv_call *conv,
                             const char *name, int32_t *made, ym_error *error)
{
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_CONV, &x, 1, name, &node, error));
    node->channels = conv->is_transposed ? conv->shape.c : conv->shape.k;
    node->u.conv = *conv;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_conv(ym_graph *g, int32_t x, const ym_conv *conv, int32_t weight,
                        int32_t bias, const char *name, int32_t *made, ym_error *error)
{
    const ym_conv_call call = {.shape = *conv, .weight = weight, .bias = bias};
    YM_TRY(check_conv(g, x, &call, name, error));
    YM_TRY(ym_graph_check_vector(g, bias, conv->k, "conv bias", error));
    return append_conv(g, x, &call, name, made, error);
}

ym_status ym_graph_conv_transpose(ym_graph *g, int32_t x, const ym_conv *conv,
                                  const int32_t more[2], int32_t weight,
                                  const char *name, int32_t *made, ym_error *error)
{
    const ym_conv_call call = {.shape = *conv,
                               .weight = weight,
                               .bias = -1,
                               .is_transposed = true,
                               .more_h = more[0],
                               .more_w = more[1]};
    YM_TRY(check_conv(g, x, &call, name, error));
    YM_CHECK(error,
             more[0] >= 0 && more[0] < conv->stride_h && more[1] >= 0 &&
                 more[1] < conv->stride_w,
             YM_ERR_ARGUMENT,
             "conv_transpose %s: output padding is (%d, %d), must be less than the "
             "stride, (%d, %d)",
             name, more[0], more[1], conv->stride_h, conv->stride_w);
    return append_conv(g, x, &call, name, made, error);
}

ym_status ym_graph_batch_norm(ym_graph *g, int32_t x, int32_t norm, const char *name,
                              int32_t *made, ym_error *error)
{
    YM_TRY(ym_graph_check_value(g, x, "batch_norm", error));
    YM_CHECK(error, norm >= 0 && norm < g->norm_count, YM_ERR_ARGUMENT,
             "batch_norm %s: norm %d does not exist, the graph has %d", name, norm,
             g->norm_count);
    YM_CHECK(error, g->node[x].channels == g->norm[norm].channels, YM_ERR_ARGUMENT,
             "batch_norm %s: input has %d channels, must be %d", name,
             g->node[x].channels, g->norm[norm].channels);
    const ym_norm_module *module = &g->norm[norm];
    YM_CHECK(error, module->gamma < 0 || module->gamma != module->beta, YM_ERR_ARGUMENT,
             "batch_norm %s: gamma and beta are one param, must be two", name);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_BATCH_NORM, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.norm = norm;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_affine(ym_graph *g, int32_t x, const ym_affine *affine,
                          const char *name, int32_t *made, ym_error *error)
{
    YM_TRY(ym_graph_check_value(g, x, "affine", error));
    YM_CHECK(error, isfinite(affine->scale) && isfinite(affine->shift), YM_ERR_ARGUMENT,
             "affine %s: scale is %g and shift %g, must be finite", name,
             (double)affine->scale, (double)affine->shift);
    const int32_t channels = g->node[x].channels;
    YM_TRY(ym_graph_check_each(g, affine->gamma, channels, "affine gamma", error));
    YM_TRY(ym_graph_check_each(g, affine->bias, channels, "affine bias", error));
    int32_t norm = -1;
    YM_TRY(ym_graph_norm(g, channels, affine->gamma, affine->bias, name, &norm, error));
    g->norm[norm].is_constant = true;
    g->norm[norm].mean = -affine->shift;
    g->norm[norm].rstd = affine->scale;
    const ym_status status = ym_graph_batch_norm(g, x, norm, name, made, error);
    if (status != YM_OK) {
        free(g->norm[--g->norm_count].name);
    }
    return status;
}

ym_status ym_graph_activation(ym_graph *g, int32_t x, ym_activation activation,
                              const char *name, int32_t *made, ym_error *error)
{
    YM_CHECK(error, activation.kind != YM_HARDTANH || activation.low <= activation.high,
             YM_ERR_ARGUMENT, "activation: low is %g, must be at most high, %g",
             (double)activation.low, (double)activation.high);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_ACTIVATION, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.activation = activation;
    *made = g->node_count - 1;
    return YM_OK;
}

/* Takes back what was appended since there were `count`. */
static void drop_nodes(ym_graph *g, int32_t count)
{
    while (g->node_count > count) {
        ym_node *node = &g->node[--g->node_count];
        free(node->operand);
        free(node->name);
    }
}

/* Longer sums become a chain of pairs, added from the left. */
ym_status ym_graph_add(ym_graph *g, const int32_t *x, int32_t count, const char *name,
                       int32_t *made, ym_error *error)
{
    YM_CHECK(error, count >= 1, YM_ERR_ARGUMENT, "add: needs at least one value");
    for (int32_t i = 0; i < count; i++) {
        YM_TRY(ym_graph_check_value(g, x[i], "add", error));
        YM_CHECK(error, g->node[x[i]].channels == g->node[x[0]].channels,
                 YM_ERR_ARGUMENT,
                 "add %s: addend %d has %d channels, must have %d as the first", name,
                 i, g->node[x[i]].channels, g->node[x[0]].channels);
    }
    const int32_t before = g->node_count;
    int32_t sum = x[0];
    for (int32_t i = count > 1 ? 1 : 0; i < count; i++) {
        ym_node *node = NULL;
        int32_t pair[2] = {sum, x[i]};
        const ym_status status =
            ym_graph_append(g, YM_OP_ADD, pair, count > 1 ? 2 : 1, name, &node, error);
        if (status != YM_OK) {
            drop_nodes(g, before);
            return status;
        }
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
        YM_TRY(ym_graph_check_value(g, x[i], "concat", error));
        channels += g->node[x[i]].channels;
    }
    YM_CHECK(error, channels <= INT32_MAX, YM_ERR_ARGUMENT,
             "concat %s: has %lld channels, at most %d are possible", name,
             (long long)channels, INT32_MAX);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_CONCAT, x, count, name, &node, error));
    node->channels = (int32_t)channels;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_slice(ym_graph *g, int32_t x, int32_t first, int32_t count,
                         const char *name, int32_t *made, ym_error *error)
{
    YM_TRY(ym_graph_check_value(g, x, "slice", error));
    YM_CHECK(error,
             first >= 0 && count > 0 && (int64_t)first + count <= g->node[x].channels,
             YM_ERR_ARGUMENT, "slice %s: channels [%d, %lld) of %d do not exist", name,
             first, (long long)first + count, g->node[x].channels);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_SLICE, &x, 1, name, &node, error));
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
    YM_TRY(ym_graph_append(g, op, &x, 1, name, &node, error));
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
             "upsample %s: needs either a positive factor or a positive size", name);
    YM_CHECK(error, upsample->bilinear || !upsample->align_corners, YM_ERR_ARGUMENT,
             "upsample %s: align_corners is for bilinear only", name);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_UPSAMPLE, &x, 1, name, &node, error));
    node->channels = g->node[x].channels;
    node->u.upsample = *upsample;
    *made = g->node_count - 1;
    return YM_OK;
}

ym_status ym_graph_multiply(ym_graph *g, int32_t a, int32_t b, const char *name,
                            int32_t *made, ym_error *error)
{
    const int32_t pair[2] = {a, b};
    YM_TRY(ym_graph_check_value(g, a, "multiply", error));
    YM_TRY(ym_graph_check_value(g, b, "multiply", error));
    const int32_t left = g->node[a].channels, right = g->node[b].channels;
    YM_CHECK(error, left == right || left == 1 || right == 1, YM_ERR_ARGUMENT,
             "multiply %s: factors have %d and %d channels, must have as many, or one",
             name, left, right);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, YM_OP_MULTIPLY, pair, 2, name, &node, error));
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
    YM_TRY(ym_graph_check_value(g, x, call, error));
    YM_CHECK(error, axes.h || axes.w || axes.c, YM_ERR_ARGUMENT,
             "%s %s: needs at least one of the axes h, w and c", call, name);
    YM_CHECK(error, op == YM_OP_MEAN || axes.c != (axes.h || axes.w), YM_ERR_ARGUMENT,
             "%s %s: is over pixels or over channels, not over both", call, name);
    ym_node *node = NULL;
    YM_TRY(ym_graph_append(g, op, &x, 1, name, &node, error));
    node->channels = axes.c ? 1 : g->node[x].channels;
    node->u.axes = axes;
    *made = g->node_count - 1;
    return YM_OK;
}
