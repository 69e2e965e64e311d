/* SPDX-License-Identifier: MIT */
#ifndef YM_CPU_ENVIRONMENT_H
#define YM_CPU_ENVIRONMENT_H

#include "core/status.h"

/* Refuses values of YOLOV9MEM_NUM_THREADS and YOLOV9MEM_ISA that say nothing; unset and
 * empty ones are fine. OMP_NUM_THREADS is others' too, and read as far as it goes. */
ym_status cpu_check_environment(ym_error *error);

#endif
