/* A few rows of activations with a weight of float16 or bfloat16 (the head of a quantised model).

   Legend: M rows of activations, O output rows, I input columns. */
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "vectors.h"

#define OUTPUTS_AT_ONCE 32

typedef struct {
    work_queue queue;
    const float *inputs;  /* [M, I] */
    const uint16_t *data; /* [O, stride] */
    const float *bias;    /* [O] or NULL */
    float *result;        /* [M, O] */
    int64_t rows, outputs, columns, stride;
} half_job;

typedef uint16_t halves __attribute__((vector_size(VECTOR_BYTES / 2)));

INLINE floats widened(const uint16_t *from, int brain) {
    halves narrow;
    memcpy(&narrow, from, sizeof narrow);
    words wide = __builtin_convertvector(narrow, words);
    if (brain) {
        floats value;
        wide <<= 16;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    __m512 value = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__) && defined(__F16C__) && VECTOR_BYTES == 32
    __m256 value = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else /* exponent and fraction move to their place, and the exponent's other base is multiplied in */
    words bits = (wide & 0x7FFF) << 13, sign = (wide & 0x8000) << 16, odd = bits >= (words){0} + 0x0F800000;
    floats value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    memcpy(&bits, &value, sizeof value);
    bits |= sign | (odd & 0x7F800000); /* infinity and what is no number */
    memcpy(&value, &bits, sizeof value);
#endif
    return (floats)value;
}

INLINE void half_outputs(half_job *j, int brain) {
    const int64_t whole = j->columns / (2 * LANES) * (2 * LANES);
    for (int64_t start; (start = next_piece(&j->queue) * OUTPUTS_AT_ONCE) < j->outputs;) {
        const int64_t end = smaller(start + OUTPUTS_AT_ONCE, j->outputs);
        for (int64_t o = start; o < end; o++) {
            const uint16_t *from = j->data + o * j->stride;
            for (int64_t m = 0; m < j->rows; m++) {
                const float *x = j->inputs + m * j->columns;
                floats total[2] = {{0}, {0}};
                for (int64_t c = 0; c < whole; c += 2 * LANES) {
                    __builtin_prefetch(from + c + 1024);
                    total[0] += widened(from + c, brain) * get(x + c);
                    total[1] += widened(from + c + LANES, brain) * get(x + c + LANES);
                }
                uint16_t rest[2 * LANES] = {0};
                float with[2 * LANES] = {0};
                memcpy(rest, from + whole, (size_t)(j->columns - whole) * sizeof *rest);
                memcpy(with, x + whole, (size_t)(j->columns - whole) * sizeof *with);
                for (int i = 0; i < 2; i++) total[i] += widened(rest + i * LANES, brain) * get(with + i * LANES);
                float value = sum(total[0] + total[1]);
                j->result[m * j->outputs + o] = j->bias ? value + j->bias[o] : value;
            }
        }
    }
}

static void *half_task(void *j) { return half_outputs(j, 0), (void *)0; }
static void *brain_task(void *j) { return half_outputs(j, 1), (void *)0; }

void ptuning_half_product(const float *inputs, const uint16_t *data, const float *bias, float *result, int64_t rows,
                          int64_t outputs, int64_t columns, int64_t stride, int brain, parallel pool, int threads) {
    half_job j = {.inputs = inputs, .data = data, .bias = bias, .result = result, .rows = rows, .outputs = outputs,
                  .columns = columns, .stride = stride};
    run_task(brain ? brain_task : half_task, &j, pool, threads);
}
