/* SPDX-License-Identifier: MIT
 *
 * Choice of a plan: the user's keep rule becomes the flags of what is kept and the
 * patience with rebuilt values, by trying candidates and looking at their memory.
 */
#ifndef YM_CORE_CHOOSE_H
#define YM_CORE_CHOOSE_H

#include "core/backward.h"

typedef struct ym_choice {
    bool *keep;
    int32_t patience;
} ym_choice;

ym_status ym_choose(ym_program *program, const ym_plan_request *request,
                    ym_choice *choice, ym_error *error);

#endif
