/* Products with packed INT4 and INT8 weights on a CPU, accumulated in float32. Plain C with GNU vectors (gcc, clang).

   Legend: M rows of activations, O output rows, I input columns, L lanes of a vector.

   A word of 32 bits holds PARTS weights of one row, 8 (INT4) or 4 (INT8). Part k of all words of a vector is shifted to the
   top of its word, masked and converted, which gives its value times 2^(32-bits); the power of two is taken back in the
   scale. So the columns of a block of PARTS*L come in another order, and the activations are put in that order once
   ("arranged"): no shuffle is needed. Columns that fill the last block up are zeros.

   Threads: the caller hands over GOMP_parallel of the OpenMP runtime that torch runs on, so that both share one pool and
   its idle threads do not spin against ours; without it, threads are started for the call. Work is fetched by a counter. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef VECTOR_BYTES
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#endif
#define L (VECTOR_BYTES / 4)
typedef float floats __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t integers __attribute__((vector_size(VECTOR_BYTES)));
#define INLINE static inline __attribute__((always_inline))

/* A tile of products holds WEIGHTS x ROWS sums in registers: 12 of 16, or 24 of 32. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define WEIGHTS 6
#else
#define WEIGHTS 3
#endif
#define ROWS 4
#define PANEL (WEIGHTS * 4)  /* rows of a weight that are unpacked at a time ... */
#define STRETCH 1024         /* ... over so many columns, a multiple of every block */
#define DEEP 64              /* a gradient unpacks so many rows at a time ... */
#define BROAD 256            /* ... over so many columns */

typedef void *(*task)(void *);
typedef void (*parallel)(task, void *, unsigned, unsigned); /* GOMP_parallel does not look at what a task returns */

typedef struct {
    const uint8_t *data;   /* [O, stride] */
    const uint16_t *scale; /* [O] float16 */
    const float *arranged; /* [M, padded] */
    const float *bias;     /* [O] or NULL */
    float *result;
    int64_t rows, outputs, columns, padded, stride, next;
    int bits;
    const float *given;       /* of whole numbers: [M, columns], */
    int64_t stretch;          /* columns that are summed in whole numbers, */
    int digits, broken;       /* bytes of a number, and whether a row of activations cannot be turned */
} job;

/* Exponent and fraction move to their place, and the exponent's other base is multiplied in. A scale is finite. */
INLINE float scale_of(const job *j, int64_t o) {
    uint32_t bits = (j->scale[o] & 0x7FFFu) << 13 | (j->scale[o] & 0x8000u) << 16;
    float made;
    memcpy(&made, &bits, sizeof made);
    return made * 0x1p112f;
}

INLINE int64_t fetch(job *j) { return __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED); }

static void run(task work, job *j, parallel pool, int threads) {
    enum { MOST = 64 };
    pthread_t started[MOST];
    int count = 0;
    j->next = 0;
    if (threads > 1 && pool) {
        pool(work, j, (unsigned)threads, 0);
        return;
    }
    for (; count < threads - 1 && count < MOST; count++)
        if (pthread_create(&started[count], 0, work, j)) break;
    work(j);
    while (count) pthread_join(started[--count], 0);
}

INLINE words load(const uint8_t *from) {
    words got;
    memcpy(&got, from, VECTOR_BYTES);
    return got;
}

/* Of a row that ends before the vector does. */
INLINE words load_some(const uint8_t *from, int64_t bytes) {
    words got = {0};
    memcpy(&got, from, (size_t)bytes);
    return got;
}

INLINE floats part(words from, int k, int bits) {
    words top = (from << (uint32_t)(32 - bits * (k + 1))) & (0xFFFFFFFFu << (32 - bits));
    return __builtin_convertvector((integers)top, floats);
}

INLINE floats get(const float *from) {
    floats got;
    memcpy(&got, from, VECTOR_BYTES);
    return got;
}

INLINE void put(float *to, floats value) { memcpy(to, &value, VECTOR_BYTES); }

INLINE float sum(floats of) {
    typedef float four __attribute__((vector_size(16)));
    four held[L / 4];
    memcpy(held, &of, VECTOR_BYTES);
    for (int i = 1; i < L / 4; i++) held[0] += held[i];
    return (held[0][0] + held[0][1]) + (held[0][2] + held[0][3]);
}

/* Keeps a value in its register: compilers would read it from the cache again for every use. */
#if defined(__AVX512F__) || (defined(__AVX__) && VECTOR_BYTES == 32) || (defined(__SSE2__) && VECTOR_BYTES == 16)
#define KEEP(value) __asm__("" : "+x"(value))
#else
#define KEEP(value) (void)0
#endif

