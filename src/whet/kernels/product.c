/* Matrix products in float32. Every element of a result is one chain of fused multiply-adds in the
 * order of the summed index. So a row's result depends neither on the rows beside it, nor on the
 * number of threads, nor on its tile.
 *
 * A tile of TALL rows and PANEL columns stays in registers. The factor that is read by columns is
 * packed: [panels, depth, PANEL], padded with zeros.
 */
#include "tiles.h"

#define MOST_ROWS 96 /* rows per panel at a time, so that they stay in the core's cache */

/* The columns of a panel. */
int64_t panel(void) { return PANEL; }

/* Packs w [o, i] for products that sum over i. */
void pack(const float *w, float *packed, int64_t o, int64_t i, int threads) {
    TEAM ROWS for (int64_t p = 0; p < parts(o, PANEL); p++) {
        float *to = packed + p * PANEL * i;
        for (int64_t begin = 0; begin < i; begin += 16)
            for (int64_t j = 0; j < PANEL; j++) {
                int64_t real = p * PANEL + j < o, last = least(begin + 16, i);
                const float *from = w + (p * PANEL + j) * i;
                for (int64_t t = begin; t < last; t++) to[t * PANEL + j] = real ? from[t] : 0;
            }
    }
}

/* y [rows, wide] = sum + bias (unless NULL) + y (if add). */
TILE keep(lanes sum[][2], float *y, const float *bias, int64_t ld, int64_t wide, int add, const int rows) {
    if (wide == PANEL) {
        ALL_ROWS for (int r = 0; r < rows; r++) {
            float *to = y + r * ld;
            lanes u = sum[r][0], v = sum[r][1];
            if (bias) u += *(const lanes *)bias, v += *(const lanes *)(bias + LANES);
            if (add) u += *(lanes *)to, v += *(lanes *)(to + LANES);
            *(lanes *)to = u;
            *(lanes *)(to + LANES) = v;
        }
        return;
    }
    for (int r = 0; r < rows; r++) {
        float all[PANEL];
        memcpy(all, sum[r], sizeof all);
        for (int64_t j = 0; j < wide; j++)
            y[r * ld + j] = all[j] + (bias ? bias[j] : 0) + (add ? y[r * ld + j] : 0);
    }
}

TILE tile(const float *x, const float *w, const float *bias, float *y, const int64_t *size,
    int64_t wide, int add, const int rows) {
    lanes sum[TALL][2];
    ALL_ROWS for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (lanes){0};
    gather(sum, x, w, size[0], size[0], 1, rows);
    keep(sum, y, bias, size[1], wide, add, rows);
}

#define CASE(R) case R: tile(x, w, bias, y, size, wide, add, R); break;

/* n rows times one panel, in tiles of nearly equal height. size: depth, columns of y. */
static void rows_times(const float *x, const float *w, const float *bias, float *y, const int64_t *size,
    int64_t n, int64_t wide, int add) {
    for (int64_t left = parts(n, TALL); left; left--) {
        int64_t rows = parts(n, left);
        switch (rows) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TALL > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
        x += rows * size[0], y += rows * size[1], n -= rows;
    }
}

/* y [n, o] = x [n, i] packed^T + bias, added to y if `add`. */
void product_rows(const float *x, const float *packed, const float *bias, float *y, int64_t n,
    int64_t i, int64_t o, int add, int threads) {
    int64_t panels = parts(o, PANEL), strips = parts(n, MOST_ROWS), size[2] = {i, o};
    if (strips * panels < 2 * threads) strips = least(parts(n, TALL), parts(2 * threads, panels));
    if (n < 1) return;
    int64_t tall = parts(n, strips);
    ROWS for (int64_t k = 0; k < strips * panels; k++) {
        int64_t first = k / panels * tall, p = k % panels, at = p * PANEL;
        if (first >= n) continue;
        rows_times(x + first * i, packed + at * i, bias ? bias + at : 0, y + first * o + at, size,
            least(tall, n - first), least(PANEL, o - at), add);
    }
}

void product(const float *x, const float *packed, const float *bias, float *y, int64_t n, int64_t i,
    int64_t o, int64_t add, int threads) {
    TEAM product_rows(x, packed, bias, y, n, i, o, add, threads);
}
