/* SPDX-License-Identifier: MIT
 *
 * The convolutions of the "cuda" table. Weights of 16 bits come packed in the values'
 * type; scratch holds a float32 weight, or a weight's gradient, packed, and behind it
 * cuDNN's workspace.
 */
#include "cuda/conv_cudnn.h"

#include "cuda/cudnn_trials.h"
#include "cuda/weight.h"

#include <stdio.h>
#include <string.h>

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t weight_bytes(const ym_conv *conv, ym_dtype dtype)
{
    return (size_t)conv->k * (size_t)(conv->c / conv->groups) *
           (size_t)(conv->r * conv->s) * ym_dtype_bytes(dtype);
}

/* Arenas are aligned to 64 bytes; engines that load by descriptor want more. */
static size_t scratch_bytes(size_t weight, const cudnn_problem *problem,
                            const cudnn_plan *plan)
{
    return 256 + aligned(weight) + (size_t)cudnn_room(problem, plan);
}

/* Where a call's weight (or its gradient) and cuDNN's workspace are. */
typedef struct places {
    void *weight, *workspace;
} places;

/* packed: the weight, or NULL: it is in scratch, which must be what was planned. */
static ym_status find_places(ym_context *context, const ym_conv *conv, ym_dtype dtype,
                             const cudnn_loan *loan, void *packed, places *found)
{
    const size_t weight = packed == NULL ? weight_bytes(conv, dtype) : 0;
    YM_TRY(cuda_require_scratch(context, "convolution",
                                scratch_bytes(weight, loan->problem, loan->plan)));
    char *scratch = (char *)aligned((size_t)context->scratch);
    found->weight = packed == NULL ? scratch : packed;
    found->workspace = scratch + aligned(weight);
    return YM_OK;
}

static cudnn_problem problem_of(ym_conv_pass pass, const ym_conv *conv,
                                const ym_tensor *x, const ym_tensor *y, bool accumulate)
{
    cudnn_problem made;
    memset(&made, 0, sizeof made);
    made.pass = (int32_t)pass;
    made.dtype = (int32_t)y->dtype;
    made.conv = *conv;
    made.n = x->n;
    made.h = x->h;
    made.w = x->w;
    made.oh = y->h;
    made.ow = y->w;
    made.accumulate = accumulate;
    const cudnn_settings settings = cudnn_used();
    made.tf32 = y->dtype == YM_F32 && settings.tf32;
    made.trials = settings.trials;
    return made;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t bytes_of(ym_conv_pass pass, const ym_conv *conv, const ym_tensor *x,
                       const ym_tensor *y, bool accumulate)
{
    const cudnn_problem problem = problem_of(pass, conv, x, y, accumulate);
    cudnn_plan plan;
    if (!cudnn_ask(&problem, &plan)) {
        return cuda_plain_conv_scratch_bytes(pass, conv, x, y);
    }
    const bool is_packed = pass != YM_CONV_BACKWARD_WEIGHT && y->dtype != YM_F32;
    return scratch_bytes(is_packed ? 0 : weight_bytes(conv, y->dtype), &problem, &plan);
}

static bool has_engine(ym_conv_pass pass, const ym_conv *conv, const ym_tensor *x,
                       const ym_tensor *y)
{
    const cudnn_problem problem = problem_of(pass, conv, x, y, false);
    cudnn_plan plan;
    return cudnn_ask(&problem, &plan);
}

size_t cudnn_packed_weight_bytes(const ym_conv *conv, const ym_tensor *x,
                                 const ym_tensor *y)
{
    const bool wanted = y->dtype != YM_F32 &&
                        (has_engine(YM_CONV_FORWARD, conv, x, y) ||
                         has_engine(YM_CONV_BACKWARD_DATA, conv, x, y));
    return wanted ? weight_bytes(conv, y->dtype) : 0;
}

/* A planner does not say whether dx is added to, so there is room for both. */
size_t cudnn_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                                const ym_tensor *x, const ym_tensor *y)
{
    size_t bytes = bytes_of(pass, conv, x, y, false);
    if (pass == YM_CONV_BACKWARD_DATA) {
        bytes = larger(bytes, bytes_of(pass, conv, x, y, true));
    }
    return pass == YM_CONV_BACKWARD_WEIGHT ? larger(bytes, cuda_bias_scratch_bytes(y))
                                           : bytes;
}

