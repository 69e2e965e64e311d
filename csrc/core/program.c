/* SPDX-License-Identifier: MIT
 * From graph to program: sizes, then what backward needs.
 */
#include "core/program.h"

#include <stdlib.h>
#include <string.h>

#include "core/fuse.h"

size_t ym_item_bytes(const ym_program *program, int32_t item)
{
    const ym_item *i = &program->item[item];
    return (size_t)i->n * (size_t)i->h * (size_t)i->w * (size_t)i->c *
           ym_dtype_bytes(program->dtype);
}

/* How many windows a side has place for, less than 1 if none. As pooling_output_shape
 * of torch: the quotient is rounded down, also below 0. */
static int64_t windows_of(int64_t in, int32_t kernel, int32_t stride, int32_t pad,
                          bool ceil_mode)
{
    int64_t span = in + 2 * (int64_t)pad - kernel + (ceil_mode ? stride - 1 : 0);
    int64_t out = (span < 0 ? -((stride - 1 - span) / stride) : span / stride) + 1;
    /* The last window must start inside the image or its left padding. */
    if (ceil_mode && (out - 1) * stride >= in + pad) {
        out--;
    }
    return out;
}

static int32_t reach_of(int32_t kernel, int32_t dilation)
{
    return dilation * (kernel - 1) + 1;
}

/* Pixels of a side whose windows are `in`: the fewest of them, and some more. */
static int64_t spanned_by(int64_t in, int32_t kernel, int32_t stride, int32_t pad,
                          int32_t more)
{
    return (in - 1) * stride - 2 * (int64_t)pad + kernel + more;
}

static void size_of_conv(const ym_conv_call *conv, const ym_item *x, int64_t size[2])
{
    const ym_conv *s = &conv->shape;
    const int32_t reach_h = reach_of(s->r, s->dilation_h);
    const int32_t reach_w = reach_of(s->s, s->dilation_w);
    if (conv->is_transposed) {
        size[0] = spanned_by(x->h, reach_h, s->stride_h, s->pad_h, conv->more_h);
        size[1] = spanned_by(x->w, reach_w, s->stride_w, s->pad_w, conv->more_w);
    } else {
        size[0] = windows_of(x->h, reach_h, s->stride_h, s->pad_h, false);
        size[1] = windows_of(x->w, reach_w, s->stride_w, s->pad_w, false);
    }
}

/* Source pixels per output pixel, as area_pixel_compute_scale of torch. */
static float scale_of(bool align_corners, double factor, int32_t in, int64_t out)
{
    if (align_corners) {
        return out > 1 ? (float)(in - 1) / (float)(out - 1) : 0.0f;
    }
    return factor > 0 ? (float)(1 / factor) : (float)in / (float)out;
}

static void size_of_upsample(const ym_node *node, ym_item *item, const ym_item *x,
                             int64_t size[2])
{
    const ym_upsample *u = &node->u.upsample;
    const bool align = u->align_corners;
    size[0] = u->factor_h > 0 ? (int64_t)(x->h * u->factor_h) : u->out_h;
    size[1] = u->factor_w > 0 ? (int64_t)(x->w * u->factor_w) : u->out_w;
    item->u.resize = (ym_resize){u->bilinear, align,
                                 scale_of(align, u->factor_h, x->h, size[0]),
                                 scale_of(align, u->factor_w, x->w, size[1])};
}

/* A side of a product, or 0: the two factors do not fit. */
static int32_t product_side(int32_t a, int32_t b)
{
    return a == b || b == 1 ? a : a == 1 ? b : 0;
}

/* Pixels of each side of the output, in 64 bits. */
static void output_size(const ym_program *p, const ym_node *node, ym_item *item,
                        int64_t size[2])
{
    const ym_item *x = &p->item[item->operand[0]];
    size[0] = x->h;
    size[1] = x->w;
    if (item->kind == YM_ITEM_CONV) {
        size_of_conv(&item->u.conv, x, size);
    } else if (item->kind == YM_ITEM_MAX_POOL || item->kind == YM_ITEM_AVG_POOL) {
        const ym_pool *s = &item->u.pool;
        bool ceil_mode = node->u.pool.ceil_mode;
        size[0] = windows_of(x->h, s->kernel_h, s->stride_h, s->pad_h, ceil_mode);
        size[1] = windows_of(x->w, s->kernel_w, s->stride_w, s->pad_w, ceil_mode);
    } else if (item->kind == YM_ITEM_UPSAMPLE) {
        size_of_upsample(node, item, x, size);
    } else if (item->kind == YM_ITEM_MULTIPLY) {
        const ym_item *other = &p->item[item->operand[1]];
        size[0] = product_side(x->h, other->h);
        size[1] = product_side(x->w, other->w);
    } else if (item->kind == YM_ITEM_MEAN || item->kind == YM_ITEM_MAXIMUM) {
        size[0] = node->u.axes.h ? 1 : x->h;
        size[1] = node->u.axes.w ? 1 : x->w;
    }
}

