/* The rows of a float weight with the largest products (the likeliest tokens of a head), found without multiplying with all
   of it, under AVX2.

   Beside every row w of the weight stand its signed bytes, w' = step * bytes, and the lengths |w - w'| and |w'|. Activations x
   are taken as whole numbers of 7 bits, or of 14 in two bytes, x' = step * numbers. Then, by Cauchy and Schwarz,

       x.w <= x'.w' + |x| |w - w'| + |x - x'| |w'|,

   and x'.w' is made of bytes, two to four times as fast as floats and a quarter of the memory. Float products are made of the
   rows with the highest bounds, and then of every row whose bound reaches the smallest of these: no row that is left out
   could be among the largest. The bounds hold for float32 products with their rounding, too (slack).

   Legend: M rows of activations, O rows of the weight (padded to PACK), I columns, K products asked for. */
#include <math.h>

#include "integers.h"

#ifdef WHOLE_NUMBERS

#define TOO_LONG 1e15f    /* of activations and rows: no product of two lengths leaves the range of float32 */
#define COARSE 0.03f      /* 7 bits will do while no more of a row's length is lost; always up to ... */
#define FEW_SCREENED 3    /* so many rows 14 bits are used, which wait for memory anyway */
#define PACK 16           /* rows of the weight whose bytes are multiplied together */
#define PACKS 4           /* that a thread takes at a time */
#define MIN_LOOKED 4096 /* float products that a row of activations may always take, */
#define SHARE_LOOKED 32   /* and the part of all rows beyond which the whole product is the better way */

typedef struct {
    work_queue queue;
    const void *weight;  /* [O, I] */
    int kind;            /* 0 float32, 1 float16, 2 bfloat16 */
    int8_t *bytes;       /* [O, I] */
    float *step, *lost, *length; /* [O]: of a byte; |w - w'| with slack; |w'| */
    int32_t *sums;       /* [O] of the bytes */
    const float *inputs; /* [M, I] */
    uint8_t *numbers;    /* [M][digits][I] */
    float *factors;      /* [M][3]: step, |x|, |x - x'| */
    float *bounds;       /* [M, O] */
    float *values;       /* [M, K] */
    int64_t *places;     /* [M, K] */
    int64_t rows, outputs, padded, columns, k;
    int digits, failed;
} screen;

/* Eight floats of a stored row. */
INLINE __m256 eight_of(const void *from, int64_t at, int kind) {
    if (kind == 0) return _mm256_loadu_ps((const float *)from + at);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)from + at));
    if (kind == 1) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* The square root of a sum of squares, rounded up; squares that were too small for a float are made up for. */
INLINE float length_of(__m256 squares) { return sqrtf(sum_of_eight(squares)) * 1.001f + 1e-17f; }

/* Steps of a byte in a unit; 0, so that all are taken for 0, where a float cannot say it. */
INLINE float inverse(float largest, float limit) {
    const float per = largest > 0 ? limit / largest : 0.0f;
    return isfinite(per) ? per : 0.0f;
}

INLINE const void *row_of(const screen *s, int64_t o) {
    return (const char *)s->weight + o * s->columns * (s->kind ? 2 : 4);
}

/* ---- once for a weight ---- */

INLINE void copy_row(screen *s, int64_t o, int kind) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const void *from = row_of(s, o);
    __m256 max = _mm256_setzero_ps(), lost = max, lengths = max, check = max;
    for (int64_t c = 0; c < s->columns; c += 8) {
        __m256 value = eight_of(from, c, kind);
        max = _mm256_max_ps(max, _mm256_andnot_ps(sign, value));
        check = _mm256_fmadd_ps(value, _mm256_setzero_ps(), check); /* zero, or no number */
    }
    float held[8], largest = 0;
    _mm256_storeu_ps(held, max);
    for (int i = 0; i < 8; i++) largest = held[i] > largest ? held[i] : largest;
    const float step = largest / 127.0f, per = inverse(largest, 127.0f);
    int32_t sums = 0;
    for (int64_t c = 0; c < s->columns; c += 8) {
        __m256 value = eight_of(from, c, kind);
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(value, _mm256_set1_ps(per)));
        whole = _mm256_max_epi32(_mm256_min_epi32(whole, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
        __m256 near = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(step)), off = _mm256_sub_ps(value, near);
        lost = _mm256_fmadd_ps(off, off, lost);
        lengths = _mm256_fmadd_ps(near, near, lengths);
        int32_t wide[8];
        _mm256_storeu_si256((__m256i *)wide, whole);
        for (int i = 0; i < 8; i++) sums += s->bytes[o * s->columns + c + i] = (int8_t)wide[i];
    }
    /* Float32 rounds sums of so many products, the bound's own and the two that are compared, by no more than this. */
    const float slack = (float)(s->columns / 32 + 64) * 2.4e-7f;
    s->step[o] = step;
    s->sums[o] = sums;
    s->length[o] = length_of(lengths) + sum_of_eight(check);
    s->lost[o] = length_of(lost) + slack * s->length[o];
    if (!(s->length[o] < TOO_LONG)) __atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
}