/* What a convolution runs on. */
typedef struct operands {
    const places *at;
    void *x, *y;
} operands;

static ym_status run_plan(ym_context *context, const cudnn_loan *loan,
                          const cudnn_plan *plan, const void *what)
{
    const cudnn_library *l = loan->library;
    const operands *on = what;
    const int64_t id[3] = {CUDNN_ID_X, CUDNN_ID_W, CUDNN_ID_Y};
    void *data[3] = {on->x, on->at->weight, on->y};
    cudnn_descriptor pack = NULL;
    int status = l->create_descriptor(CUDNN_VARIANT_PACK_KIND, &pack);
    if (status == 0) {
        status = l->set_attribute(pack, CUDNN_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                                  3, id);
    }
    if (status == 0) {
        status = l->set_attribute(pack, CUDNN_VARIANT_PACK_DATA_POINTERS,
                                  CUDNN_TYPE_VOID_PTR, 3, data);
    }
    if (status == 0) {
        status = l->set_attribute(pack, CUDNN_VARIANT_PACK_WORKSPACE,
                                  CUDNN_TYPE_VOID_PTR, 1, &on->at->workspace);
    }
    if (status == 0) {
        status = l->finalize(pack);
    }
    if (status == 0) {
        status = l->set_stream(loan->handle, context->stream);
    }
    if (status == 0) {
        status = l->execute(loan->handle, plan->descriptor, pack);
    }
    if (pack != NULL) {
        l->destroy_descriptor(pack);
    }
    char call[64] = "";
    if (status != 0) {
        snprintf(call, sizeof call, "cudnnBackendExecute (convolution, engine %d)",
                 (int)plan->engine);
    }
    return cudnn_check(l, status, call, &context->error);
}

static ym_status execute(ym_context *context, const cudnn_loan *loan, const places *at,
                         void *x, void *y)
{
    YM_CHECK(
        &context->error, ((uintptr_t)x | (uintptr_t)y) % 16 == 0, YM_ERR_ARGUMENT,
        "cuda: convolution: a tensor's memory starts at %p or %p, must be aligned to "
        "16 bytes",
        x, y);
    const operands on = {at, x, y};
    cudnn_try_engines(context, loan, run_plan, &on);
    return run_plan(context, loan, loan->plan, &on);
}

/* One call on its device, by the plan of its problem. */
typedef struct visit {
    cudnn_loan loan;
    int previous; /* the device to go back to */
} visit;

/* Only after YM_OK to be ended. */
static ym_status begin(ym_context *context, ym_conv_pass pass, const ym_conv *conv,
                       const ym_tensor *x, const ym_tensor *y, bool accumulate,
                       visit *made)
{
    made->previous = cuda_enter_device(context);
    const cudnn_problem problem = problem_of(pass, conv, x, y, accumulate);
    const ym_status status = cudnn_borrow(context, &problem, &made->loan);
    if (status != YM_OK) {
        cuda_leave_device(made->previous);
    }
    return status;
}

static ym_status end(const visit *ended, ym_status status)
{
    cudnn_give_back(&ended->loan);
    cuda_leave_device(ended->previous);
    return status;
}

static bool lacks_bf16(int device)
{
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) !=
        cudaSuccess) {
        cudaGetLastError(); /* so that the next call starts clean */
        return false;
    }
    return major < 8;
}

/* Whether our own kernels have to do it. */
static ym_status is_plain(ym_context *context, const cudnn_loan *loan, bool *plain)
{
    const cudnn_problem *p = loan->problem;
    *plain = loan->plan->descriptor == NULL;
    if (!*plain || p->dtype != YM_BF16) {
        return YM_OK;
    }
    YM_CHECK(&context->error, !lacks_bf16(loan->device), YM_ERR_UNSUPPORTED,
             "cuda: convolution: cuDNN has no bfloat16 on this GPU (compute capability "
             "below 8.0): use float16");
    return ym_fail(&context->error, YM_ERR_UNSUPPORTED,
                   "cuda: convolution: cuDNN has no engine for bfloat16 with %d to %d "
                   "channels, kernel %dx%d, %d groups: use float16, or backend "
                   "'cuda:plain'",
                   p->conv.c, p->conv.k, p->conv.r, p->conv.s, p->conv.groups);
}

