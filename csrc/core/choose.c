/* SPDX-License-Identifier: MIT */
#include "core/choose.h"

#include <stdlib.h>
#include <string.h>

#include "core/keep.h"

/* What one candidate would need. */
typedef struct trial {
    size_t peak_bytes; /* exact if placed, else a lower bound that is nearly reached */
    int64_t rebuilt_bytes;
    double rerun_flops;
    size_t saved_bytes;
    int32_t patience;
    int32_t rule; /* number of the keep rule */
    int32_t more; /* outputs kept beyond it */
} trial;

typedef struct chooser {
    ym_program *program;
    const ym_plan_request *request;
    bool *keep;
    ym_error *error;
} chooser;

/* In items: until when a rebuilt value that is not read again is remembered. */
static const int32_t patiences[] = {1 << 20, 160, 48, 16, 5, 1};
#define PATIENCE_COUNT ((int32_t)(sizeof patiences / sizeof patiences[0]))

/* Rules, from the one that rebuilds least: all, conv, parts of conv, cuts. */
#define PART_COUNT 12
static const double cut_fractions[] = {0.5,   0.25,  0.17,  0.12,  0.08,  0.06,
                                       0.045, 0.032, 0.022, 0.014, 0.008, 0.004};
#define CUT_COUNT ((int32_t)(sizeof cut_fractions / sizeof cut_fractions[0]))
#define FINALISTS 3
#define COARSE_STEPS 32
#define PEAK_TOLERANCE 32 /* a 32nd of the peak */
enum { RULE_ALL = 0, RULE_CONV = 1, RULE_PART = 2, RULE_CUT = RULE_PART + PART_COUNT };

static ym_status apply_rule(chooser *c, const trial *t)
{
    ym_program *p = c->program;
    const int32_t rule = t->rule;
    int32_t added;
    bool made = true;
    if (rule == RULE_ALL) {
        int32_t *conv_count = ym_count_convolutions(p);
        made = conv_count != NULL;
        if (made) {
            ym_keep_all(p, conv_count, c->keep);
        }
        free(conv_count);
    } else if (rule == RULE_CONV) {
        made = ym_keep_conv(p, c->keep);
    } else if (rule < RULE_CUT) {
        made = ym_keep_part(p, (double)(rule - RULE_PART + 1) / PART_COUNT, c->keep);
    } else {
        made = ym_keep_conv(p, c->keep);
        double limit = cut_fractions[rule - RULE_CUT] *
                       (double)ym_kept_bytes(p, c->keep);
        made = made && ym_keep_cuts(p, (size_t)limit, c->keep);
    }
    if (t->more > 0) {
        made = made && ym_keep_more(p, t->more, c->keep, &added);
    }
    YM_CHECK(c->error, made, YM_ERR_MEMORY, "plan: out of memory");
    return YM_OK;
}

/* Plans both directions for the flags in c->keep. */
static ym_status try_patience(chooser *c, const ym_forward *forward, bool place,
                              trial *t)
{
    int32_t zero = 0;
    ym_backward_request request = {.program = c->program,
                                   .backend = c->request->backend,
                                   .forward = forward,
                                   .patience = t->patience,
                                   .segment_first = &zero,
                                   .segment_count = 1,
                                   .place = place};
    ym_schedule *backward;
    YM_TRY(ym_backward_create(&request, &backward, c->error));
    size_t up = place ? forward->schedule->peak_bytes : forward->schedule->live_bytes;
    size_t down = place ? backward->peak_bytes : backward->live_bytes;
    t->peak_bytes = up > down ? up : down;
    t->saved_bytes = forward->saved_bytes;
    t->rebuilt_bytes = backward->rebuilt_bytes;
    t->rerun_flops = backward->rerun_flops;
    ym_schedule_free(backward);
    return YM_OK;
}