static void *copy_task(void *arguments) {
    screen *s = arguments;
    for (int64_t first; (first = next_piece(&s->queue) * PACK) < s->outputs;)
        for (int64_t o = first; o < first + PACK && o < s->outputs; o++) {
            if (s->kind == 0) copy_row(s, o, 0);
            else if (s->kind == 1) copy_row(s, o, 1);
            else copy_row(s, o, 2);
        }
    return 0;
}

/* ---- activations as whole numbers ---- */

/* One row; the length that is kept of it is NaN where x is not finite. */
static void number_row(screen *s, int64_t m) {
    const float *x = s->inputs + m * s->columns;
    uint8_t *to = s->numbers + m * s->digits * s->columns;
    const int32_t limit = s->digits == 1 ? 63 : 8191;
    const float max = largest_of(x, s->columns), step = max / (float)limit, per = inverse(max, (float)limit);
    const __m256i largest = _mm256_set1_epi32(limit);
    __m256 off = _mm256_setzero_ps(), length = off;
    for (int64_t c = 0; c < s->columns; c += 8) {
        const __m256 value = _mm256_loadu_ps(x + c);
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(value, _mm256_set1_ps(per)));
        whole = _mm256_max_epi32(_mm256_min_epi32(whole, largest), _mm256_sub_epi32(_mm256_setzero_si256(), largest));
        const __m256 rest = _mm256_sub_ps(value, _mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(step)));
        off = _mm256_fmadd_ps(rest, rest, off);
        length = _mm256_fmadd_ps(value, value, length);
        int32_t wide[8];
        _mm256_storeu_si256((__m256i *)wide, _mm256_add_epi32(whole, _mm256_set1_epi32(limit + 1)));
        for (int i = 0; i < 8; i++) {
            to[c + i] = (uint8_t)(s->digits == 1 ? wide[i] : wide[i] >> 7);
            if (s->digits == 2) to[s->columns + c + i] = (uint8_t)(wide[i] & 127);
        }
    }
    s->factors[3 * m] = step;
    s->factors[3 * m + 1] = isfinite(max) ? length_of(length) : NAN;
    s->factors[3 * m + 2] = length_of(off);
}

static void *number_task(void *arguments) {
    screen *s = arguments;
    for (int64_t m; (m = next_piece(&s->queue)) < s->rows;) number_row(s, m);
    return 0;
}

/* ---- bounds ---- */

INLINE int32_t sum_of_whole(__m256i of) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(of), _mm256_extracti128_si256(of, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

/* Sums of bytes times bytes: count rows of activations with some rows of the weight, to [row][PACK]. 127 * 127 twice fits 16
   bits. */
INLINE void byte_sums(const screen *s, const uint8_t *x, const int8_t *w, int count, int some, int32_t *to) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i total[8];
#pragma GCC unroll 8
    for (int i = 0; i < count * some; i++) total[i] = _mm256_setzero_si256();
    for (int64_t c = 0; c < s->columns; c += 32) {
        __m256i with[4];
#pragma GCC unroll 4
        for (int r = 0; r < count; r++) {
            with[r] = _mm256_loadu_si256((const __m256i *)(x + r * s->columns + c));
            KEEP_INTEGER(with[r]);
        }
#pragma GCC unroll 4
        for (int o = 0; o < some; o++) {
            __m256i weight = _mm256_loadu_si256((const __m256i *)(w + o * s->columns + c));
            KEEP_INTEGER(weight);
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) {
                const __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(with[r], weight), one);
                total[o * count + r] = _mm256_add_epi32(total[o * count + r], pairs);
                KEEP_INTEGER(total[o * count + r]);
            }
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < some; o++)
#pragma GCC unroll 4
        for (int r = 0; r < count; r++) to[r * PACK + o] = sum_of_whole(total[o * count + r]);
}

static void four_sums(const screen *s, const uint8_t *x, const int8_t *w, int count, int32_t *to) {
    for (int o = 0; o < PACK; o += count > 2 ? 2 : 4) {
        const int8_t *here = w + o * s->columns;
        if (count == 4) byte_sums(s, x, here, 4, 2, to + o);
        else if (count == 3) byte_sums(s, x, here, 3, 2, to + o);
        else if (count == 2) byte_sums(s, x, here, 2, 4, to + o);
        else byte_sums(s, x, here, 1, 4, to + o);
    }
}

