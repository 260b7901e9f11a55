/* Products with packed weights in float32: INT4 and INT8, on every processor.

   Legend: M rows of activations, O output rows, I input columns.

   A word of 32 bits holds PARTS weights of one row, 8 (INT4) or 4 (INT8). Part k of all words of a vector is shifted to the
   top of its word, masked and converted, which gives its value times 2^(32-bits); the power of two is taken back in the
   scale. So the columns of a block of PARTS*LANES come in another order, and the activations are put in that order once
   ("arranged"): no shuffle is needed. Columns that fill the last block up are zeros. */
#include "products.h"
#include "vectors.h"

/* A tile of products holds WEIGHTS x ROWS sums in registers: 12 of 16, or 24 of 32. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define WEIGHTS 6
#else
#define WEIGHTS 3
#endif
#define PANEL 12          /* rows of a weight that are unpacked at a time ... */
#define STRETCH 1024      /* ... over so many columns, a multiple of every block */
#define DEEP 48           /* a gradient unpacks so many rows at a time ... */
#define BROAD 256         /* ... over so many columns */
#define OUTPUTS_AT_ONCE 32

typedef struct {
    work_queue queue;
    product of;
    float *arranged; /* [M, padded], see arrange; of a gradient its result in that order */
    int64_t padded;  /* columns padded to whole blocks */
} float_job;

/* Columns of a block. */
INLINE int64_t block_of(int bits) { return 32 / bits * LANES; }

INLINE int64_t padded_columns(int64_t columns, int bits) {
    return (columns + block_of(bits) - 1) / block_of(bits) * block_of(bits);
}

int64_t float_room(int64_t columns, int bits) { return padded_columns(columns, bits); }

INLINE floats part(words from, int k, int bits) {
    words top = (from << (uint32_t)(32 - bits * (k + 1))) & (0xFFFFFFFFu << (32 - bits));
    return __builtin_convertvector((integers)top, floats);
}

/* Where lane l of part k of a block stands among the columns of the block. */
INLINE int64_t column_of(int k, int l, int bits) { return bits == 4 ? 8 * l + (k ^ 1) : 4 * l + k; }

INLINE float unit(int bits) { return bits == 4 ? 0x1p-28f : 0x1p-24f; }

/* ---- one row of activations: nothing is stored on the way ---- */

INLINE void one_row(float_job *j, int bits, int count, int64_t first) {
    const int parts = 32 / bits;
    floats total[4] = {{0}, {0}, {0}, {0}};
    const uint8_t *from[4];
    for (int r = 0; r < count; r++) from[r] = j->of.data + (first + r) * j->of.stride;
    const int64_t bytes = j->of.columns * bits / 8, whole = bytes / VECTOR_BYTES * VECTOR_BYTES;
    const float *x = j->arranged;
    for (int64_t at = 0; at < bytes; at += VECTOR_BYTES, x += parts * LANES) {
        words packed[4];
        for (int r = 0; r < count; r++) {
            packed[r] = at < whole ? load(from[r] + at) : load_some(from[r] + at, bytes - at);
            __builtin_prefetch(from[r] + at + 1024);
        }
#pragma GCC unroll 8
        for (int k = 0; k < parts; k++) {
            floats with = get(x + k * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) total[r] += part(packed[r], k, bits) * with;
        }
    }
    for (int r = 0; r < count; r++) {
        float value = sum(total[r]) * (scale_of(&j->of, first + r) * unit(bits));
        j->of.result[first + r] = j->of.bias ? value + j->of.bias[first + r] : value;
    }
}

INLINE void one_row_outputs(float_job *j, int bits) {
    for (int64_t start; (start = next_piece(&j->queue) * OUTPUTS_AT_ONCE) < j->of.outputs;) {
        const int64_t end = smaller(start + OUTPUTS_AT_ONCE, j->of.outputs);
        int64_t o = start;
        for (; o + 4 <= end; o += 4) one_row(j, bits, 4, o);
        for (; o < end; o++) one_row(j, bits, 1, o);
    }
}

static void *one_row_4(void *j) { return one_row_outputs(j, 4), (void *)0; }
static void *one_row_8(void *j) { return one_row_outputs(j, 8), (void *)0; }

/* ---- several rows: a panel of the weight is unpacked into the cache, and multiplied with all of them ---- */

