/* SPDX-License-Identifier: MIT
 *
 * Fusion. Batch norm, addition and activation each start as a brick of their own; a
 * brick that is read once only is absorbed by its reader where the sum still has the
 * form activation(term 0 + term 1) + residual. Slices that together are a whole value
 * become that value again (a chunk that is concatenated: ELAN), slices of slices one
 * slice.
 */
#include "core/fuse.h"

#include <stdlib.h>
#include <string.h>

typedef struct fuser {
    ym_program *p;
    const ym_plan_request *request;
    int32_t *item_of;    /* graph value -> item, while items keep the graph's numbers */
    int32_t *uses;       /* of a graph value, outputs included */
    int32_t *norm_uses;  /* of a norm module */
    int32_t *param_uses; /* of a param, by norms */
    bool *dead;          /* absorbed, or another name for an earlier item */
    ym_error *error;
} fuser;

static int32_t operand_item(const fuser *f, const ym_node *node, int32_t i)
{
    return f->item_of[node->operand[i]];
}

static ym_status set_operands(fuser *f, ym_item *item, const int32_t *list,
                              int32_t count)
{
    free(item->operand);
    item->operand = malloc(((size_t)count + 1) * sizeof *item->operand);
    YM_CHECK(f->error, item->operand != NULL, YM_ERR_MEMORY, "plan: out of memory");
    memcpy(item->operand, list, (size_t)count * sizeof *list);
    item->operand_count = count;
    return YM_OK;
}

/* Else its running statistics move in call order, and two terms of one brick would add
 * to the same gradient at once. */
static bool is_called_once(const fuser *f, int32_t call)
{
    const int32_t module = f->p->norm_call[call].module;
    const ym_norm_module *norm = &f->p->graph->norm[module];
    return f->norm_uses[module] <= 1 &&
           (norm->gamma < 0 || f->param_uses[norm->gamma] <= 1) &&
           (norm->beta < 0 || f->param_uses[norm->beta] <= 1);
}

/* A brick that the reader of graph value v may absorb. */
static ym_item *absorbable(const fuser *f, int32_t v)
{
    ym_item *item = &f->p->item[f->item_of[v]];
    if (f->uses[v] != 1 || item->kind != YM_ITEM_BRICK || f->item_of[v] != v ||
        item->u.brick.has_residual) {
        return NULL;
    }
    for (int t = 0; t < item->u.brick.term_count; t++) {
        int32_t call = item->u.brick.norm_call[t];
        if (call >= 0 && !is_called_once(f, call)) {
            return NULL;
        }
    }
    return item;
}

static bool is_linear(const ym_item *item)
{
    return item->u.brick.activation.kind == YM_IDENTITY;
}

static ym_status fuse_batch_norm(fuser *f, const ym_node *node, ym_item *item)
{
    int32_t call = f->p->norm_call_count++;
    f->p->norm_call[call] = (ym_norm_call){node->u.norm, node->channels, 0};
    item->kind = YM_ITEM_BRICK;
    item->u.brick.term_count = 1;
    item->u.brick.norm_call[0] = call;
    item->u.brick.norm_call[1] = -1;
    int32_t x = operand_item(f, node, 0);
    return set_operands(f, item, &x, 1);
}

static ym_status fuse_activation(fuser *f, const ym_node *node, ym_item *item)
{
    ym_item *inner = absorbable(f, node->operand[0]);
    item->kind = YM_ITEM_BRICK;
    if (inner != NULL && is_linear(inner)) {
        item->u = inner->u;
        YM_TRY(set_operands(f, item, inner->operand, inner->operand_count));
        f->dead[node->operand[0]] = true;
    } else {
        int32_t x = operand_item(f, node, 0);
        item->u.brick.term_count = 1;
        item->u.brick.norm_call[0] = item->u.brick.norm_call[1] = -1;
        YM_TRY(set_operands(f, item, &x, 1));
    }
    item->u.brick.activation = node->u.activation;
    return YM_OK;
}

