/* Calls every function of ptuning.h on awkward shapes, each tensor in memory of exactly its size, and looks at some of the
   results. Ends with 1 and a line on standard error where one is wrong. Made to be run under sanitizers.

       every_function threads     the library starts threads of its own
       every_function pool        it is given a pool
       every_function stack       in one thread with a stack of 128 KB */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptuning.h"

static parallel pool;
static int threads = 3;
static uint32_t seed = 1;

static uint32_t draw(void) { return (seed = seed * 1664525u + 1013904223u) >> 8; }

static void *memory(int64_t bytes) {
    uint8_t *made = malloc((size_t)bytes);
    for (int64_t i = 0; i < bytes; i++) made[i] = (uint8_t)draw();
    return made;
}

static float *numbers(int64_t count) {
    float *made = memory(count * 4);
    for (int64_t i = 0; i < count; i++) made[i] = (float)draw() / (1 << 23) - 1.0f;
    return made;
}

/* float16 numbers from 0.0625 to 0.125. */
static uint16_t *halves(int64_t count) {
    uint16_t *made = memory(count * 2);
    for (int64_t i = 0; i < count; i++) made[i] = (uint16_t)(0x2C00 | (made[i] & 0x3FF));
    return made;
}

static double half(uint16_t bits) { return 0.0625 * (1 + (bits & 0x3FF) / 1024.0); }

static void expect(int fine, const char *what, int64_t a, int64_t b, int64_t c) {
    if (fine) return;
    fprintf(stderr, "%s is wrong for %lld, %lld, %lld\n", what, (long long)a, (long long)b, (long long)c);
    exit(1);
}

static int near(double value, double exact, double size, int digits) {
    return fabs(value - exact) <= size * (digits == 1 ? 0.02 : 1e-4);
}

/* ---- products ---- */

static double weight_at(const uint8_t *data, const uint16_t *scale, int64_t stride, int bits, int64_t o, int64_t c) {
    const int8_t byte = (int8_t)data[o * stride + c * bits / 8];
    const int low = byte & 15, value = bits == 8 ? byte : c % 2 ? (low ^ 8) - 8 : byte >> 4;
    return value * half(scale[o]);
}

static void one_product(int64_t rows, int64_t outputs, int64_t columns, int bits, int digits, int broken) {
    const int64_t width = columns * bits / 8, stride = width + rows % 3;
    uint8_t *data = memory(stride * (outputs - 1) + width);
    uint16_t *scale = halves(outputs);
    float *inputs = numbers(rows * columns), *bias = rows % 2 ? numbers(outputs) : 0;
    float *room = memory(4 * ptuning_product_room(rows, columns, bits, threads)), *result = memory(4 * rows * outputs);
    if (broken) inputs[0] = NAN;
    ptuning_product(inputs, data, scale, bias, room, result, rows, outputs, columns, stride, bits, digits, pool, threads);
    for (int64_t m = broken ? 1 : 0; m < rows; m += rows > 1 ? rows - 1 : 1) {
        const int64_t o = m ? outputs - 1 : 0;
        double exact = bias ? bias[o] : 0, size = fabs(exact);
        for (int64_t c = 0; c < columns; c++) {
            const double weight = weight_at(data, scale, stride, bits, o, c);
            exact += inputs[m * columns + c] * weight;
            size += fabs(weight); /* numbers are 1 at most */
        }
        expect(near(result[m * outputs + o], exact, size, digits), "a product", rows, outputs, columns);
    }
    expect(!broken || isnan(result[0]), "a product of what is no number", rows, outputs, columns);
    free(data), free(scale), free(inputs), free(bias), free(room), free(result);
}

