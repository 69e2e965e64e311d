/* SPDX-License-Identifier: MIT
 * From a convolution to an execution plan, by cuDNN's graph interface.
 */
#include "cuda/cudnn_plan.h"

#include <string.h>

#define CONFIGS 64 /* of one list, at most */

/* How many to ask for: each costs 20 us, and nearly always the first one does. */
static const int64_t asked_for[] = {1, CONFIGS};

/* All descriptors of one problem; destroyed together. */
typedef struct workbench {
    const cudnn_target *target;
    const cudnn_library *library;
    ym_error *error;
    cudnn_descriptor tensor[3]; /* by number - 1 */
    cudnn_descriptor convolution, operation, graph, heuristics;
    cudnn_descriptor config[CONFIGS];
    int failure; /* the last status that is not "not supported" */
} workbench;

static void destroy(const cudnn_library *library, cudnn_descriptor *d)
{
    if (*d != NULL) {
        library->destroy_descriptor(*d);
        *d = NULL;
    }
}

static ym_status create(workbench *b, int kind, cudnn_descriptor *made)
{
    return cudnn_check(b->library, b->library->create_descriptor(kind, made),
                       "cudnnBackendCreateDescriptor", b->error);
}

static ym_status set(workbench *b, cudnn_descriptor d, int name, int type,
                     int64_t count, const void *values)
{
    return cudnn_check(b->library,
                       b->library->set_attribute(d, name, type, count, values),
                       "cudnnBackendSetAttribute", b->error);
}

/* Whether a call of a search succeeded. That an engine cannot do a problem is an
 * answer; another reason counts if no engine is found. */
static bool succeeded(workbench *b, int status)
{
    if (status != 0 && status / 1000 != CUDNN_NOT_SUPPORTED / 1000) {
        b->failure = status;
    }
    return status == 0;
}

static ym_status finish(workbench *b, cudnn_descriptor d, const char *what)
{
    return cudnn_check(b->library, b->library->finalize(d), what, b->error);
}

static int data_type(int32_t dtype)
{
    return dtype == YM_F32   ? CUDNN_DATA_FLOAT
           : dtype == YM_F16 ? CUDNN_DATA_HALF
                             : CUDNN_DATA_BFLOAT16;
}

/* Packed channels-last; cuDNN lists sizes and strides as N, C, H, W. */
static ym_status make_tensor(workbench *b, int32_t dtype, int64_t number,
                             const int64_t size[4])
{
    cudnn_descriptor *made = &b->tensor[number - 1];
    const int type = data_type(dtype);
    const int64_t stride[4] = {size[1] * size[2] * size[3], 1, size[1] * size[3],
                               size[1]};
    const int64_t alignment = 16;
    YM_TRY(create(b, CUDNN_TENSOR_KIND, made));
    YM_TRY(set(b, *made, CUDNN_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type));
    YM_TRY(set(b, *made, CUDNN_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, size));
    YM_TRY(set(b, *made, CUDNN_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride));
    YM_TRY(set(b, *made, CUDNN_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number));
    YM_TRY(set(b, *made, CUDNN_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment));
    return finish(b, *made, "tensor");
}

static ym_status make_tensors(workbench *b, const cudnn_problem *p)
{
    const ym_conv *c = &p->conv;
    const int64_t x[4] = {p->n, c->c, p->h, p->w}, y[4] = {p->n, c->k, p->oh, p->ow};
    const int64_t w[4] = {c->k, c->c / c->groups, c->r, c->s};
    YM_TRY(make_tensor(b, p->dtype, CUDNN_ID_X, x));
    YM_TRY(make_tensor(b, p->dtype, CUDNN_ID_W, w));
    return make_tensor(b, p->dtype, CUDNN_ID_Y, y);
}

static ym_status make_convolution(workbench *b, const ym_conv *c)
{
    const int type = CUDNN_DATA_FLOAT, mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2, pad[2] = {c->pad_h, c->pad_w};
    const int64_t stride[2] = {c->stride_h, c->stride_w};
    const int64_t dilation[2] = {c->dilation_h, c->dilation_w};
    cudnn_descriptor *made = &b->convolution;
    YM_TRY(create(b, CUDNN_CONVOLUTION_KIND, made));
    YM_TRY(set(b, *made, CUDNN_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type));
    YM_TRY(
        set(b, *made, CUDNN_CONVOLUTION_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode));
    YM_TRY(set(b, *made, CUDNN_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims));
    YM_TRY(set(b, *made, CUDNN_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad));
    YM_TRY(set(b, *made, CUDNN_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad));
    YM_TRY(set(b, *made, CUDNN_CONVOLUTION_STRIDES, CUDNN_TYPE_INT64, 2, stride));
    YM_TRY(set(b, *made, CUDNN_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation));
    return finish(b, *made, "convolution");
}