/* Terms of one brick are summed for together: with the same processes, or each alone.
 */
static bool share_alike(const fuser *f, const ym_item *a, const ym_item *b)
{
    const ym_norm_call *call = f->p->norm_call;
    const int32_t left = a->u.brick.norm_call[0], right = b->u.brick.norm_call[0];
    const ym_norm_module *norm = f->p->graph->norm;
    return left < 0 || right < 0 ||
           norm[call[left].module].sharing.group ==
               norm[call[right].module].sharing.group;
}

/* a + b, where a and b are graph values. */
static ym_status fuse_pair(fuser *f, int32_t a, int32_t b, ym_item *item)
{
    ym_item *left = absorbable(f, a);
    ym_item *right = absorbable(f, b);
    bool left_term = left != NULL && is_linear(left) && left->u.brick.term_count == 1;
    bool right_term = right != NULL && is_linear(right) &&
                      right->u.brick.term_count == 1 &&
                      (!left_term || share_alike(f, left, right));
    item->kind = YM_ITEM_BRICK;
    if (!left_term && !right_term && (left != NULL || right != NULL)) {
        /* activation(...) + other: the other is the residual. */
        const ym_item *inner = right != NULL ? right : left;
        int32_t absorbed = right != NULL ? b : a;
        int32_t other = f->item_of[right != NULL ? a : b];
        int32_t list[3] = {inner->operand[0], inner->operand[inner->operand_count - 1]};
        list[inner->operand_count] = other;
        item->u = inner->u;
        item->u.brick.has_residual = true;
        f->dead[absorbed] = true;
        return set_operands(f, item, list, inner->operand_count + 1);
    }
    item->u.brick.term_count = 2;
    item->u.brick.norm_call[0] = left_term ? left->u.brick.norm_call[0] : -1;
    item->u.brick.norm_call[1] = right_term ? right->u.brick.norm_call[0] : -1;
    int32_t list[2] = {left_term ? left->operand[0] : f->item_of[a],
                       right_term ? right->operand[0] : f->item_of[b]};
    f->dead[a] = f->dead[a] || left_term;
    f->dead[b] = f->dead[b] || right_term;
    return set_operands(f, item, list, 2);
}

/* n addends: the graph hands over pairs (ym_graph_add splits longer sums). */
static ym_status fuse_add(fuser *f, const ym_node *node, ym_item *item, int32_t v)
{
    if (node->operand_count == 1) {
        f->item_of[v] = operand_item(f, node, 0);
        f->dead[v] = true;
        return YM_OK;
    }
    return fuse_pair(f, node->operand[0], node->operand[1], item);
}

static ym_status fuse_slice(fuser *f, const ym_node *node, ym_item *item, int32_t v)
{
    int32_t x = operand_item(f, node, 0);
    int32_t first = node->u.first_channel;
    if (first == 0 && node->channels == f->p->item[x].c) {
        f->item_of[v] = x;
        f->dead[v] = true;
        return YM_OK;
    }
    if (f->p->item[x].kind == YM_ITEM_SLICE) {
        first += f->p->item[x].u.first_channel;
        x = f->p->item[x].operand[0];
    }
    item->kind = YM_ITEM_SLICE;
    item->u.first_channel = first;
    return set_operands(f, item, &x, 1);
}

/* How many operands from i on are the slices of one value, in order and complete. */
static int32_t whole_value(const fuser *f, const ym_node *node, int32_t i)
{
    const ym_item *first = &f->p->item[operand_item(f, node, i)];
    if (first->kind != YM_ITEM_SLICE) {
        return 0;
    }
    int32_t parent = first->operand[0], next = 0, k = i;
    while (k < node->operand_count && next < f->p->item[parent].c) {
        const ym_item *x = &f->p->item[operand_item(f, node, k)];
        if (x->kind != YM_ITEM_SLICE || x->operand[0] != parent ||
            x->u.first_channel != next) {
            return 0;
        }
        next += x->c;
        k++;
    }
    return next == f->p->item[parent].c ? k - i : 0;
}

