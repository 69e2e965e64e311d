/* SPDX-License-Identifier: MIT */
#include "core/choose.h"

#include <stdlib.h>
#include <string.h>

#include "core/keep.h"
#include "core/refine.h"

/* Rules, from the one that rebuilds least: all, conv, parts of conv, cuts. */
#define PART_COUNT 12
static const double cut_fractions[] = {0.5,   0.25,  0.17,  0.12,  0.08,  0.06,
                                       0.045, 0.032, 0.022, 0.014, 0.008, 0.004};
#define CUT_COUNT ((int32_t)(sizeof cut_fractions / sizeof cut_fractions[0]))
enum {
    RULE_ALL = 0,
    RULE_CONV = 1,
    RULE_PART = 2,
    RULE_CUT = RULE_PART + PART_COUNT,
    RULE_COUNT = RULE_CUT + CUT_COUNT,
};
#define MEDIUM_PATIENCE 16
#define FINALISTS 3
#define TRIAL_COUNT (RULE_COUNT + FINALISTS)
#define SMALL_GRAPH 160   /* items: a block */
#define PEAK_TOLERANCE 32 /* in larger ones: a 32nd of the peak */

typedef struct chooser {
    ym_trier trier;
    const ym_plan_request *request;
    bool *flags; /* of TRIAL_COUNT trials by item */
} chooser;

static bool *flags_of(const chooser *c, int32_t trial)
{
    return c->flags + (size_t)trial * ((size_t)c->trier.program->item_count + 1);
}

static ym_status apply_rule(const chooser *c, const ym_trial *t)
{
    ym_program *p = c->trier.program;
    const int32_t rule = t->rule;
    bool made = true;
    if (rule == RULE_ALL) {
        int32_t *conv_count = ym_count_convolutions(p);
        made = conv_count != NULL;
        if (made) {
            ym_keep_all(p, conv_count, t->keep);
        }
        free(conv_count);
    } else if (rule == RULE_CONV) {
        made = ym_keep_conv(p, t->keep);
    } else if (rule < RULE_CUT) {
        made = ym_keep_part(p, (double)(rule - RULE_PART + 1) / PART_COUNT, t->keep);
    } else {
        made = ym_keep_conv(p, t->keep);
        double limit = cut_fractions[rule - RULE_CUT] *
                       (double)ym_kept_bytes(p, t->keep);
        made = made && ym_keep_cuts(p, (size_t)limit, t->keep);
    }
    YM_CHECK(c->trier.error, made, YM_ERR_MEMORY, "plan: out of memory");
    return YM_OK;
}

static int smaller_first(const void *a, const void *b)
{
    const ym_trial *x = a, *y = b;
    if (x->peak_bytes != y->peak_bytes) {
        return x->peak_bytes < y->peak_bytes ? -1 : 1;
    }
    return (x->rule > y->rule) - (x->rule < y->rule);
}

/* All rules, the most promising first. Cuts are tried first: next to them the rest of a
 * large graph is seen to be hopeless by its forward alone. */
static ym_status list_rules(const chooser *c, ym_trial *list)
{
    size_t lowest = SIZE_MAX;
    for (int32_t i = RULE_COUNT - 1; i >= 0; i--) {
        list[i] =
            (ym_trial){.keep = flags_of(c, i), .patience = MEDIUM_PATIENCE, .rule = i};
        YM_TRY(apply_rule(c, &list[i]));
        YM_TRY(ym_try_below(&c->trier, lowest, &list[i]));
        lowest = list[i].peak_bytes < lowest ? list[i].peak_bytes : lowest;
    }
    qsort(list, RULE_COUNT, sizeof *list, smaller_first);
    for (int32_t i = RULE_COUNT; i < TRIAL_COUNT; i++) {
        list[i] = (ym_trial){.rule = i, .least_bytes = SIZE_MAX}; /* none yet */
    }
    return YM_OK;
}

static int cheaper_first(const void *a, const void *b)
{
    const ym_trial *x = a, *y = b;
    if (x->rerun_flops != y->rerun_flops) {
        return x->rerun_flops < y->rerun_flops ? -1 : 1;
    }
    if (x->rebuilt_bytes != y->rebuilt_bytes) {
        return x->rebuilt_bytes < y->rebuilt_bytes ? -1 : 1;
    }
    return (x->rule > y->rule) - (x->rule < y->rule);
}

static bool fits(const ym_trial *t, size_t budget)
{
    return t->state == YM_TRIAL_PLACED && t->peak_bytes <= budget;
}

static size_t smallest_peak(const ym_trial *list)
{
    size_t peak = SIZE_MAX;
    for (int32_t i = 0; i < TRIAL_COUNT; i++) {
        peak = fits(&list[i], peak) ? list[i].peak_bytes : peak;
    }
    return peak;
}

/* What is about as small: of a whole network's peak some percent are given for what
 * then need not run again, which can be half of it. */
static size_t about(const chooser *c, size_t peak)
{
    const bool small = c->trier.program->item_count <= SMALL_GRAPH;
    return small ? peak : peak + peak / PEAK_TOLERANCE;
}