static ym_status try_one(chooser *c, bool place, trial *t)
{
    ym_forward forward;
    YM_TRY(apply_rule(c, t));
    YM_TRY(ym_forward_create(c->program, c->request->backend, c->keep, place, &forward,
                             c->error));
    ym_status status = try_patience(c, &forward, place, t);
    ym_forward_free(&forward);
    return status;
}

/* The longest patience whose peak is within 1 % of the lowest: remembering a value is
 * cheaper than rebuilding it again. */
static ym_status choose_patience(chooser *c, trial *best)
{
    ym_forward forward;
    YM_TRY(apply_rule(c, best));
    YM_TRY(ym_forward_create(c->program, c->request->backend, c->keep, false, &forward,
                             c->error));
    trial tried[PATIENCE_COUNT];
    size_t lowest = SIZE_MAX;
    ym_status status = YM_OK;
    for (int32_t i = 0; i < PATIENCE_COUNT && status == YM_OK; i++) {
        tried[i] = (trial){.rule = best->rule, .patience = patiences[i]};
        status = try_patience(c, &forward, false, &tried[i]);
        if (status == YM_OK && tried[i].peak_bytes < lowest) {
            lowest = tried[i].peak_bytes;
        }
    }
    for (int32_t i = 0; i < PATIENCE_COUNT && status == YM_OK; i++) {
        if (tried[i].peak_bytes <= lowest + lowest / 100) {
            *best = tried[i];
            break;
        }
    }
    ym_forward_free(&forward);
    return status;
}

static int smaller_first(const void *a, const void *b)
{
    const trial *x = a, *y = b;
    if (x->peak_bytes != y->peak_bytes) {
        return x->peak_bytes < y->peak_bytes ? -1 : 1;
    }
    return (x->rule > y->rule) - (x->rule < y->rule);
}

/* Is the plan that keeps `more` outputs about as small as the base? */
static ym_status try_more(chooser *c, const trial *base, int32_t more, bool place,
                          trial *t, bool *fit)
{
    const size_t room = base->peak_bytes - base->saved_bytes;
    *t = *base;
    t->more = more;
    YM_TRY(try_one(c, place, t));
    *fit = t->peak_bytes <= base->peak_bytes + base->peak_bytes / PEAK_TOLERANCE &&
           t->saved_bytes <= base->saved_bytes + room / 3 * 2;
    return YM_OK;
}

/* When backward begins, the memory of its peak is not needed yet, so that the outputs
 * of late convolutions can be kept in it: about as many as do not raise the peak by
 * more than 3 %. A third of the room stays free for what others have between forward
 * and backward (the loss). */
static ym_status keep_more(chooser *c, trial *best)
{
    const trial base = *best;
    int32_t count;
    YM_TRY(apply_rule(c, &base));
    YM_CHECK(c->error, ym_keep_more(c->program, INT32_MAX, c->keep, &count),
             YM_ERR_MEMORY, "plan: out of memory");
    const int32_t step = count / COARSE_STEPS + 1;
    int32_t more = count;
    bool fit = false;
    trial t;
    for (; more > 0 && !fit; more -= step) {
        YM_TRY(try_more(c, &base, more, false, &t, &fit));
    }
    /* The last that was tried fits, if any; some between it and the one before may. */
    more = more + 2 * step - 1 < count ? more + 2 * step - 1 : count;
    fit = false;
    for (int32_t tries = 1; more > 0 && !fit; tries++) {
        YM_TRY(try_more(c, &base, more, false, &t, &fit));
        if (fit) {
            YM_TRY(try_more(c, &base, more, true, &t, &fit));
        }
        more -= tries < 3 * step ? 1 : step;
    }
    *best = fit ? t : base;
    return YM_OK;
}

/* Estimates all rules but the parts, then places the best few: the smallest exact peak,
 * with the fewest operations that about this peak allows. */
