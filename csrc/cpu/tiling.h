/* SPDX-License-Identifier: MIT
 *
 * How the outputs of a correlation are cut into tiles, and what a tile's panel holds.
 */
#ifndef YM_CPU_TILING_H
#define YM_CPU_TILING_H

#include "cpu/correlate.h"

/* The sizes of tiles and panel, at least 1: spans are 0 where there are no taps. */
typedef struct cpu_tiling {
    int32_t tiles_h, tiles_w; /* per image */
    int32_t span_h, span_w;   /* panel pixels for the largest tile */
    bool apart_h, apart_w;    /* each tap has its own panel pixels: (tap, output) */
    bool direct;
} cpu_tiling;

/* Taps [first, end) of an axis. */
typedef struct cpu_taps {
    int32_t first, end;
} cpu_taps;

/* How many panels of the same pixels: one a group, or by lane one a block. */
int32_t cpu_panel_count(const cpu_correlation *c);

/* Words of a pixel in the widest of them. */
int32_t cpu_panel_words(const cpu_correlation *c);

/* Panel pixels for `count` outputs. */
int32_t cpu_span(const cpu_axis *axis, bool apart, int32_t count);

cpu_tiling cpu_tiling_of(const cpu_correlation *c);

/* The taps that outputs [from, to) need of a side of `size` pixels: all, or if apart
 * those with a pixel of the image. */
cpu_taps cpu_taps_of(const cpu_axis *axis, bool apart, int32_t from, int32_t to,
                     int32_t size);

#endif
