/* SPDX-License-Identifier: MIT
 *
 * The plain table behind the rules of the cuDNN one: convolutions take packed tensors
 * only and refuse others, so a planner that does not pack is found out; and a weight of
 * 16 bits is read where pack_weights left it.
 */
#include "cuda/cuda.h"
#include "cuda/weight.h"

#include <stdlib.h>

static size_t packed_weight_bytes(const ym_conv *conv, const ym_tensor *x,
                                  const ym_tensor *y)
{
    (void)x;
    const size_t each = y->dtype == YM_F32 ? 0 : ym_dtype_bytes(y->dtype);
    return each * (size_t)conv->k * (size_t)(conv->c / conv->groups) *
           (size_t)(conv->r * conv->s);
}

/* The packed weight in float32 memory of its own, which the caller frees; of float32
 * values *w as it is. */
static ym_status unpack(ym_context *context, const ym_weight *w, ym_dtype dtype,
                        ym_weight *made)
{
    *made = *w;
    made->packed = NULL;
    if (dtype == YM_F32) {
        return YM_OK;
    }
    YM_CHECK(&context->error, w->packed != NULL, YM_ERR_ARGUMENT,
             "the weight is not packed");
    made->stride_c = 1;
    made->stride_s = w->c;
    made->stride_r = (int64_t)w->c * w->s;
    made->stride_k = made->stride_r * w->r;
    made->data = malloc((size_t)(made->stride_k * w->k) * sizeof *made->data);
    YM_CHECK(&context->error, made->data != NULL, YM_ERR_MEMORY, "no memory");
    made->packed = made->data;
    return cuda_unpack_weight(context, w->packed, dtype, made, false);
}

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
    ym_weight rounded;
    ym_status status = unpack(context, w, y->dtype, &rounded);
    if (status == YM_OK) {
        status = cuda_plain_conv_forward(context, conv, x, &rounded, bias, y);
    }
    free(rounded.packed);
    return status;
}

static ym_status backward_data(ym_context *context, const ym_conv *conv,
                               const ym_tensor *dy, const ym_weight *w, ym_tensor *dx,
                               bool accumulate)
{
    YM_TRY(require_packed(context, "dy", dy));
    YM_TRY(require_packed(context, "dx", dx));
    ym_weight rounded;
    ym_status status = unpack(context, w, dy->dtype, &rounded);
    if (status == YM_OK) {
        status =
            cuda_plain_conv_backward_data(context, conv, dy, &rounded, dx, accumulate);
    }
    free(rounded.packed);
    return status;
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
    backend.packed_weight_bytes = packed_weight_bytes;
    backend.pack_weights = cuda_pack_weights;
    backend.conv_forward = forward;
    backend.conv_backward_data = backward_data;
    backend.conv_backward_weight = backward_weight;
    return &backend;
}