/* As find_places; a weight that is not packed yet is packed there. */
static ym_status place_weight(ym_context *context, const ym_conv *conv,
                              const ym_weight *w, ym_dtype dtype,
                              const cudnn_loan *loan, places *found)
{
    YM_TRY(find_places(context, conv, dtype, loan, w->packed, found));
    if (w->packed != NULL) {
        return YM_OK;
    }
    ym_weight packed = *w;
    packed.packed = found->weight;
    return cuda_pack_weights(context, &packed, 1, dtype);
}

static ym_status forward(ym_context *context, const cudnn_loan *loan,
                         const ym_conv *conv, const ym_tensor *x, const ym_weight *w,
                         const float *bias, ym_tensor *y)
{
    bool plain;
    YM_TRY(is_plain(context, loan, &plain));
    if (plain) {
        return cuda_plain_conv_forward(context, conv, x, w, bias, y);
    }
    places at;
    YM_TRY(place_weight(context, conv, w, y->dtype, loan, &at));
    YM_TRY(execute(context, loan, &at, x->data, y->data));
    return bias != NULL ? cuda_add_bias(context, bias, y) : YM_OK;
}

static ym_status backward_data(ym_context *context, const cudnn_loan *loan,
                               const ym_conv *conv, const ym_tensor *dy,
                               const ym_weight *w, ym_tensor *dx, bool accumulate)
{
    bool plain;
    YM_TRY(is_plain(context, loan, &plain));
    if (plain) {
        return cuda_plain_conv_backward_data(context, conv, dy, w, dx, accumulate);
    }
    places at;
    YM_TRY(place_weight(context, conv, w, dy->dtype, loan, &at));
    return execute(context, loan, &at, dx->data, dy->data);
}

static ym_status backward_weight(ym_context *context, const cudnn_loan *loan,
                                 const ym_conv *conv, const ym_tensor *x,
                                 const ym_tensor *dy, ym_weight *dw, bool accumulate)
{
    bool plain;
    YM_TRY(is_plain(context, loan, &plain));
    if (plain) {
        return cuda_plain_conv_backward_weight(context, conv, x, dy, dw, accumulate,
                                               NULL, false);
    }
    places at;
    YM_TRY(find_places(context, conv, dy->dtype, loan, NULL, &at));
    YM_TRY(execute(context, loan, &at, x->data, dy->data));
    return cuda_unpack_weight(context, at.weight, dy->dtype, dw, accumulate);
}

ym_status cudnn_conv_forward(ym_context *context, const ym_conv *conv,
                             const ym_tensor *x, const ym_weight *w, const float *bias,
                             ym_tensor *y)
{
    visit v;
    YM_TRY(begin(context, YM_CONV_FORWARD, conv, x, y, false, &v));
    return end(&v, forward(context, &v.loan, conv, x, w, bias, y));
}

ym_status cudnn_conv_backward_data(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *dy, const ym_weight *w,
                                   ym_tensor *dx, bool accumulate)
{
    visit v;
    YM_TRY(begin(context, YM_CONV_BACKWARD_DATA, conv, dx, dy, accumulate, &v));
    return end(&v, backward_data(context, &v.loan, conv, dy, w, dx, accumulate));
}

ym_status cudnn_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                     const ym_tensor *x, const ym_tensor *dy,
                                     ym_weight *dw, bool accumulate_dw, float *dbias,
                                     bool accumulate_dbias)
{
    if (dw->data != NULL) {
        visit v;
        YM_TRY(begin(context, YM_CONV_BACKWARD_WEIGHT, conv, x, dy, false, &v));
        YM_TRY(
            end(&v, backward_weight(context, &v.loan, conv, x, dy, dw, accumulate_dw)));
    }
    return dbias != NULL ? cuda_bias_gradient(context, dy, dbias, accumulate_dbias)
                         : YM_OK;
}
