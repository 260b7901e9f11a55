/* A product, or a gradient, with a packed weight: what is asked for, and the ways to make it.

   Legend: M rows of activations, O output rows, I input columns. */
#ifndef PTUNING_PRODUCTS_H
#define PTUNING_PRODUCTS_H

#include <string.h>

#include "kernels.h"

#define ROWS 4 /* of activations that are multiplied together */

typedef struct {
    const float *inputs;   /* of a product [M, I], of a gradient [M, O] */
    const uint8_t *data;   /* [O, stride] */
    const uint16_t *scale; /* [O] float16 */
    const float *bias;     /* [O] or NULL */
    float *room;           /* as much as was asked for */
    float *result;         /* of a product [M, O], of a gradient [M, I] */
    int64_t rows, outputs, columns, stride;
    int bits, digits;
    parallel pool;
    int threads;
} product;

/* Exponent and fraction move to their place, and the exponent's other base is multiplied in. A scale is finite. */
INLINE float scale_of(const product *p, int64_t o) {
    uint32_t bits = (p->scale[o] & 0x7FFFu) << 13 | (p->scale[o] & 0x8000u) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value * 0x1p112f;
}

/* In float32: weights are unpacked in registers or in a cache. Room: floats for each of M rows. */
int64_t float_room(int64_t columns, int bits);
void float_product(const product *p);
void float_gradient(const product *p);

/* In whole numbers, INT4 under AVX2 only. Room: floats for a row of a product, and for a whole gradient. They return 0, and
   nothing is done, where values do not fit that way. */
int64_t integer_room(int64_t columns);
int integer_product(const product *p);
int64_t integer_gradient_room(int64_t rows, int64_t outputs, int threads);
int integer_gradient(const product *p);

#endif
