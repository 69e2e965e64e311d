/* SPDX-License-Identifier: MIT
 *
 * Convolutions of many small groups, depthwise ones above all, lane by lane. A group's
 * few output channels would leave most lanes of a vector empty; here neighbouring
 * groups share a vector, and each lane has input channels of its own: those of its
 * group, which a panel has side by side in the order of the lanes.
 */
#ifndef YM_CPU_BY_LANE_H
#define YM_CPU_BY_LANE_H

#include "cpu/padded_row.h"

enum {
    CPU_LANE_INPUTS = 8, /* of a group at most: each has its own vector in a panel */
    CPU_LANE_COLUMNS = 2 * 16, /* of a block at most */
};

/* Whether groups of in_count and out_count channels are summed lane by lane: where a
 * vector would have at most two lanes of a group, which costs more than laying out the
 * inputs of each lane. */
bool cpu_fits_lanes(int32_t groups, int32_t in_count, int32_t out_count);

/* One block of lanes: `columns` output channels, zeros up to `width`. Input i of lane j
 * is channel first + from[i * width + j]. */
typedef struct cpu_lane_block {
    int32_t in_count, columns, width;
    int32_t first, span; /* the input channels of all lanes */
    bool same;           /* one input a lane, in the lanes' order */
    int32_t from[CPU_LANE_INPUTS * CPU_LANE_COLUMNS];
} cpu_lane_block;

/* The block of output channels [channel, channel + columns) of groups as above. */
void cpu_lane_block_of(int32_t in_count, int32_t out_count, int32_t channel,
                       int32_t columns, cpu_lane_block *block);

/* Into (pixel, input, lane). */
void cpu_load_lane_row(const ym_tensor *x, const cpu_lane_block *block,
                       const cpu_image_row *row, float *to);

/* The weight gradient (conv_weight.c), lane by lane. */
size_t cpu_lane_weight_scratch_bytes(const ym_conv *conv, const ym_tensor *dy);
ym_status cpu_lane_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate);

#endif
