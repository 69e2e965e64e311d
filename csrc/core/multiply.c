/* SPDX-License-Identifier: MIT
 * The backward of products and means: each gradient is one product, summed over the
 * sides that were repeated or repeated over those that were summed.
 */
#include "core/backward.h"

/* target += scale * dout * other, summed over the sides that the target has not. */
static void add_product(ym_backwarder *s, int32_t i, ym_view dout, ym_view other,
                        double scale, ym_view target, bool accumulate)
{
    ym_step *step = ym_add_step(&s->b, YM_STEP_MULTIPLY, i);
    step->in[0] = dout;
    step->in[1] = other;
    step->out[0] = target;
    step->scale = scale;
    step->accumulate[0] = accumulate;
    ym_finish_step(&s->b);
}

static bool is_of_size(const ym_backwarder *s, int32_t a, int32_t b)
{
    const ym_item *x = &s->b.program->item[a], *y = &s->b.program->item[b];
    return x->n == y->n && x->h == y->h && x->w == y->w && x->c == y->c;
}

/* The gradient of a factor of full size may take dout's memory, so it comes last. */
void ym_visit_multiply(ym_backwarder *s, int32_t i, ym_view dout)
{
    const int32_t *factor = s->b.program->item[i].operand;
    const int32_t last = ym_needs_grad(s, factor[0]) && is_of_size(s, factor[0], i) ? 0
                                                                                    : 1;
    ym_view other[2] = {YM_NO_VIEW, YM_NO_VIEW};
    for (int32_t k = 0; k < 2; k++) {
        if (ym_needs_grad(s, factor[k])) {
            other[k] = ym_read_value(s, factor[1 - k]);
        }
    }
    for (int32_t turn = 0; turn < 2; turn++) {
        const int32_t k = turn == 0 ? 1 - last : last;
        if (!ym_needs_grad(s, factor[k])) {
            continue;
        }
        bool dout_taken = turn == 0 || !is_of_size(s, factor[k], i), accumulate;
        const ym_view target =
            ym_take_or_target(s, factor[k], dout, &dout_taken, &accumulate);
        add_product(s, i, dout, other[k], 1, target, accumulate);
    }
}

void ym_visit_mean(ym_backwarder *s, int32_t i, ym_view dout)
{
    const int32_t x = s->b.program->item[i].operand[0];
    if (ym_needs_grad(s, x)) {
        bool accumulate;
        const ym_view target = ym_gradient_target(s, x, &accumulate);
        add_product(s, i, dout, YM_NO_VIEW, ym_share(s->b.program, i), target,
                    accumulate);
    }
}
