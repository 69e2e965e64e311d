/* SPDX-License-Identifier: MIT
 *
 * Keep rules: which values survive from forward to backward. A rule is an array of
 * flags by item; everything else is rebuilt from the flagged values and the inputs.
 */
#ifndef YM_CORE_KEEP_H
#define YM_CORE_KEEP_H

#include "core/program.h"

/* All that backward reads. */
void ym_keep_all(const ym_program *program, const int32_t *conv_count, bool *keep);

/* The convolution outputs that backward needs, directly or to rebuild from. false: out
 * of memory. */
bool ym_keep_conv(const ym_program *program, bool *keep);

/* Cuts the items into segments whose re-run convolution outputs stay below `limit`
 * bytes and keeps what crosses the cuts: the least bytes for that limit, by dynamic
 * programming. false: out of memory. */
bool ym_keep_cuts(const ym_program *program, size_t limit, bool *keep);

/* As ym_keep_conv, but drops outputs, those with the most bytes per operation to run
 * them again first, until `fraction` (0..1) of the kept bytes are gone. false: out of
 * memory. */
bool ym_keep_part(const ym_program *program, double fraction, bool *keep);

/* Bytes that the flagged values take. */
size_t ym_kept_bytes(const ym_program *program, const bool *keep);

#endif
