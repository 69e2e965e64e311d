/* SPDX-License-Identifier: MIT */
#include "core/trial.h"

/* In items: until when a rebuilt value that is not read again is remembered. */
static const int32_t patiences[] = {1 << 20, 160, 48, 16, 5, 1};
#define PATIENCE_COUNT ((int32_t)(sizeof patiences / sizeof patiences[0]))

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Of t->patience. */
static ym_status try_backward(const ym_trier *c, const ym_forward *forward, ym_trial *t,
                              ym_schedule **backward)
{
    int32_t zero = 0;
    ym_backward_request request = {.program = c->program,
                                   .backend = c->backend,
                                   .forward = forward,
                                   .patience = t->patience,
                                   .segment_first = &zero,
                                   .segment_count = 1};
    YM_TRY(ym_backward_create(&request, backward, c->error));
    const ym_schedule *made = *backward;
    t->peak_bytes = larger(forward->schedule->live_bytes, made->live_bytes);
    t->rebuilt_bytes = made->rebuilt_bytes;
    t->rerun_flops = made->rerun_flops;
    return YM_OK;
}

static ym_status try_forward(const ym_trier *c, ym_trial *t, ym_forward *forward)
{
    YM_TRY(ym_forward_create(c->program, c->backend, t->keep, forward, c->error));
    t->least_bytes = t->peak_bytes = forward->schedule->live_bytes;
    t->saved_bytes = forward->saved_bytes;
    return YM_OK;
}

ym_status ym_try_plan(const ym_trier *c, ym_trial *t, ym_forward *forward,
                      ym_schedule **backward)
{
    YM_TRY(try_forward(c, t, forward));
    ym_status status = try_backward(c, forward, t, backward);
    if (status != YM_OK) {
        ym_forward_free(forward);
    }
    return status;
}

/* The peak is that of the direction that needs more: of the other one, a place is good
 * that is not above it. */
static ym_status place(const ym_trier *c, ym_schedule *forward, ym_schedule *backward,
                       ym_trial *t)
{
    const bool up = forward->live_bytes > backward->live_bytes;
    ym_schedule *first = up ? forward : backward, *second = up ? backward : forward;
    YM_TRY(ym_place_blocks(first, t->saved_bytes, 0, c->error));
    YM_TRY(ym_place_blocks(second, t->saved_bytes, first->peak_bytes, c->error));
    t->peak_bytes = larger(first->peak_bytes, second->peak_bytes);
    t->state = YM_TRIAL_PLACED;
    return YM_OK;
}

static ym_status try_or_place(const ym_trier *c, bool places, ym_trial *t)
{
    ym_forward forward;
    ym_schedule *backward;
    YM_TRY(ym_try_plan(c, t, &forward, &backward));
    const ym_status status = places ? place(c, forward.schedule, backward, t) : YM_OK;
    ym_schedule_free(backward);
    ym_forward_free(&forward);
    return status;
}

ym_status ym_try(const ym_trier *c, ym_trial *t)
{
    return try_or_place(c, false, t);
}

ym_status ym_try_placed(const ym_trier *c, ym_trial *t)
{
    return try_or_place(c, true, t);
}

ym_status ym_try_below(const ym_trier *c, size_t enough, ym_trial *t)
{
    ym_forward forward;
    YM_TRY(try_forward(c, t, &forward));
    ym_status status = YM_OK;
    if (t->least_bytes < enough) {
        ym_schedule *backward;
        status = try_backward(c, &forward, t, &backward);
        if (status == YM_OK) {
            ym_schedule_free(backward);
        }
    }
    ym_forward_free(&forward);
    return status;
}

static bool is_about(size_t peak_bytes, size_t lowest)
{
    return peak_bytes <= lowest + lowest / 100;
}

static ym_status try_patience(const ym_trier *c, const ym_forward *forward,
                              int32_t patience, ym_trial *t, size_t *lowest)
{
    ym_schedule *backward;
    t->patience = patience;
    YM_TRY(try_backward(c, forward, t, &backward));
    ym_schedule_free(backward);
    *lowest = t->peak_bytes < *lowest ? t->peak_bytes : *lowest;
    return YM_OK;
}

/* No patience needs less than forward does: where backward with the longest does not
 * need more, the others are not tried. */
ym_status ym_try_patiences(const ym_trier *c, ym_trial *t)
{
    ym_forward forward;
    YM_TRY(try_forward(c, t, &forward));
    const size_t least = t->least_bytes;
    ym_trial tried[PATIENCE_COUNT];
    size_t lowest = SIZE_MAX;
    ym_status status = YM_OK;
    bool known = false; /* which is chosen */
    for (int32_t i = 0; i < PATIENCE_COUNT && !known && status == YM_OK; i++) {
        tried[i] = *t;
        status = try_patience(c, &forward, patiences[i], &tried[i], &lowest);
        known = lowest == least || is_about(tried[0].peak_bytes, least);
    }
    ym_forward_free(&forward);
    YM_TRY(status);
    int32_t longest = 0;
    while (!is_about(tried[longest].peak_bytes, lowest)) {
        longest++;
    }
    *t = tried[longest];
    t->state = YM_TRIAL_PATIENT;
    return YM_OK;
}

ym_status ym_try_within(const ym_trier *c, size_t limit, ym_trial *t)
{
    if (t->state == YM_TRIAL_LISTED && t->least_bytes <= limit) {
        YM_TRY(ym_try_patiences(c, t));
    }
    if (t->state == YM_TRIAL_PATIENT && t->peak_bytes <= limit) {
        YM_TRY(ym_try_placed(c, t));
    }
    return YM_OK;
}

bool ym_is_smaller(const ym_trial *x, const ym_trial *y)
{
    if (x->peak_bytes != y->peak_bytes) {
        return x->peak_bytes < y->peak_bytes;
    }
    if (x->rerun_flops != y->rerun_flops) {
        return x->rerun_flops < y->rerun_flops;
    }
    return x->rebuilt_bytes < y->rebuilt_bytes;
}