/* The bounds of a row of activations with PACK rows of the weight, from the sums of its one or two bytes. */
INLINE void put_bounds(const screen *s, int64_t m, int64_t first, const int32_t *sums) {
    const float *factor = s->factors + 3 * m;
    for (int o = 0; o < PACK; o += 8) {
        const __m256i all = _mm256_loadu_si256((const __m256i *)(s->sums + first + o));
        __m256i high = _mm256_loadu_si256((const __m256i *)(sums + o));
        __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(high, _mm256_slli_epi32(all, 6))); /* numbers have 64 too many */
        if (s->digits == 2)
            value = _mm256_fmadd_ps(value, _mm256_set1_ps(128.0f),
                                   _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(sums + PACK + o))));
        __m256 bound = _mm256_mul_ps(value, _mm256_mul_ps(_mm256_loadu_ps(s->step + first + o), _mm256_set1_ps(factor[0])));
        bound = _mm256_fmadd_ps(_mm256_loadu_ps(s->lost + first + o), _mm256_set1_ps(factor[1]), bound);
        bound = _mm256_fmadd_ps(_mm256_loadu_ps(s->length + first + o), _mm256_set1_ps(factor[2]), bound);
        _mm256_storeu_ps(s->bounds + m * s->padded + first + o, bound);
    }
}

static void *bound_task(void *arguments) {
    screen *s = arguments;
    const int together = 4 / s->digits;
    int32_t sums[4 * PACK];
    for (int64_t start; (start = next_piece(&s->queue) * PACKS * PACK) < s->padded;)
        for (int64_t first = start; first < start + PACKS * PACK && first < s->padded; first += PACK)
            for (int64_t m = 0; m < s->rows; m += together) {
                const int some = s->rows - m < together ? (int)(s->rows - m) : together;
                four_sums(s, s->numbers + m * s->digits * s->columns, s->bytes + first * s->columns, some * s->digits, sums);
                for (int r = 0; r < some; r++) put_bounds(s, m + r, first, sums + r * s->digits * PACK);
            }
    return 0;
}

/* ---- the largest: a heap of K, its worst in front ---- */

INLINE int worse(float a, int64_t place_a, float b, int64_t place_b) { return a < b || (a == b && place_a > place_b); }

static void sink(float *values, int64_t *places, int64_t size, float value, int64_t place) {
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(values[child + 1], places[child + 1], values[child], places[child])) child++;
        if (!worse(values[child], places[child], value, place)) break;
        values[at] = values[child];
        places[at] = places[child];
    }
    values[at] = value;
    places[at] = place;
}

/* As many of the worst as there can be; places behind all others. */
static void empty_heap(float *values, int64_t *places, int64_t size) {
    for (int64_t i = 0; i < size; i++) values[i] = -INFINITY, places[i] = INT64_MAX;
}

/* Best first. */
static void in_order(float *values, int64_t *places, int64_t size) {
    for (int64_t left = size - 1; left > 0; left--) {
        const float value = values[0];
        const int64_t place = places[0];
        sink(values, places, left, values[left], places[left]);
        values[left] = value;
        places[left] = place;
    }
}

INLINE float float_product(const screen *s, const float *x, int64_t o, int kind) {
    __m256 total[4];
    const void *w = row_of(s, o);
    for (int i = 0; i < 4; i++) total[i] = _mm256_setzero_ps();
    for (int64_t c = 0; c < s->columns; c += 32)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            total[i] = _mm256_fmadd_ps(_mm256_loadu_ps(x + c + 8 * i), eight_of(w, c + 8 * i, kind), total[i]);
    return sum_of_eight(_mm256_add_ps(_mm256_add_ps(total[0], total[1]), _mm256_add_ps(total[2], total[3])));
}

static float product_of(const screen *s, const float *x, int64_t o) {
    if (s->kind == 0) return float_product(s, x, o, 0);
    return s->kind == 1 ? float_product(s, x, o, 1) : float_product(s, x, o, 2);
}

/* The next place from here on whose bound reaches a mark; outputs where there is none. */
INLINE int64_t next_reaching(const float *bounds, int64_t at, int64_t outputs, float mark) {
    for (; at % 8 && at < outputs; at++)
        if (bounds[at] >= mark) return at;
    for (; at + 8 <= outputs; at += 8) {
        const int found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(bounds + at), _mm256_set1_ps(mark), _CMP_GE_OQ));
        if (found) return at + __builtin_ctz((unsigned)found);
    }
    for (; at < outputs; at++)
        if (bounds[at] >= mark) return at;
    return outputs;
}

