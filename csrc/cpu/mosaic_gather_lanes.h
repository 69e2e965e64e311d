/* SPDX-License-Identifier: MIT
 *
 * Gathering LANES pixels at a time: the loops of mosaic_avx2_gather.c and
 * mosaic_avx512_gather.c, which define before they include this
 *
 *     LANES, ISA                          pixels of a vector, the functions' target
 *     uint32_t lanes_below(value, limit)  lanes with 0 <= value < limit
 *     vector read_bits(bits, start, at, lanes)
 *         two bits of each lane's row of a mask, from bit `at` on; 0 in other lanes
 *     void fill_grey(pairs, lanes)
 *     void swap_pairs(pairs, lanes)       left and right neighbours exchanged
 *
 * Sets of lanes are bits of a uint32_t. Once for each file.
 */

#define ALL_LANES ((1u << LANES) - 1)

/* Lanes whose pixels one tile shows with all their neighbours. */
ISA static inline void load_lanes(cpu_span *span, const ym_tile *tile, int32_t i,
                                  const int32_t offset[LANES], uint32_t lanes)
{
    const uint8_t *upper = tile->pixels, *lower = upper + tile->row_bytes;
    if (lanes == ALL_LANES) {
        for (int32_t k = 0; k < LANES; k++) {
            memcpy(&span->upper[i + k], upper + offset[k], 8);
            memcpy(&span->lower[i + k], lower + offset[k], 8);
        }
        return;
    }
    for (; lanes != 0; lanes &= lanes - 1) {
        int32_t k = __builtin_ctz(lanes);
        memcpy(&span->upper[i + k], upper + offset[k], 8);
        memcpy(&span->lower[i + k], lower + offset[k], 8);
    }
}

/* The lanes `wanted` of a group, x as given; returns those left to do singly. */
ISA static uint32_t gather_lanes(cpu_span *span, cpu_source *source, int32_t i,
                                 vector x, uint32_t wanted)
{
    const vector y = *(const vector *)&span->y[i];
    _Alignas(vector) int32_t offset[LANES];
    uint32_t singly = 0;
    int32_t count = source->scene->tile_count;
    int32_t t = source->disjoint ? source->last_tile : count - 1;
    for (int32_t asked = 0; asked < count && wanted != 0; asked++) {
        const ym_tile *tile = &source->scene->tile[t];
        const vector column = x - tile->x, row = y - tile->y;
        const uint32_t touched = wanted & lanes_below(column + 1, tile->width + 1) &
                                 lanes_below(row + 1, tile->height + 1);
        uint32_t inside = touched & lanes_below(column, tile->width - 2) &
                          lanes_below(row, tile->height - 1);
        inside = source->offsets_fit ? inside : 0;
        if (inside != 0) {
            *(vector *)offset = row * (int32_t)tile->row_bytes + 3 * column;
            load_lanes(span, tile, i, offset, inside);
        }
        singly |= touched & ~inside;
        wanted &= ~touched;
        source->last_tile = inside != 0 ? t : source->last_tile;
        t = t > 0 ? t - 1 : count - 1;
    }
    fill_grey(&span->upper[i], wanted);
    fill_grey(&span->lower[i], wanted);
    return singly;
}

/* Which lanes show nothing pasted, and which nothing else. */
ISA static void split_pasted(const cpu_span *span, const ym_scene *scene, int32_t i,
                             uint32_t *none, uint32_t *all)
{
    const vector x = *(const vector *)&span->x[i], y = *(const vector *)&span->y[i];
    const uint32_t seen = lanes_below(x + 1, scene->width + 1) &
                          lanes_below(y + 1, scene->height + 1);
    const uint32_t on = lanes_below(x, scene->width - 1) &
                        lanes_below(y, scene->height - 1);
    const bool one_row = lanes_below(y - span->y[i], 1) == ALL_LANES;
    if (on == ALL_LANES && one_row && lanes_below(x - span->x[i], 48) == ALL_LANES) {
        cpu_pasted pasted =
            cpu_mosaic_pasted(scene, scene->width - 1 - span->x[i], span->y[i]);
        *none = pasted == CPU_PASTED_NONE ? ALL_LANES : 0;
        *all = pasted == CPU_PASTED_ALL ? ALL_LANES : 0;
        if (pasted != CPU_PASTED_SOME) {
            return;
        }
    }
    const int32_t row_bytes = (int32_t)scene->paste_row_bytes;
    const vector start = y * row_bytes, at = scene->width - 2 - x;
    const vector upper = read_bits(scene->paste, start, at, on);
    const vector lower = read_bits(scene->paste, start + row_bytes, at, on);
    *none = (~seen & ALL_LANES) | (on & lanes_below(upper | lower, 1));
    *all = on & ~lanes_below(upper & lower, 3);
}

ISA static uint32_t gather_pasted(cpu_span *span, cpu_source *source, int32_t i)
{
    const ym_scene *scene = source->scene;
    uint32_t none, all;
    split_pasted(span, scene, i, &none, &all);
    const vector x = *(const vector *)&span->x[i];
    uint32_t singly = ~(none | all) & ALL_LANES;
    if (none != 0) {
        singly |= gather_lanes(span, source, i, x, none);
    }
    if (all != 0) {
        singly |= gather_lanes(span, source, i, scene->width - 2 - x, all);
        swap_pairs(&span->upper[i], all);
        swap_pairs(&span->lower[i], all);
    }
    return singly;
}

ISA static inline void gather(cpu_span *span, cpu_source *source, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES) {
        const vector x = *(const vector *)&span->x[i];
        uint32_t singly = source->scene->paste == NULL
                              ? gather_lanes(span, source, i, x, ALL_LANES)
                              : gather_pasted(span, source, i);
        for (; singly != 0; singly &= singly - 1) {
            cpu_mosaic_gather_singly(span, source->scene, i + __builtin_ctz(singly));
        }
    }
}
