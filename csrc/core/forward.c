/* SPDX-License-Identifier: MIT */
#include "core/forward.h"

#include <stdlib.h>
#include <string.h>

#include "core/arena.h"

/* An E-ELAN block of three repeats has 27 convolutions from its first value to its
 * concat. */
#define NEAR_CONVOLUTIONS 48

typedef struct forwarder {
    ym_builder b;
    const bool *keep;
    ym_view *view;
    bool *packed;          /* by item: a planar input that has its value */
    int32_t *concat;       /* by item: the concat it is written into, or -1 */
    int32_t *concat_first; /* at which channel */
    int32_t *output;       /* by item: the output in whose memory it lies, or -1 */
    int32_t *last_stage;   /* by item: that reads its memory */
    int32_t *conv_count;
    int32_t *weight_block; /* see ym_forward */
    size_t weight_bytes;
} forwarder;

int32_t *ym_count_convolutions(const ym_program *p)
{
    int32_t *count = calloc((size_t)p->item_count + 1, sizeof *count);
    for (int32_t i = 0; count != NULL && i < p->item_count; i++) {
        count[i + 1] = count[i] + (p->item[i].kind == YM_ITEM_CONV);
    }
    return count;
}

bool ym_is_near(const int32_t *conv_count, int32_t item, int32_t reader)
{
    return conv_count[reader] - conv_count[item] <= NEAR_CONVOLUTIONS;
}

static bool can_share(const forwarder *f, int32_t member, int32_t concat)
{
    const ym_item *item = &f->b.program->item[member];
    const bool is_planar = ym_is_planar(f->b.program, member);
    if ((item->kind == YM_ITEM_INPUT && !is_planar) || item->kind == YM_ITEM_SLICE ||
        f->keep[member] || f->output[member] >= 0 || f->concat[member] >= 0) {
        return false;
    }
    if ((item->kind == YM_ITEM_CONV || is_planar) &&
        (f->b.backend->capabilities & YM_CAP_STRIDED_CONV) == 0) {
        return false;
    }
    return ym_is_near(f->conv_count, member, concat);
}

static void share_concat_buffers(forwarder *f)
{
    const ym_program *p = f->b.program;
    for (int32_t i = 0; i < p->item_count; i++) {
        f->concat[i] = -1;
    }
    for (int32_t i = 0; i < p->item_count; i++) {
        const ym_item *item = &p->item[i];
        int32_t first = 0;
        for (int32_t k = 0; item->kind == YM_ITEM_CONCAT && k < item->operand_count;
             k++) {
            int32_t member = item->operand[k];
            if (can_share(f, member, i)) {
                f->concat[member] = i;
                f->concat_first[member] = first;
            }
            first += p->item[member].c;
        }
    }
}

/* Where item's value goes; allocates on first use. */
static ym_view locate(forwarder *f, int32_t item)
{
    if (f->view[item].block >= 0) {
        return f->view[item];
    }
    const ym_item *made = &f->b.program->item[item];
    ym_view view;
    if (made->kind == YM_ITEM_SLICE) {
        view = ym_subview(locate(f, made->operand[0]), made->u.first_channel, made->c);
    } else if (f->concat[item] >= 0) {
        view = ym_subview(locate(f, f->concat[item]), f->concat_first[item], made->c);
    } else if (f->keep[item]) {
        view = ym_new_view(&f->b, YM_PLACE_SAVED, 0, item);
        ym_block *block = &f->b.schedule->block[view.block];
        block->offset = f->b.saved_bytes;
        f->b.saved_bytes += block->bytes;
    } else if (made->kind == YM_ITEM_INPUT && !made->u.input.form.is_planar) {
        view = ym_new_view(&f->b, YM_PLACE_INPUT, made->u.input.number, item);
    } else if (f->output[item] >= 0) {
        view = ym_new_view(&f->b, YM_PLACE_OUTPUT, f->output[item], item);
    } else {
        view = ym_new_view(&f->b, YM_PLACE_WORKSPACE, 0, item);
    }
    f->view[item] = view;
    return view;
}

