/* SPDX-License-Identifier: MIT
 *
 * Queued work that is recorded once and repeated: what a run puts on a stream is the
 * same for the same addresses and numbers, which are its key. A backend that can do so
 * makes replayers; each belongs to one plan, and threads may share it.
 */
#ifndef YM_CORE_REPLAY_H
#define YM_CORE_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

struct ym_context;

/* All that the work depends on and a plan does not fix. Keys of one part of a plan are
 * equally long. */
typedef struct ym_replay_key {
    const void *part; /* which work of the plan: a schedule and */
    int32_t first;    /* of its steps */
    const uint64_t *word;
    size_t words;
} ym_replay_key;

/* Queues the work on context->stream, and does nothing else that could be missed. */
typedef ym_status (*ym_queue_work)(struct ym_context *context, const void *what);

typedef struct ym_replayer {
    /* Calls `queue`, or repeats what it queued for an equal key before. */
    ym_status (*run)(struct ym_replayer *self, struct ym_context *context,
                     const ym_replay_key *key, ym_queue_work queue, const void *what);
    void (*free)(struct ym_replayer *self);
    int64_t recorded, repeated; /* so far */
    /* Recording failed several times in a row, or a repeat once: from then on work is
     * queued every time. */
    bool gave_up;
} ym_replayer;

#endif
