/* SPDX-License-Identifier: MIT
 *
 * Recomputed outputs: the caller may let go of an output that it needs once more in
 * backward, and have it rebuilt then from what forward kept, where that takes no
 * convolution and no input.
 */
#ifndef YM_CORE_RECOMPUTE_H
#define YM_CORE_RECOMPUTE_H

#include "core/forward.h"

/* The steps that write the output once more, which is at the same address as in forward
 * or elsewhere; its workspace lies beside that of backward. *made is NULL where it
 * can't be made so. */
ym_status ym_recompute_create(const ym_program *program, const ym_backend *backend,
                              const ym_forward *forward, int32_t output,
                              ym_schedule **made, ym_error *error);

#endif
