/* SPDX-License-Identifier: MIT
 *
 * The sums of a brick's backward, and what is made of them.
 */
#ifndef YM_CUDA_BRICK_SUMS_CUH
#define YM_CUDA_BRICK_SUMS_CUH

#include "cuda/launch.cuh"

/* Sum number i of each channel: where it goes and what else is made of it. */
struct cuda_sums_output {
    float *mean[3]; /* the sum over M, for the second pass; times rstd^2 but for 0 */
    const float *rstd[3]; /* NULL: 1 */
    float *gradient[4]; /* dbeta of each term, dgamma of each term; NULL: not wanted */
    bool accumulate[4]; /* to each gradient */
    double *shared;     /* the sums, and the number of pixels, for others; NULL: none */
    double pixels;
};

struct cuda_brick_call {
    const ym_brick *brick;
    const ym_tensor *dout;
    bool wide;
};

/* Queues the sums over the pixels; context->scratch holds the partial ones first. */
ym_status cuda_launch_brick_sums(ym_context *context, const cuda_brick_call &call,
                                 const cuda_sums_output &out);

/* Queues what makes the means of the sums of all processes. */
ym_status cuda_share_brick_sums(ym_context *context, const cuda_brick_call &call,
                                const ym_sharing *sharing,
                                const cuda_sums_output &sums);

#endif
