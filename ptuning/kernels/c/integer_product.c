/* INT4 weights times activations as whole numbers, under AVX2.

   A stretch of columns is summed exactly, and only stretches are added in float32.

   Legend: M rows of activations, O output rows, I input columns; a block is 64 columns, a chunk 256, a group 4 rows of
   activations.

   digits [group][block][row][digit][odd or even column][32]: what one tile reads lies together. Weights are taken as value+8,
   0 to 15, so 8 times the sum of the digits is taken off first: start [group][stretch][row][digit][8 lanes of int32].

   With a single digit (the caller's wish: twice as fast, and as coarse as INT8) every span of 128 columns has a step of its
   own, [group][span][row] behind the digits, and is added in float32; start is then one float, [group][stretch][row]. */
#include <math.h>

#include "integers.h"
#include "products.h"

#ifdef WHOLE_NUMBERS

#define CHUNK 256
#define SPAN 128              /* columns that share the step of a single digit */
#define INTEGER_PANEL 24      /* rows of the weight that are multiplied with many activations at a time ... */
#define LONG_PANEL 64         /* (with few: a thread reads a long piece of memory) */
#define INTEGER_STRETCH 2048  /* ... over so many columns: the digits of a group over them fit the first cache */
#define INTEGER_ROWS 64       /* activations that a panel meets at a time: sums of rows far apart would share a place in the cache */

typedef struct {
    work_queue queue;
    product of;
    int64_t padded, stretch; /* columns padded to whole chunks, and columns that are summed in whole numbers */
    int broken;              /* whether a row of activations cannot be turned to digits */
} integer_job;

INLINE int64_t stretches_of(const integer_job *j) { return (j->padded + j->stretch - 1) / j->stretch; }

INLINE int8_t *digits_of(const integer_job *j) { return (int8_t *)j->of.room; }

INLINE __m256i *start_of(const integer_job *j) { return (__m256i *)(digits_of(j) + MAX_DIGITS * j->of.rows * j->padded); }

INLINE float *spans_of(const integer_job *j) { return (float *)(digits_of(j) + j->of.rows * j->padded); }

INLINE float *step_of(const integer_job *j) { return (float *)(start_of(j) + MAX_DIGITS * j->of.rows * stretches_of(j)); }

INLINE int64_t whole_chunks(int64_t columns) { return (columns + CHUNK - 1) / CHUNK * CHUNK; }

/* Floats of room for one row of activations of so many columns: digits, starts, step. */
int64_t integer_room(int64_t columns) {
    const int64_t padded = whole_chunks(columns);
    return (MAX_DIGITS * padded + 32 * MAX_DIGITS * (padded / INTEGER_STRETCH + 1)) / 4 + 8;
}

/* Even or odd ones of 64 floats, times a factor, as whole numbers within limits. */
INLINE void whole_half(const float *from, int odd, __m256 per, __m256i max, __m256i whole[4]) {
    for (int i = 0; i < 4; i++) {
        __m256 a = _mm256_loadu_ps(from + 16 * i), b = _mm256_loadu_ps(from + 16 * i + 8);
        __m256 half = odd ? _mm256_shuffle_ps(a, b, 0xDD) : _mm256_shuffle_ps(a, b, 0x88);
        half = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(half), 0xD8));
        __m256i value = _mm256_cvtps_epi32(_mm256_mul_ps(half, per));
        whole[i] = _mm256_max_epi32(_mm256_min_epi32(value, max), _mm256_sub_epi32(_mm256_setzero_si256(), max));
    }
}

