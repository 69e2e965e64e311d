/* SPDX-License-Identifier: MIT
 * Work that is repeated as a CUDA graph.
 */
#ifndef YM_CUDA_REPLAY_H
#define YM_CUDA_REPLAY_H

#include "cuda/cuda.h"

ym_replayer *cuda_make_replayer(void);

#endif
