/* Gradients times INT4 weights as whole numbers, under AVX2.

   Sums go over the rows of the weight, so a row's scale is taken into the gradient before it is turned to digits. A vector
   instruction multiplies 4 rows of 8 columns with 4 digits of the gradient, the same for all columns.

   Legend: M rows of the gradient, O rows of the weight, I columns; a step is 4 rows of the weight, a fold 8 steps, a band 64
   columns, a part 8 of them (4 parts of even columns, 4 of odd ones).

   digits [group][step][row][digit][4]; start as in integer_product.c, one int32 each: [group][deep][row][digit]. */
#include <math.h>

#include "integers.h"
#include "products.h"

#ifdef WHOLE_NUMBERS

#define FOLD 32              /* rows of the weight: 8 sums of at most 3810 fit 16 bits */
#define GRADIENT_DEEP 1024   /* rows of the weight that are taken apart at a time ... */
#define BANDS 2              /* ... in so many bands: a line of the cache */
#define GRADIENT_ROWS 128    /* rows of the gradient that meet them */
#define PARTS_OF_BAND 8
#define HELD (PARTS_OF_BAND * GRADIENT_DEEP / 4 * 32) /* bytes of a band taken apart */
#define WIDE 32768           /* from so many values on, a head's, there are three digits: one is large and the many are tiny */
#define LINE 64              /* bytes of a line of the cache */

/* Where a thread takes weights apart and sums: too large for a stack. */
typedef struct {
    uint8_t weights[BANDS * HELD];
    float sums[BANDS][GRADIENT_ROWS / ROWS * PARTS_OF_BAND * ROWS * 8];
} gradient_scratch;

typedef struct {
    work_queue queue;
    product of;
    int64_t padded; /* outputs padded to whole folds */
    int broken;     /* whether a row of the gradient cannot be turned to digits */
    int64_t seats;  /* taken by threads, each of which has a scratch */
} gradient_job;

INLINE int64_t folded(int64_t rows) { return (rows + FOLD - 1) / FOLD * FOLD; }

INLINE int64_t deeps_of(const gradient_job *j) { return (j->padded + GRADIENT_DEEP - 1) / GRADIENT_DEEP; }

INLINE int8_t *digits_of(const gradient_job *j) { return (int8_t *)j->of.room; }

INLINE int32_t *starts_of(const gradient_job *j) { return (int32_t *)(digits_of(j) + MAX_DIGITS * j->of.rows * j->padded); }

INLINE float *steps_of(const gradient_job *j) { return (float *)(starts_of(j) + MAX_DIGITS * j->of.rows * deeps_of(j)); }

/* Floats of room for one row of the gradient of so many values. */
INLINE int64_t row_room(int64_t outputs) {
    const int64_t padded = folded(outputs);
    return (MAX_DIGITS * padded + 4 * MAX_DIGITS * (padded / GRADIENT_DEEP + 1)) / 4 + 2;
}

/* This thread's; they stand behind all rows' digits, starts and steps, on a line of the cache. */
INLINE gradient_scratch *scratch_of(gradient_job *j) {
    const uintptr_t end = (uintptr_t)(j->of.room + j->of.rows * row_room(j->of.outputs));
    gradient_scratch *first = (gradient_scratch *)((end + LINE - 1) / LINE * LINE);
    return first + __atomic_fetch_add(&j->seats, 1, __ATOMIC_RELAXED);
}

int64_t integer_gradient_room(int64_t rows, int64_t outputs, int threads) {
    return rows * row_room(outputs) + (LINE + threads * (int64_t)sizeof(gradient_scratch)) / 4;
}

/* Eight values of the gradient with their rows' scales; zeros behind the last. */
INLINE __m256 scaled_eight(const gradient_job *j, const float *from, int64_t o) {
    float values[8] = {0};
    if (o + 8 <= j->of.outputs)
        return _mm256_mul_ps(_mm256_loadu_ps(from + o), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(j->of.scale + o))));
    for (int64_t i = 0; i < 8 && o + i < j->of.outputs; i++) values[i] = from[o + i] * scale_of(&j->of, o + i);
    return _mm256_loadu_ps(values);
}

