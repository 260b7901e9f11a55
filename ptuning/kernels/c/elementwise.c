/* Functions of single numbers, in float32, by vectors. */
#include "vectors.h"

#define NUMBERS_AT_ONCE 4096 /* a multiple of all lanes */

typedef struct {
    work_queue queue;
    const float *values; /* [count] */
    float *result;       /* [count] */
    int64_t count;
} elementwise_job;

/* GELU in its tanh form, x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3); e only of what is not above 0. */
INLINE floats gelu_of(floats x) {
    const floats zero = {0}, doubled = x * (x * x * 0.0713548163f + 1.5957691216f);
    const words negative = (words)(doubled < zero);
    words bits;
    memcpy(&bits, &doubled, sizeof bits);
    bits |= 0x80000000u; /* -|2u| */
    floats power, other;
    memcpy(&power, &bits, sizeof bits);
    power = exponential(power);
    other = (zero + 1.0f) / (power + 1.0f); /* of the positive side */
    floats share = power * other;           /* of the negative one */
    words a, b;
    memcpy(&a, &share, sizeof a);
    memcpy(&b, &other, sizeof b);
    a = (a & negative) | (b & ~negative);
    memcpy(&share, &a, sizeof a);
    return x * share;
}

static void *gelu_task(void *arguments) {
    elementwise_job *j = arguments;
    for (int64_t start; (start = next_piece(&j->queue) * NUMBERS_AT_ONCE) < j->count;) {
        const int64_t end = smaller(start + NUMBERS_AT_ONCE, j->count);
        int64_t at = start;
        for (; at + LANES <= end; at += LANES) put(j->result + at, gelu_of(get(j->values + at)));
        if (at < end) {
            float last[LANES] = {0};
            memcpy(last, j->values + at, (size_t)(end - at) * sizeof *last);
            put(last, gelu_of(get(last)));
            memcpy(j->result + at, last, (size_t)(end - at) * sizeof *last);
        }
    }
    return 0;
}

void ptuning_gelu(const float *values, float *result, int64_t count, parallel pool, int threads) {
    elementwise_job j = {.values = values, .result = result, .count = count};
    run_task(gelu_task, &j, pool, count <= 2 * NUMBERS_AT_ONCE ? 1 : threads);
}
