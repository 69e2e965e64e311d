/* SPDX-License-Identifier: MIT */
#include "core/keep.h"

#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/forward.h"

size_t ym_kept_bytes(const ym_program *p, const bool *keep)
{
    size_t bytes = 0;
    for (int32_t i = 0; i < p->item_count; i++) {
        bytes += keep[i] ? ym_align(ym_item_bytes(p, i)) : 0;
    }
    return bytes;
}

static bool is_window(ym_item_kind kind)
{
    return kind == YM_ITEM_SLICE || kind == YM_ITEM_CONCAT || kind == YM_ITEM_UPSAMPLE;
}

static void keep_all_of(const ym_program *p, int32_t item, bool *keep)
{
    if (p->item[item].kind == YM_ITEM_SLICE) {
        item = p->item[item].operand[0];
    }
    keep[item] = p->item[item].kind != YM_ITEM_INPUT;
}

/* Flags what the backward of the items reads: of those whose result may tell it, from
 * the last to the first, since one may be kept for the next; or of all others. */
static void keep_all_reads(const ym_program *p, bool result_tells, bool *keep)
{
    for (int32_t i = p->item_count - 1; i >= 0; i--) {
        if (ym_result_tells(p, i) != result_tells || (result_tells && keep[i])) {
            continue;
        }
        for (int32_t k = 0; k < p->item[i].operand_count; k++) {
            if (ym_backward_reads(p, i, k)) {
                keep_all_of(p, p->item[i].operand[k], keep);
            }
        }
    }
}

void ym_keep_all(const ym_program *p, const int32_t *conv_count, bool *keep)
{
    memset(keep, 0, (size_t)p->item_count * sizeof *keep);
    keep_all_reads(p, false, keep);
    keep_all_reads(p, true, keep);
    /* The members of a kept concat lie in it already. */
    for (int32_t i = 0; i < p->item_count; i++) {
        const ym_item *item = &p->item[i];
        for (int32_t k = 0;
             item->kind == YM_ITEM_CONCAT && keep[i] && k < item->operand_count; k++) {
            int32_t member = item->operand[k];
            ym_item_kind kind = p->item[member].kind;
            if (kind != YM_ITEM_CONV && ym_is_near(conv_count, member, i)) {
                keep[member] = false;
            }
        }
    }
}

/* Flags what is needed to have item's value in backward, without running a convolution
 * there. Where no gradient flows (frozen layers) the value itself is kept, as eager
 * does: going back to convolution outputs could keep more. */
static void keep_sources(const ym_program *p, int32_t item, bool *keep, bool *seen)
{
    const ym_item *made = &p->item[item];
    if (made->kind == YM_ITEM_INPUT || seen[item]) {
        return;
    }
    seen[item] = true;
    if (made->kind == YM_ITEM_CONV || ym_is_digest(p, item) ||
        (!made->needs_grad && !is_window(made->kind))) {
        keep[item] = true;
        return;
    }
    for (int32_t k = 0; k < made->operand_count; k++) {
        keep_sources(p, made->operand[k], keep, seen);
    }
}

bool ym_keep_conv(const ym_program *p, bool *keep)
{
    bool *seen = calloc((size_t)p->item_count + 1, sizeof *seen);
    if (seen == NULL) {
        return false;
    }
    memset(keep, 0, (size_t)p->item_count * sizeof *keep);
    for (int32_t i = 0; i < p->item_count; i++) {
        for (int32_t k = 0; k < p->item[i].operand_count; k++) {
            if (ym_backward_reads(p, i, k)) {
                keep_sources(p, p->item[i].operand[k], keep, seen);
            }
        }
    }
    free(seen);
    return true;
}

/* May a cut keep this value itself? A brick of one convolution is rebuilt from that
 * convolution's output, which takes the same bytes and saves running it again. */
static bool is_solid(const ym_program *p, int32_t item)
{
    const ym_item *made = &p->item[item];
    if (made->kind == YM_ITEM_CONV || ym_is_digest(p, item)) {
        return true;
    }
    if (made->kind != YM_ITEM_BRICK) {
        return !made->needs_grad && !is_window(made->kind) &&
               made->kind != YM_ITEM_INPUT;
    }
    return made->operand_count > 1 || !made->needs_grad ||
           p->item[made->operand[0]].kind != YM_ITEM_CONV;
}

/* Marks `reader` as a reader of the solid values that item is rebuilt from. Readers
 * come in ascending order, so last[item] == reader also says: been here. */
static void read_roots(const ym_program *p, int32_t item, int32_t reader, int32_t *last)
{
    if (p->item[item].kind == YM_ITEM_INPUT || last[item] == reader) {
        return;
    }
    last[item] = reader;
    if (is_solid(p, item)) {
        return;
    }
    for (int32_t k = 0; k < p->item[item].operand_count; k++) {
        read_roots(p, p->item[item].operand[k], reader, last);
    }
}

/* last[i]: the last item that reads solid value i, through cheap values too. */
static void find_last_readers(const ym_program *p, int32_t *last)
{
    for (int32_t i = 0; i < p->item_count; i++) {
        last[i] = -1;
        const ym_item *item = &p->item[i];
        /* A frozen item never runs again, so it reads nothing in backward. */
        bool reads = item->needs_grad && item->kind != YM_ITEM_CONCAT &&
                     item->kind != YM_ITEM_SLICE && item->kind != YM_ITEM_INPUT;
        for (int32_t k = 0; reads && k < item->operand_count; k++) {
            read_roots(p, item->operand[k], i, last);
        }
    }
}