/* Where item's value is; that of a planar input is made for its first reader. */
static ym_view read_value(forwarder *f, int32_t item)
{
    const ym_program *p = f->b.program;
    int32_t whole = item;
    while (p->item[whole].kind == YM_ITEM_SLICE) {
        whole = p->item[whole].operand[0];
    }
    if (ym_is_planar(p, whole) && !f->packed[whole]) {
        f->packed[whole] = true;
        ym_add_pack_step(&f->b, whole, locate(f, whole), false);
    }
    return locate(f, item);
}

static void add_statistics(forwarder *f, int32_t item)
{
    const ym_item *made = &f->b.program->item[item];
    for (int32_t t = 0; t < made->u.brick.term_count; t++) {
        if (made->u.brick.norm_call[t] < 0) {
            continue;
        }
        const ym_view x = read_value(f, made->operand[t]);
        ym_step *step = ym_add_step(&f->b, YM_STEP_STATISTICS, item);
        step->in[0] = x;
        step->term = t;
        ym_finish_step(&f->b);
    }
}

static void add_concat(forwarder *f, int32_t item, ym_view whole)
{
    const ym_item *made = &f->b.program->item[item];
    int32_t first = 0;
    for (int32_t k = 0; k < made->operand_count; k++) {
        int32_t member = made->operand[k], count = f->b.program->item[member].c;
        bool in_place = f->concat[member] == item && f->concat_first[member] == first;
        const ym_view from = read_value(f, member);
        if (!in_place) {
            ym_add_copy(&f->b, item, from, ym_subview(whole, first, count), false);
        }
        first += count;
    }
}

static void add_item(forwarder *f, int32_t i)
{
    const ym_item *item = &f->b.program->item[i];
    ym_view view = locate(f, i);
    if (item->kind == YM_ITEM_CONCAT) {
        add_concat(f, i, view);
    } else if (item->kind != YM_ITEM_INPUT && item->kind != YM_ITEM_SLICE) {
        if (item->kind == YM_ITEM_BRICK) {
            add_statistics(f, i);
        }
        ym_view operand[3];
        for (int32_t k = 0; k < item->operand_count; k++) {
            operand[k] = read_value(f, item->operand[k]);
            if (item->kind == YM_ITEM_CONV) {
                operand[k] = ym_packed_view(&f->b, item->operand[k], operand[k]);
            }
        }
        ym_add_forward_step(&f->b, i, operand, view, 0, false);
    }
    for (int32_t o = 0; o < f->b.program->graph->output_count; o++) {
        const ym_block *block = &f->b.schedule->block[view.block];
        bool written = block->place == YM_PLACE_OUTPUT && block->index == o &&
                       block->c == view.count;
        bool now = f->b.program->graph->output_stage[o] == item->stage;
        if (f->b.program->output[o] == i && now) {
            const ym_view from = read_value(f, i);
            if (!written) {
                ym_add_copy(&f->b, i, from, ym_new_view(&f->b, YM_PLACE_OUTPUT, o, i),
                            false);
            }
        }
    }
}

/* The outputs of a stage that are values of earlier ones under another name. */
static void add_late_outputs(forwarder *f, int32_t stage)
{
    const ym_program *p = f->b.program;
    for (int32_t o = 0; o < p->graph->output_count; o++) {
        const int32_t item = p->output[o];
        if (p->graph->output_stage[o] == stage && p->item[item].stage < stage) {
            const ym_view from = read_value(f, item);
            ym_add_copy(&f->b, item, from, ym_new_view(&f->b, YM_PLACE_OUTPUT, o, item),
                        false);
        }
    }
}

