/* SPDX-License-Identifier: MIT
 *
 * The GPU's own approximations, one instruction each, which miss a bit or two;
 * denormals that they read or make are 0 (PTX ISA: .approx.ftz). The emulation's are
 * exact but for that.
 */
#ifndef YM_CUDA_APPROXIMATE_CUH
#define YM_CUDA_APPROXIMATE_CUH

#include <float.h>
#include <math.h>

#include "cuda/launch.cuh"

#ifdef __CUDA_ARCH__
#define YM_APPROXIMATE(instruction, exact) \
    float made;                            \
    asm(instruction ".approx.ftz.f32 %0, %1;" : "=f"(made) : "f"(x));
#else
static inline float cuda_without_denormals(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}
#define YM_APPROXIMATE(instruction, exact) \
    x = cuda_without_denormals(x);         \
    const float made = cuda_without_denormals(exact);
#endif

static __device__ __forceinline__ float cuda_power_of_two(float x)
{
    YM_APPROXIMATE("ex2", exp2f(x))
    return made;
}

static __device__ __forceinline__ float cuda_inverse(float x)
{
    YM_APPROXIMATE("rcp", 1.0f / x)
    return made;
}

static __device__ __forceinline__ float cuda_inverse_root(float x)
{
    YM_APPROXIMATE("rsqrt", 1.0f / sqrtf(x))
    return made;
}

#endif