INLINE int32_t sum_of_eight_whole(__m256i of) {
    int32_t held[8], sum = 0;
    _mm256_storeu_si256((__m256i *)held, of);
    for (int i = 0; i < 8; i++) sum += held[i];
    return sum;
}

/* Digits of one row of the gradient; 0 where it cannot be done, as in to_digits. */
static int gradient_digits(gradient_job *j, int64_t m) {
    const float *from = j->of.inputs + m * j->of.outputs;
    const int64_t group = m / ROWS * ROWS, some = smaller(j->of.rows - group, ROWS), r = m - group;
    const float limit = largest_number(j->of.digits);
    const __m256 zero = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
    __m256 max = zero, check = zero;
    for (int64_t o = 0; o < j->of.outputs; o += 8) {
        const __m256 value = scaled_eight(j, from, o);
        max = _mm256_max_ps(max, _mm256_andnot_ps(sign, value));
        check = _mm256_add_ps(check, _mm256_mul_ps(value, zero)); /* zero, or no number */
    }
    float held[8], largest = sum_of_eight(check);
    _mm256_storeu_ps(held, max);
    for (int i = 0; i < 8; i++) largest = held[i] > largest ? held[i] : largest;
    const float step = largest / limit, per = step > 0 ? limit / largest : 0.0f;
    if (!isfinite(largest) || !isfinite(per) || (step == 0 && largest > 0)) return 0;
    steps_of(j)[m] = step;
    const __m256i most = _mm256_set1_epi32((int)limit), least = _mm256_set1_epi32(-(int)limit);
    const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1,
                                            -1, -1, -1, -1, -1, -1, -1, -1, -1);
    int32_t *to = (int32_t *)(digits_of(j) + j->of.digits * group * j->padded) + r * j->of.digits;
    int32_t *start = starts_of(j) + (group * deeps_of(j) + r) * MAX_DIGITS;
    for (int64_t o = 0; o < j->padded; start += some * MAX_DIGITS) {
        __m256i all[MAX_DIGITS] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t end = o + GRADIENT_DEEP; o < end && o < j->padded; o += 8, to += 2 * some * j->of.digits) {
            __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(scaled_eight(j, from, o), _mm256_set1_ps(per)));
            whole = _mm256_max_epi32(_mm256_min_epi32(whole, most), least);
            for (int p = 0; p < j->of.digits; p++) {
                const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(whole, 24), 24);
                const __m256i bytes = _mm256_shuffle_epi8(low, lowest);
                whole = _mm256_srai_epi32(_mm256_sub_epi32(whole, low), 8);
                all[p] = _mm256_add_epi32(all[p], low);
                to[p] = _mm256_extract_epi32(bytes, 0);
                to[some * j->of.digits + p] = _mm256_extract_epi32(bytes, 4);
            }
        }
        for (int p = 0; p < j->of.digits; p++) start[p] = -8 * sum_of_eight_whole(all[p]);
    }
    return 1;
}

