/* SPDX-License-Identifier: MIT
 *
 * Correlation of an image with packed weights: the engine under convolution's forward
 * and data gradient.
 *
 *     out(n, first_h + step_h t, first_w + step_w u, j) (+)= bias(j) +
 *         sum over taps (a, b) and channels i of
 *         in(n, h(t, a), w(u, b), i) weights(a, b, i, j)
 *
 * The data gradient of a strided convolution is one such sum per phase of its pixels.
 */
#ifndef YM_CPU_CORRELATE_H
#define YM_CPU_CORRELATE_H

#include "cpu/by_lane.h"

/* One image dimension; out_count is at least 1. Output t lies at pixel out_first +
 * out_step * t of `out`; tap a of it reads pixel in_step * t + tap_first + tap_step * a
 * of `in` (0 outside). */
typedef struct cpu_axis {
    int32_t out_count, out_first, out_step;
    int32_t in_step, tap_count, tap_first, tap_step;
    int32_t weight_first, weight_step; /* which row of the kernel tap a is */
} cpu_axis;

/* Where the weight of (group, input channel i, output channel j, tap) lies:
 * data[group * group_step + i * in_step + j * out_step + r * r_step + s * s_step]. */
typedef struct cpu_weight_view {
    const float *data;
    int64_t group_step, in_step, out_step, r_step, s_step;
} cpu_weight_view;

typedef struct cpu_correlation {
    cpu_axis h, w;
    ym_tensor in, out;
    int32_t groups, in_count, out_count; /* channels of one group */
    bool pairs;                          /* products of bf16 (cpu_pairs of in) */
    bool turned;                         /* h is the width, and w the height */
    bool winograd;                       /* what cpu_winograd_fits says */
    /* By lane (by_lane.h), if not 0: of each group; there is one "group" of in_count
     * inputs a lane and all output channels. */
    int32_t lane_outputs;
    cpu_weight_view view; /* of the weights */
    float *weights;       /* packed words, see cpu_pack; or points, see winograd.h */
    const float *bias;    /* groups * padded out_count, or NULL */
    bool accumulate;
} cpu_correlation;

/* Words of the channels of one pixel. */
static inline int32_t cpu_word_count(const cpu_correlation *c)
{
    return c->pairs ? (c->in_count + 1) / 2 : c->in_count;
}

/* Words of c->weights, where a kernel has `taps` taps in all. */
int64_t cpu_packed_floats(const cpu_correlation *c, int32_t taps);

/* Packs the weights of c's taps into c->weights: per group and block of 2 * lanes
 * output channels, (taps, words of in_count, block) with zeros after the last channel.
 * A word is a float, or the weights of two input channels rounded to bf16. */
void cpu_pack(const cpu_correlation *c);

/* Where the words of one block begin. */
float *cpu_packed_block(const cpu_correlation *c, int32_t group, int32_t block);

/* Floats that each thread needs beside the weights. */
int64_t cpu_correlate_panel_floats(const cpu_correlation *c);

/* How many tasks there are: more threads need no panel. */
int32_t cpu_correlate_tasks(const cpu_correlation *c);

/* Runs with `panel_floats` floats at `panels` for each of `threads` threads. */
void cpu_correlate(const cpu_correlation *c, float *panels, int64_t panel_floats,
                   int32_t threads);

#endif