/* A slice is read in its parent's memory, and a member of a concat in the concat's. */
static void find_last_stages(forwarder *f)
{
    const ym_program *p = f->b.program;
    int32_t *last = f->last_stage;
    for (int32_t i = 0; i < p->item_count; i++) {
        last[i] = p->item[i].stage;
        for (int32_t k = 0; k < p->item[i].operand_count; k++) {
            last[p->item[i].operand[k]] = p->item[i].stage;
        }
    }
    for (int32_t o = 0; o < p->graph->output_count; o++) {
        int32_t *read = &last[p->output[o]];
        const int32_t stage = p->graph->output_stage[o];
        *read = *read > stage ? *read : stage;
    }
    for (int32_t i = p->item_count - 1; i >= 0; i--) {
        if (p->item[i].kind == YM_ITEM_SLICE) {
            int32_t *parent = &last[p->item[i].operand[0]];
            *parent = *parent > last[i] ? *parent : last[i];
        }
    }
    for (int32_t i = 0; i < p->item_count; i++) {
        const ym_item *item = &p->item[i];
        for (int32_t k = 0; item->kind == YM_ITEM_CONCAT && k < item->operand_count;
             k++) {
            const int32_t member = last[item->operand[k]];
            last[i] = last[i] > member ? last[i] : member;
        }
    }
}

/* Is all of it written in its stage? Members of a concat may be of earlier ones. */
static bool is_of_one_stage(const ym_program *p, int32_t i)
{
    const ym_item *item = &p->item[i];
    bool all = true;
    for (int32_t k = 0; item->kind == YM_ITEM_CONCAT && k < item->operand_count; k++) {
        const int32_t member = item->operand[k];
        all = all && p->item[member].stage == item->stage && is_of_one_stage(p, member);
    }
    return all;
}

/* The caller's memory of an output is there while its stage runs. */
static void place_outputs(forwarder *f)
{
    const ym_program *p = f->b.program;
    find_last_stages(f);
    for (int32_t o = p->graph->output_count - 1; o >= 0; o--) {
        const int32_t item = p->output[o], stage = p->item[item].stage;
        if (p->graph->output_stage[o] == stage && f->last_stage[item] == stage &&
            is_of_one_stage(p, item)) {
            f->output[item] = o;
        }
    }
}

/* The statistics of all norm calls stand at the start of `saved`. */
static void add_statistics_block(ym_program *p, ym_builder *b)
{
    size_t bytes = 0;
    for (int32_t i = 0; i < p->norm_call_count; i++) {
        const size_t vectors = 2 + (size_t)ym_spread_count(p, i);
        p->norm_call[i].saved_offset = bytes;
        /* Aligned: kernels read the next one's floats four at a time. */
        bytes += ym_align(vectors * (size_t)p->norm_call[i].channels * sizeof(float));
    }
    int32_t block = ym_add_scratch(b, bytes);
    b->schedule->block[block].place = YM_PLACE_SAVED;
    b->schedule->block[block].first = 0;
    b->saved_bytes = b->schedule->block[block].bytes;
}

/* Bytes of a convolution's weight in the form that the backend wants beside it. */
static size_t packed_weight_bytes(const ym_builder *b, const ym_item *item)
{
    if (b->backend->packed_weight_bytes == NULL) {
        return 0;
    }
    const ym_item *from = &b->program->item[item->operand[0]];
    const ym_dtype dtype = b->program->dtype;
    const ym_tensor in = {NULL, dtype, from->n, from->h, from->w, from->c, from->c};
    const ym_tensor out = {NULL, dtype, item->n, item->h, item->w, item->c, item->c};
    const bool is_adjoint = item->u.conv.is_transposed;
    return b->backend->packed_weight_bytes(&item->u.conv.shape, is_adjoint ? &out : &in,
                                           is_adjoint ? &in : &out);
}

/* Packed weights follow, once for all users of a weight, and are made by the first
 * step. As the first blocks of `saved` they have the same numbers in backward. */
