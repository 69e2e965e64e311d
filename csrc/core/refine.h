/* SPDX-License-Identifier: MIT
 *
 * Refining a plan that a keep rule gave: single values the other way round, where that
 * lowers the peak, and more kept where it does not raise it.
 */
#ifndef YM_CORE_REFINE_H
#define YM_CORE_REFINE_H

#include "core/trial.h"

/* Both change t->keep of a trial that was placed, and leave it placed. */

/* Keeps or drops one value after the other while the peak falls, in a bounded number of
 * trials: for graphs where one value matters. */
ym_status ym_descend(const ym_trier *c, ym_trial *t);

/* Keeps outputs of convolutions that ran again, those with the most operations per byte
 * first, where memory is free until then; the peak may get as high as `limit`. */
ym_status ym_fill_room(const ym_trier *c, size_t limit, ym_trial *t);

#endif
