/* SPDX-License-Identifier: MIT
 *
 * Nearest upsampling, copies and zeros. Row oh of the output is row
 * min((int)(oh * scale_h), H - 1) of the input, with the product in float as in torch.
 */
#include "ref/ref.h"

static int32_t nearest(int32_t o, float scale, int32_t size)
{
    int32_t i = (int32_t)((float)o * scale);
    return i < size - 1 ? i : size - 1;
}

ym_status ref_upsample_forward(ym_context *context, float scale_h, float scale_w,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    for (int64_t p = 0; p < ym_pixels(y); p++) {
        const int32_t n = (int32_t)(p / y->w / y->h);
        const int32_t h = nearest((int32_t)(p / y->w % y->h), scale_h, x->h);
        const int32_t w = nearest((int32_t)(p % y->w), scale_w, x->w);
        for (int32_t c = 0; c < y->c; c++) {
            ref_store(y, p * y->pitch + c, ref_load(x, ref_index(x, n, h, w, c)));
        }
    }
    return YM_OK;
}

ym_status ref_upsample_backward(ym_context *context, float scale_h, float scale_w,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ym_pixels(dx) * dx->c; i++) {
        const int64_t p = i / dx->c;
        const int32_t c = (int32_t)(i % dx->c), n = (int32_t)(p / dx->w / dx->h);
        const int32_t h = (int32_t)(p / dx->w % dx->h), w = (int32_t)(p % dx->w);
        double sum = 0.0;
        for (int32_t oh = 0; oh < dy->h; oh++) {
            for (int32_t ow = 0; nearest(oh, scale_h, dx->h) == h && ow < dy->w; ow++) {
                if (nearest(ow, scale_w, dx->w) == w) {
                    sum += ref_load(dy, ref_index(dy, n, oh, ow, c));
                }
            }
        }
        ref_put(dx, p * dx->pitch + c, sum, accumulate);
    }
    return YM_OK;
}

ym_status ref_copy(ym_context *context, const ym_tensor *x, ym_tensor *y,
                   bool accumulate)
{
    (void)context;
    for (int64_t p = 0; p < ym_pixels(y); p++) {
        for (int32_t c = 0; c < y->c; c++) {
            ref_put(y, p * y->pitch + c, ref_load(x, p * x->pitch + c), accumulate);
        }
    }
    return YM_OK;
}

ym_status ref_fill_zero(ym_context *context, ym_tensor *y)
{
    (void)context;
    for (int64_t p = 0; p < ym_pixels(y); p++) {
        for (int32_t c = 0; c < y->c; c++) {
            ref_store(y, p * y->pitch + c, 0.0);
        }
    }
    return YM_OK;
}
