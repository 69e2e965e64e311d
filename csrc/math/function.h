/* SPDX-License-Identifier: MIT
 *
 * How the formulas of this folder are declared: for C, and for CUDA's host and device.
 */
#ifndef YM_MATH_FUNCTION_H
#define YM_MATH_FUNCTION_H

#ifdef __CUDACC__
#define YM_MATH static inline __host__ __device__
#else
#define YM_MATH static inline
#endif

#endif
