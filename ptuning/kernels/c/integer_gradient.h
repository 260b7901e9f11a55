/* Gradients times INT4 weights as whole numbers, under AVX2. Included by packed.c behind integers.h, whose digits these are.

   Sums go over the rows of the weight, so a row's scale is taken into the gradient before it is turned to digits. A vector
   instruction multiplies 4 rows of 8 columns with 4 digits of the gradient, the same for all columns.

   Legend: M rows of the gradient, O rows of the weight, I columns; a step is 4 rows of the weight, a fold 8 steps, a band 64
   columns, a part 8 of them (4 parts of even columns, 4 of odd ones).

   digits [group][step][row][digit][4]; start as in integers.h, one int32 each: [group][deep][row][digit]. */
#define FOLD 32              /* rows of the weight: 8 sums of at most 3810 fit 16 bits */
#define GRADIENT_DEEP 1024   /* rows of the weight that are taken apart at a time ... */
#define BANDS 2              /* ... in so many bands: a line of the cache */
#define GRADIENT_ROWS 128    /* rows of the gradient that meet them */
#define PARTS_OF_BAND 8
#define HELD (PARTS_OF_BAND * GRADIENT_DEEP / 4 * 32) /* bytes of a band taken apart */
#define WIDE 32768           /* from so many values on, a head's, there are three digits: one is large and the many are tiny */

INLINE int64_t folded(int64_t rows) { return (rows + FOLD - 1) / FOLD * FOLD; }

INLINE int64_t deeps_of(const job *j) { return (j->padded + GRADIENT_DEEP - 1) / GRADIENT_DEEP; }

INLINE int32_t *starts_of(const job *j) { return (int32_t *)(digits_of(j) + MOST_DIGITS * j->rows * j->padded); }

INLINE float *steps_of(const job *j) { return (float *)(starts_of(j) + MOST_DIGITS * j->rows * deeps_of(j)); }

/* Floats of room for one row of the gradient of so many values. */
static int64_t gradient_room(int64_t outputs) {
    const int64_t padded = folded(outputs);
    return (MOST_DIGITS * padded + 4 * MOST_DIGITS * (padded / GRADIENT_DEEP + 1)) / 4 + 2;
}

/* Eight values of the gradient with their rows' scales; zeros behind the last. */
INLINE __m256 scaled_eight(const job *j, const float *from, int64_t o) {
    float values[8] = {0};
    if (o + 8 <= j->outputs)
        return _mm256_mul_ps(_mm256_loadu_ps(from + o), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(j->scale + o))));
    for (int64_t i = 0; i < 8 && o + i < j->outputs; i++) values[i] = from[o + i] * scale_of(j, o + i);
    return _mm256_loadu_ps(values);
}

INLINE int32_t sum_of_eight_whole(__m256i of) {
    int32_t held[8], sum = 0;
    _mm256_storeu_si256((__m256i *)held, of);
    for (int i = 0; i < 8; i++) sum += held[i];
    return sum;
}