/* Take the lowest signed byte off 32 whole numbers and give the bytes in their order. */
INLINE __m256i lowest_digit(__m256i whole[4]) {
    __m256i low[4];
    for (int i = 0; i < 4; i++) {
        low[i] = _mm256_srai_epi32(_mm256_slli_epi32(whole[i], 24), 24);
        whole[i] = _mm256_srai_epi32(_mm256_sub_epi32(whole[i], low[i]), 8);
    }
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(low[0], low[1]), _mm256_packs_epi32(low[2], low[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* 64 activations, fewer at the end of a row. */
INLINE const float *block_of(const float *from, int64_t left, float last[BLOCK]) {
    if (left >= BLOCK) return from;
    memset(last, 0, BLOCK * sizeof *last);
    if (left > 0) memcpy(last, from, (size_t)left * sizeof *last);
    return last;
}

/* Digits of one row of activations; 0 where it cannot be done: values that are not finite, or too small to be scaled. */
static int to_digits(integer_job *j, int64_t m) {
    const float *from = j->of.inputs + m * j->of.columns;
    const int64_t group = m / ROWS * ROWS, some = smaller(j->of.rows - group, ROWS), r = m - group;
    const float limit = largest_number(j->of.digits);
    const float max = largest_of(from, j->of.columns), step = max / limit, per = step > 0 ? limit / max : 0.0f;
    step_of(j)[m] = step;
    if (!isfinite(max) || !isfinite(per) || (step == 0 && max > 0)) return 0;
    const __m256i largest = _mm256_set1_epi32((int)limit), eight = _mm256_set1_epi8(8), one = _mm256_set1_epi16(1);
    __m256i all[MAX_DIGITS];
    __m256i *start = start_of(j) + (group * stretches_of(j) + r) * MAX_DIGITS;
    for (int64_t c = 0; c < j->padded; c += BLOCK) {
        float last[BLOCK];
        const float *here = block_of(from + c, j->of.columns - c, last);
        __m256i odd[4], even[4];
        whole_half(here, 1, _mm256_set1_ps(per), largest, odd);
        whole_half(here, 0, _mm256_set1_ps(per), largest, even);
        __m256i *to = (__m256i *)(digits_of(j) + j->of.digits * (group * j->padded + (c * some + r * BLOCK)));
        if (c % j->stretch == 0)
            for (int p = 0; p < MAX_DIGITS; p++) all[p] = _mm256_setzero_si256();
        for (int p = 0; p < j->of.digits; p++) {
            __m256i a = lowest_digit(odd), b = lowest_digit(even);
            _mm256_storeu_si256(to + 2 * p, a);
            _mm256_storeu_si256(to + 2 * p + 1, b);
            __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(eight, a), _mm256_maddubs_epi16(eight, b));
            all[p] = _mm256_sub_epi32(all[p], _mm256_madd_epi16(sums, one));
        }
        if (c + BLOCK >= j->padded || (c + BLOCK) % j->stretch == 0)
            for (int p = 0; p < MAX_DIGITS; p++)
                _mm256_storeu_si256(start + c / j->stretch * some * MAX_DIGITS + p, all[p]);
    }
    return 1;
}

/* The same with a single digit. */
static int to_bytes(integer_job *j, int64_t m) {
    const float *from = j->of.inputs + m * j->of.columns;
    const int64_t group = m / ROWS * ROWS, some = smaller(j->of.rows - group, ROWS), r = m - group;
    const __m256i largest = _mm256_set1_epi32(127), eight = _mm256_set1_epi8(8), one = _mm256_set1_epi16(1);
    float *steps = spans_of(j) + group * (j->padded / SPAN) + r, *start = (float *)start_of(j) + group * stretches_of(j) + r;
    __m256 all = _mm256_setzero_ps();
    step_of(j)[m] = 1.0f;
    for (int64_t c = 0; c < j->padded; c += SPAN, steps += some) {
        const int64_t left = j->of.columns - c;
        const float max = left > 0 ? largest_of(from + c, smaller(left, SPAN)) : 0.0f;
        const float per = max > 0 ? 127.0f / max : 0.0f;
        if (!isfinite(max) || !isfinite(per)) return 0;
        *steps = max / 127.0f;
        __m256i sums = _mm256_setzero_si256();
        for (int64_t b = c; b < c + SPAN; b += BLOCK) {
            float last[BLOCK];
            const float *here = block_of(from + b, j->of.columns - b, last);
            __m256i odd[4], even[4], *to = (__m256i *)(digits_of(j) + group * j->padded + b * some + r * BLOCK);
            whole_half(here, 1, _mm256_set1_ps(per), largest, odd);
            whole_half(here, 0, _mm256_set1_ps(per), largest, even);
            __m256i a = lowest_digit(odd), e = lowest_digit(even);
            _mm256_storeu_si256(to, a);
            _mm256_storeu_si256(to + 1, e);
            __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(eight, a), _mm256_maddubs_epi16(eight, e));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(both, one));
        }
        all = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(*steps), all);
        if (c + SPAN >= j->padded || (c + SPAN) % j->stretch == 0) {
            start[c / j->stretch * some] = sum_of_eight(all);
            all = _mm256_setzero_ps();
        }
    }
    return 1;
}