/* Where lane l of part k of a block stands among the columns of the block. */
INLINE int64_t column_of(int k, int l, int bits) { return bits == 4 ? 8 * l + (k ^ 1) : 4 * l + k; }

INLINE float unit(int bits) { return bits == 4 ? 0x1p-28f : 0x1p-24f; }

/* ---- one row of activations: nothing is stored on the way ---- */

INLINE void one_row(job *j, int bits, int count, int64_t first) {
    const int parts = 32 / bits;
    floats total[4] = {{0}, {0}, {0}, {0}};
    const uint8_t *from[4];
    for (int r = 0; r < count; r++) from[r] = j->data + (first + r) * j->stride;
    const int64_t bytes = j->columns * bits / 8, whole = bytes / VECTOR_BYTES * VECTOR_BYTES;
    const float *x = j->arranged;
    for (int64_t at = 0; at < bytes; at += VECTOR_BYTES, x += parts * L) {
        words got[4];
        for (int r = 0; r < count; r++) {
            got[r] = at < whole ? load(from[r] + at) : load_some(from[r] + at, bytes - at);
            __builtin_prefetch(from[r] + at + 1024);
        }
#pragma GCC unroll 8
        for (int k = 0; k < parts; k++) {
            floats with = get(x + k * L);
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) total[r] += part(got[r], k, bits) * with;
        }
    }
    for (int r = 0; r < count; r++) {
        float made = sum(total[r]) * (scale_of(j, first + r) * unit(bits));
        j->result[first + r] = j->bias ? made + j->bias[first + r] : made;
    }
}

enum { AT_ONCE = 32 };

INLINE void one_row_work(job *j, int bits) {
    for (int64_t start; (start = fetch(j) * AT_ONCE) < j->outputs;) {
        int64_t end = start + AT_ONCE < j->outputs ? start + AT_ONCE : j->outputs, o = start;
        for (; o + 4 <= end; o += 4) one_row(j, bits, 4, o);
        for (; o < end; o++) one_row(j, bits, 1, o);
    }
}

/* ---- INT4 under AVX2: whole numbers ---- */

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && VECTOR_BYTES >= 32 /* blocks of whole numbers are 64 columns */
#define WHOLE_NUMBERS 1
#include "integers.h"
#include "integer_gradient.h"
#include "screening.h"
#endif

static void *one_row_4(void *j) { return one_row_work(j, 4), (void *)0; }
static void *one_row_8(void *j) { return one_row_work(j, 8), (void *)0; }

/* ---- several rows: a panel of the weight is unpacked into the cache, and multiplied with all of them ---- */

/* count rows of a weight over width arranged columns, times a factor of the row where there is one. Rows lie group by group,
   and the vectors of a group in turn: [count/group, width/L, group, L]. */
INLINE void unpack(const job *j, int bits, int64_t row, int64_t count, int64_t column, int64_t width, const float *factor,
                   int group, float *held) {
    const int parts = 32 / bits;
    for (int64_t r = 0; r < count; r++) {
        float *to = held + r / group * group * width + r % group * L;
        const uint8_t *from = j->data + (row + r) * j->stride + column * bits / 8;
        int64_t left = (j->columns - column) * bits / 8;
        float by = factor ? factor[r] * unit(bits) : unit(bits);
        for (int64_t c = 0; c < width; c += parts * L, from += VECTOR_BYTES, left -= VECTOR_BYTES) {
            words got = left >= VECTOR_BYTES ? load(from) : load_some(from, left);
#pragma GCC unroll 8
            for (int k = 0; k < parts; k++) put(to + (c + k * L) * group, part(got, k, bits) * by);
        }
    }
}

/* WEIGHTS rows of the weight times some rows of activations, over width columns. */
INLINE void tile(const float *weights, const float *x, int64_t width, int rows, float sums[WEIGHTS][ROWS]) {
    floats total[WEIGHTS][ROWS];
#pragma GCC unroll 8
    for (int w = 0; w < WEIGHTS; w++)
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) total[w][m] = (floats){0};
    for (int64_t c = 0; c < width; c += L, weights += WEIGHTS * L, x += rows * L) {
        floats held[WEIGHTS];
#pragma GCC unroll 8
        for (int w = 0; w < WEIGHTS; w++) {
            held[w] = get(weights + w * L);
            KEEP(held[w]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) {
            floats with = get(x + m * L);
#pragma GCC unroll 8
            for (int w = 0; w < WEIGHTS; w++) total[w][m] += held[w] * with;
        }
    }
#pragma GCC unroll 8
    for (int w = 0; w < WEIGHTS; w++)
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) sums[w][m] = sum(total[w][m]);
}