static void one_gradient(int64_t rows, int64_t outputs, int64_t columns, int bits, int digits, int broken) {
    const int64_t width = columns * bits / 8, stride = width + rows % 3;
    uint8_t *data = memory(stride * (outputs - 1) + width);
    uint16_t *scale = halves(outputs);
    float *gradient = numbers(rows * outputs), *result = memory(4 * rows * columns);
    float *room = memory(4 * ptuning_gradient_room(rows, outputs, columns, bits, threads));
    if (broken) gradient[0] = INFINITY;
    ptuning_gradient(gradient, data, scale, room, result, rows, outputs, columns, stride, bits, digits, pool, threads);
    for (int64_t m = broken ? 1 : 0; m < rows; m += rows > 1 ? rows - 1 : 1) {
        const int64_t c = m ? columns - 1 : 0;
        double exact = 0, size = 0;
        for (int64_t o = 0; o < outputs; o++) {
            const double weight = weight_at(data, scale, stride, bits, o, c);
            exact += gradient[m * outputs + o] * weight;
            size += fabs(weight); /* numbers are 1 at most */
        }
        expect(near(result[m * columns + c], exact, size, digits), "a gradient", rows, outputs, columns);
    }
    free(data), free(scale), free(gradient), free(room), free(result);
}

static void products(void) {
    static const int64_t all_rows[] = {1, 2, 3, 4, 5, 67, 131}, all_outputs[] = {1, 7, 33, 70}, all_columns[] = {2, 62, 130, 258};
    for (int bits = 4; bits <= 8; bits += 4)
        for (int r = 0; r < 7; r++)
            for (int o = 0; o < 4; o++)
                for (int c = 0; c < 4; c++)
                    for (int digits = 1; digits <= 3; digits++) {
                        one_product(all_rows[r], all_outputs[o], all_columns[c], bits, digits, 0);
                        one_gradient(all_rows[r], all_outputs[o], all_columns[c], bits, digits > 2 ? 3 : 2, 0);
                    }
    for (int bits = 4; bits <= 8; bits += 4)
        for (int64_t rows = 1; rows < 8; rows += 3) {
            one_product(rows, 35, 2050, bits, 3, 0);
            one_product(rows, 35, 130, bits, 3, 1);
            one_gradient(rows, 1031, 130, bits, 2, 0);
            one_gradient(rows, 35, 130, bits, 3, 1);
        }
    one_product(3, 7, 35, 8, 3, 0);     /* an odd number of columns */
    one_gradient(2, 32769, 34, 4, 2, 0); /* a head's */
}

static void half_products(void) {
    for (int64_t rows = 1; rows <= 4; rows++)
        for (int64_t columns = 1; columns < 80; columns += 13)
            for (int brain = 0; brain < 2; brain++) {
                const int64_t outputs = 3 * columns, stride = columns + 2;
                float *inputs = numbers(rows * columns), *result = memory(4 * rows * outputs);
                uint16_t *data = halves(stride * (outputs - 1) + columns);
                double exact = 0;
                ptuning_half_product(inputs, data, 0, result, rows, outputs, columns, stride, brain, pool, threads);
                for (int64_t c = 0; c < columns; c++) exact += inputs[c] * half(data[c]);
                expect(brain || near(result[0], exact, columns, 3), "a half product", rows, outputs, columns);
                free(inputs), free(result), free(data);
            }
}

/* ---- the others ---- */

