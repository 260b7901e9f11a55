/* INT4 weights times activations as whole numbers, under AVX2. Included by packed.c.

   A row of activations is turned to whole numbers of 24 bits, at most 2^-24 of its largest value off (16 bits for activations
   of half precision, or where the caller wants no more), and these to three (two) signed bytes, the digits. A vector instruction multiplies 32 bytes with 32
   nibbles, four times what it does with floats; products and their sums are exact. A stretch of columns is summed that way,
   and only stretches are added in float32.

   Legend: M rows of activations, O output rows, I input columns; a block is 64 columns, a chunk 256, a group 4 rows of
   activations.

   digits [group][block][row][digit][odd or even column][32]: what one tile reads lies together. Weights are taken as value+8,
   0 to 15, so 8 times the sum of the digits is taken off first: start [group][stretch][row][digit][8 lanes of int32].

   With a single digit (the caller's wish: twice as fast, and as coarse as INT8) every span of 128 columns has a step of its
   own, [group][span][row] behind the digits, and is added in float32; start is then one float, [group][stretch][row]. */
#define BLOCK 64
#define CHUNK 256
#define SPAN 128              /* columns that share the step of a single digit */
#define INTEGER_PANEL 32      /* rows of the weight that are multiplied with many activations at a time ... */
#define LONG_PANEL 64         /* (with few: a thread reads a long piece of memory) */
#define INTEGER_STRETCH 2048  /* ... over so many columns: the digits of a group over them fit the first cache */
#define INTEGER_ROWS 64       /* activations that a panel meets at a time: sums of rows far apart would share a place in the cache */
#define MOST_DIGITS 3

INLINE int64_t stretches_of(const job *j) { return (j->padded + j->stretch - 1) / j->stretch; }

INLINE int8_t *digits_of(const job *j) { return (int8_t *)j->arranged; }

INLINE __m256i *start_of(const job *j) { return (__m256i *)(digits_of(j) + MOST_DIGITS * j->rows * j->padded); }

INLINE float *spans_of(const job *j) { return (float *)(digits_of(j) + j->rows * j->padded); }

INLINE float *step_of(const job *j) { return (float *)(start_of(j) + MOST_DIGITS * j->rows * stretches_of(j)); }

INLINE int64_t whole_chunks(int64_t columns) { return (columns + CHUNK - 1) / CHUNK * CHUNK; }

/* Floats of room for one row of activations of so many columns: digits, starts, step. */
static int64_t integer_room(int64_t columns) {
    const int64_t padded = whole_chunks(columns);
    return (MOST_DIGITS * padded + 32 * MOST_DIGITS * (padded / INTEGER_STRETCH + 1)) / 4 + 8;
}

INLINE float sum_of_eight(__m256 of) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(of), _mm256_extractf128_ps(of, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

/* Even or odd ones of 64 floats, times a factor, as whole numbers within limits. */
INLINE void whole_half(const float *from, int odd, __m256 per, __m256i most, __m256i whole[4]) {
    for (int i = 0; i < 4; i++) {
        __m256 a = _mm256_loadu_ps(from + 16 * i), b = _mm256_loadu_ps(from + 16 * i + 8);
        __m256 half = odd ? _mm256_shuffle_ps(a, b, 0xDD) : _mm256_shuffle_ps(a, b, 0x88);
        half = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(half), 0xD8));
        __m256i value = _mm256_cvtps_epi32(_mm256_mul_ps(half, per));
        whole[i] = _mm256_max_epi32(_mm256_min_epi32(value, most), _mm256_sub_epi32(_mm256_setzero_si256(), most));
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

/* The largest absolute value; not finite where one of them is not. */
static float largest_of(const float *from, int64_t columns) {
    const __m256 sign = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
    __m256 most = zero, check = zero;
    float last[8] = {0}, held[8], checks[8], found = 0;
    for (int64_t c = 0; c < columns; c += 8) {
        const float *here = columns - c < 8 ? memcpy(last, from + c, (size_t)(columns - c) * sizeof *last) : from + c;
        __m256 value = _mm256_loadu_ps(here);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, value));
        check = _mm256_add_ps(check, _mm256_mul_ps(value, zero)); /* zero, or no number */
    }
    _mm256_storeu_ps(held, most);
    _mm256_storeu_ps(checks, check);
    for (int i = 0; i < 8; i++) found = (held[i] > found ? held[i] : found) + checks[i];
    return found;
}