static ym_status fuse_concat(fuser *f, const ym_node *node, ym_item *item, int32_t v)
{
    int32_t *list = malloc(((size_t)node->operand_count + 1) * sizeof *list);
    YM_CHECK(f->error, list != NULL, YM_ERR_MEMORY, "plan: out of memory");
    int32_t count = 0;
    for (int32_t i = 0; i < node->operand_count;) {
        int32_t slices = whole_value(f, node, i);
        int32_t x = operand_item(f, node, i);
        list[count++] = slices > 0 ? f->p->item[x].operand[0] : x;
        i += slices > 0 ? slices : 1;
    }
    ym_status status = YM_OK;
    if (count == 1) {
        f->item_of[v] = list[0];
        f->dead[v] = true;
    } else {
        item->kind = YM_ITEM_CONCAT;
        status = set_operands(f, item, list, count);
    }
    free(list);
    return status;
}

static ym_status fuse_window(fuser *f, const ym_node *node, ym_item *item)
{
    int32_t x = operand_item(f, node, 0);
    if (node->op == YM_OP_UPSAMPLE) {
        item->kind = YM_ITEM_UPSAMPLE;
    } else {
        item->kind = node->op == YM_OP_MAX_POOL ? YM_ITEM_MAX_POOL : YM_ITEM_AVG_POOL;
        item->u.pool = node->u.pool.window;
    }
    return set_operands(f, item, &x, 1);
}

static ym_status fuse_multiply(fuser *f, const ym_node *node, ym_item *item)
{
    const int32_t factors[2] = {operand_item(f, node, 0), operand_item(f, node, 1)};
    item->kind = YM_ITEM_MULTIPLY;
    return set_operands(f, item, factors, 2);
}

static ym_status fuse_reduction(fuser *f, const ym_node *node, ym_item *item)
{
    const int32_t x = operand_item(f, node, 0);
    item->kind = node->op == YM_OP_MEAN ? YM_ITEM_MEAN : YM_ITEM_MAXIMUM;
    return set_operands(f, item, &x, 1);
}

static ym_status fuse_input(fuser *f, ym_item *item, int32_t v)
{
    int32_t number = 0;
    while (f->p->graph->input[number] != v) {
        number++;
    }
    const int32_t *size = f->request->input_size[number];
    YM_CHECK(f->error, size[0] > 0 && size[1] > 0 && size[2] > 0, YM_ERR_ARGUMENT,
             "input %d: size is (%d, %d, %d) in N, H, W, must be positive", number,
             size[0], size[1], size[2]);
    YM_CHECK(f->error, size[1] <= YM_MAX_SIDE && size[2] <= YM_MAX_SIDE,
             YM_ERR_ARGUMENT,
             "input %d: size is (%d, %d, %d) in N, H, W, sides must be at most %d",
             number, size[0], size[1], size[2], YM_MAX_SIDE);
    item->kind = YM_ITEM_INPUT;
    item->u.input.number = number;
    if (f->request->input_form != NULL) {
        item->u.input.form = f->request->input_form[number];
    }
    item->n = size[0];
    item->h = size[1];
    item->w = size[2];
    return YM_OK;
}

static ym_status fuse_node(fuser *f, int32_t v)
{
    const ym_node *node = &f->p->graph->node[v];
    ym_item *item = &f->p->item[v];
    item->name = node->name;
    item->c = node->channels;
    item->stage = node->stage;
    f->item_of[v] = v;
    switch (node->op) {
    case YM_OP_INPUT:
        return fuse_input(f, item, v);
    case YM_OP_CONV: {
        int32_t x = operand_item(f, node, 0);
        item->kind = YM_ITEM_CONV;
        item->u.conv = node->u.conv;
        return set_operands(f, item, &x, 1);
    }
    case YM_OP_BATCH_NORM:
        return fuse_batch_norm(f, node, item);
    case YM_OP_ACTIVATION:
        return fuse_activation(f, node, item);
    case YM_OP_ADD:
        return fuse_add(f, node, item, v);
    case YM_OP_CONCAT:
        return fuse_concat(f, node, item, v);
    case YM_OP_SLICE:
        return fuse_slice(f, node, item, v);
    case YM_OP_MULTIPLY:
        return fuse_multiply(f, node, item);
    case YM_OP_MEAN:
    case YM_OP_MAXIMUM:
        return fuse_reduction(f, node, item);
    default:
        return fuse_window(f, node, item);
    }
}

