/* SPDX-License-Identifier: MIT
 *
 * Copies, sums in place and zeros.
 */
#include "ref/ref.h"

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
