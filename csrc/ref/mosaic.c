/* SPDX-License-Identifier: MIT
 *
 * image (3, H, W) <- scenes: the formulas of math/mosaic.h, a pixel at a time.
 */
#include "math/mosaic.h"
#include "ref/ref.h"

ym_status ref_mosaic(ym_context *context, const ym_mosaic_job *job)
{
    (void)context;
    for (int32_t y = 0; y < job->height; y++) {
        for (int32_t x = 0; x < job->width; x++) {
            ym_mosaic_put_pixel(job, x, y);
        }
    }
    return YM_OK;
}
