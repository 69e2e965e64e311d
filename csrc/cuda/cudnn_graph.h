/* SPDX-License-Identifier: MIT
 *
 * The descriptors that say to cuDNN what a convolution is, and of which it makes lists
 * of configurations.
 */
#ifndef YM_CUDA_CUDNN_GRAPH_H
#define YM_CUDA_CUDNN_GRAPH_H

#include "cuda/cudnn_plan.h"

#define CUDNN_CONFIGS 64 /* of one list, at most */

/* All descriptors of one problem; cleared together. */
typedef struct cudnn_workbench {
    const cudnn_target *target;
    const cudnn_library *library;
    ym_error *error;
    cudnn_descriptor tensor[3]; /* by number - 1 */
    cudnn_descriptor convolution, operation, graph, heuristics;
    cudnn_descriptor config[CUDNN_CONFIGS];
    int failure; /* the last status that is not "not supported" */
} cudnn_workbench;

/* Makes everything up to the graph. */
ym_status cudnn_describe(cudnn_workbench *b, const cudnn_problem *p);
void cudnn_clear(cudnn_workbench *b);

ym_status cudnn_create(cudnn_workbench *b, int kind, cudnn_descriptor *made);
ym_status cudnn_set(cudnn_workbench *b, cudnn_descriptor d, int name, int type,
                    int64_t count, const void *values);
ym_status cudnn_finish(cudnn_workbench *b, cudnn_descriptor d, const char *what);
void cudnn_destroy(const cudnn_library *library, cudnn_descriptor *d);

#endif
