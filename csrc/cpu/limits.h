/* SPDX-License-Identifier: MIT */
#ifndef YM_CPU_LIMITS_H
#define YM_CPU_LIMITS_H

#include <stdint.h>

/* CPUs that this process may use, at least 1: the affinity mask, what the quotas of its
 * control groups (v1 and v2) are worth, rounded up, and YOLOV9MEM_NUM_THREADS, else
 * `usual`, else, if that is 0, OMP_NUM_THREADS. root: "", or a folder with another
 * /proc and /sys. */
int32_t cpu_limit_threads(const char *root, int32_t usual);

#endif
