/* SPDX-License-Identifier: MIT */
#include "ops/sgd.h"

#include <math.h>
#include <stdlib.h>

typedef struct interval {
    uintptr_t first, end;
    int32_t tensor;
    int32_t role;
} interval;

enum { ROLE_PARAM = 0, ROLE_GRAD, ROLE_MOMENTUM, ROLE_EMA, ROLE_COUNT };

static const char *const role_name[ROLE_COUNT] = {"param", "grad", "momentum", "ema"};

static int64_t spans_of(int64_t count)
{
    return (count + YM_SGD_SPAN - 1) / YM_SGD_SPAN;
}

static int64_t count_spans(const ym_sgd_job *job)
{
    int64_t spans = 0;
    for (int32_t i = 0; i < job->tensor_count; i++) {
        spans += spans_of(job->tensor[i].count);
    }
    return spans;
}

size_t ym_sgd_scratch_bytes(const ym_sgd_job *job)
{
    size_t spans = (size_t)count_spans(job);
    size_t division = spans * (sizeof(ym_sgd_span) + sizeof(double)) +
                      (spans + 1) * sizeof(int32_t);
    size_t check = (size_t)job->tensor_count * ROLE_COUNT * sizeof(interval);
    return division > check ? division : check;
}

static int compare_intervals(const void *left, const void *right)
{
    const interval *a = left, *b = right;
    return (a->first > b->first) - (a->first < b->first);
}

static ym_status check_overlap(const ym_sgd_job *job, interval *list, ym_error *error)
{
    int32_t count = 0;
    for (int32_t i = 0; i < job->tensor_count; i++) {
        const ym_sgd_tensor *t = &job->tensor[i];
        const float *const array[ROLE_COUNT] = {t->param, t->grad, t->momentum, t->ema};
        for (int32_t role = 0; role < ROLE_COUNT; role++) {
            if (array[role] != NULL && t->count > 0) {
                uintptr_t first = (uintptr_t)array[role];
                list[count++] = (interval){
                    first, first + (size_t)t->count * sizeof(float), i, role};
            }
        }
    }
    qsort(list, (size_t)count, sizeof *list, compare_intervals);
    for (int32_t i = 1; i < count; i++) {
        const interval *a = &list[i - 1], *b = &list[i];
        YM_CHECK(error, a->end <= b->first, YM_ERR_ARGUMENT,
                 "tensor %d: %s overlaps the %s of tensor %d, every array must have "
                 "memory of its own",
                 b->tensor, role_name[b->role], role_name[a->role], a->tensor);
    }
    return YM_OK;
}

static ym_status check_group(const ym_sgd_group *group, int32_t index, ym_error *error)
{
    /* A script may set rates below 0, as a scheduler that ends a hair below does: torch
     * accepts them. */
    YM_CHECK(error, isfinite(group->minus_lr), YM_ERR_ARGUMENT,
             "group %d: lr is %g, must be finite", index, (double)-group->minus_lr);
    YM_CHECK(error, isfinite(group->momentum), YM_ERR_ARGUMENT,
             "group %d: momentum is %g, must be finite", index,
             (double)group->momentum);
    YM_CHECK(error, isfinite(group->weight_decay), YM_ERR_ARGUMENT,
             "group %d: weight_decay is %g, must be finite", index,
             (double)group->weight_decay);
    YM_CHECK(error, isfinite(group->gradient_weight), YM_ERR_ARGUMENT,
             "group %d: dampening is %g, must be finite", index,
             1.0 - group->gradient_weight);
    return YM_OK;
}

static ym_status check_tensor(const ym_sgd_job *job, int32_t index, ym_error *error)
{
    const ym_sgd_tensor *t = &job->tensor[index];
    YM_CHECK(error, t->count >= 0, YM_ERR_ARGUMENT,
             "tensor %d: count is %lld, must be at least 0", index,
             (long long)t->count);
    YM_CHECK(error, t->param != NULL || t->count == 0, YM_ERR_ARGUMENT,
             "tensor %d: param has no memory", index);
    uintptr_t bits = (uintptr_t)t->param | (uintptr_t)t->grad | (uintptr_t)t->momentum |
                     (uintptr_t)t->ema;
    YM_CHECK(error, bits % sizeof(float) == 0, YM_ERR_ARGUMENT,
             "tensor %d: an array is not aligned to 4 bytes", index);
    if (t->grad == NULL) {
        return YM_OK;
    }
    YM_CHECK(error, t->group >= 0 && t->group < job->group_count, YM_ERR_ARGUMENT,
             "tensor %d: group is %d, must be in [0, %d)", index, t->group,
             job->group_count);
    YM_CHECK(error, !job->update || t->momentum != NULL || !job->group[t->group].moves,
             YM_ERR_ARGUMENT,
             "tensor %d: has no momentum buffer, its group's momentum is %g", index,
             (double)job->group[t->group].momentum);
    return YM_OK;
}

ym_status ym_sgd_check(const ym_sgd_job *job, void *scratch, ym_error *error)
{
    for (int32_t i = 0; i < job->group_count; i++) {
        YM_TRY(check_group(&job->group[i], i, error));
    }
    for (int32_t i = 0; i < job->tensor_count; i++) {
        YM_TRY(check_tensor(job, i, error));
    }
    YM_CHECK(error, count_spans(job) < INT32_MAX, YM_ERR_ARGUMENT,
             "%lld spans of elements, at most 2^31 - 2 are possible",
             (long long)count_spans(job));
    YM_CHECK(error,
             !job->average || (isfinite(job->ema_decay) && job->ema_decay >= 0 &&
                               job->ema_decay <= 1),
             YM_ERR_ARGUMENT, "ema_decay is %g, must be in [0, 1]",
             (double)job->ema_decay);
    return check_overlap(job, scratch, error);
}

void ym_sgd_divide(ym_sgd_job *job, void *scratch)
{
    int32_t spans = (int32_t)count_spans(job);
    job->partial = scratch;
    job->span = (ym_sgd_span *)(job->partial + spans);
    job->task_first = (int32_t *)(job->span + spans);
    job->span_count = 0;
    job->task_count = 0;
    int64_t open =
        YM_SGD_SPAN; /* elements in the last task: full, so the first opens */
    for (int32_t i = 0; i < job->tensor_count; i++) {
        int64_t count = job->tensor[i].count;
        for (int64_t first = 0; first < count; first += YM_SGD_SPAN) {
            int64_t left = count - first;
            int32_t size = (int32_t)(left < YM_SGD_SPAN ? left : YM_SGD_SPAN);
            if (open + size > YM_SGD_SPAN) {
                job->task_first[job->task_count++] = job->span_count;
                open = 0;
            }
            open += size;
            job->span[job->span_count++] = (ym_sgd_span){i, size, first};
        }
    }
    job->task_first[job->task_count] = job->span_count;
}

double ym_sgd_total(const ym_sgd_job *job)
{
    double total = 0;
    double tensor = 0;
    for (int32_t i = 0; i < job->span_count; i++) {
        tensor = job->span[i].first == 0 ? job->partial[i] : tensor + job->partial[i];
        if (i + 1 == job->span_count || job->span[i + 1].first == 0) {
            total += tensor;
        }
    }
    return total;
}