static void count_norm_use(fuser *f, int32_t module)
{
    const ym_norm_module *norm = &f->p->graph->norm[module];
    f->norm_uses[module]++;
    if (norm->gamma >= 0) {
        f->param_uses[norm->gamma]++;
    }
    if (norm->beta >= 0) {
        f->param_uses[norm->beta]++;
    }
}

static void count_uses(fuser *f)
{
    const ym_graph *g = f->p->graph;
    for (int32_t v = 0; v < g->node_count; v++) {
        for (int32_t i = 0; i < g->node[v].operand_count; i++) {
            f->uses[g->node[v].operand[i]]++;
        }
        if (g->node[v].op == YM_OP_BATCH_NORM) {
            count_norm_use(f, g->node[v].u.norm);
        }
    }
    for (int32_t i = 0; i < g->output_count; i++) {
        f->uses[g->output[i]]++;
    }
}

/* Drops the dead items and renumbers the rest. */
static void compact(fuser *f)
{
    ym_program *p = f->p;
    int32_t nodes = p->graph->node_count;
    int32_t *number = f->uses; /* no longer needed as counts */
    int32_t count = 0;
    for (int32_t v = 0; v < nodes; v++) {
        number[v] = f->dead[v] ? -1 : count++;
    }
    for (int32_t i = 0; i < p->graph->output_count; i++) {
        p->output[i] = number[f->item_of[p->graph->output[i]]];
    }
    for (int32_t v = 0; v < nodes; v++) {
        if (f->dead[v]) {
            free(p->item[v].operand);
            continue;
        }
        for (int32_t i = 0; i < p->item[v].operand_count; i++) {
            p->item[v].operand[i] = number[p->item[v].operand[i]];
        }
        p->item[number[v]] = p->item[v];
    }
    p->item_count = count;
}

static ym_status fuse_all(fuser *f)
{
    const ym_graph *g = f->p->graph;
    f->p->item_count = g->node_count; /* so that a failure frees every operand list */
    count_uses(f);
    for (int32_t v = 0; v < g->node_count; v++) {
        YM_TRY(fuse_node(f, v));
        if (!f->dead[v] && g->node[v].op != YM_OP_INPUT) {
            YM_TRY(ym_size_item(f->p, &g->node[v], &f->p->item[v], f->error));
        }
    }
    compact(f);
    return YM_OK;
}

ym_status ym_fuse(ym_program *program, const ym_plan_request *request, ym_error *error)
{
    size_t nodes = (size_t)program->graph->node_count + 1;
    fuser f = {.p = program, .request = request, .error = error};
    f.item_of = calloc(nodes, sizeof *f.item_of);
    f.uses = calloc(nodes, sizeof *f.uses);
    f.norm_uses = calloc((size_t)program->graph->norm_count + 1, sizeof *f.norm_uses);
    f.param_uses =
        calloc((size_t)program->graph->param_count + 1, sizeof *f.param_uses);
    f.dead = calloc(nodes, sizeof *f.dead);
    ym_status status = YM_ERR_MEMORY;
    if (f.item_of != NULL && f.uses != NULL && f.norm_uses != NULL &&
        f.param_uses != NULL && f.dead != NULL) {
        status = fuse_all(&f);
    } else {
        ym_fail(error, status, "plan: out of memory");
    }
    free(f.item_of);
    free(f.uses);
    free(f.norm_uses);
    free(f.param_uses);
    free(f.dead);
    return status;
}
