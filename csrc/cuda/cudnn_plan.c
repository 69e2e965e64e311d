/* SPDX-License-Identifier: MIT
 * From a convolution to an execution plan: which of cuDNN's configurations it is.
 */
#include "cuda/cudnn_graph.h"

#include <string.h>

/* How many to ask for: each costs 20 us, and nearly always the first one does. */
static const int64_t asked_for[] = {1, CUDNN_CONFIGS};

/* Whether a call of a search succeeded. That an engine cannot do a problem is an
 * answer; another reason counts if no engine is found. */
static bool succeeded(cudnn_workbench *b, int status)
{
    if (status != 0 && status / 1000 != CUDNN_NOT_SUPPORTED / 1000) {
        b->failure = status;
    }
    return status == 0;
}

/* The first `wanted` of a list into b->config; *count is 0 where cuDNN knows none. */
static ym_status list_configs(cudnn_workbench *b, int mode, int64_t wanted,
                              int64_t *count)
{
    *count = 0;
    cudnn_destroy(b->library, &b->heuristics);
    YM_TRY(cudnn_create(b, CUDNN_ENGINEHEUR_KIND, &b->heuristics));
    YM_TRY(cudnn_set(b, b->heuristics, CUDNN_ENGINEHEUR_GRAPH, CUDNN_TYPE_DESCRIPTOR, 1,
                     &b->graph));
    YM_TRY(cudnn_set(b, b->heuristics, CUDNN_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
                     &mode));
    if (b->target->handle == NULL) {
        YM_TRY(cudnn_set(b, b->heuristics, CUDNN_ENGINEHEUR_DEVICEPROP,
                         CUDNN_TYPE_DESCRIPTOR, 1, &b->target->deviceprop));
    }
    if (!succeeded(b, b->library->finalize(b->heuristics))) {
        return YM_OK;
    }
    /* Those of another list are final and take no new content. */
    for (int64_t i = 0; i < wanted; i++) {
        cudnn_destroy(b->library, &b->config[i]);
        YM_TRY(cudnn_create(b, CUDNN_ENGINECFG_KIND, &b->config[i]));
    }
    int status = b->library->get_attribute(b->heuristics, CUDNN_ENGINEHEUR_RESULTS,
                                           CUDNN_TYPE_DESCRIPTOR, wanted, count,
                                           b->config);
    *count = !succeeded(b, status) ? 0 : *count < wanted ? *count : wanted;
    return YM_OK;
}

static bool has_note(const cudnn_library *library, cudnn_descriptor engine, int list,
                     int type, int note)
{
    int found[16];
    int64_t count = 0;
    if (library->get_attribute(engine, list, type, 16, &count, found) != 0) {
        return false;
    }
    for (int64_t i = 0; i < count && i < 16; i++) {
        if (found[i] == note) {
            return true;
        }
    }
    return false;
}

/* What is known of a configuration's engine; false: it may not be used. */
static bool inspect(cudnn_workbench *b, const cudnn_problem *p, cudnn_descriptor config,
                    cudnn_plan *plan)
{
    const int numerical = CUDNN_TYPE_NUMERICAL_NOTE, list = CUDNN_ENGINE_NUMERICAL_NOTE;
    cudnn_descriptor engine = NULL;
    int64_t count;
    if (b->library->create_descriptor(CUDNN_ENGINE_KIND, &engine) != 0) {
        return false;
    }
    bool usable = b->library->get_attribute(config, CUDNN_ENGINECFG_ENGINE,
                                            CUDNN_TYPE_DESCRIPTOR, 1, &count,
                                            &engine) == 0;
    if (usable) {
        plan->tensor_core =
            has_note(b->library, engine, list, numerical, CUDNN_NOTE_TENSOR_CORE);
        plan->compiles = has_note(b->library, engine, CUDNN_ENGINE_BEHAVIOR_NOTE,
                                  CUDNN_TYPE_BEHAVIOR_NOTE,
                                  CUDNN_NOTE_RUNTIME_COMPILATION);
        const bool narrows = has_note(b->library, engine, list, numerical,
                                      CUDNN_NOTE_DOWN_CONVERT_INPUTS);
        const bool rounds = narrows || (plan->tensor_core && !p->tf32);
        usable = !has_note(b->library, engine, list, numerical,
                           CUDNN_NOTE_NONDETERMINISTIC) &&
                 (p->dtype != YM_F32 || !rounds);
        b->library->get_attribute(engine, CUDNN_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64,
                                  1, &count, &plan->engine);
    }
    cudnn_destroy(b->library, &engine);
    return usable;
}