/* 64 activations, fewer at the end of a row. */
INLINE const float *block_of(const float *from, int64_t left, float last[BLOCK]) {
    if (left >= BLOCK) return from;
    memset(last, 0, BLOCK * sizeof *last);
    if (left > 0) memcpy(last, from, (size_t)left * sizeof *last);
    return last;
}

/* Digits of one row of activations; 0 where it cannot be done: values that are not finite, or too small to be scaled. */
static int to_digits(job *j, int64_t m) {
    const float *from = j->given + m * j->columns;
    const int64_t group = m / ROWS * ROWS, some = j->rows - group < ROWS ? j->rows - group : ROWS, r = m - group;
    const float limit = j->digits == 3 ? 8355711.0f : 32639.0f; /* 127 * (65536 + 256 + 1), 127 * (256 + 1) */
    const float most = largest_of(from, j->columns), step = most / limit, per = step > 0 ? limit / most : 0.0f;
    step_of(j)[m] = step;
    if (!isfinite(most) || !isfinite(per) || (step == 0 && most > 0)) return 0;
    const __m256i largest = _mm256_set1_epi32((int)limit), eight = _mm256_set1_epi8(8), one = _mm256_set1_epi16(1);
    __m256i all[MOST_DIGITS];
    __m256i *start = start_of(j) + (group * stretches_of(j) + r) * MOST_DIGITS;
    for (int64_t c = 0; c < j->padded; c += BLOCK) {
        float last[BLOCK];
        const float *here = block_of(from + c, j->columns - c, last);
        __m256i odd[4], even[4];
        whole_half(here, 1, _mm256_set1_ps(per), largest, odd);
        whole_half(here, 0, _mm256_set1_ps(per), largest, even);
        __m256i *to = (__m256i *)(digits_of(j) + j->digits * (group * j->padded + (c * some + r * BLOCK)));
        if (c % j->stretch == 0)
            for (int p = 0; p < MOST_DIGITS; p++) all[p] = _mm256_setzero_si256();
        for (int p = 0; p < j->digits; p++) {
            __m256i a = lowest_digit(odd), b = lowest_digit(even);
            _mm256_storeu_si256(to + 2 * p, a);
            _mm256_storeu_si256(to + 2 * p + 1, b);
            __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(eight, a), _mm256_maddubs_epi16(eight, b));
            all[p] = _mm256_sub_epi32(all[p], _mm256_madd_epi16(sums, one));
        }
        if (c + BLOCK >= j->padded || (c + BLOCK) % j->stretch == 0)
            for (int p = 0; p < MOST_DIGITS; p++)
                _mm256_storeu_si256(start + c / j->stretch * some * MOST_DIGITS + p, all[p]);
    }
    return 1;
}

/* The same with a single digit. */
static int to_bytes(job *j, int64_t m) {
    const float *from = j->given + m * j->columns;
    const int64_t group = m / ROWS * ROWS, some = j->rows - group < ROWS ? j->rows - group : ROWS, r = m - group;
    const __m256i largest = _mm256_set1_epi32(127), eight = _mm256_set1_epi8(8), one = _mm256_set1_epi16(1);
    float *steps = spans_of(j) + group * (j->padded / SPAN) + r, *start = (float *)start_of(j) + group * stretches_of(j) + r;
    __m256 all = _mm256_setzero_ps();
    step_of(j)[m] = 1.0f;
    for (int64_t c = 0; c < j->padded; c += SPAN, steps += some) {
        const int64_t left = j->columns - c;
        const float most = left > 0 ? largest_of(from + c, left < SPAN ? left : SPAN) : 0.0f;
        const float per = most > 0 ? 127.0f / most : 0.0f;
        if (!isfinite(most) || !isfinite(per)) return 0;
        *steps = most / 127.0f;
        __m256i sums = _mm256_setzero_si256();
        for (int64_t b = c; b < c + SPAN; b += BLOCK) {
            float last[BLOCK];
            const float *here = block_of(from + b, j->columns - b, last);
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

static void *digits_work(void *given) {
    job *j = given;
    for (int64_t m; (m = fetch(j)) < j->rows;)
        if (!(j->digits == 1 ? to_bytes(j, m) : to_digits(j, m))) __atomic_store_n(&j->broken, 1, __ATOMIC_RELAXED);
    return 0;
}

#define KEEP_INTEGER(value) __asm__("" : "+x"(value)) /* in this order: gcc would gather all products first, and spill them */

/* The odd and even columns of a block of packed weights, as value+8 in a byte each. */
INLINE void nibbles(const uint8_t *from, __m256i *odd, __m256i *even) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i got = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)from), _mm256_set1_epi8((char)0x88));
    *odd = _mm256_and_si256(got, low);
    *even = _mm256_and_si256(_mm256_srli_epi16(got, 4), low);
}

