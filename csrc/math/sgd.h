/* SPDX-License-Identifier: MIT
 *
 * The update of one element, bit for bit as torch.optim.SGD's for-loop does it on the
 * CPU: `add(alpha)` is one fused multiply-add, `mul` is rounded by itself. The moving
 * average is YOLOv9's `v *= d; v += (1 - d) * m`: three roundings, nothing fused.
 * Compile with -ffp-contract=off.
 */
#ifndef YM_MATH_SGD_H
#define YM_MATH_SGD_H

#include <math.h>

#include "math/function.h"

YM_MATH float ym_sgd_unscale(float g, float inverse_scale, float clip)
{
    return g * inverse_scale * clip;
}

YM_MATH float ym_sgd_weight_decay(float g, float p, float weight_decay)
{
    return fmaf(p, weight_decay, g);
}

YM_MATH float ym_sgd_momentum(float buffer, float g, float momentum,
                              float gradient_weight)
{
    return fmaf(g, gradient_weight, buffer * momentum);
}

YM_MATH float ym_sgd_nesterov(float g, float buffer, float momentum)
{
    return fmaf(buffer, momentum, g);
}

YM_MATH float ym_sgd_descend(float p, float g, float minus_lr)
{
    return fmaf(g, minus_lr, p);
}

YM_MATH float ym_sgd_average(float ema, float p, float decay, float weight)
{
    return ema * decay + p * weight;
}

#endif