static void *digits_task(void *arguments) {
    gradient_job *j = arguments;
    for (int64_t m; (m = next_piece(&j->queue)) < j->of.rows;)
        if (!gradient_digits(j, m)) __atomic_store_n(&j->broken, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Four rows of a band of the weight, taken apart part by part: [part][step][8 columns][4 rows]. Part k of the even columns holds those of
   bytes 4k to 4k+3 and 16+4k to 16+4k+3 of a row's 32. */
INLINE void band_unpack(const gradient_job *j, int64_t first, int64_t o, int64_t column, uint8_t *to) {
    const int64_t left = j->of.columns / 2 - column / 2;
    if (left <= 0) return;
    __m256i of[2][4];
    for (int r = 0; r < 4; r++) {
        uint8_t last[32] = {0};
        const uint8_t *from = j->of.data + (first + o + r) * j->of.stride + column / 2;
        if (first + o + r >= j->of.outputs) from = last; /* meets digits of zero */
        else if (left < 32) from = memcpy(last, from, (size_t)left);
        nibbles(from, &of[1][r], &of[0][r]);
    }
    for (int half = 0; half < 2; half++)
        for (int k = 0; k < 4; k++) {
            const __m256i *rows = of[half];
            __m256i one = k < 2 ? _mm256_unpacklo_epi8(rows[0], rows[1]) : _mm256_unpackhi_epi8(rows[0], rows[1]);
            __m256i two = k < 2 ? _mm256_unpacklo_epi8(rows[2], rows[3]) : _mm256_unpackhi_epi8(rows[2], rows[3]);
            __m256i value = k % 2 ? _mm256_unpackhi_epi16(one, two) : _mm256_unpacklo_epi16(one, two);
            _mm256_store_si256((__m256i *)(to + (half * 4 + k) * (GRADIENT_DEEP / 4 * 32)), value);
        }
}

/* The bands of a panel from a column on, row by row: what lies in one line of the cache is read at once, and before it is needed. */
static void panel_unpack(const gradient_job *j, int64_t first, int64_t count, int64_t column, uint8_t *to) {
    for (int64_t o = 0; o < count; o += 4, to += 32) {
        for (int r = 0; r < 4; r++)
            _mm_prefetch((const char *)(j->of.data + (first + o + r + 32) * j->of.stride + column / 2), _MM_HINT_T0);
        for (int band = 0; band < BANDS; band++) band_unpack(j, first, o, column + band * BLOCK, to + band * HELD);
    }
}

/* Add to sums [row][8 columns] of a part, in units of the rows' steps. */
INLINE void gradient_tile(const uint8_t *weights, int64_t count, const int32_t *with, const int32_t *start, int rows, int digits,
                          float *sums) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i total[ROWS][MAX_DIGITS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int p = 0; p < digits; p++) total[r][p] = _mm256_set1_epi32(start[r * MAX_DIGITS + p]);
    for (; count > 0; count -= FOLD) {
        __m256i some[ROWS][MAX_DIGITS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
            for (int p = 0; p < digits; p++) some[r][p] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int i = 0; i < FOLD / 4; i++, weights += 32, with += rows * digits) {
            const __m256i held = _mm256_load_si256((const __m256i *)weights);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
                for (int p = 0; p < digits; p++) {
                    const __m256i by = _mm256_set1_epi32(with[r * digits + p]);
                    some[r][p] = _mm256_add_epi16(some[r][p], _mm256_maddubs_epi16(held, by));
                    KEEP_INTEGER(some[r][p]);
                }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
            for (int p = 0; p < digits; p++) total[r][p] = _mm256_add_epi32(total[r][p], _mm256_madd_epi16(some[r][p], one));
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        _mm256_storeu_ps(sums + 8 * r, _mm256_add_ps(_mm256_loadu_ps(sums + 8 * r), of_digits(total[r], digits)));
}

/* A band over some rows of the weight with rows begin to end of the gradient; sums [group][part][ROWS][8]. */
INLINE void gradient_band(const gradient_job *j, const uint8_t *held, int64_t first, int64_t count, int64_t begin, int64_t end,
                          int digits, float *sums) {
    for (int64_t m = begin; m < end; m += ROWS)
        for (int part = 0; part < PARTS_OF_BAND; part++, sums += ROWS * 8) {
            const int64_t some = smaller(j->of.rows - m, ROWS);
            const uint8_t *weights = held + part * (GRADIENT_DEEP / 4 * 32);
            const int32_t *with = (const int32_t *)(digits_of(j) + digits * (m * j->padded + first * some));
            const int32_t *start = starts_of(j) + (m * deeps_of(j) + first / GRADIENT_DEEP * some) * MAX_DIGITS;
            if (some == 4) gradient_tile(weights, count, with, start, 4, digits, sums);
            else if (some == 3) gradient_tile(weights, count, with, start, 3, digits, sums);
            else if (some == 2) gradient_tile(weights, count, with, start, 2, digits, sums);
            else gradient_tile(weights, count, with, start, 1, digits, sums);
        }
}

/* Sums of a band to their columns, times the rows' steps. */
static void gradient_finish(const gradient_job *j, int64_t column, int64_t begin, int64_t end, const float *sums) {
    for (int64_t m = begin; m < end; m++) {
        const float *from = sums + (m - begin) / ROWS * (PARTS_OF_BAND * ROWS * 8) + (m - begin) % ROWS * 8;
        const __m256 step = _mm256_set1_ps(steps_of(j)[m]);
        float row[BLOCK];
        for (int k = 0; k < 4; k++) {
            const __m256 even = _mm256_mul_ps(_mm256_loadu_ps(from + k * ROWS * 8), step);
            const __m256 odd = _mm256_mul_ps(_mm256_loadu_ps(from + (4 + k) * ROWS * 8), step);
            const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
            _mm_storeu_ps(row + 8 * k, _mm256_castps256_ps128(low));
            _mm_storeu_ps(row + 8 * k + 4, _mm256_castps256_ps128(high));
            _mm_storeu_ps(row + 32 + 8 * k, _mm256_extractf128_ps(low, 1));
            _mm_storeu_ps(row + 32 + 8 * k + 4, _mm256_extractf128_ps(high, 1));
        }
        const int64_t left = smaller(j->of.columns - column, BLOCK);
        memcpy(j->of.result + m * j->of.columns + column, row, (size_t)left * sizeof *row);
    }
}

INLINE void gradient_rows(gradient_job *j, int digits) {
    gradient_scratch *scratch = scratch_of(j);
    for (int64_t column; (column = next_piece(&j->queue) * BANDS * BLOCK) < j->of.columns;)
        for (int64_t begin = 0; begin < j->of.rows; begin += GRADIENT_ROWS) {
            const int64_t end = smaller(begin + GRADIENT_ROWS, j->of.rows);
            memset(scratch->sums, 0, sizeof scratch->sums);
            for (int64_t first = 0; first < j->padded; first += GRADIENT_DEEP) {
                const int64_t count = smaller(j->padded - first, GRADIENT_DEEP);
                panel_unpack(j, first, count, column, scratch->weights);
                for (int band = 0; band < BANDS && column + band * BLOCK < j->of.columns; band++)
                    gradient_band(j, scratch->weights + band * HELD, first, count, begin, end, digits, scratch->sums[band]);
            }
            for (int band = 0; band < BANDS && column + band * BLOCK < j->of.columns; band++)
                gradient_finish(j, column + band * BLOCK, begin, end, scratch->sums[band]);
        }
}

static void *gradient_task(void *arguments) {
    gradient_job *j = arguments;
    if (j->of.digits == 3) gradient_rows(j, 3);
    else gradient_rows(j, 2);
    return 0;
}

int integer_gradient(const product *p) {
    gradient_job j = {.of = *p, .padded = folded(p->outputs)};
    if (p->outputs >= WIDE) j.of.digits = 3;
    if (!j.padded) return 0;
    run_task(digits_task, &j, p->pool, p->rows < 4 ? 1 : p->threads);
    if (j.broken) return 0;
    run_task(gradient_task, &j, p->pool, p->threads);
    return 1;
}

#else

int64_t integer_gradient_room(int64_t rows, int64_t outputs, int threads) {
    return (void)rows, (void)outputs, (void)threads, 0;
}

int integer_gradient(const product *p) { return (void)p, 0; }

#endif
