/* SPDX-License-Identifier: MIT
 * The entries `sgd_norm` and `sgd_step` of backend "ref".
 */
#ifndef YM_REF_SGD_H
#define YM_REF_SGD_H

#include "core/backend.h"

ym_status ref_sgd_norm(ym_context *context, struct ym_sgd_job *job);
ym_status ref_sgd_step(ym_context *context, struct ym_sgd_job *job);

#endif
