/* SPDX-License-Identifier: MIT
 * What an item computes, in the words of the graph's calls: for tables and messages.
 */
#include "core/program.h"

#include <stdio.h>
#include <string.h>

static void append(char text[YM_OP_ROOM], const char *word)
{
    const size_t used = strlen(text);
    snprintf(text + used, YM_OP_ROOM - used, "%s%s", used > 0 ? "+" : "", word);
}

/* In the order in which they are computed; what both terms have is said once. */
static void write_brick(const ym_program *p, const ym_item *item, char text[YM_OP_ROOM])
{
    bool has_norm = false, has_affine = false;
    for (int32_t t = 0; t < item->u.brick.term_count; t++) {
        const int32_t call = item->u.brick.norm_call[t];
        const bool is_constant = call >= 0 && ym_norm_of(p, call)->is_constant;
        has_affine = has_affine || is_constant;
        has_norm = has_norm || (call >= 0 && !is_constant);
    }
    if (has_norm) {
        append(text, "batch_norm");
    }
    if (has_affine) {
        append(text, "affine");
    }
    if (item->u.brick.term_count == 2) {
        append(text, "add");
    }
    const ym_activation_kind kind = item->u.brick.activation.kind;
    if (kind != YM_IDENTITY || text[0] == '\0') {
        append(text, ym_activation_name(kind));
    }
    if (item->u.brick.has_residual) {
        append(text, "add");
    }
}

const char *ym_item_op(const ym_program *p, const ym_item *item, char text[YM_OP_ROOM])
{
    static const char *const names[] = {"input",    "conv",     "",         "concat",
                                        "slice",    "max_pool", "avg_pool", "upsample",
                                        "multiply", "mean",     "maximum"};
    const bool is_adjoint = item->kind == YM_ITEM_CONV && item->u.conv.is_transposed;
    const bool is_planar = item->kind == YM_ITEM_INPUT && item->u.input.form.is_planar;
    text[0] = '\0';
    if (item->kind == YM_ITEM_BRICK) {
        write_brick(p, item, text);
    } else {
        append(text, is_adjoint  ? "conv_transpose"
                     : is_planar ? "planar_input"
                                 : names[item->kind]);
    }
    return text;
}
