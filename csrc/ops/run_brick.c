/* SPDX-License-Identifier: MIT
 *
 * The executor's steps of bricks: batch norms, sums and activations.
 */
#include "core/sharing.h"
#include "ops/run.h"

/* Vector number i of what is saved of a call. */
static float *saved_vector(const ym_runner *r, int32_t call, int32_t i)
{
    const ym_norm_call *norm_call = &r->plan->program->norm_call[call];
    float *first = (float *)((char *)r->bindings->saved + norm_call->saved_offset);
    return first + (int64_t)i * norm_call->channels;
}

/* Of gamma or beta, from channel `first` on; NULL: there is none. *saved: the next
 * vector behind the statistics, where one number for all channels is spread out. */
static const float *norm_vector(const ym_runner *r, int32_t call, int32_t param,
                                int32_t first, int32_t *saved)
{
    if (ym_is_one_number(r->plan->program, call, param)) {
        return saved_vector(r, call, (*saved)++) + first;
    }
    const float *vector = ym_run_param(r, param);
    return vector != NULL ? vector + first : NULL;
}

/* A batch norm call as the backend wants it, from channel `first` on. */
static ym_norm resolve_norm(const ym_runner *r, int32_t call, int32_t first)
{
    const ym_norm_module *module = ym_norm_of(r->plan->program, call);
    ym_norm norm = r->bindings->norms[r->plan->program->norm_call[call].module];
    int32_t saved = 2;
    norm.gamma = norm_vector(r, call, module->gamma, first, &saved);
    norm.beta = norm_vector(r, call, module->beta, first, &saved);
    norm.dgamma = ym_run_gradient(r, module->gamma);
    norm.dbeta = ym_run_gradient(r, module->beta);
    norm.sharing = module->sharing;
    norm.constant_mean = module->mean;
    norm.constant_rstd = module->rstd;
    return norm;
}

static ym_tensor vector_of(const float *data, int32_t channels)
{
    return (ym_tensor){(void *)(uintptr_t)data, YM_F32, 1, 1, 1, channels, channels};
}

/* to = number, for each channel. */
static ym_status spread(const ym_runner *r, int32_t param, int32_t channels, float *to)
{
    const ym_tensor number = vector_of(ym_run_param(r, param), 1), ones = {0};
    ym_tensor each = vector_of(to, channels);
    return r->context->backend->multiply(r->context, &number, &ones, 1, &each, false);
}

static ym_brick resolve_brick(const ym_runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    int32_t first = step->first_channel;
    ym_brick brick = {.term_count = item->u.brick.term_count,
                      .activation = item->u.brick.activation,
                      .has_residual = item->u.brick.has_residual,
                      .residual = ym_run_tensor(r, step->in[2])};
    for (int32_t t = 0; t < brick.term_count; t++) {
        int32_t call = item->u.brick.norm_call[t];
        brick.term[t].value = ym_run_tensor(r, step->in[t]);
        if (call >= 0) {
            brick.term[t].has_norm = true;
            brick.term[t].norm = resolve_norm(r, call, first);
            brick.term[t].mean = saved_vector(r, call, 0) + first;
            brick.term[t].rstd = saved_vector(r, call, 1) + first;
        }
    }
    return brick;
}

/* The others' places are 0: a sum over the processes fills in all parts. */
static ym_status run_shared_statistics(const ym_runner *r, const ym_tensor *x,
                                       const ym_norm *norm, float *mean)
{
    ym_context *context = r->context;
    const int64_t count = ym_moment_count(x->c);
    const size_t bytes = ym_parts_bytes(&norm->sharing, x->c);
    double *parts = context->scratch;
    const int64_t all = norm->sharing.processes * count;
    ym_tensor zeros = {.data = parts,
                       .dtype = YM_F32,
                       .n = norm->sharing.processes,
                       .h = 1,
                       .w = 1,
                       .c = (int32_t)count * 2,
                       .pitch = count * 2};
    context->scratch = (char *)context->scratch + bytes;
    context->scratch_bytes -= bytes;
    YM_TRY(context->backend->fill_zero(context, &zeros));
    YM_TRY(
        context->backend->norm_moments(context, x, parts + norm->sharing.rank * count));
    YM_TRY(ym_sum_shared(context, &norm->sharing, parts, all));
    return context->backend->norm_merge(context, parts, x->c, norm, mean, mean + x->c);
}

static ym_status spread_numbers(const ym_runner *r, int32_t call)
{
    const ym_program *p = r->plan->program;
    const ym_norm_module *module = ym_norm_of(p, call);
    const int32_t params[2] = {module->gamma, module->beta};
    int32_t saved = 2;
    for (int i = 0; i < 2; i++) {
        if (ym_is_one_number(p, call, params[i])) {
            YM_TRY(spread(r, params[i], p->norm_call[call].channels,
                          saved_vector(r, call, saved++)));
        }
    }
    return YM_OK;
}