static void *digits_task(void *arguments) {
    integer_job *j = arguments;
    for (int64_t m; (m = next_piece(&j->queue)) < j->of.rows;)
        if (!(j->of.digits == 1 ? to_bytes(j, m) : to_digits(j, m))) __atomic_store_n(&j->broken, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Add to sums those of every vector. */
INLINE void add_sums(const __m256 of[ROWS], int rows, float sums[ROWS]) {
    if (rows == 4) { /* four at once */
        __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(of[0], of[1]), _mm256_hadd_ps(of[2], of[3]));
        __m128 value = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
        _mm_storeu_ps(sums, _mm_add_ps(_mm_loadu_ps(sums), value));
        return;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) sums[r] += sum_of_eight(of[r]);
}

/* Add to sums those of one row of the weight over a stretch with some rows of activations, in units of their steps. The weights
   are packed, so many bytes of them, or taken apart by integer_unpack. */
INLINE void integer_tile(const uint8_t *from, int packed, int64_t bytes, const __m256i *with, const __m256i *start, int rows,
                         int digits, float sums[ROWS]) {
    __m256i total[ROWS][MAX_DIGITS];
    uint8_t last[CHUNK / 2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int p = 0; p < digits; p++) total[r][p] = _mm256_loadu_si256(start + r * MAX_DIGITS + p);
    const int64_t size = packed ? CHUNK / 2 : CHUNK;
    for (; bytes > 0; bytes -= size, from += size) {
        const uint8_t *here = from;
        if (packed && bytes < size) here = memcpy(last, from, (size_t)bytes); /* what stands behind meets digits of zero */
        __m256i some[ROWS][MAX_DIGITS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
            for (int p = 0; p < digits; p++) some[r][p] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = 0; i < CHUNK / BLOCK; i++, with += rows * 2 * digits) { /* 8 sums of at most 3810 fit 16 bits */
            __m256i half[2];
            if (packed) {
                nibbles(here + 32 * i, &half[0], &half[1]);
                if (i % 2 == 0) _mm_prefetch((const char *)(here + 32 * i + 2048), _MM_HINT_T0);
            } else {
                half[0] = _mm256_loadu_si256((const __m256i *)(here + 64 * i));
                half[1] = _mm256_loadu_si256((const __m256i *)(here + 64 * i + 32));
            }
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
                    for (int p = 0; p < digits; p++) {
                        __m256i by = _mm256_loadu_si256(with + (r * digits + p) * 2 + h);
                        some[r][p] = _mm256_add_epi16(some[r][p], _mm256_maddubs_epi16(half[h], by));
                        KEEP_INTEGER(some[r][p]);
                    }
        }
        const __m256i one = _mm256_set1_epi16(1);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
            for (int p = 0; p < digits; p++) total[r][p] = _mm256_add_epi32(total[r][p], _mm256_madd_epi16(some[r][p], one));
    }
    __m256 value[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) value[r] = of_digits(total[r], digits);
    add_sums(value, rows, sums);
}

/* The same with single digits; start and steps as above. */
INLINE void byte_tile(const uint8_t *from, int packed, int64_t bytes, const __m256i *with, const float *steps,
                      const float *start, int rows, float sums[ROWS]) {
    const __m256i one = _mm256_set1_epi16(1);
    const int64_t size = packed ? CHUNK / 2 : CHUNK;
    uint8_t last[CHUNK / 2];
    __m256 total[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) total[r] = _mm256_setzero_ps();
    for (; bytes > 0; bytes -= size, from += size) {
        const uint8_t *here = from;
        if (packed && bytes < size) here = memcpy(last, from, (size_t)bytes); /* what stands behind meets digits of zero */
        if (packed) {
            _mm_prefetch((const char *)(here + 2048), _MM_HINT_T0);
            _mm_prefetch((const char *)(here + 2048 + 64), _MM_HINT_T0);
        }
#pragma GCC unroll 2
        for (int s = 0; s < CHUNK / SPAN; s++, steps += rows) {
            __m256i some[ROWS];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) some[r] = _mm256_setzero_si256();
#pragma GCC unroll 2
            for (int i = s * SPAN / BLOCK; i < (s + 1) * SPAN / BLOCK; i++, with += rows * 2) {
                __m256i half[2];
                if (packed) nibbles(here + 32 * i, &half[0], &half[1]);
                else {
                    half[0] = _mm256_loadu_si256((const __m256i *)(here + 64 * i));
                    half[1] = _mm256_loadu_si256((const __m256i *)(here + 64 * i + 32));
                }
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++)
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) {
                        some[r] = _mm256_add_epi16(some[r], _mm256_maddubs_epi16(half[h], _mm256_loadu_si256(with + 2 * r + h)));
                        KEEP_INTEGER(some[r]);
                    }
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(some[r], one)), _mm256_set1_ps(steps[r]), total[r]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) sums[r] += start[r];
    add_sums(total, rows, sums);
}