INLINE void panel(job *j, int bits, int64_t first, float *held) {
    int64_t count = j->outputs - first < PANEL ? j->outputs - first : PANEL;
    for (int64_t column = 0; column < j->padded; column += STRETCH) {
        int64_t width = j->padded - column < STRETCH ? j->padded - column : STRETCH;
        unpack(j, bits, first, count, column, width, 0, WEIGHTS, held); /* of an unfilled group the rest is not used */
        for (int64_t m = 0; m < j->rows; m += ROWS) {
            int64_t some = j->rows - m < ROWS ? j->rows - m : ROWS;
            const float *x = j->arranged + m * j->padded + column * some;
            for (int64_t w = 0; w < count; w += WEIGHTS) {
                float sums[WEIGHTS][ROWS];
                const float *from = held + w * width;
                if (some == 4) tile(from, x, width, 4, sums);
                else if (some == 3) tile(from, x, width, 3, sums);
                else if (some == 2) tile(from, x, width, 2, sums);
                else tile(from, x, width, 1, sums);
                int64_t real = count - w < WEIGHTS ? count - w : WEIGHTS;
                for (int64_t r = 0; r < some; r++) {
                    float *to = j->result + (m + r) * j->outputs + first + w;
                    for (int64_t o = 0; o < real; o++) to[o] = column ? to[o] + sums[o][r] : sums[o][r];
                }
            }
        }
    }
    for (int64_t m = 0; m < j->rows; m++) {
        float *to = j->result + m * j->outputs + first;
        for (int64_t o = 0; o < count; o++) {
            float made = to[o] * scale_of(j, first + o);
            to[o] = j->bias ? made + j->bias[first + o] : made;
        }
    }
}

INLINE void panels(job *j, int bits) {
    float held[PANEL * STRETCH] __attribute__((aligned(64)));
    memset(held, 0, sizeof held);
    for (int64_t first; (first = fetch(j) * PANEL) < j->outputs;) panel(j, bits, first, held);
}

static void *panels_4(void *j) { return panels(j, 4), (void *)0; }
static void *panels_8(void *j) { return panels(j, 8), (void *)0; }

/* ---- gradient: sums over the rows of the weight, the lanes hold columns ---- */