/* Digits of one row of the gradient; 0 where it cannot be done, as in to_digits. */
static int gradient_digits(job *j, int64_t m) {
    const float *from = j->given + m * j->outputs;
    const int64_t group = m / ROWS * ROWS, some = j->rows - group < ROWS ? j->rows - group : ROWS, r = m - group;
    const float limit = j->digits == 3 ? 8355711.0f : 32639.0f; /* as in to_digits */
    const __m256 zero = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
    __m256 found = zero, check = zero;
    for (int64_t o = 0; o < j->outputs; o += 8) {
        const __m256 value = scaled_eight(j, from, o);
        found = _mm256_max_ps(found, _mm256_andnot_ps(sign, value));
        check = _mm256_add_ps(check, _mm256_mul_ps(value, zero)); /* zero, or no number */
    }
    float held[8], largest = sum_of_eight(check);
    _mm256_storeu_ps(held, found);
    for (int i = 0; i < 8; i++) largest = held[i] > largest ? held[i] : largest;
    const float step = largest / limit, per = step > 0 ? limit / largest : 0.0f;
    if (!isfinite(largest) || !isfinite(per) || (step == 0 && largest > 0)) return 0;
    steps_of(j)[m] = step;
    const __m256i most = _mm256_set1_epi32((int)limit), least = _mm256_set1_epi32(-(int)limit);
    const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1,
                                            -1, -1, -1, -1, -1, -1, -1, -1, -1);
    int32_t *to = (int32_t *)(digits_of(j) + j->digits * group * j->padded) + r * j->digits;
    int32_t *start = starts_of(j) + (group * deeps_of(j) + r) * MOST_DIGITS;
    for (int64_t o = 0; o < j->padded; start += some * MOST_DIGITS) {
        __m256i all[MOST_DIGITS] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t end = o + GRADIENT_DEEP; o < end && o < j->padded; o += 8, to += 2 * some * j->digits) {
            __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(scaled_eight(j, from, o), _mm256_set1_ps(per)));
            whole = _mm256_max_epi32(_mm256_min_epi32(whole, most), least);
            for (int p = 0; p < j->digits; p++) {
                const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(whole, 24), 24);
                const __m256i bytes = _mm256_shuffle_epi8(low, lowest);
                whole = _mm256_srai_epi32(_mm256_sub_epi32(whole, low), 8);
                all[p] = _mm256_add_epi32(all[p], low);
                to[p] = _mm256_extract_epi32(bytes, 0);
                to[some * j->digits + p] = _mm256_extract_epi32(bytes, 4);
            }
        }
        for (int p = 0; p < j->digits; p++) start[p] = -8 * sum_of_eight_whole(all[p]);
    }
    return 1;
}

