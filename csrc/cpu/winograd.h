/* SPDX-License-Identifier: MIT
 *
 * Correlation with a 3 x 3 kernel by Winograd's minimal filtering F(2 x 2, 3 x 3)
 * (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016): 16
 * products for 4 outputs instead of 36. In float its rounding error is near that of the
 * plain sum; higher orders, whose error is not, are not used.
 */
#ifndef YM_CPU_WINOGRAD_H
#define YM_CPU_WINOGRAD_H

#include "cpu/correlate.h"

enum { CPU_WINOGRAD_POINTS = 16 };

/* Whether c is a correlation that this can do, and faster. */
bool cpu_winograd_fits(const cpu_correlation *c);

/* As cpu_packed_floats: of the weights, per group and block of output channels (point,
 * in_count, block); or of the inputs, where those are fewer (winograd.c). */
int64_t cpu_winograd_weight_floats(const cpu_correlation *c);

/* As its namesake in correlate.h; nothing where c->weights are the inputs. */
void cpu_winograd_pack(const cpu_correlation *c);

/* One block, (point, in_count, block). */
void cpu_winograd_pack_block(const cpu_correlation *c, int32_t group, int32_t block,
                             float *to);

/* Whether c->weights are the inputs. */
bool cpu_winograd_keeps_inputs(const cpu_correlation *c);

/* As their namesakes in correlate.h. */
int64_t cpu_winograd_panel_floats(const cpu_correlation *c);
int32_t cpu_winograd_tasks(const cpu_correlation *c);
void cpu_winograd(const cpu_correlation *c, float *panels, int64_t panel_floats,
                  int32_t threads);

#endif
