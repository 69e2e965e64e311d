/* SPDX-License-Identifier: MIT
 * How large the structs are that tests mirror with ctypes.
 */
#include "core/backend.h"
#include "core/mosaic.h"
#include "core/sgd.h"
#include "cuda/cudnn_plan.h"
#include "cuda/sgd.h"

#include <string.h>

#define SIZE(name) {#name, sizeof(name)}

static const struct {
    const char *name;
    size_t bytes;
} sizes[] = {
    SIZE(ym_tensor),        SIZE(ym_weight),     SIZE(ym_conv),
    SIZE(ym_norm),          SIZE(ym_term),       SIZE(ym_activation),
    SIZE(ym_brick),         SIZE(ym_pool),       SIZE(ym_resize),
    SIZE(ym_term_gradient), SIZE(ym_context),    SIZE(ym_tile),
    SIZE(ym_scene),         SIZE(ym_mosaic_job), SIZE(ym_sgd_tensor),
    SIZE(ym_sgd_group),     SIZE(cudnn_problem), SIZE(cudnn_plan),
    SIZE(cuda_sgd_table),   SIZE(cuda_sgd_call),
};

size_t ym_emulation_size_of(const char *structure)
{
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (strcmp(sizes[i].name, structure) == 0) {
            return sizes[i].bytes;
        }
    }
    return 0;
}
