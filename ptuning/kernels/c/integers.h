/* Whole numbers instead of floats, under AVX2: what products, gradients and screening share.

   A row of activations is turned to whole numbers of 24 bits, at most 2^-24 of its largest value off (16 bits for activations
   of half precision, or where the caller wants no more), and these to three (two) signed bytes, the digits. A vector
   instruction multiplies 32 bytes with 32 nibbles, four times what it does with floats; products and their sums are exact. */
#ifndef PTUNING_INTEGERS_H
#define PTUNING_INTEGERS_H

#include "vectors.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && VECTOR_BYTES >= 32 /* blocks are 64 columns */
#define WHOLE_NUMBERS 1

#include <immintrin.h>

#define BLOCK 64     /* columns of packed weights that are taken at once */
#define MAX_DIGITS 3

#define KEEP_INTEGER(value) __asm__("" : "+x"(value)) /* in this order: gcc would gather all products first, and spill them */

/* The largest that digits stand for: 127 * (65536 + 256 + 1), or 127 * (256 + 1). */
INLINE float largest_number(int digits) { return digits == 3 ? 8355711.0f : 32639.0f; }

INLINE float sum_of_eight(__m256 of) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(of), _mm256_extractf128_ps(of, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

/* The largest absolute value; not finite where one of them is not. */
static inline float largest_of(const float *from, int64_t columns) {
    const __m256 sign = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
    __m256 max = zero, check = zero;
    float last[8] = {0}, held[8], checks[8], largest = 0;
    for (int64_t c = 0; c < columns; c += 8) {
        const float *here = columns - c < 8 ? memcpy(last, from + c, (size_t)(columns - c) * sizeof *last) : from + c;
        __m256 value = _mm256_loadu_ps(here);
        max = _mm256_max_ps(max, _mm256_andnot_ps(sign, value));
        check = _mm256_add_ps(check, _mm256_mul_ps(value, zero)); /* zero, or no number */
    }
    _mm256_storeu_ps(held, max);
    _mm256_storeu_ps(checks, check);
    for (int i = 0; i < 8; i++) largest = (held[i] > largest ? held[i] : largest) + checks[i];
    return largest;
}

/* The odd and even columns of a block of packed weights, as value+8 in a byte each. */
INLINE void nibbles(const uint8_t *from, __m256i *odd, __m256i *even) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i packed = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)from), _mm256_set1_epi8((char)0x88));
    *odd = _mm256_and_si256(packed, low);
    *even = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
}

/* Eight sums in float32, of whole numbers digit by digit. */
INLINE __m256 of_digits(const __m256i total[MAX_DIGITS], int digits) {
    __m256 value = _mm256_cvtepi32_ps(total[digits - 1]);
#pragma GCC unroll 3
    for (int p = digits - 2; p >= 0; p--)
        value = _mm256_fmadd_ps(value, _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(total[p]));
    return value;
}

#endif
#endif
