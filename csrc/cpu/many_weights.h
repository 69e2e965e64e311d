/* SPDX-License-Identifier: MIT
 *
 * The weight gradient (conv_weight.c) where weights outnumber the pixels, as in the
 * last stages of a network and in small batches.
 */
#ifndef YM_CPU_MANY_WEIGHTS_H
#define YM_CPU_MANY_WEIGHTS_H

#include "cpu/cpu.h"

/* Whether a group of x has fewer elements than the group's weights, and all pixels of
 * dy are few enough for one visit. */
bool cpu_many_weights(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy);

/* As cpu_conv_weight_scratch_bytes and cpu_conv_backward_weight. */
size_t cpu_many_weights_scratch_bytes(const ym_conv *conv, const ym_tensor *x,
                                      const ym_tensor *dy);
ym_status cpu_many_weights_backward_weight(ym_context *context, const ym_conv *conv,
                                           const ym_tensor *x, const ym_tensor *dy,
                                           ym_weight *dw, bool accumulate);

#endif
