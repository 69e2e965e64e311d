/* SPDX-License-Identifier: MIT */
#include "ref/sgd.h"

#include "math/sgd.h"
#include "ops/sgd.h"

ym_status ref_sgd_norm(ym_context *context, struct ym_sgd_job *job)
{
    (void)context;
    for (int32_t i = 0; i < job->span_count; i++) {
        const ym_sgd_span *span = &job->span[i];
        const float *g = job->tensor[span->tensor].grad;
        job->partial[i] = 0;
        for (int64_t j = span->first; g != NULL && j < span->first + span->count; j++) {
            double x = (double)g[j];
            job->partial[i] += x * x;
        }
    }
    job->sum_of_squares = ym_sgd_total(job);
    return YM_OK;
}

static void step_element(const ym_sgd_job *job, const ym_sgd_tensor *t, int64_t i)
{
    const ym_sgd_group *group = &job->group[t->group];
    float unscaled = ym_sgd_unscale(t->grad[i], job->inverse_scale, job->clip);
    float g = group->maximize ? -unscaled : unscaled;
    float p = t->param[i];
    if (group->decays) {
        g = ym_sgd_weight_decay(g, p, group->weight_decay);
    }
    if (group->moves) {
        float buffer = t->first_step
                           ? g
                           : ym_sgd_momentum(t->momentum[i], g, group->momentum,
                                             group->gradient_weight);
        t->momentum[i] = buffer;
        g = group->nesterov ? ym_sgd_nesterov(g, buffer, group->momentum) : buffer;
    }
    t->param[i] = ym_sgd_descend(p, g, group->minus_lr);
}

ym_status ref_sgd_step(ym_context *context, struct ym_sgd_job *job)
{
    (void)context;
    for (int32_t i = 0; i < job->tensor_count; i++) {
        const ym_sgd_tensor *t = &job->tensor[i];
        for (int64_t j = 0; j < t->count; j++) {
            if (t->grad != NULL && job->update) {
                step_element(job, t, j);
            }
            if (t->ema != NULL && job->average) {
                t->ema[j] = ym_sgd_average(t->ema[j], t->param[j], job->ema_decay,
                                           job->ema_weight);
            }
            if (t->grad != NULL && job->gradient == YM_SGD_GRADIENT_ZERO) {
                t->grad[j] = 0;
            } else if (t->grad != NULL && job->gradient == YM_SGD_GRADIENT_WRITE) {
                t->grad[j] = ym_sgd_unscale(t->grad[j], job->inverse_scale, job->clip);
            }
        }
    }
    return YM_OK;
}