/* The factors of a product have the same sides, or one has a side of 1. */
static ym_status check_factors(const ym_program *p, const ym_item *item,
                               ym_error *error)
{
    const ym_item *a = &p->item[item->operand[0]], *b = &p->item[item->operand[1]];
    YM_CHECK(error,
             product_side(a->n, b->n) > 0 && product_side(a->h, b->h) > 0 &&
                 product_side(a->w, b->w) > 0,
             YM_ERR_ARGUMENT,
             "multiply %s: the factors are (%d, %d, %d) and (%d, %d, %d) in N, H, W, "
             "each side must be the same or 1",
             item->name, a->n, a->h, a->w, b->n, b->h, b->w);
    return YM_OK;
}

/* All operands of an addition or concatenation cover the same pixels. */
static ym_status check_same_pixels(const ym_program *p, const ym_item *item,
                                   ym_error *error)
{
    char op[YM_OP_ROOM];
    const ym_item *first = &p->item[item->operand[0]];
    for (int32_t i = 1; i < item->operand_count; i++) {
        const ym_item *x = &p->item[item->operand[i]];
        YM_CHECK(error, x->n == first->n && x->h == first->h && x->w == first->w,
                 YM_ERR_ARGUMENT,
                 "%s %s: operand %d is (%d, %d, %d) in N, H, W, must be as the first, "
                 "(%d, %d, %d)",
                 ym_item_op(p, item, op), item->name, i, x->n, x->h, x->w, first->n,
                 first->h, first->w);
    }
    return YM_OK;
}

ym_status ym_size_item(ym_program *p, const ym_node *node, ym_item *item,
                       ym_error *error)
{
    const ym_item *x = &p->item[item->operand[0]];
    const bool product = item->kind == YM_ITEM_MULTIPLY;
    YM_TRY((product ? check_factors : check_same_pixels)(p, item, error));
    char op[YM_OP_ROOM];
    int64_t size[2];
    output_size(p, node, item, size);
    YM_CHECK(
        error,
        size[0] > 0 && size[1] > 0 && size[0] <= YM_MAX_SIDE && size[1] <= YM_MAX_SIDE,
        YM_ERR_ARGUMENT,
        "%s %s: an input of (%d, %d) pixels has an output of (%lld, %lld), must be "
        "from 1 to %d a side",
        ym_item_op(p, item, op), item->name, x->h, x->w, (long long)size[0],
        (long long)size[1], YM_MAX_SIDE);
    item->n = product ? product_side(x->n, p->item[item->operand[1]].n) : x->n;
    item->h = (int32_t)size[0];
    item->w = (int32_t)size[1];
    double bytes = (double)item->n * item->h * item->w * item->c * 4.0;
    YM_CHECK(error, bytes < YM_MAX_BYTES, YM_ERR_MEMORY,
             "%s %s: (%d, %d, %d, %d) in N, H, W, C has %g bytes in float32, must have "
             "fewer than %g",
             ym_item_op(p, item, op), item->name, item->n, item->h, item->w, item->c,
             bytes, YM_MAX_BYTES);
    return YM_OK;
}

void ym_item_params(const ym_program *p, int32_t i, int32_t params[4])
{
    const ym_item *item = &p->item[i];
    params[0] = params[1] = params[2] = params[3] = -1;
    if (item->kind == YM_ITEM_CONV) {
        params[0] = item->u.conv.weight;
        params[1] = item->u.conv.bias;
    } else if (item->kind == YM_ITEM_BRICK) {
        for (int32_t t = 0; t < item->u.brick.term_count; t++) {
            const int32_t call = item->u.brick.norm_call[t];
            params[2 * t] = call >= 0 ? ym_norm_of(p, call)->gamma : -1;
            params[2 * t + 1] = call >= 0 ? ym_norm_of(p, call)->beta : -1;
        }
    }
}

bool ym_wants_params(const ym_program *p, int32_t i)
{
    int32_t params[4];
    ym_item_params(p, i, params);
    bool wanted = false;
    for (int k = 0; k < 4; k++) {
        wanted = wanted || (params[k] >= 0 && p->param_grad[params[k]]);
    }
    return wanted;
}

static void mark_gradients(ym_program *p)
{
    for (int32_t i = 0; i < p->item_count; i++) {
        ym_item *item = &p->item[i];
        bool needs = item->kind == YM_ITEM_INPUT ? p->input_grad[item->u.input.number]
                                                 : ym_wants_params(p, i);
        for (int32_t k = 0; k < item->operand_count; k++) {
            needs = needs || p->item[item->operand[k]].needs_grad;
        }
        item->needs_grad = needs;
    }
}

