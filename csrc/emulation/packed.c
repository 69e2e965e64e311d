/* SPDX-License-Identifier: MIT
 *
 * The plain table behind the rules of the cuDNN one: convolutions take packed tensors
 * only and refuse others, so a planner that does not pack is found out.
 */
#include "cuda/cuda.h"

static ym_status require_packed(ym_context *context, const char *what,
                                const ym_tensor *x)
{
    YM_CHECK(&context->error, x->data == NULL || x->pitch == x->c, YM_ERR_ARGUMENT,
             "%s has pitch %lld and %d channels, must be packed", what,
             (long long)x->pitch, x->c);
    return YM_OK;
}

static ym_status forward(ym_context *context, const ym_conv *conv, const ym_tensor *x,
                         const ym_weight *w, const float *bias, ym_tensor *y)
{
    YM_TRY(require_packed(context, "x", x));
    YM_TRY(require_packed(context, "y", y));
    return cuda_plain_conv_forward(context, conv, x, w, bias, y);
}

static ym_status backward_data(ym_context *context, const ym_conv *conv,
                               const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                               bool accumulate)
{
    YM_TRY(require_packed(context, "dy", dy));
    YM_TRY(require_packed(context, "dx", dx));
    return cuda_plain_conv_backward_data(context, conv, dy, w, dx, accumulate);
}

static ym_status backward_weight(ym_context *context, const ym_conv *conv,
                                 const ym_tensor *x, const ym_tensor *dy, ym_weight *dw,
                                 bool accumulate_dw, float *dbias,
                                 bool accumulate_dbias)
{
    YM_TRY(require_packed(context, "x", x));
    YM_TRY(require_packed(context, "dy", dy));
    return cuda_plain_conv_backward_weight(context, conv, x, dy, dw, accumulate_dw,
                                           dbias, accumulate_dbias);
}

const ym_backend *ym_emulation_packed_backend(void);
const ym_backend *ym_emulation_packed_backend(void)
{
    static ym_backend backend;
    backend = *ym_cuda_plain_backend();
    backend.capabilities = 0;
    backend.conv_forward = forward;
    backend.conv_backward_data = backward_data;
    backend.conv_backward_weight = backward_weight;
    return &backend;
}