INLINE void tile_back(const float *weights, int64_t width, int64_t deep, const float *g, int64_t outputs, int rows, int broad,
                      float *to, int64_t padded, int fresh) {
    floats total[ROWS][WEIGHTS];
#pragma GCC unroll 4
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int c = 0; c < broad; c++) total[m][c] = fresh ? (floats){0} : get(to + m * padded + c * L);
    for (int64_t o = 0; o < deep; o++) {
        floats held[WEIGHTS];
#pragma GCC unroll 8
        for (int c = 0; c < broad; c++) {
            held[c] = get(weights + o * width + c * L);
            KEEP(held[c]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) {
            float by = g[m * outputs + o];
#pragma GCC unroll 8
            for (int c = 0; c < broad; c++) total[m][c] += held[c] * by;
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int c = 0; c < broad; c++) put(to + m * padded + c * L, total[m][c]);
}

INLINE void stripe(const float *weights, int64_t width, int64_t deep, const float *g, int64_t outputs, int rows, float *to,
                   int64_t padded, int fresh) {
    int64_t c = 0;
    for (; c + WEIGHTS * L <= width; c += WEIGHTS * L)
        tile_back(weights + c, width, deep, g, outputs, rows, WEIGHTS, to + c, padded, fresh);
    for (; c < width; c += L) tile_back(weights + c, width, deep, g, outputs, rows, 1, to + c, padded, fresh);
}

/* result [M, padded] in arranged order; arranged holds the gradient [M, O]; both of the scale's factors are taken here. */
INLINE void stripes(job *j, int bits) {
    float held[DEEP * BROAD] __attribute__((aligned(64))), factor[DEEP];
    for (int64_t column; (column = fetch(j) * BROAD) < j->padded;) {
        int64_t width = j->padded - column < BROAD ? j->padded - column : BROAD;
        for (int64_t o = 0; o < j->outputs || o == 0; o += DEEP) {
            int64_t deep = j->outputs - o < DEEP ? j->outputs - o : DEEP;
            for (int64_t i = 0; i < deep; i++) factor[i] = scale_of(j, o + i);
            unpack(j, bits, o, deep, column, width, factor, 1, held);
            for (int64_t m = 0; m < j->rows; m += ROWS) {
                int64_t some = j->rows - m < ROWS ? j->rows - m : ROWS;
                const float *g = j->arranged + m * j->outputs + o;
                float *to = j->result + m * j->padded + column;
                if (some == 4) stripe(held, width, deep, g, j->outputs, 4, to, j->padded, o == 0);
                else if (some == 3) stripe(held, width, deep, g, j->outputs, 3, to, j->padded, o == 0);
                else if (some == 2) stripe(held, width, deep, g, j->outputs, 2, to, j->padded, o == 0);
                else stripe(held, width, deep, g, j->outputs, 1, to, j->padded, o == 0);
            }
        }
    }
}

static void *stripes_4(void *j) { return stripes(j, 4), (void *)0; }
static void *stripes_8(void *j) { return stripes(j, 8), (void *)0; }

/* ---- activations in the order of the unpacked columns, ROWS by ROWS with their vectors in turn; and back ---- */

static void *arrange(void *given) {
    job *j = given;
    const int parts = 32 / j->bits;
    for (int64_t m; (m = fetch(j)) < j->rows;) {
        const float *from = j->arranged + m * j->columns;
        const int64_t group = m / ROWS * ROWS, some = j->rows - group < ROWS ? j->rows - group : ROWS;
        float *to = j->result + group * j->padded + (m - group) * L;
        for (int64_t block = 0; block < j->padded; block += parts * L)
            for (int k = 0; k < parts; k++)
                for (int l = 0; l < L; l++) {
                    int64_t c = block + column_of(k, l, j->bits);
                    to[(block + k * L) * some + l] = c < j->columns ? from[c] : 0.0f;
                }
    }
    return 0;
}

static void *arrange_back(void *given) {
    job *j = given;
    const int parts = 32 / j->bits;
    for (int64_t m; (m = fetch(j)) < j->rows;) {
        const float *from = j->arranged + m * j->padded;
        float *to = j->result + m * j->columns;
        for (int64_t block = 0; block < j->padded; block += parts * L)
            for (int k = 0; k < parts; k++)
                for (int l = 0; l < L; l++) {
                    int64_t c = block + column_of(k, l, j->bits);
                    if (c < j->columns) to[c] = from[block + k * L + l];
                }
    }
    return 0;
}

/* ---- few rows with a weight of float16 or bfloat16 (the head of a quantised model) ---- */

typedef uint16_t halves __attribute__((vector_size(VECTOR_BYTES / 2)));

INLINE floats widened(const uint16_t *from, int brain) {
    halves got;
    memcpy(&got, from, sizeof got);
    words wide = __builtin_convertvector(got, words);
    if (brain) {
        floats made;
        wide <<= 16;
        memcpy(&made, &wide, sizeof made);
        return made;
    }
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    __m512 made = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__) && defined(__F16C__) && VECTOR_BYTES == 32
    __m256 made = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else /* exponent and fraction move to their place, and the exponent's other base is multiplied in */
    words bits = (wide & 0x7FFF) << 13, sign = (wide & 0x8000) << 16, odd = bits >= (words){0} + 0x0F800000;
    floats made;
    memcpy(&made, &bits, sizeof made);
    made *= 0x1p112f;
    memcpy(&bits, &made, sizeof made);
    bits |= sign | (odd & 0x7F800000); /* infinity and what is no number */
    memcpy(&made, &bits, sizeof made);
#endif
    return (floats)made;
}

INLINE void half_work(job *j, int brain) {
    const int64_t whole = j->columns / (2 * L) * (2 * L);
    for (int64_t start; (start = fetch(j) * AT_ONCE) < j->outputs;) {
        int64_t end = start + AT_ONCE < j->outputs ? start + AT_ONCE : j->outputs;
        for (int64_t o = start; o < end; o++) {
            const uint16_t *from = (const uint16_t *)j->data + o * j->stride;
            for (int64_t m = 0; m < j->rows; m++) {
                const float *x = j->arranged + m * j->columns;
                floats total[2] = {{0}, {0}};
                for (int64_t c = 0; c < whole; c += 2 * L) {
                    __builtin_prefetch(from + c + 1024);
                    total[0] += widened(from + c, brain) * get(x + c);
                    total[1] += widened(from + c + L, brain) * get(x + c + L);
                }
                uint16_t rest[2 * L] = {0};
                float with[2 * L] = {0};
                memcpy(rest, from + whole, (size_t)(j->columns - whole) * sizeof *rest);
                memcpy(with, x + whole, (size_t)(j->columns - whole) * sizeof *with);
                for (int i = 0; i < 2; i++) total[i] += widened(rest + i * L, brain) * get(with + i * L);
                float made = sum(total[0] + total[1]);
                j->result[m * j->outputs + o] = j->bias ? made + j->bias[o] : made;
            }
        }
    }
}

