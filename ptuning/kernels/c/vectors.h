/* Vectors as long as a register of the processor, and what is done with one. */
#ifndef PTUNING_VECTORS_H
#define PTUNING_VECTORS_H

#include <string.h>

#include "kernels.h"

#ifndef VECTOR_BYTES
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#endif
#define LANES (VECTOR_BYTES / 4)
typedef float floats __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t integers __attribute__((vector_size(VECTOR_BYTES)));

INLINE words load(const uint8_t *from) {
    words value;
    memcpy(&value, from, VECTOR_BYTES);
    return value;
}

/* Of a row that ends before the vector does. */
INLINE words load_some(const uint8_t *from, int64_t bytes) {
    words value = {0};
    memcpy(&value, from, (size_t)bytes);
    return value;
}

INLINE floats get(const float *from) {
    floats value;
    memcpy(&value, from, VECTOR_BYTES);
    return value;
}

INLINE void put(float *to, floats value) { memcpy(to, &value, VECTOR_BYTES); }

INLINE float sum(floats of) {
    typedef float four __attribute__((vector_size(16)));
    four parts[LANES / 4];
    memcpy(parts, &of, VECTOR_BYTES);
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

/* Keeps a value in its register: compilers would read it from the cache again for every use. */
#if defined(__AVX512F__) || (defined(__AVX__) && VECTOR_BYTES == 32) || (defined(__SSE2__) && VECTOR_BYTES == 16)
#define KEEP(value) __asm__("" : "+x"(value))
#else
#define KEEP(value) (void)0
#endif

/* e^x for x from -87 to 0, two units in the last place off; 0 below, and for what is no number. */
INLINE floats exponential(floats x) {
    const floats zero = {0}, magic = zero + 0x1.8p23f;
    const words kept = (words)(x >= zero - 87.0f);
    const floats power = x * 0x1.715476p0f + magic, n = power - magic, r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    floats value = zero + 0x1.6850e4p-10f;
    value = value * r + 0x1.123bccp-7f;
    value = value * r + 0x1.555b98p-5f;
    value = value * r + 0x1.55548ep-3f;
    value = value * r + 0x1.fffff8p-2f;
    value = value * r * r + r + 1.0f;
    words bits, shift;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&shift, &power, sizeof shift);
    bits = (bits + (shift << 23)) & kept;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
