/* SPDX-License-Identifier: MIT
 * Between graph and program: which calls become one item.
 */
#ifndef YM_CORE_FUSE_H
#define YM_CORE_FUSE_H

#include "core/program.h"

/* Fills items, norm calls and outputs of a program whose arrays are allocated. */
ym_status ym_fuse(ym_program *program, const ym_plan_request *request, ym_error *error);

/* program.c: N, H, W of one item from those of its operands. */
ym_status ym_size_item(ym_program *program, const ym_node *node, ym_item *item,
                       ym_error *error);

#endif
