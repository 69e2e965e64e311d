/* SPDX-License-Identifier: MIT
 *
 * Planes to pixels.
 */
#include "ref/ref.h"

ym_status ref_pack_planes(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    const int64_t plane = (int64_t)y->h * y->w;
    for (int64_t p = 0; p < ym_pixels(y); p++) {
        for (int32_t c = 0; c < y->c; c++) {
            const int64_t from = (p / plane * y->c + c) * plane + p % plane;
            ref_store(y, p * y->pitch + c, ref_load(x, from));
        }
    }
    return YM_OK;
}