static void add_weight_blocks(const ym_program *p, ym_builder *b, int32_t *number)
{
    size_t begin = b->saved_bytes;
    for (int32_t i = 0; i < p->graph->param_count; i++) {
        number[i] = -1;
    }
    for (int32_t i = 0; i < p->item_count; i++) {
        const ym_item *item = &p->item[i];
        bool fresh = item->kind == YM_ITEM_CONV && number[item->u.conv.weight] < 0;
        size_t bytes = fresh ? packed_weight_bytes(b, item) : 0;
        if (bytes > 0) {
            int32_t block = ym_add_scratch(b, bytes);
            ym_block *made = &b->schedule->block[block];
            made->place = YM_PLACE_SAVED;
            made->offset = b->saved_bytes;
            made->item = i;
            b->saved_bytes += made->bytes;
            number[item->u.conv.weight] = block;
        }
    }
    if (b->saved_bytes > begin) {
        ym_add_step(b, YM_STEP_PACK_WEIGHTS, 0);
        ym_finish_step(b);
    }
}

static void build(forwarder *f, ym_program *p)
{
    for (int32_t i = 0; i < p->item_count; i++) {
        f->view[i] = YM_NO_VIEW;
        f->output[i] = -1;
    }
    place_outputs(f);
    share_concat_buffers(f);
    add_statistics_block(p, &f->b);
    size_t statistics_bytes = f->b.saved_bytes;
    add_weight_blocks(p, &f->b, f->weight_block);
    f->weight_bytes = f->b.saved_bytes - statistics_bytes;
    ym_schedule *s = f->b.schedule;
    int32_t next = 0;
    for (int32_t stage = 0; stage < p->graph->stage_count; stage++) {
        for (; next < p->item_count && p->item[next].stage == stage; next++) {
            add_item(f, next);
        }
        add_late_outputs(f, stage);
        s->segment_end[stage] = s->step_count;
    }
    for (int32_t i = 0; i < s->block_count; i++) {
        if (s->block[i].place == YM_PLACE_SAVED) {
            bool early = s->block[i].first < 0 || s->block[i].first == INT32_MAX;
            s->block[i].first = early ? 0 : s->block[i].first;
            s->block[i].last = s->step_count > 0 ? s->step_count - 1 : 0;
        }
    }
}

ym_status ym_forward_create(ym_program *program, const ym_backend *backend,
                            const bool *keep, ym_forward *made, ym_error *error)
{
    size_t items = (size_t)program->item_count + 1;
    forwarder f = {.b = {.program = program, .backend = backend}, .keep = keep};
    f.view = malloc(items * sizeof *f.view);
    f.packed = calloc(items, sizeof *f.packed);
    f.concat = calloc(items, sizeof *f.concat);
    f.concat_first = calloc(items, sizeof *f.concat_first);
    f.output = calloc(items, sizeof *f.output);
    f.last_stage = calloc(items, sizeof *f.last_stage);
    f.conv_count = ym_count_convolutions(program);
    f.weight_block =
        malloc(((size_t)program->graph->param_count + 1) * sizeof(int32_t));
    f.b.weight_block = f.weight_block;
    ym_status status = YM_ERR_MEMORY;
    if (ym_builder_begin(&f.b, program->graph->stage_count) && f.view != NULL &&
        f.packed != NULL && f.concat != NULL && f.concat_first != NULL &&
        f.output != NULL && f.last_stage != NULL && f.conv_count != NULL &&
        f.weight_block != NULL) {
        build(&f, program);
        status = ym_builder_end(&f.b) ? YM_OK : YM_ERR_MEMORY;
    }
    free(f.packed);
    free(f.concat);
    free(f.concat_first);
    free(f.output);
    free(f.last_stage);
    free(f.conv_count);
    *made = (ym_forward){.schedule = f.b.schedule,
                         .view = f.view,
                         .saved_bytes = f.b.saved_bytes,
                         .weight_block = f.weight_block,
                         .weight_bytes = f.weight_bytes};
    if (status != YM_OK) {
        ym_forward_free(made);
        return ym_fail(error, status, "plan: out of memory");
    }
    return YM_OK;
}

void ym_forward_free(ym_forward *forward)
{
    ym_schedule_free(forward->schedule);
    free(forward->view);
    free(forward->weight_block);
    *forward = (ym_forward){0};
}