typedef struct cut {
    size_t bytes;  /* kept by the best cuts before this item */
    int32_t begin; /* of the segment that ends here */
} cut;

/* Of ym_keep_cuts. */
typedef struct cutter {
    const ym_program *p;
    int32_t *last;        /* as find_last_readers */
    size_t *bytes;        /* of solid values; of others 0 */
    cut *best;            /* those before each item, and before the end */
    int32_t *head, *next; /* the values of a segment by their last reader, as lists */
} cutter;

static void free_cutter(cutter *c)
{
    free(c->last);
    free(c->bytes);
    free(c->best);
    free(c->head);
    free(c->next);
}

/* Returns whether there was memory; the cutter is to be freed even so. */
static bool begin_cutter(const ym_program *p, cutter *c)
{
    const size_t n = (size_t)p->item_count;
    *c = (cutter){.p = p,
                  .last = malloc((n + 1) * sizeof *c->last),
                  .bytes = malloc((n + 1) * sizeof *c->bytes),
                  .best = malloc((n + 1) * sizeof *c->best),
                  .head = malloc((n + 1) * sizeof *c->head),
                  .next = malloc((n + 1) * sizeof *c->next)};
    if (c->last == NULL || c->bytes == NULL || c->best == NULL || c->head == NULL ||
        c->next == NULL) {
        return false;
    }
    find_last_readers(p, c->last);
    for (int32_t i = 0; i <= p->item_count; i++) {
        c->best[i] = (cut){i == 0 ? 0 : SIZE_MAX, 0};
        c->bytes[i] = i < p->item_count && is_solid(p, i) ? ym_item_bytes(p, i) : 0;
    }
    return true;
}

/* Extends the segment [a, b) over all b and improves best[b]. */
static void extend_segment(cutter *c, size_t limit, int32_t a)
{
    size_t crossing = 0, inside = 0;
    const int32_t n = c->p->item_count;
    memset(c->head, 0xff, ((size_t)n + 1) * sizeof *c->head);
    for (int32_t b = a; b < n; b++) {
        /* Item b joins; values whose last reader is b no longer cross. */
        if (c->bytes[b] > 0 && c->last[b] > b) {
            crossing += c->bytes[b];
            c->next[b] = c->head[c->last[b]];
            c->head[c->last[b]] = b;
        }
        for (int32_t v = c->head[b]; v >= 0; v = c->next[v]) {
            crossing -= c->bytes[v];
            inside += c->bytes[v];
        }
        if (inside > limit && b > a) {
            return;
        }
        if (c->best[a].bytes + crossing < c->best[b + 1].bytes) {
            c->best[b + 1] = (cut){c->best[a].bytes + crossing, a};
        }
    }
}

bool ym_keep_cuts(const ym_program *p, size_t limit, bool *keep)
{
    cutter c;
    const bool ready = begin_cutter(p, &c);
    if (ready) {
        memset(keep, 0, (size_t)p->item_count * sizeof *keep);
        for (int32_t a = 0; a < p->item_count; a++) {
            extend_segment(&c, limit, a);
        }
        for (int32_t end = p->item_count; end > 0; end = c.best[end].begin) {
            for (int32_t i = c.best[end].begin; i < end; i++) {
                bool frozen = !p->item[i].needs_grad && c.last[i] >= 0;
                keep[i] = c.bytes[i] > 0 && (c.last[i] >= end || frozen);
            }
        }
    }
    free_cutter(&c);
    return ready;
}

typedef struct candidate {
    int32_t item;
    double terms; /* of the sum of one output: operations per byte */
} candidate;

static int fewest_terms_first(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->terms != y->terms) {
        return x->terms < y->terms ? -1 : 1;
    }
    return (x->item > y->item) - (x->item < y->item);
}

/* The convolutions of ym_keep_conv that could run again; NULL: out of memory. */
static candidate *list_outputs(const ym_program *p, bool *keep, int32_t *count)
{
    candidate *list = malloc(((size_t)p->item_count + 1) * sizeof *list);
    if (list == NULL || !ym_keep_conv(p, keep)) {
        free(list);
        return NULL;
    }
    *count = 0;
    for (int32_t i = 0; i < p->item_count; i++) {
        const ym_item *item = &p->item[i];
        if (keep[i] && item->kind == YM_ITEM_CONV && item->needs_grad) {
            list[(*count)++] = (candidate){i, ym_conv_terms(&item->u.conv)};
        }
    }
    qsort(list, (size_t)*count, sizeof *list, fewest_terms_first);
    return list;
}

bool ym_keep_part(const ym_program *p, double fraction, bool *keep)
{
    int32_t count = 0;
    candidate *list = list_outputs(p, keep, &count);
    if (list == NULL) {
        return false;
    }
    double target = fraction * (double)ym_kept_bytes(p, keep), dropped = 0;
    for (int32_t i = 0; i < count && dropped < target; i++) {
        keep[list[i].item] = false;
        dropped += (double)ym_item_bytes(p, list[i].item);
    }
    free(list);
    return true;
}
