/* Tiles of TALL rows and PANEL columns, whose sums stay in registers. */
#include "kernels.h"

/* LANES: numbers in a vector register. TALL: rows of a tile, with two registers each. */
#if defined(__AVX512F__)
#define LANES 16
#define TALL 12
#elif defined(__AVX__)
#define LANES 8
#define TALL 6
#else
#define LANES 4
#define TALL 12
#endif
#define PANEL (2 * LANES)

#define TILE static inline __attribute__((always_inline)) void
#define ALL_ROWS _Pragma("GCC unroll 16")

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

static inline int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* sum[r] += x[r, t] w[t, :] over t. The strides of x are `across` for rows, `along` for columns. */
TILE gather(lanes sum[][2], const float *x, const float *w, int64_t depth, int64_t across,
    int64_t along, const int rows) {
    for (int64_t t = 0; t < depth; t++, x += along, w += PANEL) {
        lanes u = *(const lanes *)w, v = *(const lanes *)(w + LANES);
        ALL_ROWS for (int r = 0; r < rows; r++) {
            float a = x[r * across];
            sum[r][0] += a * u;
            sum[r][1] += a * v;
        }
    }
}