/* The K largest products of one row of activations, the largest first; 0 where too many rows would have to be looked at. */
static int select_row(screen *s, int64_t m) {
    const float *x = s->inputs + m * s->columns, *bounds = s->bounds + m * s->padded;
    float *values = s->values + m * s->k, mark = INFINITY;
    int64_t *places = s->places + m * s->k, looked = 0;
    const int64_t share = s->outputs / SHARE_LOOKED, max_looked = share > MIN_LOOKED ? share : MIN_LOOKED;
    empty_heap(values, places, s->k);
    if (isnan(s->factors[3 * m + 1])) { /* the caller sees that the best value is no number */
        for (int64_t k = 0; k < s->k; k++) values[k] = NAN, places[k] = 0;
        return 1;
    }
    if (!(s->factors[3 * m + 1] < TOO_LONG)) return 0;
    for (int64_t o = 0; (o = next_reaching(bounds, o, s->outputs, values[0])) < s->outputs; o++)
        if (worse(values[0], places[0], bounds[o], o)) sink(values, places, s->k, bounds[o], o);
    for (int64_t k = 0; k < s->k; k++) {
        const float value = product_of(s, x, places[k]);
        mark = value < mark ? value : mark;
    }
    empty_heap(values, places, s->k);
    for (int64_t o = 0; (o = next_reaching(bounds, o, s->outputs, mark)) < s->outputs; o++) {
        if (++looked > max_looked + s->k) return 0;
        const float value = product_of(s, x, o);
        if (worse(values[0], places[0], value, o)) sink(values, places, s->k, value, o);
    }
    in_order(values, places, s->k);
    return 1;
}

static void *select_task(void *arguments) {
    screen *s = arguments;
    for (int64_t m; (m = next_piece(&s->queue)) < s->rows && !__atomic_load_n(&s->failed, __ATOMIC_RELAXED);)
        if (!select_row(s, m)) __atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Whether some row loses too much with one byte a number. */
static int too_coarse(const screen *s) {
    for (int64_t m = 0; m < s->rows; m++)
        if (s->factors[3 * m + 2] > COARSE * s->factors[3 * m + 1]) return 1;
    return 0;
}

/* ---- what is called from outside ---- */

int64_t ptuning_screen_pack(void) { return PACK; }

int ptuning_screen_copy(const void *weight, int kind, int8_t *bytes, float *factors, int32_t *sums, int64_t outputs,
                        int64_t columns, parallel pool, int threads) {
    const int64_t padded = (outputs + PACK - 1) / PACK * PACK;
    screen s = {.weight = weight, .kind = kind, .bytes = bytes, .step = factors, .lost = factors + padded,
                .length = factors + 2 * padded, .sums = sums, .outputs = outputs, .padded = padded, .columns = columns};
    run_task(copy_task, &s, pool, threads);
    return !s.failed;
}

int ptuning_screen(const float *inputs, const void *weight, int kind, int8_t *bytes, float *factors, int32_t *sums,
                   uint8_t *numbers, float *room, float *values, int64_t *places, int64_t rows, int64_t outputs,
                   int64_t columns, int64_t k, parallel pool, int threads) {
    const int64_t padded = (outputs + PACK - 1) / PACK * PACK;
    screen s = {.weight = weight, .kind = kind, .bytes = bytes, .step = factors, .lost = factors + padded,
                .length = factors + 2 * padded, .sums = sums, .inputs = inputs, .numbers = numbers,
                .factors = room + rows * padded, .bounds = room, .values = values, .places = places, .rows = rows,
                .outputs = outputs, .padded = padded, .columns = columns, .k = k};
    for (s.digits = rows <= FEW_SCREENED ? 2 : 1;; s.digits = 2) {
        run_task(number_task, &s, pool, rows < 4 ? 1 : threads);
        if (s.digits == 2 || !too_coarse(&s)) break;
    }
    run_task(bound_task, &s, pool, threads);
    run_task(select_task, &s, pool, rows == 1 ? 1 : threads);
    return !s.failed;
}

#else

int64_t ptuning_screen_pack(void) { return 0; }

int ptuning_screen_copy(const void *weight, int kind, int8_t *bytes, float *factors, int32_t *sums, int64_t outputs,
                        int64_t columns, parallel pool, int threads) {
    (void)weight, (void)kind, (void)bytes, (void)factors, (void)sums, (void)outputs, (void)columns, (void)pool, (void)threads;
    return 0;
}

int ptuning_screen(const float *inputs, const void *weight, int kind, int8_t *bytes, float *factors, int32_t *sums,
                   uint8_t *numbers, float *room, float *values, int64_t *places, int64_t rows, int64_t outputs,
                   int64_t columns, int64_t k, parallel pool, int threads) {
    (void)inputs, (void)weight, (void)kind, (void)bytes, (void)factors, (void)sums, (void)numbers, (void)room, (void)values;
    (void)places, (void)rows, (void)outputs, (void)columns, (void)k, (void)pool, (void)threads;
    return 0;
}

#endif