static void *gradient_digits_work(void *given) {
    job *j = given;
    for (int64_t m; (m = fetch(j)) < j->rows;)
        if (!gradient_digits(j, m)) __atomic_store_n(&j->broken, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Four rows of a band of the weight, taken apart part by part: [part][step][8 columns][4 rows]. Part k of the even columns holds those of
   bytes 4k to 4k+3 and 16+4k to 16+4k+3 of a row's 32. */
INLINE void band_unpack(const job *j, int64_t first, int64_t o, int64_t column, uint8_t *to) {
    const int64_t left = j->columns / 2 - column / 2;
    if (left <= 0) return;
    __m256i of[2][4];
    for (int r = 0; r < 4; r++) {
        uint8_t last[32] = {0};
        const uint8_t *from = j->data + (first + o + r) * j->stride + column / 2;
        if (first + o + r >= j->outputs) from = last; /* meets digits of zero */
        else if (left < 32) from = memcpy(last, from, (size_t)left);
        nibbles(from, &of[1][r], &of[0][r]);
    }
    for (int half = 0; half < 2; half++)
        for (int k = 0; k < 4; k++) {
            const __m256i *rows = of[half];
            __m256i one = k < 2 ? _mm256_unpacklo_epi8(rows[0], rows[1]) : _mm256_unpackhi_epi8(rows[0], rows[1]);
            __m256i two = k < 2 ? _mm256_unpacklo_epi8(rows[2], rows[3]) : _mm256_unpackhi_epi8(rows[2], rows[3]);
            __m256i made = k % 2 ? _mm256_unpackhi_epi16(one, two) : _mm256_unpacklo_epi16(one, two);
            _mm256_store_si256((__m256i *)(to + (half * 4 + k) * (GRADIENT_DEEP / 4 * 32)), made);
        }
}

/* The bands of a panel from a column on, row by row: what lies in one line of the cache is read at once, and before it is needed. */
static void panel_unpack(const job *j, int64_t first, int64_t count, int64_t column, uint8_t *to) {
    for (int64_t o = 0; o < count; o += 4, to += 32) {
        for (int r = 0; r < 4; r++)
            _mm_prefetch((const char *)(j->data + (first + o + r + 32) * j->stride + column / 2), _MM_HINT_T0);
        for (int band = 0; band < BANDS; band++) band_unpack(j, first, o, column + band * BLOCK, to + band * HELD);
    }
}

/* Add to sums [row][8 columns] of a part, in units of the rows' steps. */
INLINE void gradient_tile(const uint8_t *weights, int64_t count, const int32_t *with, const int32_t *start, int rows, int digits,
                          float *sums) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i total[ROWS][MOST_DIGITS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int p = 0; p < digits; p++) total[r][p] = _mm256_set1_epi32(start[r * MOST_DIGITS + p]);
    for (; count > 0; count -= FOLD) {
        __m256i some[ROWS][MOST_DIGITS];
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
INLINE void gradient_band(const job *j, const uint8_t *held, int64_t first, int64_t count, int64_t begin, int64_t end,
                          int digits, float *sums) {
    for (int64_t m = begin; m < end; m += ROWS)
        for (int part = 0; part < PARTS_OF_BAND; part++, sums += ROWS * 8) {
            const int64_t some = j->rows - m < ROWS ? j->rows - m : ROWS;
            const uint8_t *weights = held + part * (GRADIENT_DEEP / 4 * 32);
            const int32_t *with = (const int32_t *)(digits_of(j) + digits * (m * j->padded + first * some));
            const int32_t *start = starts_of(j) + (m * deeps_of(j) + first / GRADIENT_DEEP * some) * MOST_DIGITS;
            if (some == 4) gradient_tile(weights, count, with, start, 4, digits, sums);
            else if (some == 3) gradient_tile(weights, count, with, start, 3, digits, sums);
            else if (some == 2) gradient_tile(weights, count, with, start, 2, digits, sums);
            else gradient_tile(weights, count, with, start, 1, digits, sums);
        }
}

/* Sums of a band to their columns, times the rows' steps. */
static void gradient_finish(const job *j, int64_t column, int64_t begin, int64_t end, const float *sums) {
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
        const int64_t left = j->columns - column < BLOCK ? j->columns - column : BLOCK;
        memcpy(j->result + m * j->columns + column, row, (size_t)left * sizeof *row);
    }
}

INLINE void gradient_rows(job *j, int digits) {
    uint8_t held[BANDS * HELD] __attribute__((aligned(64)));
    for (int64_t column; (column = fetch(j) * BANDS * BLOCK) < j->columns;)
        for (int64_t begin = 0; begin < j->rows; begin += GRADIENT_ROWS) {
            const int64_t end = j->rows - begin < GRADIENT_ROWS ? j->rows : begin + GRADIENT_ROWS;
            float sums[BANDS][GRADIENT_ROWS / ROWS * PARTS_OF_BAND * ROWS * 8] = {{0}};
            for (int64_t first = 0; first < j->padded; first += GRADIENT_DEEP) {
                const int64_t count = j->padded - first < GRADIENT_DEEP ? j->padded - first : GRADIENT_DEEP;
                panel_unpack(j, first, count, column, held);
                for (int band = 0; band < BANDS && column + band * BLOCK < j->columns; band++)
                    gradient_band(j, held + band * HELD, first, count, begin, end, digits, sums[band]);
            }
            for (int band = 0; band < BANDS && column + band * BLOCK < j->columns; band++)
                gradient_finish(j, column + band * BLOCK, begin, end, sums[band]);
        }
}

static void *gradient_work(void *given) {
    job *j = given;
    if (j->digits == 3) gradient_rows(j, 3);
    else gradient_rows(j, 2);
    return 0;
}

/* Multiply that way; 0 where the gradient does not fit it, and nothing is done. */
static int integer_gradient(job *j, parallel pool, int threads) {
    j->padded = folded(j->outputs);
    if (j->outputs >= WIDE) j->digits = 3;
    if (!j->padded) return 0;
    run(gradient_digits_work, j, pool, j->rows < 4 ? 1 : threads);
    if (j->broken) return 0;
    run(gradient_work, j, pool, threads);
    return 1;
}
