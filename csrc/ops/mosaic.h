/* SPDX-License-Identifier: MIT
 * What every backend's mosaic shares: the inverse matrix and the checks.
 */
#ifndef YM_OPS_MOSAIC_H
#define YM_OPS_MOSAIC_H

#include "core/mosaic.h"

/* Fills scene->inverse from the forward matrix (canvas -> image, 3x3, row by row) by
 * OpenCV's formulas, in their order. A singular matrix gives zeros, as there. */
void ym_scene_invert(ym_scene *scene, const double forward[9]);

/* Sizes, tiles on the canvas, finite numbers, the look-up tables' range. */
ym_status ym_mosaic_check(const ym_mosaic_job *job, ym_error *error);

#endif