/* The attributes' names of each pass. */
typedef struct operation_names {
    int kind, alpha, beta, convolution, x, w, y;
} operation_names;

static const operation_names names_of_pass[] = {
    [YM_CONV_FORWARD] = {CUDNN_FORWARD_KIND, CUDNN_FORWARD_ALPHA, CUDNN_FORWARD_BETA,
                         CUDNN_FORWARD_CONVOLUTION, CUDNN_FORWARD_X, CUDNN_FORWARD_W,
                         CUDNN_FORWARD_Y},
    [YM_CONV_BACKWARD_DATA] = {CUDNN_BACKWARD_DATA_KIND, CUDNN_BACKWARD_DATA_ALPHA,
                               CUDNN_BACKWARD_DATA_BETA,
                               CUDNN_BACKWARD_DATA_CONVOLUTION, CUDNN_BACKWARD_DATA_DX,
                               CUDNN_BACKWARD_DATA_W, CUDNN_BACKWARD_DATA_DY},
    [YM_CONV_BACKWARD_WEIGHT] = {CUDNN_BACKWARD_FILTER_KIND,
                                 CUDNN_BACKWARD_FILTER_ALPHA,
                                 CUDNN_BACKWARD_FILTER_BETA,
                                 CUDNN_BACKWARD_FILTER_CONVOLUTION,
                                 CUDNN_BACKWARD_FILTER_X, CUDNN_BACKWARD_FILTER_DW,
                                 CUDNN_BACKWARD_FILTER_DY},
};

static ym_status make_graph(workbench *b, const cudnn_problem *p)
{
    const operation_names *name = &names_of_pass[p->pass];
    const float alpha = 1, beta = p->accumulate ? 1 : 0;
    cudnn_descriptor *op = &b->operation;
    YM_TRY(create(b, name->kind, op));
    YM_TRY(set(b, *op, name->x, CUDNN_TYPE_DESCRIPTOR, 1, &b->tensor[CUDNN_ID_X - 1]));
    YM_TRY(set(b, *op, name->w, CUDNN_TYPE_DESCRIPTOR, 1, &b->tensor[CUDNN_ID_W - 1]));
    YM_TRY(set(b, *op, name->y, CUDNN_TYPE_DESCRIPTOR, 1, &b->tensor[CUDNN_ID_Y - 1]));
    YM_TRY(set(b, *op, name->convolution, CUDNN_TYPE_DESCRIPTOR, 1, &b->convolution));
    YM_TRY(set(b, *op, name->alpha, CUDNN_TYPE_FLOAT, 1, &alpha));
    YM_TRY(set(b, *op, name->beta, CUDNN_TYPE_FLOAT, 1, &beta));
    YM_TRY(finish(b, *op, "operation"));
    YM_TRY(create(b, CUDNN_GRAPH_KIND, &b->graph));
    if (b->target->handle != NULL) {
        YM_TRY(set(b, b->graph, CUDNN_GRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1,
                   &b->target->handle));
    }
    YM_TRY(set(b, b->graph, CUDNN_GRAPH_OPS, CUDNN_TYPE_DESCRIPTOR, 1, op));
    return finish(b, b->graph, "graph");
}