/* Rows of the weight over a stretch, a byte for every column: [rows][stretch]. */
static void integer_unpack(const integer_job *j, int64_t first, int64_t count, int64_t column, int64_t bytes, uint8_t *to) {
    for (int64_t o = 0; o < count; o++) {
        const uint8_t *from = j->of.data + (first + o) * j->of.stride + column / 2;
        for (int64_t at = 0; at < bytes; at += 32) {
            uint8_t last[32] = {0};
            __m256i odd, even;
            nibbles(bytes - at < 32 ? memcpy(last, from + at, (size_t)(bytes - at)) : from + at, &odd, &even);
            _mm256_storeu_si256((__m256i *)(to + o * INTEGER_STRETCH + 2 * at), odd);
            _mm256_storeu_si256((__m256i *)(to + o * INTEGER_STRETCH + 2 * at + 32), even);
        }
    }
}

/* Some rows of the weight with a group of activations, over a stretch; all: [panel][ROWS]. */
INLINE void integer_group(integer_job *j, const uint8_t *held, int64_t first, int64_t count, int64_t m, int64_t stretch, int rows,
                          int digits, float *all) {
    const int64_t column = stretch * j->stretch, left = j->of.columns - column;
    const int64_t columns = smaller(left, j->stretch);
    const __m256i *with = (const __m256i *)(digits_of(j) + digits * (m * j->padded + column * rows));
    const __m256i *start = start_of(j) + (m * stretches_of(j) + stretch * rows) * MAX_DIGITS;
    const float *steps = spans_of(j) + m * (j->padded / SPAN) + column / SPAN * rows;
    const float *begin = (const float *)start_of(j) + m * stretches_of(j) + stretch * rows;
    for (int64_t o = 0; o < count; o++, all += ROWS) {
        if (digits == 1 && held) byte_tile(held + o * INTEGER_STRETCH, 0, columns, with, steps, begin, rows, all);
        else if (digits == 1) byte_tile(j->of.data + (first + o) * j->of.stride, 1, columns / 2, with, steps, begin, rows, all);
        else if (held) integer_tile(held + o * INTEGER_STRETCH, 0, columns, with, start, rows, digits, all);
        else integer_tile(j->of.data + (first + o) * j->of.stride, 1, columns / 2, with, start, rows, digits, all);
    }
}