ym_status ym_run_statistics(const ym_runner *r, const ym_step *step)
{
    const ym_item *item = &r->plan->program->item[step->item];
    int32_t call = item->u.brick.norm_call[step->term];
    ym_tensor x = ym_run_tensor(r, step->in[0]);
    ym_norm norm = resolve_norm(r, call, 0);
    float *mean = saved_vector(r, call, 0);
    YM_CHECK(&r->context->error,
             !norm.batch_statistics || ym_pixels(&x) > 1 || norm.sharing.processes > 1,
             YM_ERR_ARGUMENT,
             "batch norm %s: a channel has one value, training needs more than one",
             item->name);
    YM_TRY(spread_numbers(r, call));
    if (ym_is_shared(&norm)) {
        return run_shared_statistics(r, &x, &norm, mean);
    }
    return r->context->backend->norm_statistics(r->context, &x, &norm, mean,
                                                mean + x.c);
}

ym_status ym_run_brick(const ym_runner *r, const ym_step *step)
{
    const ym_brick brick = resolve_brick(r, step);
    ym_tensor out = ym_run_tensor(r, step->out[0]);
    return r->context->backend->brick_forward(r->context, &brick, &out);
}

/* A gradient that is one number, and the vector of what its channels add to it. */
typedef struct sum_of_channels {
    float *vector, *number;
    bool accumulate;
} sum_of_channels;

/* The kernel's vector goes to the step's scratch, of which it takes the front. */
static void divert(const ym_runner *r, int32_t channels, float **gradient,
                   bool *accumulate, sum_of_channels *to)
{
    ym_context *context = r->context;
    *to = (sum_of_channels){context->scratch, *gradient, *accumulate};
    context->scratch = (char *)context->scratch + ym_spread_bytes(channels);
    context->scratch_bytes -= ym_spread_bytes(channels);
    *gradient = to->vector;
    *accumulate = false;
}

static int32_t divert_numbers(const ym_runner *r, int32_t call, ym_norm *norm,
                              ym_term_gradient *gradient, sum_of_channels *to)
{
    const ym_program *p = r->plan->program;
    const ym_norm_module *module = ym_norm_of(p, call);
    const int32_t channels = p->norm_call[call].channels;
    int32_t count = 0;
    if (norm->dgamma != NULL && ym_is_one_number(p, call, module->gamma)) {
        divert(r, channels, &norm->dgamma, &gradient->accumulate_gamma, &to[count++]);
    }
    if (norm->dbeta != NULL && ym_is_one_number(p, call, module->beta)) {
        divert(r, channels, &norm->dbeta, &gradient->accumulate_beta, &to[count++]);
    }
    return count;
}

static ym_status add_up(const ym_runner *r, const sum_of_channels *sum,
                        int32_t channels)
{
    const ym_tensor each = vector_of(sum->vector, channels), ones = {0};
    ym_tensor number = vector_of(sum->number, 1);
    return r->context->backend->multiply(r->context, &each, &ones, 1, &number,
                                         sum->accumulate);
}

/* The gradient of term t, and in *sums, from *count on, the numbers in it. */
static ym_term_gradient resolve_gradient(const ym_runner *r, const ym_step *step,
                                         int32_t t, ym_term *term,
                                         sum_of_channels *sums, int32_t *count)
{
    const int32_t call = r->plan->program->item[step->item].u.brick.norm_call[t];
    ym_term_gradient gradient = {.dvalue = ym_run_tensor(r, step->out[t]),
                                 .accumulate = step->accumulate[t]};
    if (term->has_norm) {
        const ym_norm_module *module = ym_norm_of(r->plan->program, call);
        const bool *again = &step->accumulate_param[2 * t];
        gradient.accumulate_gamma = ym_run_accumulates(r, module->gamma, again[0]);
        gradient.accumulate_beta = ym_run_accumulates(r, module->beta, again[1]);
        *count += divert_numbers(r, call, &term->norm, &gradient, sums + *count);
    }
    return gradient;
}

ym_status ym_run_brick_backward(const ym_runner *r, const ym_step *step)
{
    ym_brick brick = resolve_brick(r, step);
    ym_tensor dout = ym_run_tensor(r, step->in[3]);
    ym_term_gradient gradient[2] = {0};
    sum_of_channels sums[4];
    int32_t sum_count = 0;
    for (int32_t t = 0; t < brick.term_count; t++) {
        ym_term *term = &brick.term[t];
        if (term->has_norm && step->in[t].block < 0) {
            term->value = dout; /* any memory of its size: nothing depends */
        }
        if (step->reads_result) {
            term->norm.beta = NULL; /* the result has it already */
        }
        gradient[t] = resolve_gradient(r, step, t, term, sums, &sum_count);
    }
    brick.has_residual = false;
    YM_TRY(r->context->backend->brick_backward(r->context, &brick, &dout, gradient));
    for (int32_t i = 0; i < sum_count; i++) {
        YM_TRY(add_up(r, &sums[i], dout.c));
    }
    return YM_OK;
}