/* The first `wanted` of a list into b->config; *count is 0 where cuDNN knows none. */
static ym_status list_configs(workbench *b, int mode, int64_t wanted, int64_t *count)
{
    *count = 0;
    destroy(b->library, &b->heuristics);
    YM_TRY(create(b, CUDNN_ENGINEHEUR_KIND, &b->heuristics));
    YM_TRY(set(b, b->heuristics, CUDNN_ENGINEHEUR_GRAPH, CUDNN_TYPE_DESCRIPTOR, 1,
               &b->graph));
    YM_TRY(
        set(b, b->heuristics, CUDNN_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode));
    if (b->target->handle == NULL) {
        YM_TRY(set(b, b->heuristics, CUDNN_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_DESCRIPTOR,
                   1, &b->target->deviceprop));
    }
    if (!succeeded(b, b->library->finalize(b->heuristics))) {
        return YM_OK;
    }
    /* Those of another list are final and take no new content. */
    for (int64_t i = 0; i < wanted; i++) {
        destroy(b->library, &b->config[i]);
        YM_TRY(create(b, CUDNN_ENGINECFG_KIND, &b->config[i]));
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
static bool inspect(workbench *b, const cudnn_problem *p, cudnn_descriptor config,
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
    destroy(b->library, &engine);
    return usable;
}

/* Only here does cuDNN say whether it can: false is an answer, not an error. */
static bool try_config(workbench *b, cudnn_descriptor config, cudnn_plan *plan)
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
        destroy(l, &made);
    }
    return works;
}

static void replace(workbench *b, cudnn_plan *old, const cudnn_plan *by)
{
    destroy(b->library, &old->descriptor);
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
static void choose(workbench *b, const cudnn_problem *p, int64_t count, bool compiles,
                   cudnn_plan *best)
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
            destroy(b->library, &plan.descriptor);
        }
    }
    if (best->descriptor == NULL) {
        cudnn_plan *next = roomy.descriptor != NULL ? &roomy : &least;
        *best = *next;
        next->descriptor = NULL;
    }
    destroy(b->library, &roomy.descriptor);
    destroy(b->library, &least.descriptor);
}

static ym_status search_list(workbench *b, const cudnn_problem *p, int mode,
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

static ym_status describe(workbench *b, const cudnn_problem *p)
{
    YM_TRY(make_tensors(b, p));
    YM_TRY(make_convolution(b, &p->conv));
    return make_graph(b, p);
}

static ym_status search(workbench *b, const cudnn_problem *p, cudnn_plan *plan)
{
    static const int modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    YM_TRY(describe(b, p));
    for (int compiles = 0; compiles < 2; compiles++) {
        for (int i = 0; i < 2 && plan->descriptor == NULL; i++) {
            YM_TRY(search_list(b, p, modes[i], compiles != 0, plan));
        }
    }
    return YM_OK;
}

static void clear(workbench *b)
{
    for (int i = 0; i < CONFIGS; i++) {
        destroy(b->library, &b->config[i]);
    }
    destroy(b->library, &b->heuristics);
    destroy(b->library, &b->graph);
    destroy(b->library, &b->operation);
    destroy(b->library, &b->convolution);
    for (int i = 0; i < 3; i++) {
        destroy(b->library, &b->tensor[i]);
    }
}

ym_status cudnn_make_plan(const cudnn_target *target, const cudnn_problem *problem,
                          cudnn_plan *plan, ym_error *error)
{
    workbench b = {.target = target, .library = target->library, .error = error};
    memset(plan, 0, sizeof *plan);
    ym_status status = search(&b, problem, plan);
    if (status == YM_OK && plan->descriptor == NULL && b.failure != 0) {
        status = cudnn_check(b.library, b.failure, "search for an engine", error);
    }
    clear(&b);
    return status;
}

ym_status cudnn_list_plans(const cudnn_target *target, const cudnn_problem *problem,
                           int64_t room, cudnn_plan plans[YM_CUDNN_TRIES],
                           int32_t *count, ym_error *error)
{
    workbench b = {.target = target, .library = target->library, .error = error};
    int64_t listed = 0;
    *count = 0;
    ym_status status = describe(&b, problem);
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
            destroy(b.library, &plan.descriptor);
        }
    }
    clear(&b);
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
    workbench b = {.target = &target, .library = l, .error = error};
    YM_TRY(create(&b, CUDNN_DEVICEPROP_KIND, &target.deviceprop));
    ym_status status = set(&b, target.deviceprop, CUDNN_DEVICEPROP_JSON,
                           CUDNN_TYPE_CHAR, (int64_t)strlen(json), json);
    if (status == YM_OK) {
        status = finish(&b, target.deviceprop, "device properties");
    }
    if (status == YM_OK) {
        status = cudnn_make_plan(&target, problem, plan, error);
    }
    destroy(l, &plan->descriptor);
    destroy(l, &target.deviceprop);
    return status;
}