/* Eight sums in float32, of whole numbers digit by digit. */
INLINE __m256 of_digits(const __m256i total[MOST_DIGITS], int digits) {
    __m256 made = _mm256_cvtepi32_ps(total[digits - 1]);
#pragma GCC unroll 3
    for (int p = digits - 2; p >= 0; p--)
        made = _mm256_fmadd_ps(made, _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(total[p]));
    return made;
}

/* Add to sums those of every vector. */
INLINE void add_sums(const __m256 of[ROWS], int rows, float sums[ROWS]) {
    if (rows == 4) { /* four at once */
        __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(of[0], of[1]), _mm256_hadd_ps(of[2], of[3]));
        __m128 made = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
        _mm_storeu_ps(sums, _mm_add_ps(_mm_loadu_ps(sums), made));
        return;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) sums[r] += sum_of_eight(of[r]);
}

/* Add to sums those of one row of the weight over a stretch with some rows of activations, in units of their steps. The weights
   are packed, so many bytes of them, or taken apart by integer_unpack. */
INLINE void integer_tile(const uint8_t *from, int packed, int64_t bytes, const __m256i *with, const __m256i *start, int rows,
                         int digits, float sums[ROWS]) {
    __m256i total[ROWS][MOST_DIGITS];
    uint8_t last[CHUNK / 2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int p = 0; p < digits; p++) total[r][p] = _mm256_loadu_si256(start + r * MOST_DIGITS + p);
    const int64_t size = packed ? CHUNK / 2 : CHUNK;
    for (; bytes > 0; bytes -= size, from += size) {
        const uint8_t *here = from;
        if (packed && bytes < size) here = memcpy(last, from, (size_t)bytes); /* what stands behind meets digits of zero */
        __m256i some[ROWS][MOST_DIGITS];
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
    __m256 made[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) made[r] = of_digits(total[r], digits);
    add_sums(made, rows, sums);
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
static void integer_unpack(const job *j, int64_t first, int64_t count, int64_t column, int64_t bytes, uint8_t *to) {
    for (int64_t o = 0; o < count; o++) {
        const uint8_t *from = j->data + (first + o) * j->stride + column / 2;
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
INLINE void integer_group(job *j, const uint8_t *held, int64_t first, int64_t count, int64_t m, int64_t stretch, int rows,
                          int digits, float *all) {
    const int64_t column = stretch * j->stretch, left = j->columns - column;
    const int64_t columns = left < j->stretch ? left : j->stretch;
    const __m256i *with = (const __m256i *)(digits_of(j) + digits * (m * j->padded + column * rows));
    const __m256i *start = start_of(j) + (m * stretches_of(j) + stretch * rows) * MOST_DIGITS;
    const float *steps = spans_of(j) + m * (j->padded / SPAN) + column / SPAN * rows;
    const float *begin = (const float *)start_of(j) + m * stretches_of(j) + stretch * rows;
    for (int64_t o = 0; o < count; o++, all += ROWS) {
        if (digits == 1 && held) byte_tile(held + o * INTEGER_STRETCH, 0, columns, with, steps, begin, rows, all);
        else if (digits == 1) byte_tile(j->data + (first + o) * j->stride, 1, columns / 2, with, steps, begin, rows, all);
        else if (held) integer_tile(held + o * INTEGER_STRETCH, 0, columns, with, start, rows, digits, all);
        else integer_tile(j->data + (first + o) * j->stride, 1, columns / 2, with, start, rows, digits, all);
    }
}

/* The same for all groups from m to end; all: [group][panel][ROWS]. */
INLINE void integer_groups(job *j, const uint8_t *held, int64_t first, int64_t count, int64_t m, int64_t end, int64_t stretch,
                           int digits, float *all, int64_t panel) {
    for (; m < end; m += ROWS, all += ROWS * panel) {
        const int64_t some = end - m < ROWS ? end - m : ROWS;
        if (some == 4) integer_group(j, held, first, count, m, stretch, 4, digits, all);
        else if (some == 3) integer_group(j, held, first, count, m, stretch, 3, digits, all);
        else if (some == 2) integer_group(j, held, first, count, m, stretch, 2, digits, all);
        else integer_group(j, held, first, count, m, stretch, 1, digits, all);
    }
}

INLINE void integer_finish(job *j, int64_t first, int64_t count, int64_t begin, int64_t end, const float *all, int64_t panel) {
    for (int64_t m = begin; m < end; m++) {
        float *to = j->result + m * j->outputs + first, step = step_of(j)[m];
        const float *of = all + (m - begin) / ROWS * ROWS * panel + (m - begin) % ROWS;
        for (int64_t o = 0; o < count; o++) {
            float made = of[o * ROWS] * (step * scale_of(j, first + o));
            to[o] = j->bias ? made + j->bias[first + o] : made;
        }
    }
}

/* Few activations: every row of the weight is read from end to end. */
INLINE void few_work(job *j, int digits) {
    for (int64_t first; (first = fetch(j) * LONG_PANEL) < j->outputs;) {
        const int64_t count = j->outputs - first < LONG_PANEL ? j->outputs - first : LONG_PANEL;
        float all[ROWS * LONG_PANEL] = {0};
        integer_groups(j, 0, first, count, 0, j->rows, 0, digits, all, LONG_PANEL);
        integer_finish(j, first, count, 0, j->rows, all, LONG_PANEL);
    }
}

/* Many: a panel of the weight over a stretch is taken apart and meets INTEGER_ROWS of them. */
INLINE void many_work(job *j, int digits) {
    uint8_t held[INTEGER_PANEL * INTEGER_STRETCH] __attribute__((aligned(64)));
    for (int64_t first; (first = fetch(j) * INTEGER_PANEL) < j->outputs;) {
        const int64_t count = j->outputs - first < INTEGER_PANEL ? j->outputs - first : INTEGER_PANEL;
        for (int64_t begin = 0; begin < j->rows; begin += INTEGER_ROWS) {
            const int64_t end = j->rows - begin < INTEGER_ROWS ? j->rows : begin + INTEGER_ROWS;
            float all[INTEGER_ROWS * INTEGER_PANEL] = {0};
            for (int64_t stretch = 0; stretch * j->stretch < j->columns; stretch++) {
                const int64_t column = stretch * j->stretch, left = j->columns - column;
                integer_unpack(j, first, count, column, (left < j->stretch ? left : j->stretch) / 2, held);
                integer_groups(j, held, first, count, begin, end, stretch, digits, all, INTEGER_PANEL);
            }
            integer_finish(j, first, count, begin, end, all, INTEGER_PANEL);
        }
    }
}

static void *integer_work(void *given) {
    job *j = given;
    const int few = j->rows <= ROWS;
    if (j->digits == 3) few ? few_work(j, 3) : many_work(j, 3);
    else if (j->digits == 2) few ? few_work(j, 2) : many_work(j, 2);
    else few ? few_work(j, 1) : many_work(j, 1);
    return 0;
}

/* Multiply that way; 0 where the activations do not fit it, and nothing is done. */
static int integer_product(job *j, parallel pool, int threads) {
    j->padded = whole_chunks(j->columns);
    j->stretch = j->rows <= ROWS ? j->padded : INTEGER_STRETCH; /* few rows: every row of the weight is read in one go */
    if (!j->padded) return 0;
    run(digits_work, j, pool, j->rows < 4 ? 1 : threads);
    if (j->broken) return 0;
    run(integer_work, j, pool, threads);
    return 1;
}
