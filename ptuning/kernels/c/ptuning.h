/* What is called from outside (ptuning/kernels/native.py), and the order of the files.

   Plain C with GNU vectors (gcc, clang). Every file compiles alone:

       ptuning.h   the functions that are called from outside
       kernels.h   work that threads share (threads.c)
       vectors.h   vectors of a register and what is done with one
       products.h  a product with a packed weight, which is asked for in products.c and made in
                   float_products.c, or with whole numbers (integers.h) in integer_product.c and integer_gradient.c

   and beside them, on their own: half_products.c, elementwise.c, decode_attention.c, screening.c.

   Nobody allocates: the caller gives the room that is asked for, and a thread needs less than 64 KB of stack. Pointers are to
   contiguous tensors on the CPU, rows of a weight may lie further apart (stride, in elements). The caller checks shapes. */
#ifndef PTUNING_H
#define PTUNING_H

#include <stdint.h>

#define PTUNING_EXPORT __attribute__((visibility("default")))

/* Threads: the caller hands over GOMP_parallel of the OpenMP runtime that torch runs on, so that both share one pool and its
   idle threads do not spin against ours; NULL: threads are started for the call. It does not look at what a task returns. */
typedef void *(*task)(void *);
typedef void (*parallel)(task, void *, unsigned, unsigned);

/* ---- products with a packed weight (products.c): INT4 and INT8, accumulated in float32 ----
   M rows of activations, O output rows, I input columns. data [O, stride] bytes, scale [O] float16. digits: signed bytes of the
   whole numbers that stand for activations, 3 (24 bits), 2, or 1 (products only). */

/* Floats of room for a row of activations. */
PTUNING_EXPORT int64_t ptuning_product_room(int64_t columns, int bits);

/* result [M, O] = inputs [M, I] @ dequantised^T + bias [O] (or NULL). */
PTUNING_EXPORT void ptuning_product(const float *inputs, const uint8_t *data, const uint16_t *scale, const float *bias,
                                    float *room, float *result, int64_t rows, int64_t outputs, int64_t columns,
                                    int64_t stride, int bits, int digits, parallel pool, int threads);

/* Floats of room for a whole gradient. */
PTUNING_EXPORT int64_t ptuning_gradient_room(int64_t rows, int64_t outputs, int64_t columns, int bits, int threads);

/* result [M, I] = gradient [M, O] @ dequantised. */
PTUNING_EXPORT void ptuning_gradient(const float *gradient, const uint8_t *data, const uint16_t *scale, float *room,
                                     float *result, int64_t rows, int64_t outputs, int64_t columns, int64_t stride, int bits,
                                     int digits, parallel pool, int threads);

/* ---- a few rows with a weight of half precision (half_products.c) ---- */

/* result [M, O] = inputs [M, I] @ data^T + bias (or NULL), data [O, stride] in float16, or bfloat16 where brain is set. */
PTUNING_EXPORT void ptuning_half_product(const float *inputs, const uint16_t *data, const float *bias, float *result,
                                         int64_t rows, int64_t outputs, int64_t columns, int64_t stride, int brain,
                                         parallel pool, int threads);

/* ---- functions of single numbers (elementwise.c) ---- */

/* result [count] = GELU of values [count], in its tanh form. */
PTUNING_EXPORT void ptuning_gelu(const float *values, float *result, int64_t count, parallel pool, int threads);

/* ---- attention of one new token of every row (decode_attention.c) ----
   A rows, N heads, H head size, C columns of a slot. */

/* Whether heads of this size can be taken. */
PTUNING_EXPORT int ptuning_attends(int64_t size);

/* Turned query [A, N, H], mixed values [A, N, H] and sums [A, N] (logarithms of the sums of exponentials) of new tokens
   fused [A, N, 3, H], whose keys and values become column lengths - 1 of keys and values [A.., N, C, H]; cos and sin [A, H].
   Returns -1, or the first row whose length is not 1 to C: then nothing is done. */
PTUNING_EXPORT int64_t ptuning_attend(const float *fused, const float *cos, const float *sin, float *keys, float *values,
                                      const int64_t *lengths, float *query, float *mixed, float *sums, int64_t rows,
                                      int64_t heads, int64_t columns, int64_t size, parallel pool, int threads);

/* ---- the largest products with a float weight (screening.c) ----
   M rows of activations, O rows of the weight, I columns (a multiple of 32), K products asked for; kind of the weight [O, I]:
   0 float32, 1 float16, 2 bfloat16. Only where the library is compiled for AVX2. */

/* Rows of the copy are padded to a multiple; 0: it cannot be made here. */
PTUNING_EXPORT int64_t ptuning_screen_pack(void);

/* Fill the copy of a weight: bytes [O padded, I], and factors [3, O padded] and sums [O padded] with it; what is padded must be
   zeros. Returns whether it can be used. */
PTUNING_EXPORT int ptuning_screen_copy(const void *weight, int kind, int8_t *bytes, float *factors, int32_t *sums,
                                       int64_t outputs, int64_t columns, parallel pool, int threads);

/* The K largest products of every row of activations: values and places [M, K], the largest first, equal ones by their place;
   NaN for a row that is not finite. K is at most O. numbers: room [M, 2, I]; room: [M, O padded + 3] floats. Returns 0 where
   multiplying with all of the weight is better. */
PTUNING_EXPORT int ptuning_screen(const float *inputs, const void *weight, int kind, int8_t *bytes, float *factors,
                                  int32_t *sums, uint8_t *numbers, float *room, float *values, int64_t *places,
                                  int64_t rows, int64_t outputs, int64_t columns, int64_t k, parallel pool, int threads);

#endif
