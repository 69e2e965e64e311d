/* SPDX-License-Identifier: MIT
 *
 * Program: a graph made ready for planning. Sizes are known, and batch norm, addition
 * and activation are fused into bricks,
 *
 *     out = activation(term 0 + term 1) + residual
 *     term = value or batch_norm(value)
 *
 * so that each item is one kernel call in each direction. Item i makes value i; items
 * stand in the order of the calls.
 */
#ifndef YM_CORE_PROGRAM_H
#define YM_CORE_PROGRAM_H

#include "core/arena.h"
#include "core/plan.h"

/* Of a value at most: with windows and paddings (YM_MAX_WINDOW) places still fit into
 * 32 bits. */
#define YM_MAX_SIDE (1 << 30)
/* Of a value: below 2^53, so that a double counts them exactly. */
#define YM_MAX_BYTES 9e15
/* For the longest text of ym_item_op. */
#define YM_OP_ROOM 48

typedef enum ym_item_kind {
    YM_ITEM_INPUT = 0,
    YM_ITEM_CONV, /* or transposed */
    YM_ITEM_BRICK,
    YM_ITEM_CONCAT,
    YM_ITEM_SLICE,
    YM_ITEM_MAX_POOL,
    YM_ITEM_AVG_POOL,
    YM_ITEM_UPSAMPLE,
    YM_ITEM_MULTIPLY,
    YM_ITEM_MEAN,
    YM_ITEM_MAXIMUM,
} ym_item_kind;

typedef struct ym_item {
    ym_item_kind kind;
    int32_t n, h, w, c;
    int32_t operand_count;
    int32_t *operand; /* items; of a brick: the terms, then the residual */
    bool needs_grad;  /* some gradient flows into this value */
    int32_t stage;    /* of forward */
    union {
        struct {
            int32_t number;
            ym_input_form form;
        } input;
        ym_conv_call conv;
        struct {
            int32_t term_count;
            int32_t norm_call[2]; /* -1: a plain term */
            ym_activation activation;
            bool has_residual;
        } brick;
        int32_t first_channel;
        ym_pool pool;
        ym_resize resize;
    } u;
    const char *name; /* the graph's */
} ym_item;

/* One call of a batch norm module. Its mean and rstd, (C) floats each, lie in `saved`,
 * then gamma and beta where they are one number for all channels: spread out, (C) each.
 */
typedef struct ym_norm_call {
    int32_t module;
    int32_t channels;
    size_t saved_offset;
} ym_norm_call;

typedef struct ym_program {
    const ym_graph *graph;
    ym_dtype dtype;
    ym_item *item;
    int32_t item_count;
    ym_norm_call *norm_call;
    int32_t norm_call_count;
    int32_t *output; /* items */
    bool *param_grad, *input_grad;
} ym_program;

ym_status ym_program_create(const ym_graph *graph, const ym_plan_request *request,
                            ym_program **made, ym_error *error);
void ym_program_free(ym_program *program);

/* An input that the plan itself packs, for whoever reads it: like a value that is made
 * of others, it need not be there all the time. */
static inline bool ym_is_planar(const ym_program *program, int32_t item)
{
    const ym_item *i = &program->item[item];
    return i->kind == YM_ITEM_INPUT && i->u.input.form.is_planar;
}

static inline const ym_norm_module *ym_norm_of(const ym_program *program, int32_t call)
{
    return &program->graph->norm[program->norm_call[call].module];
}

/* Is a norm call's gamma or beta, a param or -1, one number for all channels? */
static inline bool ym_is_one_number(const ym_program *program, int32_t call,
                                    int32_t param)
{
    return param >= 0 && program->graph->param[param].k == 1 &&
           program->norm_call[call].channels > 1;
}

/* Such vectors of a norm call. */
static inline int32_t ym_spread_count(const ym_program *program, int32_t call)
{
    const ym_norm_module *norm = ym_norm_of(program, call);
    return (int32_t)ym_is_one_number(program, call, norm->gamma) +
           (int32_t)ym_is_one_number(program, call, norm->beta);
}

/* Of one while a backward makes its gradient. */
static inline size_t ym_spread_bytes(int32_t channels)
{
    return ym_align((size_t)channels * sizeof(float));
}

/* Which params an item takes: weight and bias of a convolution, gamma and beta of each
 * term of a brick; -1 where there is none. */
void ym_item_params(const ym_program *program, int32_t item, int32_t params[4]);

/* Is the gradient of one of them wanted? */
bool ym_wants_params(const ym_program *program, int32_t item);

/* Of a value in memory, packed. */
size_t ym_item_bytes(const ym_program *program, int32_t item);

/* Products that an element of the convolution's result is the sum of; of a transposed
 * one's, on average. */
double ym_conv_terms(const ym_conv_call *conv);

/* Does item's backward read its operand number i? */
bool ym_backward_reads(const ym_program *program, int32_t item, int32_t i);

/* Of a mean: one over the number of elements that each of its elements is made of. */
double ym_share(const ym_program *program, int32_t item);

/* Is the value far smaller than what it is made of? Then it is kept rather than made
 * again. */
bool ym_is_digest(const ym_program *program, int32_t item);

/* Does item's result tell its backward what its operand would? A rectifier alone asks
 * for the sign, and a result has that of its operand. */
bool ym_result_tells(const ym_program *program, int32_t item);

/* What an item computes, written into `text` and returned: "conv"; of a brick, in
 * order, what was fused: "batch_norm+add+silu". */
const char *ym_item_op(const ym_program *program, const ym_item *item,
                       char text[YM_OP_ROOM]);

#endif
