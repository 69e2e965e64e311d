/* SPDX-License-Identifier: MIT
 *
 * Schedule: the steps of forward or backward in order, and the blocks of memory that
 * they read and write, each with its place. Built once by forward.c or backward.c, then
 * only read.
 */
#ifndef YM_CORE_SCHEDULE_H
#define YM_CORE_SCHEDULE_H

#include "core/program.h"

typedef enum ym_place {
    YM_PLACE_WORKSPACE = 0, /* may still lie in a hole of `saved`: see offset */
    YM_PLACE_SAVED,
    YM_PLACE_INPUT,
    YM_PLACE_OUTPUT,
    YM_PLACE_GRAD_OUTPUT, /* read only */
    YM_PLACE_GRAD_INPUT,
} ym_place;

typedef struct ym_block {
    ym_place place;
    int32_t index;      /* which input or output */
    int32_t n, h, w, c; /* c == 0: plain bytes */
    size_t bytes;
    size_t offset;       /* in saved followed by workspace */
    int32_t first, last; /* steps */
    int32_t item;        /* whose value or gradient, for tables; -1: scratch */
} ym_block;

/* Channels [first, first + count) of a block; block -1: nothing. */
typedef struct ym_view {
    int32_t block, first, count;
} ym_view;

#define YM_NO_VIEW ((ym_view){-1, 0, 0})

typedef enum ym_step_kind {
    YM_STEP_PACK_WEIGHTS = 0, /* all of them, before forward */
    YM_STEP_PACK_INPUT,       /* one that comes planar */
    YM_STEP_CONV,
    YM_STEP_STATISTICS,
    YM_STEP_BRICK,
    YM_STEP_MAX_POOL,
    YM_STEP_AVG_POOL,
    YM_STEP_UPSAMPLE,
    YM_STEP_COPY,
    YM_STEP_ZERO,
    YM_STEP_CONV_WEIGHT,
    YM_STEP_CONV_DATA,
    YM_STEP_BRICK_BACKWARD,
    YM_STEP_MAX_POOL_BACKWARD,
    YM_STEP_AVG_POOL_BACKWARD,
    YM_STEP_UPSAMPLE_BACKWARD,
    YM_STEP_MAXIMUM,
    YM_STEP_MAXIMUM_BACKWARD,
    YM_STEP_MULTIPLY, /* of in[0] and in[1]: both directions of products and means */
} ym_step_kind;

typedef struct ym_step {
    ym_step_kind kind;
    int32_t item;
    ym_view in[4]; /* x; a brick's terms and residual in 0..2; dout in 3 */
    ym_view out[2];
    bool accumulate[2];       /* out += */
    bool accumulate_param[4]; /* weight, bias; or gamma, beta of each term */
    bool rebuilds;            /* a value that forward had already */
    bool reads_result;        /* a brick's backward: in place of its operand */
    int32_t term;             /* STATISTICS: which term */
    double scale;             /* MULTIPLY */
    int32_t first_channel; /* BRICK: of the item, when only some channels are rebuilt */
    int32_t scratch;       /* block, or -1 */
    int32_t weight;        /* CONV, CONV_DATA: block of the packed weight, or -1 */
} ym_step;

struct ym_schedule {
    ym_block *block;
    int32_t block_count;
    ym_step *step;
    int32_t step_count;
    int32_t *segment_end;  /* by order of running: steps [end of previous, end) */
    int32_t segment_count; /* of forward: its stages */
    size_t workspace_bytes;
    size_t peak_bytes; /* saved_bytes + workspace_bytes */
    size_t live_bytes; /* most bytes live at one step: a lower bound of the peak */
    int64_t rebuilt_bytes;
    int32_t rerun_convolutions;
    double rerun_flops;
    bool *reached_param, *reached_input;
    bool *mask;               /* outputs with a gradient */
    struct ym_schedule *next; /* in the plan's list */
};

void ym_schedule_free(ym_schedule *schedule);

#endif