/* Only here does cuDNN say whether it can: false is an answer, not an error. */
static bool try_config(cudnn_workbench *b, cudnn_descriptor config, cudnn_plan *plan)
{
    const cudnn_library *l = b->library;
    const cudnn_target *target = b->target;
    int64_t count;
    cudnn_descriptor made = NULL;
    if (l->create_descriptor(CUDNN_PLAN_KIND, &made) != 0) {
        return false;
    }
    int status = target->handle != NULL
                     ? l->set_attribute(made, CUDNN_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                                        &target->handle)
                     : l->set_attribute(made, CUDNN_PLAN_DEVICEPROP,
                                        CUDNN_TYPE_DESCRIPTOR, 1, &target->deviceprop);
    bool works = status == 0 &&
                 l->set_attribute(made, CUDNN_PLAN_ENGINE_CONFIG, CUDNN_TYPE_DESCRIPTOR,
                                  1, &config) == 0 &&
                 succeeded(b, l->finalize(made)) &&
                 l->get_attribute(made, CUDNN_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                  &count, &plan->workspace_bytes) == 0;
    plan->found = works;
    if (works) {
        plan->descriptor = made;
    } else {
        cudnn_destroy(l, &made);
    }
    return works;
}

static void replace(cudnn_workbench *b, cudnn_plan *old, const cudnn_plan *by)
{
    cudnn_destroy(b->library, &old->descriptor);
    *old = *by;
}

/* What a float32 plan with tensor cores may take where those within the cap have none:
 * before Hopper its engines copy an operand or two, and the others are several times
 * slower. */
static int64_t roomy_bytes(const cudnn_problem *p)
{
    const int64_t x = (int64_t)p->n * p->h * p->w * p->conv.c;
    const int64_t y = (int64_t)p->n * p->oh * p->ow * p->conv.k;
    const int64_t copies = (x + y) * (int64_t)sizeof(float) + YM_CUDNN_WORKSPACE_CAP;
    const int64_t most = 8 * YM_CUDNN_WORKSPACE_CAP;
    return p->dtype != YM_F32 ? 0 : copies < most ? copies : most;
}

/* The best of b->config, in the order of its ranks; without a descriptor if none does.
 */
static void choose(cudnn_workbench *b, const cudnn_problem *p, int64_t count,
                   bool compiles, cudnn_plan *best)
{
    cudnn_plan roomy = {0}, least = {0};
    for (int64_t i = 0; i < count && best->descriptor == NULL; i++) {
        cudnn_plan plan = {0};
        if (!inspect(b, p, b->config[i], &plan) || plan.compiles != compiles ||
            !try_config(b, b->config[i], &plan)) {
            continue;
        }
        if (plan.workspace_bytes <= YM_CUDNN_WORKSPACE_CAP) {
            const bool slow = !plan.tensor_core && roomy.descriptor != NULL;
            *best = slow ? roomy : plan;
            roomy = slow ? plan : roomy;
        } else if (roomy.descriptor == NULL && plan.tensor_core &&
                   plan.workspace_bytes <= roomy_bytes(p)) {
            roomy = plan;
        } else if (least.descriptor == NULL ||
                   plan.workspace_bytes < least.workspace_bytes) {
            replace(b, &least, &plan);
        } else {
            cudnn_destroy(b->library, &plan.descriptor);
        }
    }
    if (best->descriptor == NULL) {
        cudnn_plan *next = roomy.descriptor != NULL ? &roomy : &least;
        *best = *next;
        next->descriptor = NULL;
    }
    cudnn_destroy(b->library, &roomy.descriptor);
    cudnn_destroy(b->library, &least.descriptor);
}

