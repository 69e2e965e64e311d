/* SPDX-License-Identifier: MIT
 *
 * Launches through one macro, so that the same file is compiled by nvcc and, for tests
 * without a GPU, by the host compiler (csrc/emulation). A kernel with template
 * arguments is put in parentheses.
 */
#ifndef YM_CUDA_LAUNCH_CUH
#define YM_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "cuda/cuda.h"

#ifdef YM_EMULATION
#define YM_LAUNCH(kernel, grid, block, context, ...)                           \
    ym_emulation_launch(#kernel, grid, block, (cudaStream_t)(context)->stream, \
                        std::bind(kernel, __VA_ARGS__))
#else
#define YM_LAUNCH(kernel, grid, block, context, ...) \
    kernel<<<grid, block, 0, (cudaStream_t)(context)->stream>>>(__VA_ARGS__)
#endif

/* The context's device is current while this lives. */
class cuda_device_guard
{
  public:
    explicit cuda_device_guard(const ym_context *context)
        : previous_(cuda_enter_device(context))
    {
    }
    ~cuda_device_guard()
    {
        cuda_leave_device(previous_);
    }
    cuda_device_guard(const cuda_device_guard &) = delete;
    cuda_device_guard &operator=(const cuda_device_guard &) = delete;

  private:
    int previous_;
};

#endif
