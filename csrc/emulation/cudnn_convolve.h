/* SPDX-License-Identifier: MIT
 * The convolutions of the emulated cuDNN.
 */
#ifndef YM_EMULATION_CUDNN_CONVOLVE_H
#define YM_EMULATION_CUDNN_CONVOLVE_H

#include <stdint.h>

struct ym_fake_convolution {
    int pass; /* kind of its operation */
    int type;
    int64_t x[4], w[4], y[4]; /* N, C, H, W; K, C / groups, R, S; N, K, H, W */
    int64_t pad[2], stride[2], dilation[2];
    float beta; /* alpha is 1 */
};

/* On packed channels-last memory, sums in double. What the pass writes is beta of what
 * is there and the rounded sum. */
void ym_fake_convolve(const ym_fake_convolution &c, void *x, void *w, void *y);

#endif
