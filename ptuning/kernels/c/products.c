/* Which way a product with a packed weight is made: INT4 in whole numbers where that can be done, the rest in float32. */
#include "products.h"

int64_t ptuning_product_room(int64_t columns, int bits) {
    const int64_t floats = float_room(columns, bits);
    return bits == 4 && integer_room(columns) > floats ? integer_room(columns) : floats;
}

int64_t ptuning_gradient_room(int64_t rows, int64_t outputs, int64_t columns, int bits, int threads) {
    const int64_t floats = rows * float_room(columns, bits);
    const int64_t integers = bits == 4 ? integer_gradient_room(rows, outputs, threads) : 0;
    return integers > floats ? integers : floats;
}

void ptuning_product(const float *inputs, const uint8_t *data, const uint16_t *scale, const float *bias, float *room,
                     float *result, int64_t rows, int64_t outputs, int64_t columns, int64_t stride, int bits, int digits,
                     parallel pool, int threads) {
    const product p = {.inputs = inputs, .data = data, .scale = scale, .bias = bias, .room = room, .result = result,
                       .rows = rows, .outputs = outputs, .columns = columns, .stride = stride, .bits = bits,
                       .digits = digits, .pool = pool, .threads = threads};
    if (bits == 4 && integer_product(&p)) return;
    float_product(&p);
}

void ptuning_gradient(const float *gradient, const uint8_t *data, const uint16_t *scale, float *room, float *result,
                      int64_t rows, int64_t outputs, int64_t columns, int64_t stride, int bits, int digits, parallel pool,
                      int threads) {
    const product p = {.inputs = gradient, .data = data, .scale = scale, .room = room, .result = result, .rows = rows,
                       .outputs = outputs, .columns = columns, .stride = stride, .bits = bits, .digits = digits,
                       .pool = pool, .threads = threads};
    if (bits == 4 && integer_gradient(&p)) return;
    float_gradient(&p);
}
