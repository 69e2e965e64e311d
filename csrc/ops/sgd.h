/* SPDX-License-Identifier: MIT
 * What every backend's optimizer step shares: the checks and the division into tasks.
 */
#ifndef YM_OPS_SGD_H
#define YM_OPS_SGD_H

#include "core/sgd.h"

/* Bytes of scratch that ym_sgd_check and ym_sgd_divide need for the job's tensors. */
size_t ym_sgd_scratch_bytes(const ym_sgd_job *job);

/* Counts, groups, alignment, hyper-parameters; and that no two arrays overlap. Uses
 * scratch only during the call. */
ym_status ym_sgd_check(const ym_sgd_job *job, void *scratch, ym_error *error);

/* Fills span, task_first and partial with parts of scratch, which the job then holds.
 */
void ym_sgd_divide(ym_sgd_job *job, void *scratch);

/* Adds up `partial` in a fixed order. */
double ym_sgd_total(const ym_sgd_job *job);

#endif