static ym_status search_list(cudnn_workbench *b, const cudnn_problem *p, int mode,
                             bool compiles, cudnn_plan *plan)
{
    const int lengths = sizeof asked_for / sizeof asked_for[0];
    for (int i = 0; i < lengths; i++) {
        int64_t count;
        YM_TRY(list_configs(b, mode, asked_for[i], &count));
        choose(b, p, count, compiles, plan);
        const bool fits = plan->descriptor != NULL &&
                          plan->workspace_bytes <= YM_CUDNN_WORKSPACE_CAP;
        if (fits || i == lengths - 1) {
            break;
        }
        const cudnn_plan none = {0};
        replace(b, plan, &none);
    }
    return YM_OK;
}

static ym_status search(cudnn_workbench *b, const cudnn_problem *p, cudnn_plan *plan)
{
    static const int modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    YM_TRY(cudnn_describe(b, p));
    for (int compiles = 0; compiles < 2; compiles++) {
        for (int i = 0; i < 2 && plan->descriptor == NULL; i++) {
            YM_TRY(search_list(b, p, modes[i], compiles != 0, plan));
        }
    }
    return YM_OK;
}

ym_status cudnn_make_plan(const cudnn_target *target, const cudnn_problem *problem,
                          cudnn_plan *plan, ym_error *error)
{
    cudnn_workbench b = {.target = target, .library = target->library, .error = error};
    memset(plan, 0, sizeof *plan);
    ym_status status = search(&b, problem, plan);
    if (status == YM_OK && plan->descriptor == NULL && b.failure != 0) {
        status = cudnn_check(b.library, b.failure, "search for an engine", error);
    }
    cudnn_clear(&b);
    return status;
}

ym_status cudnn_list_plans(const cudnn_target *target, const cudnn_problem *problem,
                           int64_t room, cudnn_plan plans[YM_CUDNN_TRIES],
                           int32_t *count, ym_error *error)
{
    cudnn_workbench b = {.target = target, .library = target->library, .error = error};
    int64_t listed = 0;
    *count = 0;
    ym_status status = cudnn_describe(&b, problem);
    if (status == YM_OK) {
        status = list_configs(&b, CUDNN_HEUR_MODE_A, YM_CUDNN_TRIES, &listed);
    }
    for (int64_t i = 0; i < listed; i++) {
        cudnn_plan plan = {0};
        if (!inspect(&b, problem, b.config[i], &plan) || plan.compiles ||
            !try_config(&b, b.config[i], &plan)) {
            continue;
        }
        if (plan.workspace_bytes <= room) {
            plans[(*count)++] = plan;
        } else {
            cudnn_destroy(b.library, &plan.descriptor);
        }
    }
    cudnn_clear(&b);
    return status;
}

ym_status cudnn_plan_for_device(const char *json, const cudnn_problem *problem,
                                cudnn_plan *plan, ym_error *error)
{
    cudnn_target target = {0};
    memset(plan, 0, sizeof *plan);
    YM_TRY(cudnn_open(NULL, &target.library, error));
    const cudnn_library *l = target.library;
    YM_CHECK(error, l->version >= 90800, YM_ERR_UNSUPPORTED,
             "cuDNN %zu knows no absent devices, 9.8 does", l->version);
    cudnn_workbench b = {.target = &target, .library = l, .error = error};
    YM_TRY(cudnn_create(&b, CUDNN_DEVICEPROP_KIND, &target.deviceprop));
    ym_status status = cudnn_set(&b, target.deviceprop, CUDNN_DEVICEPROP_JSON,
                                 CUDNN_TYPE_CHAR, (int64_t)strlen(json), json);
    if (status == YM_OK) {
        status = cudnn_finish(&b, target.deviceprop, "device properties");
    }
    if (status == YM_OK) {
        status = cudnn_make_plan(&target, problem, plan, error);
    }
    cudnn_destroy(l, &plan->descriptor);
    cudnn_destroy(l, &target.deviceprop);
    return status;
}
