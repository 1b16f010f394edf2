/* Declarations that all kernels share. */
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif
#include <stdint.h>
#include <string.h>

#define BLOCK 64
/* TEAM makes a team of threads. A function named …_rows is called by a team and shares its rows out. */
#define TEAM _Pragma("omp parallel num_threads(threads) if (threads > 1)")
#define ROWS _Pragma("omp for schedule(static)")
#define SIMD _Pragma("omp simd")

/* e^x with a relative error below 2e-7. NaN stays NaN.
 * x is clamped to -60 .. 60. Beyond, sums in float32 do not change, and a product with a weight could
 * become denormal, which processors compute many times slower. */
static inline float exp_(float x) {
    x = x < -60.0f ? -60.0f : x;
    x = x > 60.0f ? 60.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23 moves the integer to the lowest bits */
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t scale_bits = (bits - 0x4B400000 + 127) << 23;
    float scale;
    memcpy(&scale, &scale_bits, 4);
    return p * scale;
}

static inline float dot(const float *a, const float *b, int64_t n) {
    float s = 0;
    _Pragma("omp simd reduction(+ : s)") for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

void norm_rows(const float *x, const float *w, float *y, float *rstd, int64_t n, int64_t h, float eps);
void head_rows(const float *qkv, const float *wq, const float *wk, const float *cos, const float *sin,
    float *q, float *k, float *v, float *rstd, int64_t n, int64_t heads, int64_t kv, int64_t d, float eps);
void gate_rows(const float *gate_up, float *y, int64_t n, int64_t f);
void product_rows(const float *x, const float *packed, const float *bias, float *y, int64_t n,
    int64_t i, int64_t o, int add, int threads);
