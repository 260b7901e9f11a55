/* Attention of one new token of every row over the keys and values of its own slot, in float32.

   A task is a head of a row: its query and its key are turned by their position, key and value put in their place, and then
   its keys read once, and its values, both from one end to the other. torch's operator makes a product of its own of every
   row and head, and reads the longest row's columns for all.

   Legend: A rows, N heads, H head size (a multiple of the lanes), C columns of a slot. */
#include <math.h>

#include "vectors.h"

#define MAX_HEAD 256
#define COLUMNS_AT_ONCE 256 /* whose scores are held at a time; a later part scales the sums of the earlier ones down */

typedef struct {
    work_queue queue;
    const float *fused;           /* [A, N, 3, H]: query, key and value of the new token */
    const float *cos, *sin;       /* [A, H] */
    float *keys, *values;         /* [A.., N, C, H] */
    const int64_t *lengths;       /* [A] with the new token */
    float *query, *mixed, *sums;  /* [A, N, H] turned, [A, N, H], [A, N]: the logarithm of the sum of exponentials */
    int64_t rows, heads, columns, size;
} attention;

/* Scores of some columns, and their largest; check stays 0 while all are finite. */
INLINE float score_columns(const float *query, const float *keys, int64_t count, int64_t size, float by, float *scores,
                           float *check) {
    float max = -INFINITY;
    int64_t c = 0;
    for (; c + 4 <= count; c += 4) {
        floats total[4] = {{0}, {0}, {0}, {0}};
        for (int64_t h = 0; h < size; h += LANES)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) total[i] += get(query + h) * get(keys + (c + i) * size + h);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) scores[c + i] = sum(total[i]) * by;
    }
    for (; c < count; c++) {
        floats total = {0};
        for (int64_t h = 0; h < size; h += LANES) total += get(query + h) * get(keys + c * size + h);
        scores[c] = sum(total) * by;
    }
    for (c = 0; c < count; c++) {
        max = scores[c] > max ? scores[c] : max;
        *check += scores[c] * 0.0f;
    }
    return max;
}

/* Scores to their exponentials, and the sum of these. */
INLINE float weigh_columns(float *scores, int64_t count, float max) {
    floats total = {0};
    while (count % LANES) scores[count++] = -INFINITY; /* there is room */
    for (int64_t c = 0; c < count; c += LANES) {
        const floats value = exponential(get(scores + c) - max);
        put(scores + c, value);
        total += value;
    }
    return sum(total);
}

/* A stretch of the head, of so many vectors that fit the registers, over some columns. */
INLINE void mix_columns(const float *scores, const float *values, int64_t count, int64_t size, int vectors, float *to, float kept) {
    floats total[8];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) total[i] = get(to + i * LANES) * kept;
    for (int64_t c = 0; c < count; c++)
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) total[i] += scores[c] * get(values + c * size + i * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) put(to + i * LANES, total[i]);
}

/* Both halves of a head are turned, each a space of its own: its second quarter goes across to its first, and back. */
INLINE void turn(const float *from, const float *cos, const float *sin, int64_t size, float *restrict to) {
    const int64_t quarter = size / 4;
    for (int64_t first = 0; first < size; first += 2 * quarter) {
        const int64_t second = first + quarter;
        for (int64_t h = 0; h < quarter; h++) to[first + h] = from[first + h] * cos[first + h] + from[second + h] * sin[first + h];
        for (int64_t h = 0; h < quarter; h++) to[second + h] = from[second + h] * cos[second + h] + from[first + h] * sin[second + h];
    }
}

/* The new token's query, turned; its key and value to their place. */
INLINE void take_token(const attention *a, int64_t row, int64_t place, int64_t start) {
    const float *from = a->fused + 3 * place * a->size, *cos = a->cos + row * a->size, *sin = a->sin + row * a->size;
    const int64_t at = start + (a->lengths[row] - 1) * a->size;
    turn(from, cos, sin, a->size, a->query + place * a->size);
    turn(from + a->size, cos, sin, a->size, a->keys + at);
    memcpy(a->values + at, from + 2 * a->size, (size_t)a->size * sizeof *from);
}

static void attend_head(const attention *a, int64_t row, int64_t head) {
    const int64_t place = row * a->heads + head, start = place * a->columns * a->size;
    const float *query = a->query + place * a->size, by = 1.0f / sqrtf((float)a->size);
    take_token(a, row, place, start);
    float scores[COLUMNS_AT_ONCE + LANES], mixed[MAX_HEAD] = {0}, max = -INFINITY, all = 0, check = 0;
    for (int64_t c = 0; c < a->lengths[row]; c += COLUMNS_AT_ONCE) {
        const int64_t left = a->lengths[row] - c, count = smaller(left, COLUMNS_AT_ONCE);
        const float here = score_columns(query, a->keys + start + c * a->size, count, a->size, by, scores, &check);
        const float top = here > max ? here : max, kept = c ? expf(max - top) : 0.0f;
        all = all * kept + weigh_columns(scores, count, top);
        max = top;
        const float *values = a->values + start + c * a->size;
        for (int64_t h = 0; h < a->size;) {
            if (a->size - h >= 8 * LANES) mix_columns(scores, values + h, count, a->size, 8, mixed + h, kept), h += 8 * LANES;
            else if (a->size - h >= 4 * LANES) mix_columns(scores, values + h, count, a->size, 4, mixed + h, kept), h += 4 * LANES;
            else mix_columns(scores, values + h, count, a->size, 1, mixed + h, kept), h += LANES;
        }
    }
    all += check;
    for (int64_t h = 0; h < a->size; h += LANES) put(a->mixed + place * a->size + h, get(mixed + h) / all);
    a->sums[place] = max + logf(all);
}

static void *attend_task(void *arguments) {
    attention *a = arguments;
    for (int64_t row; (row = next_piece(&a->queue)) < a->rows * a->heads;) attend_head(a, row / a->heads, row % a->heads);
    return 0;
}

int ptuning_attends(int64_t size) { return size > 0 && size <= MAX_HEAD && size % 4 == 0 && size % LANES == 0; }

int64_t ptuning_attend(const float *fused, const float *cos, const float *sin, float *keys, float *values,
                       const int64_t *lengths, float *query, float *mixed, float *sums, int64_t rows, int64_t heads,
                       int64_t columns, int64_t size, parallel pool, int threads) {
    attention a = {.fused = fused, .cos = cos, .sin = sin, .keys = keys, .values = values, .lengths = lengths, .query = query,
                   .mixed = mixed, .sums = sums, .rows = rows, .heads = heads, .columns = columns, .size = size};
    for (int64_t row = 0; row < rows; row++)
        if (lengths[row] < 1 || lengths[row] > columns) return row;
    run_task(attend_task, &a, pool, threads);
    return -1;
}