/* The same for all groups from m to end; all: [group][panel][ROWS]. */
INLINE void integer_groups(integer_job *j, const uint8_t *held, int64_t first, int64_t count, int64_t m, int64_t end, int64_t stretch,
                           int digits, float *all, int64_t panel) {
    for (; m < end; m += ROWS, all += ROWS * panel) {
        const int64_t some = smaller(end - m, ROWS);
        if (some == 4) integer_group(j, held, first, count, m, stretch, 4, digits, all);
        else if (some == 3) integer_group(j, held, first, count, m, stretch, 3, digits, all);
        else if (some == 2) integer_group(j, held, first, count, m, stretch, 2, digits, all);
        else integer_group(j, held, first, count, m, stretch, 1, digits, all);
    }
}

INLINE void integer_finish(integer_job *j, int64_t first, int64_t count, int64_t begin, int64_t end, const float *all, int64_t panel) {
    for (int64_t m = begin; m < end; m++) {
        float *to = j->of.result + m * j->of.outputs + first, step = step_of(j)[m];
        const float *of = all + (m - begin) / ROWS * ROWS * panel + (m - begin) % ROWS;
        for (int64_t o = 0; o < count; o++) {
            float value = of[o * ROWS] * (step * scale_of(&j->of, first + o));
            to[o] = j->of.bias ? value + j->of.bias[first + o] : value;
        }
    }
}

/* Few activations: every row of the weight is read from end to end. */
INLINE void few_rows(integer_job *j, int digits) {
    for (int64_t first; (first = next_piece(&j->queue) * LONG_PANEL) < j->of.outputs;) {
        const int64_t count = smaller(j->of.outputs - first, LONG_PANEL);
        float all[ROWS * LONG_PANEL] = {0};
        integer_groups(j, 0, first, count, 0, j->of.rows, 0, digits, all, LONG_PANEL);
        integer_finish(j, first, count, 0, j->of.rows, all, LONG_PANEL);
    }
}

/* Many: a panel of the weight over a stretch is taken apart and meets INTEGER_ROWS of them. */
INLINE void many_rows(integer_job *j, int digits) {
    uint8_t held[INTEGER_PANEL * INTEGER_STRETCH] __attribute__((aligned(64)));
    for (int64_t first; (first = next_piece(&j->queue) * INTEGER_PANEL) < j->of.outputs;) {
        const int64_t count = smaller(j->of.outputs - first, INTEGER_PANEL);
        for (int64_t begin = 0; begin < j->of.rows; begin += INTEGER_ROWS) {
            const int64_t end = smaller(begin + INTEGER_ROWS, j->of.rows);
            float all[INTEGER_ROWS * INTEGER_PANEL] = {0};
            for (int64_t stretch = 0; stretch * j->stretch < j->of.columns; stretch++) {
                const int64_t column = stretch * j->stretch, left = j->of.columns - column;
                integer_unpack(j, first, count, column, smaller(left, j->stretch) / 2, held);
                integer_groups(j, held, first, count, begin, end, stretch, digits, all, INTEGER_PANEL);
            }
            integer_finish(j, first, count, begin, end, all, INTEGER_PANEL);
        }
    }
}

static void *integer_task(void *arguments) {
    integer_job *j = arguments;
    const int few = j->of.rows <= ROWS;
    if (j->of.digits == 3) few ? few_rows(j, 3) : many_rows(j, 3);
    else if (j->of.digits == 2) few ? few_rows(j, 2) : many_rows(j, 2);
    else few ? few_rows(j, 1) : many_rows(j, 1);
    return 0;
}

int integer_product(const product *p) {
    integer_job j = {.of = *p, .padded = whole_chunks(p->columns)};
    j.stretch = p->rows <= ROWS ? j.padded : INTEGER_STRETCH; /* few rows: every row of the weight is read in one go */
    if (!j.padded) return 0;
    run_task(digits_task, &j, p->pool, p->rows < 4 ? 1 : p->threads);
    if (j.broken) return 0;
    run_task(integer_task, &j, p->pool, p->threads);
    return 1;
}

#else

int64_t integer_room(int64_t columns) { return (void)columns, 0; }

int integer_product(const product *p) { return (void)p, 0; }

#endif
