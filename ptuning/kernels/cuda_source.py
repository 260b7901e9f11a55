"""The CUDA C of the cpm_kernels backend: packed weights to float16 or bfloat16. Without headers, so NVRTC needs no paths.

One thread makes the one or two columns of a byte. Rows lie along x, whose grid may be the longest.
"""

THREADS = 256
"""Threads of a block, along the bytes of a row."""

NAMES = {(bits, kind): f"unpack_int{bits}_{kind}" for bits in (4, 8) for kind in ("half", "bfloat16")}
"""(bits, "half" or "bfloat16") to the name of the kernel."""

SOURCE = r"""
typedef unsigned short bits16;

__device__ __forceinline__ float from_half(bits16 value) {
    float made;
    asm("cvt.f32.f16 %0, %1;" : "=f"(made) : "h"(value));
    return made;
}

__device__ __forceinline__ bits16 to_half(float value) {
    bits16 made;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(made) : "f"(value));
    return made;
}

// Round to nearest, ties to even. Weights are finite: quantising refuses anything else.
__device__ __forceinline__ bits16 to_bfloat16(float value) {
    unsigned int whole = __float_as_uint(value);
    return (bits16)((whole + 0x7FFFu + ((whole >> 16) & 1u)) >> 16);
}

#define UNPACK_INT4(NAME, ROUND)                                                                          \
extern "C" __global__ void NAME(const signed char *packed, const bits16 *scale, unsigned int *result,     \
                                long long packed_step, int width) {                                       \
    long long row = blockIdx.x;                                                                           \
    int at = blockIdx.y * blockDim.x + threadIdx.x;                                                       \
    if (at >= width) return;                                                                              \
    int both = packed[row * packed_step + at];                                                            \
    float step = from_half(scale[row]);                                                                   \
    unsigned int even = ROUND((float)(both >> 4) * step);                                                 \
    unsigned int odd = ROUND((float)((int)((unsigned int)both << 28) >> 28) * step);                      \
    result[row * width + at] = even | (odd << 16);                                                        \
}

#define UNPACK_INT8(NAME, ROUND)                                                                          \
extern "C" __global__ void NAME(const signed char *packed, const bits16 *scale, bits16 *result,           \
                                long long packed_step, int width) {                                       \
    long long row = blockIdx.x;                                                                           \
    int at = blockIdx.y * blockDim.x + threadIdx.x;                                                       \
    if (at >= width) return;                                                                              \
    result[row * width + at] = ROUND((float)packed[row * packed_step + at] * from_half(scale[row]));      \
}

UNPACK_INT4(unpack_int4_half, to_half)
UNPACK_INT4(unpack_int4_bfloat16, to_bfloat16)
UNPACK_INT8(unpack_int8_half, to_half)
UNPACK_INT8(unpack_int8_bfloat16, to_bfloat16)
"""