double ym_conv_terms(const ym_conv_call *conv)
{
    const ym_conv *s = &conv->shape;
    const double window = (double)s->r * s->s;
    return conv->is_transposed
               ? window * (s->k / s->groups) / ((double)s->stride_h * s->stride_w)
               : window * (s->c / s->groups);
}

/* Does a brick's backward read its term t? A sum's gradients are what flows into it,
 * whatever the addends are, and so are those of constant statistics, but for gamma's.
 */
static bool reads_term(const ym_program *p, const ym_item *brick, int32_t t)
{
    const int32_t call = brick->u.brick.norm_call[t];
    if (brick->u.brick.activation.kind != YM_IDENTITY || call < 0) {
        return brick->u.brick.activation.kind != YM_IDENTITY;
    }
    const ym_norm_module *norm = ym_norm_of(p, call);
    return !norm->is_constant || (norm->gamma >= 0 && p->param_grad[norm->gamma]);
}

bool ym_backward_reads(const ym_program *p, int32_t i, int32_t operand)
{
    const ym_item *item = &p->item[i];
    if (!item->needs_grad) {
        return false;
    }
    switch (item->kind) {
    case YM_ITEM_CONV:
        return p->param_grad[item->u.conv.weight];
    case YM_ITEM_MAX_POOL:
    case YM_ITEM_MAXIMUM:
        return p->item[item->operand[0]].needs_grad;
    case YM_ITEM_BRICK:
        return operand < item->u.brick.term_count && reads_term(p, item, operand);
    case YM_ITEM_MULTIPLY: /* for the gradient of the other factor */
        return p->item[item->operand[1 - operand]].needs_grad;
    default:
        return false;
    }
}

double ym_share(const ym_program *p, int32_t i)
{
    const ym_item *mean = &p->item[i], *x = &p->item[mean->operand[0]];
    return (double)mean->h / x->h * ((double)mean->w / x->w) * ((double)mean->c / x->c);
}

bool ym_is_digest(const ym_program *p, int32_t i)
{
    const int32_t far = 16;
    const ym_item *item = &p->item[i];
    return (item->kind == YM_ITEM_MEAN || item->kind == YM_ITEM_MAXIMUM) &&
           ym_item_bytes(p, i) <= ym_item_bytes(p, item->operand[0]) / far;
}

bool ym_result_tells(const ym_program *p, int32_t i)
{
    const ym_item *item = &p->item[i];
    if (item->kind != YM_ITEM_BRICK || item->operand_count > 1) {
        return false;
    }
    const int32_t call = item->u.brick.norm_call[0];
    if (call >= 0) { /* of all norms only an added bias leaves the result's sign */
        const ym_norm_module *norm = ym_norm_of(p, call);
        if (!norm->is_constant || norm->gamma >= 0 || norm->rstd != 1 ||
            norm->mean != 0) {
            return false;
        }
    }
    const ym_activation *activation = &item->u.brick.activation;
    return activation->kind == YM_RELU ||
           (activation->kind == YM_LEAKY_RELU && activation->slope > 0);
}

static bool *copy_flags(const bool *flags, int32_t count)
{
    bool *copy = calloc((size_t)count + 1, sizeof *copy);
    for (int32_t i = 0; copy != NULL && flags != NULL && i < count; i++) {
        copy[i] = flags[i];
    }
    return copy;
}

ym_status ym_program_create(const ym_graph *graph, const ym_plan_request *request,
                            ym_program **made, ym_error *error)
{
    ym_program *p = calloc(1, sizeof *p);
    YM_CHECK(error, p != NULL, YM_ERR_MEMORY, "plan: out of memory");
    p->graph = graph;
    p->dtype = request->dtype;
    size_t nodes = (size_t)graph->node_count;
    p->item = calloc(nodes + 1, sizeof *p->item);
    p->norm_call = calloc(nodes + 1, sizeof *p->norm_call);
    p->output = calloc((size_t)graph->output_count + 1, sizeof *p->output);
    p->param_grad = copy_flags(request->param_grad, graph->param_count);
    p->input_grad = copy_flags(request->input_grad, graph->input_count);
    ym_status status = YM_ERR_MEMORY;
    if (p->item == NULL || p->norm_call == NULL || p->output == NULL ||
        p->param_grad == NULL || p->input_grad == NULL) {
        ym_fail(error, status, "plan: out of memory");
    } else {
        status = ym_fuse(p, request, error);
    }
    if (status != YM_OK) {
        ym_program_free(p);
        return status;
    }
    mark_gradients(p);
    *made = p;
    return YM_OK;
}

void ym_program_free(ym_program *p)
{
    if (p == NULL) {
        return;
    }
    for (int32_t i = 0; p->item != NULL && i < p->item_count; i++) {
        free(p->item[i].operand);
    }
    free(p->item);
    free(p->norm_call);
    free(p->output);
    free(p->param_grad);
    free(p->input_grad);
    free(p);
}
