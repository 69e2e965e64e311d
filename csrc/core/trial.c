/* SPDX-License-Identifier: MIT */
#include "core/trial.h"

/* In items: until when a rebuilt value that is not read again is remembered. */
static const int32_t patiences[] = {1 << 20, 160, 48, 16, 5, 1};
#define PATIENCE_COUNT ((int32_t)(sizeof patiences / sizeof patiences[0]))

static ym_status try_backward(const ym_trier *c, const ym_forward *forward, bool place,
                              ym_trial *t, ym_schedule **backward)
{
    int32_t zero = 0;
    ym_backward_request request = {.program = c->program,
                                   .backend = c->backend,
                                   .forward = forward,
                                   .patience = t->patience,
                                   .segment_first = &zero,
                                   .segment_count = 1,
                                   .place = place};
    YM_TRY(ym_backward_create(&request, backward, c->error));
    const ym_schedule *made = *backward;
    size_t up = place ? forward->schedule->peak_bytes : forward->schedule->live_bytes;
    size_t down = place ? made->peak_bytes : made->live_bytes;
    t->peak_bytes = up > down ? up : down;
    t->rebuilt_bytes = made->rebuilt_bytes;
    t->rerun_flops = made->rerun_flops;
    return YM_OK;
}

static ym_status try_forward(const ym_trier *c, bool place, ym_trial *t,
                             ym_forward *forward)
{
    YM_TRY(
        ym_forward_create(c->program, c->backend, t->keep, place, forward, c->error));
    t->least_bytes = t->peak_bytes = forward->schedule->live_bytes;
    t->saved_bytes = forward->saved_bytes;
    return YM_OK;
}

ym_status ym_try_plan(const ym_trier *c, bool place, ym_trial *t, ym_forward *forward,
                      ym_schedule **backward)
{
    YM_TRY(try_forward(c, place, t, forward));
    ym_status status = try_backward(c, forward, place, t, backward);
    if (status != YM_OK) {
        ym_forward_free(forward);
    }
    return status;
}

ym_status ym_try(const ym_trier *c, bool place, ym_trial *t)
{
    ym_forward forward;
    ym_schedule *backward;
    YM_TRY(ym_try_plan(c, place, t, &forward, &backward));
    ym_schedule_free(backward);
    ym_forward_free(&forward);
    t->state = place ? YM_TRIAL_PLACED : t->state;
    return YM_OK;
}

ym_status ym_try_below(const ym_trier *c, size_t enough, ym_trial *t)
{
    ym_forward forward;
    YM_TRY(try_forward(c, false, t, &forward));
    ym_status status = YM_OK;
    if (t->least_bytes < enough) {
        ym_schedule *backward;
        status = try_backward(c, &forward, false, t, &backward);
        if (status == YM_OK) {
            ym_schedule_free(backward);
        }
    }
    ym_forward_free(&forward);
    return status;
}

ym_status ym_try_patiences(const ym_trier *c, ym_trial *t)
{
    ym_forward forward;
    YM_TRY(try_forward(c, false, t, &forward));
    ym_trial tried[PATIENCE_COUNT];
    size_t lowest = SIZE_MAX;
    ym_status status = YM_OK;
    for (int32_t i = 0; i < PATIENCE_COUNT && status == YM_OK; i++) {
        tried[i] = *t;
        tried[i].patience = patiences[i];
        ym_schedule *backward;
        status = try_backward(c, &forward, false, &tried[i], &backward);
        if (status == YM_OK) {
            ym_schedule_free(backward);
            lowest = tried[i].peak_bytes < lowest ? tried[i].peak_bytes : lowest;
        }
    }
    for (int32_t i = 0; i < PATIENCE_COUNT && status == YM_OK; i++) {
        if (tried[i].peak_bytes <= lowest + lowest / 100) {
            *t = tried[i];
            t->state = YM_TRIAL_PATIENT;
            break;
        }
    }
    ym_forward_free(&forward);
    return status;
}

ym_status ym_try_within(const ym_trier *c, size_t limit, ym_trial *t)
{
    if (t->state == YM_TRIAL_LISTED && t->least_bytes <= limit) {
        YM_TRY(ym_try_patiences(c, t));
    }
    if (t->state == YM_TRIAL_PATIENT && t->peak_bytes <= limit) {
        YM_TRY(ym_try(c, true, t));
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