static void *half_rows(void *j) { return half_work(j, 0), (void *)0; }
static void *brain_rows(void *j) { return half_work(j, 1), (void *)0; }

#include "elementwise.h"
#include "decode_attention.h"

/* ---- what is called from outside ---- */

/* Columns of a block: rows of activations are padded to a multiple. */
int64_t ptuning_block(int bits) { return 32 / bits * L; }

/* Floats of room for a row of so many padded columns. */
int64_t ptuning_room(int64_t padded) {
#ifdef WHOLE_NUMBERS
    return integer_room(padded) > padded ? integer_room(padded) : padded;
#else
    return padded;
#endif
}

/* result [M, O] = inputs [M, I] @ dequantised^T + bias; arranged: room for M rows; digits: 3, or 2 for inputs that were of half
   precision. */
void ptuning_product(const float *inputs, const uint8_t *data, const uint16_t *scale, const float *bias, float *arranged,
                     float *result, int64_t rows, int64_t outputs, int64_t columns, int64_t padded, int64_t stride, int bits,
                     int digits, parallel pool, int threads) {
    job j;
#ifdef WHOLE_NUMBERS
    j = (job){.data = data, .scale = scale, .arranged = arranged, .bias = bias, .result = result, .rows = rows,
              .outputs = outputs, .columns = columns, .padded = padded, .stride = stride, .bits = bits, .given = inputs,
              .digits = digits};
    if (bits == 4 && integer_product(&j, pool, threads)) return;
#endif
    j = (job){.arranged = inputs, .result = arranged, .rows = rows, .columns = columns, .padded = padded, .bits = bits};
    run(arrange, &j, pool, rows < 4 ? 1 : threads);
    j = (job){.data = data, .scale = scale, .arranged = arranged, .bias = bias, .result = result, .rows = rows,
              .outputs = outputs, .columns = columns, .padded = padded, .stride = stride, .bits = bits};
    if (rows == 1) run(bits == 4 ? one_row_4 : one_row_8, &j, pool, threads);
    else run(bits == 4 ? panels_4 : panels_8, &j, pool, threads);
}

/* Floats of room for a row of a gradient of so many values, of so many padded columns. */
int64_t ptuning_gradient_room(int64_t outputs, int64_t padded) {
#ifdef WHOLE_NUMBERS
    return gradient_room(outputs) > padded ? gradient_room(outputs) : padded;
#else
    return padded;
#endif
}

/* result [M, I] = gradient [M, O] @ dequantised; arranged: room for M rows; digits: as for a product, 2 at least. */
void ptuning_gradient(const float *gradient, const uint8_t *data, const uint16_t *scale, float *arranged, float *result,
                      int64_t rows, int64_t outputs, int64_t columns, int64_t padded, int64_t stride, int bits, int digits,
                      parallel pool, int threads) {
    job j;
#ifdef WHOLE_NUMBERS
    j = (job){.data = data, .scale = scale, .arranged = arranged, .result = result, .rows = rows, .outputs = outputs,
              .columns = columns, .stride = stride, .given = gradient, .digits = digits};
    if (bits == 4 && integer_gradient(&j, pool, threads)) return;
#endif
    j = (job){.data = data, .scale = scale, .arranged = gradient, .result = arranged, .rows = rows, .outputs = outputs,
             .columns = columns, .padded = padded, .stride = stride, .bits = bits};
    run(bits == 4 ? stripes_4 : stripes_8, &j, pool, threads);
    j = (job){.arranged = arranged, .result = result, .rows = rows, .columns = columns, .padded = padded, .bits = bits};
    run(arrange_back, &j, pool, rows < 4 ? 1 : threads);
}

/* result [M, O] = inputs [M, I] @ data^T + bias, data [O, I] in float16, or bfloat16 where brain is set. */
void ptuning_half_product(const float *inputs, const uint16_t *data, const float *bias, float *result, int64_t rows,
                          int64_t outputs, int64_t columns, int64_t stride, int brain, parallel pool, int threads) {
    job j = {.data = (const uint8_t *)data, .arranged = inputs, .bias = bias, .result = result, .rows = rows,
             .outputs = outputs, .columns = columns, .stride = stride};
    run(brain ? brain_rows : half_rows, &j, pool, threads);
}
