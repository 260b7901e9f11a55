/* Functions of single numbers, in float32, by vectors. Included by packed.c. */
#define NUMBERS_AT_ONCE 4096 /* a multiple of all lanes */

/* e^x for x from -87 to 0, two units in the last place off; 0 below, and for what is no number. */
INLINE floats exponential(floats x) {
    const floats zero = {0}, magic = zero + 0x1.8p23f;
    const words kept = (words)(x >= zero - 87.0f);
    const floats power = x * 0x1.715476p0f + magic, n = power - magic, r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    floats made = zero + 0x1.6850e4p-10f;
    made = made * r + 0x1.123bccp-7f;
    made = made * r + 0x1.555b98p-5f;
    made = made * r + 0x1.55548ep-3f;
    made = made * r + 0x1.fffff8p-2f;
    made = made * r * r + r + 1.0f;
    words bits, shift;
    memcpy(&bits, &made, sizeof bits);
    memcpy(&shift, &power, sizeof shift);
    bits = (bits + (shift << 23)) & kept;
    memcpy(&made, &bits, sizeof made);
    return made;
}

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

static void *gelu_work(void *given) {
    job *j = given;
    for (int64_t start; (start = fetch(j) * NUMBERS_AT_ONCE) < j->columns;) {
        const int64_t end = start + NUMBERS_AT_ONCE < j->columns ? start + NUMBERS_AT_ONCE : j->columns;
        int64_t at = start;
        for (; at + L <= end; at += L) put(j->result + at, gelu_of(get(j->given + at)));
        if (at < end) {
            float last[L] = {0};
            memcpy(last, j->given + at, (size_t)(end - at) * sizeof *last);
            put(last, gelu_of(get(last)));
            memcpy(j->result + at, last, (size_t)(end - at) * sizeof *last);
        }
    }
    return 0;
}

/* result [count] = GELU of given [count]. */
void ptuning_gelu(const float *given, float *result, int64_t count, parallel pool, int threads) {
    job j = {.given = given, .result = result, .columns = count};
    run(gelu_work, &j, pool, count <= 2 * NUMBERS_AT_ONCE ? 1 : threads);
}