static int placed_first(const void *a, const void *b)
{
    const ym_trial *x = a, *y = b;
    if (x->state != y->state) {
        return x->state > y->state ? -1 : 1;
    }
    return smaller_first(a, b);
}

/* Copies the smallest of the rules to the end of the list and refines them. */
static ym_status refine(const chooser *c, ym_trial *list)
{
    const size_t items = (size_t)c->trier.program->item_count;
    qsort(list, RULE_COUNT, sizeof *list, placed_first);
    for (int32_t i = 0; i < FINALISTS && list[i].state == YM_TRIAL_PLACED; i++) {
        ym_trial *refined = &list[RULE_COUNT + i];
        *refined = list[i];
        refined->rule = RULE_COUNT + i;
        refined->keep = flags_of(c, refined->rule);
        memcpy(refined->keep, list[i].keep, items * sizeof *refined->keep);
        if (items <= SMALL_GRAPH) {
            YM_TRY(ym_descend(&c->trier, refined));
        }
    }
    const size_t limit = about(c, smallest_peak(list));
    for (int32_t i = RULE_COUNT; i < TRIAL_COUNT; i++) {
        if (fits(&list[i], limit)) {
            YM_TRY(ym_fill_room(&c->trier, limit, &list[i]));
        }
    }
    return YM_OK;
}

/* Places all candidates that may be about as small as the smallest, and takes the one
 * that runs least again: a smaller one that a larger budget might find would be it. */
static ym_status choose_min(const chooser *c, ym_trial *list, ym_trial *best)
{
    size_t smallest = SIZE_MAX;
    for (int32_t i = 0; i < RULE_COUNT; i++) {
        YM_TRY(ym_try_within(&c->trier, smallest, &list[i]));
        smallest = fits(&list[i], smallest) ? list[i].peak_bytes : smallest;
    }
    YM_TRY(refine(c, list));
    const size_t limit = about(c, smallest_peak(list));
    for (int32_t i = 0; i < TRIAL_COUNT; i++) {
        YM_TRY(ym_try_within(&c->trier, limit, &list[i]));
    }
    qsort(list, TRIAL_COUNT, sizeof *list, cheaper_first);
    int32_t i = 0;
    while (!fits(&list[i], limit)) {
        i++;
    }
    *best = list[i];
    return YM_OK;
}

/* The candidates do not depend on the budget, and the first that fits in order of cost
 * is taken: so the cost never rises when the budget grows. */
static ym_status choose_budget(const chooser *c, ym_trial *list, ym_trial *best)
{
    const size_t budget = c->request->budget_bytes;
    YM_TRY(choose_min(c, list, best));
    YM_CHECK(c->trier.error, best->peak_bytes <= budget, YM_ERR_ARGUMENT,
             "keep: a budget of %zu bytes is too small, the smallest plan needs %zu",
             budget, best->peak_bytes);
    for (int32_t i = 0; i < TRIAL_COUNT; i++) {
        if (list[i].state == YM_TRIAL_LISTED && list[i].least_bytes <= budget) {
            YM_TRY(ym_try_patiences(&c->trier, &list[i]));
        }
    }
    qsort(list, TRIAL_COUNT, sizeof *list, cheaper_first);
    int32_t i = 0;
    YM_TRY(ym_try_within(&c->trier, budget, &list[i]));
    while (!fits(&list[i], budget)) {
        i++;
        YM_TRY(ym_try_within(&c->trier, budget, &list[i]));
    }
    *best = list[i];
    return YM_OK;
}

static ym_status choose(const chooser *c, ym_trial *best)
{
    if (c->request->keep == YM_KEEP_ALL || c->request->keep == YM_KEEP_CONV) {
        YM_TRY(apply_rule(c, best));
        return ym_try_patiences(&c->trier, best);
    }
    ym_trial list[TRIAL_COUNT];
    YM_TRY(list_rules(c, list));
    return c->request->keep == YM_KEEP_MIN ? choose_min(c, list, best)
                                           : choose_budget(c, list, best);
}

ym_status ym_choose(ym_program *program, const ym_plan_request *request,
                    ym_choice *choice, ym_error *error)
{
    const size_t items = (size_t)program->item_count + 1;
    chooser c = {{program, request->backend, error}, request, NULL};
    bool *keep = calloc(items, sizeof *keep);
    c.flags = calloc(TRIAL_COUNT * items, sizeof *c.flags);
    ym_status status = YM_ERR_MEMORY;
    if (keep == NULL || c.flags == NULL) {
        ym_fail(error, status, "plan: out of memory");
    } else {
        ym_trial best = {.keep = c.flags,
                         .rule = request->keep == YM_KEEP_ALL ? RULE_ALL : RULE_CONV};
        status = choose(&c, &best);
        memcpy(keep, best.keep, items * sizeof *keep);
        *choice = (ym_choice){keep, best.patience};
    }
    free(c.flags);
    if (status != YM_OK) {
        free(keep);
    }
    return status;
}