static ym_status choose_min(chooser *c, trial *best)
{
    trial list[RULE_PART + CUT_COUNT];
    int32_t count = RULE_PART + CUT_COUNT;
    for (int32_t i = 0; i < count; i++) {
        int32_t rule = i < RULE_PART ? i : RULE_CUT + i - RULE_PART;
        list[i] = (trial){.rule = rule, .patience = 16};
        YM_TRY(try_one(c, false, &list[i]));
    }
    trial all = list[RULE_ALL];
    qsort(list, (size_t)count, sizeof *list, smaller_first);
    for (int32_t i = 0; i < FINALISTS; i++) {
        YM_TRY(choose_patience(c, &list[i]));
        YM_TRY(try_one(c, true, &list[i]));
    }
    qsort(list, FINALISTS, sizeof *list, smaller_first);
    *best = list[0];
    YM_TRY(keep_more(c, best));
    /* In a graph of few values "all" may be about as small: it is no less than "min".
     */
    if (best->peak_bytes > all.peak_bytes) {
        YM_TRY(try_one(c, true, &all));
        *best = list[0].peak_bytes > all.peak_bytes ? all : list[0];
    }
    return YM_OK;
}

static int cheaper_first(const void *a, const void *b)
{
    const trial *x = a, *y = b;
    if (x->rerun_flops != y->rerun_flops) {
        return x->rerun_flops < y->rerun_flops ? -1 : 1;
    }
    if (x->rebuilt_bytes != y->rebuilt_bytes) {
        return x->rebuilt_bytes < y->rebuilt_bytes ? -1 : 1;
    }
    return (x->rule > y->rule) - (x->rule < y->rule);
}

/* The candidates do not depend on the budget, and the first that fits in order of cost
 * is taken: so the cost never rises when the budget grows. */
static ym_status choose_budget(chooser *c, trial *best)
{
    trial list[RULE_CUT + CUT_COUNT + 1];
    int32_t count = RULE_CUT + CUT_COUNT;
    for (int32_t i = 0; i < count; i++) {
        list[i] = (trial){.rule = i};
        YM_TRY(choose_patience(c, &list[i]));
    }
    YM_TRY(choose_min(c, &list[count++]));
    qsort(list, (size_t)count, sizeof *list, cheaper_first);
    size_t smallest = SIZE_MAX;
    for (int32_t i = 0; i < count; i++) {
        if (list[i].peak_bytes > c->request->budget_bytes &&
            list[i].peak_bytes >= smallest) {
            continue;
        }
        YM_TRY(try_one(c, true, &list[i]));
        if (list[i].peak_bytes <= c->request->budget_bytes) {
            *best = list[i];
            return YM_OK;
        }
        smallest = list[i].peak_bytes < smallest ? list[i].peak_bytes : smallest;
    }
    return ym_fail(
        c->error, YM_ERR_ARGUMENT,
        "keep: a budget of %zu bytes is too small, the smallest plan needs %zu",
        c->request->budget_bytes, smallest);
}

ym_status ym_choose(ym_program *program, const ym_plan_request *request,
                    ym_choice *choice, ym_error *error)
{
    chooser c = {program, request, NULL, error};
    c.keep = calloc((size_t)program->item_count + 1, sizeof(bool));
    YM_CHECK(error, c.keep != NULL, YM_ERR_MEMORY, "plan: out of memory");
    trial best = {.rule = request->keep == YM_KEEP_ALL ? RULE_ALL : RULE_CONV};
    ym_status status;
    if (request->keep == YM_KEEP_MIN) {
        status = choose_min(&c, &best);
    } else if (request->keep == YM_KEEP_BUDGET) {
        status = choose_budget(&c, &best);
    } else {
        status = choose_patience(&c, &best);
    }
    if (status == YM_OK) {
        status = apply_rule(&c, &best);
    }
    if (status != YM_OK) {
        free(c.keep);
        return status;
    }
    *choice = (ym_choice){c.keep, best.patience};
    return YM_OK;
}