static void functions(void) {
    static const int64_t counts[] = {1, 5, 64, 4099, 20001};
    for (int i = 0; i < 5; i++) {
        float *values = numbers(counts[i]), *result = memory(4 * counts[i]);
        ptuning_gelu(values, result, counts[i], pool, threads);
        const double x = values[counts[i] - 1], exact = 0.5 * x * (1 + tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
        expect(near(result[counts[i] - 1], exact, 1, 3), "gelu", counts[i], 0, 0);
        free(values), free(result);
    }
}

static void attention(void) {
    static const int64_t sizes[] = {16, 32, 80, 256}, all_columns[] = {1, 9, 300};
    for (int s = 0; s < 4; s++)
        for (int c = 0; c < 3; c++)
            for (int64_t heads = 1; heads < 4; heads += 2) {
                const int64_t rows = 3, slots = 4, size = sizes[s], columns = all_columns[c], each = rows * heads * size;
                if (!ptuning_attends(size)) continue;
                float *fused = numbers(3 * each), *cos = numbers(rows * size), *sin = numbers(rows * size);
                float *keys = numbers(slots * heads * columns * size), *values = numbers(slots * heads * columns * size);
                float *query = memory(4 * each), *mixed = memory(4 * each), *sums = memory(4 * rows * heads);
                int64_t *lengths = memory(8 * rows);
                lengths[0] = 1, lengths[1] = columns, lengths[2] = (columns + 1) / 2;
                for (int64_t bad = -1; bad < 3; bad++) { /* the last time all are right */
                    const int64_t kept = lengths[1];
                    if (bad < 2) lengths[1] = bad < 0 ? INT64_MIN : bad ? columns + 1 : 0;
                    expect(ptuning_attend(fused, cos, sin, keys, values, lengths, query, mixed, sums, rows, heads, columns,
                                          size, pool, threads) == (bad < 2 ? 1 : -1),
                           "the answer to a length", bad, columns, size);
                    lengths[1] = kept;
                }
                expect(near(mixed[0], fused[2 * size], 1, 3), "attention to one column", heads, columns, size);
                free(fused), free(cos), free(sin), free(keys), free(values);
                free(query), free(mixed), free(sums), free(lengths);
            }
}

static void screening(void) {
    static const int64_t all_outputs[] = {1, 50, 703}, all_rows[] = {1, 3, 4, 9};
    const int64_t pack = ptuning_screen_pack();
    for (int kind = 0; pack && kind < 3; kind++)
        for (int o = 0; o < 3; o++)
            for (int64_t columns = 32; columns < 100; columns += 64) {
                const int64_t outputs = all_outputs[o], padded = (outputs + pack - 1) / pack * pack;
                void *weight = kind ? (void *)halves(outputs * columns) : (void *)numbers(outputs * columns);
                int8_t *bytes = calloc((size_t)(padded * columns), 1);
                float *factors = calloc((size_t)(3 * padded), 4);
                int32_t *sums = calloc((size_t)padded, 4);
                expect(ptuning_screen_copy(weight, kind, bytes, factors, sums, outputs, columns, pool, threads),
                       "a copy", kind, outputs, columns);
                for (int r = 0; r < 4; r++) {
                    const int64_t rows = all_rows[r], k = outputs < 20 ? outputs : 20;
                    float *inputs = numbers(rows * columns), *room = memory(4 * rows * (padded + 3));
                    float *values = memory(4 * rows * k);
                    uint8_t *digits = memory(2 * rows * columns);
                    int64_t *places = memory(8 * rows * k);
                    if (rows == 9) inputs[columns] = NAN;
                    expect(ptuning_screen(inputs, weight, kind, bytes, factors, sums, digits, room, values, places, rows,
                                          outputs, columns, k, pool, threads),
                           "screening", rows, outputs, columns);
                    expect(places[0] >= 0 && places[0] < outputs, "a place", rows, outputs, columns);
                    free(inputs), free(room), free(values), free(digits), free(places);
                }
                free(weight), free(bytes), free(factors), free(sums);
            }
}

static void *everything(void *nothing) {
    products(), half_products(), functions(), attention(), screening();
    return nothing;
}

/* As GOMP_parallel: the caller works, too. */
static void own_pool(task work, void *arguments, unsigned count, unsigned flags) {
    pthread_t started[8];
    (void)flags;
    for (unsigned i = 1; i < count; i++) pthread_create(&started[i], 0, work, arguments);
    work(arguments);
    for (unsigned i = 1; i < count; i++) pthread_join(started[i], 0);
}

int main(int count, char **words) {
    const char *way = count > 1 ? words[1] : "threads";
    if (!strcmp(way, "pool")) pool = own_pool;
    if (strcmp(way, "stack")) everything(0);
    else {
        pthread_t thread;
        pthread_attr_t small;
        threads = 1;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 128 << 10);
        if (pthread_create(&thread, &small, everything, 0)) return 2;
        pthread_join(thread, 0);
    }
    puts("every function answered");
    return 0;
}
