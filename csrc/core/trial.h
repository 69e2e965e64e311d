/* SPDX-License-Identifier: MIT
 *
 * Trial: one set of kept values, and what it would need: found by planning both
 * directions.
 */
#ifndef YM_CORE_TRIAL_H
#define YM_CORE_TRIAL_H

#include "core/backward.h"

typedef enum ym_trial_state {
    YM_TRIAL_LISTED = 0, /* peak_bytes is of some patience */
    YM_TRIAL_PATIENT,    /* of the one that was chosen */
    YM_TRIAL_PLACED,
} ym_trial_state;

typedef struct ym_trial {
    bool *keep; /* by item; the caller's */
    int32_t patience;
    ym_trial_state state;
    int32_t rule;       /* that keep is of: the last key where trials are sorted */
    size_t least_bytes; /* what forward needs, of any patience */
    size_t peak_bytes;  /* exact if placed, else a lower bound */
    size_t saved_bytes;
    int64_t rebuilt_bytes;
    double rerun_flops;
} ym_trial;

typedef struct ym_trier {
    ym_program *program;
    const ym_backend *backend;
    ym_error *error;
} ym_trier;

/* Plans both directions for t->keep and t->patience and fills in what they need: sizes
 * only, or placed, which takes longer. */
ym_status ym_try(const ym_trier *c, ym_trial *t);
ym_status ym_try_placed(const ym_trier *c, ym_trial *t);

/* As ym_try, and gives the schedules to the caller, who frees them. */
ym_status ym_try_plan(const ym_trier *c, ym_trial *t, ym_forward *forward,
                      ym_schedule **backward);

/* As ym_try, but no backward where forward alone needs `enough`. */
ym_status ym_try_below(const ym_trier *c, size_t enough, ym_trial *t);

/* Sets t->patience: the longest whose peak, not placed, is within 1 % of the lowest, as
 * remembering a value is cheaper than rebuilding it again. */
ym_status ym_try_patiences(const ym_trier *c, ym_trial *t);

/* Chooses the patience and places, as far as it is not done and the peak may still be
 * at most `limit`. */
ym_status ym_try_within(const ym_trier *c, size_t limit, ym_trial *t);

/* Does x need less memory than y, or the same and less to run again? */
bool ym_is_smaller(const ym_trial *x, const ym_trial *y);

#endif