/* count rows of a weight over width arranged columns, times a factor of the row where there is one. Rows lie group by group,
   and the vectors of a group in turn: [count/group, width/LANES, group, LANES]. */
INLINE void unpack(const float_job *j, int bits, int64_t row, int64_t count, int64_t column, int64_t width, const float *factor,
                   int group, float *held) {
    const int parts = 32 / bits;
    for (int64_t r = 0; r < count; r++) {
        float *to = held + r / group * group * width + r % group * LANES;
        const uint8_t *from = j->of.data + (row + r) * j->of.stride + column * bits / 8;
        int64_t left = (j->of.columns - column) * bits / 8;
        float by = factor ? factor[r] * unit(bits) : unit(bits);
        for (int64_t c = 0; c < width; c += parts * LANES, from += VECTOR_BYTES, left -= VECTOR_BYTES) {
            words packed = left >= VECTOR_BYTES ? load(from) : load_some(from, left);
#pragma GCC unroll 8
            for (int k = 0; k < parts; k++) put(to + (c + k * LANES) * group, part(packed, k, bits) * by);
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
    for (int64_t c = 0; c < width; c += LANES, weights += WEIGHTS * LANES, x += rows * LANES) {
        floats held[WEIGHTS];
#pragma GCC unroll 8
        for (int w = 0; w < WEIGHTS; w++) {
            held[w] = get(weights + w * LANES);
            KEEP(held[w]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) {
            floats with = get(x + m * LANES);
#pragma GCC unroll 8
            for (int w = 0; w < WEIGHTS; w++) total[w][m] += held[w] * with;
        }
    }
#pragma GCC unroll 8
    for (int w = 0; w < WEIGHTS; w++)
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) sums[w][m] = sum(total[w][m]);
}

INLINE void panel(float_job *j, int bits, int64_t first, float *held) {
    int64_t count = smaller(j->of.outputs - first, PANEL);
    for (int64_t column = 0; column < j->padded; column += STRETCH) {
        int64_t width = smaller(j->padded - column, STRETCH);
        unpack(j, bits, first, count, column, width, 0, WEIGHTS, held); /* of an unfilled group the rest is not used */
        for (int64_t m = 0; m < j->of.rows; m += ROWS) {
            int64_t some = smaller(j->of.rows - m, ROWS);
            const float *x = j->arranged + m * j->padded + column * some;
            for (int64_t w = 0; w < count; w += WEIGHTS) {
                float sums[WEIGHTS][ROWS];
                const float *from = held + w * width;
                if (some == 4) tile(from, x, width, 4, sums);
                else if (some == 3) tile(from, x, width, 3, sums);
                else if (some == 2) tile(from, x, width, 2, sums);
                else tile(from, x, width, 1, sums);
                int64_t real = smaller(count - w, WEIGHTS);
                for (int64_t r = 0; r < some; r++) {
                    float *to = j->of.result + (m + r) * j->of.outputs + first + w;
                    for (int64_t o = 0; o < real; o++) to[o] = column ? to[o] + sums[o][r] : sums[o][r];
                }
            }
        }
    }
    for (int64_t m = 0; m < j->of.rows; m++) {
        float *to = j->of.result + m * j->of.outputs + first;
        for (int64_t o = 0; o < count; o++) {
            float value = to[o] * scale_of(&j->of, first + o);
            to[o] = j->of.bias ? value + j->of.bias[first + o] : value;
        }
    }
}

INLINE void panels(float_job *j, int bits) {
    float held[PANEL * STRETCH] __attribute__((aligned(64)));
    memset(held, 0, sizeof held);
    for (int64_t first; (first = next_piece(&j->queue) * PANEL) < j->of.outputs;) panel(j, bits, first, held);
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
        for (int c = 0; c < broad; c++) total[m][c] = fresh ? (floats){0} : get(to + m * padded + c * LANES);
    for (int64_t o = 0; o < deep; o++) {
        floats held[WEIGHTS];
#pragma GCC unroll 8
        for (int c = 0; c < broad; c++) {
            held[c] = get(weights + o * width + c * LANES);
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
        for (int c = 0; c < broad; c++) put(to + m * padded + c * LANES, total[m][c]);
}

INLINE void stripe(const float *weights, int64_t width, int64_t deep, const float *g, int64_t outputs, int rows, float *to,
                   int64_t padded, int fresh) {
    int64_t c = 0;
    for (; c + WEIGHTS * LANES <= width; c += WEIGHTS * LANES)
        tile_back(weights + c, width, deep, g, outputs, rows, WEIGHTS, to + c, padded, fresh);
    for (; c < width; c += LANES) tile_back(weights + c, width, deep, g, outputs, rows, 1, to + c, padded, fresh);
}

/* The result in arranged order; both of the scale's factors are taken here. */
INLINE void stripes(float_job *j, int bits) {
    float held[DEEP * BROAD] __attribute__((aligned(64))), factor[DEEP];
    for (int64_t column; (column = next_piece(&j->queue) * BROAD) < j->padded;) {
        int64_t width = smaller(j->padded - column, BROAD);
        for (int64_t o = 0; o < j->of.outputs || o == 0; o += DEEP) {
            int64_t deep = smaller(j->of.outputs - o, DEEP);
            for (int64_t i = 0; i < deep; i++) factor[i] = scale_of(&j->of, o + i);
            unpack(j, bits, o, deep, column, width, factor, 1, held);
            for (int64_t m = 0; m < j->of.rows; m += ROWS) {
                int64_t some = smaller(j->of.rows - m, ROWS);
                const float *g = j->of.inputs + m * j->of.outputs + o;
                float *to = j->arranged + m * j->padded + column;
                if (some == 4) stripe(held, width, deep, g, j->of.outputs, 4, to, j->padded, o == 0);
                else if (some == 3) stripe(held, width, deep, g, j->of.outputs, 3, to, j->padded, o == 0);
                else if (some == 2) stripe(held, width, deep, g, j->of.outputs, 2, to, j->padded, o == 0);
                else stripe(held, width, deep, g, j->of.outputs, 1, to, j->padded, o == 0);
            }
        }
    }
}

static void *stripes_4(void *j) { return stripes(j, 4), (void *)0; }
static void *stripes_8(void *j) { return stripes(j, 8), (void *)0; }

/* ---- activations in the order of the unpacked columns, ROWS by ROWS with their vectors in turn; and back ---- */

static void *arrange(void *arguments) {
    float_job *j = arguments;
    const int parts = 32 / j->of.bits;
    for (int64_t m; (m = next_piece(&j->queue)) < j->of.rows;) {
        const float *from = j->of.inputs + m * j->of.columns;
        const int64_t group = m / ROWS * ROWS, some = smaller(j->of.rows - group, ROWS);
        float *to = j->arranged + group * j->padded + (m - group) * LANES;
        for (int64_t block = 0; block < j->padded; block += parts * LANES)
            for (int k = 0; k < parts; k++)
                for (int l = 0; l < LANES; l++) {
                    int64_t c = block + column_of(k, l, j->of.bits);
                    to[(block + k * LANES) * some + l] = c < j->of.columns ? from[c] : 0.0f;
                }
    }
    return 0;
}

static void *arrange_back(void *arguments) {
    float_job *j = arguments;
    const int parts = 32 / j->of.bits;
    for (int64_t m; (m = next_piece(&j->queue)) < j->of.rows;) {
        const float *from = j->arranged + m * j->padded;
        float *to = j->of.result + m * j->of.columns;
        for (int64_t block = 0; block < j->padded; block += parts * LANES)
            for (int k = 0; k < parts; k++)
                for (int l = 0; l < LANES; l++) {
                    int64_t c = block + column_of(k, l, j->of.bits);
                    if (c < j->of.columns) to[c] = from[block + k * LANES + l];
                }
    }
    return 0;
}

void float_product(const product *p) {
    float_job j = {.of = *p, .arranged = p->room, .padded = padded_columns(p->columns, p->bits)};
    run_task(arrange, &j, p->pool, p->rows < 4 ? 1 : p->threads);
    if (p->rows == 1) run_task(p->bits == 4 ? one_row_4 : one_row_8, &j, p->pool, p->threads);
    else run_task(p->bits == 4 ? panels_4 : panels_8, &j, p->pool, p->threads);
}

void float_gradient(const product *p) {
    float_job j = {.of = *p, .arranged = p->room, .padded = padded_columns(p->columns, p->bits)};
    run_task(p->bits == 4 ? stripes_4 : stripes_8, &j, p->pool, p->threads);
    run_task(arrange_back, &j, p->pool, p->rows < 4 ? 1 : p->threads);
}
