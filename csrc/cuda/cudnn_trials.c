/* SPDX-License-Identifier: MIT
 * Which engine is the fastest is found by running them.
 */
#include "cuda/cudnn_trials.h"

#include <math.h>

#define RUNS 2 /* by the clock */

typedef struct trial {
    ym_context *context;
    const cudnn_loan *loan;
    cudnn_run run;
    const void *what;
    cudaEvent_t begin, end;
} trial;

int64_t cudnn_room(const cudnn_problem *problem, const cudnn_plan *plan)
{
    const int64_t least = problem->trials ? YM_CUDNN_WORKSPACE_CAP : 0;
    return plan->workspace_bytes > least ? plan->workspace_bytes : least;
}

static bool put(const trial *t, const cudnn_plan *plan)
{
    return t->run(t->context, t->loan, plan, t->what) == YM_OK;
}

/* Of one run; infinite where it cannot be run or timed. */
static float milliseconds(const trial *t, const cudnn_plan *plan)
{
    const cudaStream_t stream = (cudaStream_t)t->context->stream;
    float found = INFINITY;
    bool runs = put(t, plan) && cudaEventRecord(t->begin, stream) == cudaSuccess;
    for (int i = 0; i < RUNS; i++) {
        runs = runs && put(t, plan);
    }
    if (!runs || cudaEventRecord(t->end, stream) != cudaSuccess ||
        cudaEventSynchronize(t->end) != cudaSuccess ||
        cudaEventElapsedTime(&found, t->begin, t->end) != cudaSuccess) {
        cudaGetLastError(); /* so that the next call starts clean */
        return INFINITY;
    }
    return found / RUNS;
}

static int32_t fastest(const trial *t, const cudnn_plan *plans, int32_t count)
{
    float least = INFINITY;
    int32_t best = -1;
    for (int32_t i = 0; i < count; i++) {
        const float time = milliseconds(t, &plans[i]);
        if (time < least) {
            least = time;
            best = i;
        }
    }
    return best;
}

static void try_all(const trial *t)
{
    const cudnn_loan *loan = t->loan;
    const cudnn_target target = {.library = loan->library, .handle = loan->handle};
    const int64_t room = cudnn_room(loan->problem, loan->plan);
    cudnn_plan plans[YM_CUDNN_TRIES];
    int32_t count;
    if (cudnn_list_plans(&target, loan->problem, room, plans, &count,
                         &t->context->error) != YM_OK) {
        return;
    }
    const int32_t best = count > 1 ? fastest(t, plans, count) : -1;
    if (best >= 0) {
        const cudnn_plan old = *loan->plan;
        *loan->plan = plans[best];
        plans[best] = old;
    }
    for (int32_t i = 0; i < count; i++) {
        loan->library->destroy_descriptor(plans[i].descriptor);
    }
}

static bool is_wanted(const ym_context *context, const cudnn_loan *loan)
{
    const cudnn_problem *problem = loan->problem;
    return problem->trials && !problem->accumulate && !loan->plan->tried &&
           !loan->plan->compiles && !cuda_is_captured(context);
}

void cudnn_try_engines(ym_context *context, const cudnn_loan *loan, cudnn_run run,
                       const void *what)
{
    if (!is_wanted(context, loan)) {
        return;
    }
    trial t = {.context = context, .loan = loan, .run = run, .what = what};
    if (cudaEventCreate(&t.begin) == cudaSuccess) {
        if (cudaEventCreate(&t.end) == cudaSuccess) {
            try_all(&t);
            cudaEventDestroy(t.end);
        }
        cudaEventDestroy(t.begin);
    }
    cudaGetLastError();
    loan->plan->tried = true;
}
