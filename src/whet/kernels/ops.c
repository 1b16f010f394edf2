/* A decoder's operations between matrix products, on a CPU in float32: one pass over memory where
 * torch makes several. model/ops.py has the same formulas in torch.
 *
 * Arrays are row-major and contiguous unless strides are named. Every output is summed in an order
 * that does not depend on the number of threads. A sum over rows is returned as partial sums, one for
 * each BLOCK rows.
 */
#include "kernels.h"

/* y = x / rms(x) * w, and rstd [n] = 1 / rms. */
void norm_rows(const float *x, const float *w, float *y, float *rstd, int64_t n, int64_t h, float eps) {
    ROWS for (int64_t i = 0; i < n; i++) {
        const float *a = x + i * h;
        float *b = y + i * h;
        float r = 1.0f / sqrtf(dot(a, a, h) / h + eps);
        rstd[i] = r;
        SIMD for (int64_t j = 0; j < h; j++) b[j] = a[j] * r * w[j];
    }
}

void rms_norm(const float *x, const float *w, float *y, float *rstd, int64_t n, int64_t h, float eps,
    int threads) {
    TEAM norm_rows(x, w, y, rstd, n, h, eps);
}

/* The gradients dx, and dw as partial sums [blocks, h]. */
void rms_norm_back(const float *dy, const float *x, const float *w, const float *rstd, float *dx,
    float *dw, int64_t n, int64_t h, int threads) {
    TEAM ROWS for (int64_t block = 0; block < (n + BLOCK - 1) / BLOCK; block++) {
        float *part = dw + block * h;
        memset(part, 0, h * sizeof(float));
        int64_t last = (block + 1) * BLOCK < n ? (block + 1) * BLOCK : n;
        for (int64_t i = block * BLOCK; i < last; i++) {
            const float *a = x + i * h, *g = dy + i * h;
            float *d = dx + i * h, r = rstd[i], s = 0;
            _Pragma("omp simd reduction(+ : s)") for (int64_t j = 0; j < h; j++) s += g[j] * w[j] * a[j];
            float back = s * r * r * r / h;
            SIMD for (int64_t j = 0; j < h; j++) {
                d[j] = r * g[j] * w[j] - a[j] * back;
                part[j] += g[j] * a[j] * r;
            }
        }
    }
}

/* Norms one head a by w and turns it by c and s, into b. No norm where w is NULL, no turn where c is. */
static inline void head(const float *a, float *b, const float *w, const float *c, const float *s,
    int64_t d, float eps, float *rstd) {
    float r = 1.0f;
    if (w) *rstd = r = 1.0f / sqrtf(dot(a, a, d) / d + eps);
    if (w) { SIMD for (int64_t j = 0; j < d; j++) b[j] = a[j] * r * w[j]; }
    else if (b != a) memcpy(b, a, d * sizeof(float));
    if (!c) return;
    int64_t half = d / 2;
    SIMD for (int64_t j = 0; j < half; j++) {
        float x = b[j], y = b[j + half];
        b[j] = x * c[j] - y * s[j];
        b[j + half] = y * c[j + half] + x * s[j + half];
    }
}

/* qkv [n, heads + 2 kv, d] -> q [n, heads, d], k and v [n, kv, d]. rstd [n, heads + kv], cos and sin
 * [n, d]. */
void head_rows(const float *qkv, const float *wq, const float *wk, const float *cos, const float *sin,
    float *q, float *k, float *v, float *rstd, int64_t n, int64_t heads, int64_t kv, int64_t d, float eps) {
    ROWS for (int64_t i = 0; i < n; i++) {
        const float *a = qkv + i * (heads + 2 * kv) * d, *c = cos ? cos + i * d : 0,
            *s = cos ? sin + i * d : 0;
        float *r = rstd + i * (heads + kv);
        for (int64_t j = 0; j < heads; j++) head(a + j * d, q + (i * heads + j) * d, wq, c, s, d, eps, r + j);
        for (int64_t j = 0; j < kv; j++) head(a + (heads + j) * d, k + (i * kv + j) * d, wk, c, s, d,
            eps, r + heads + j);
        memcpy(v + i * kv * d, a + (heads + kv) * d, kv * d * sizeof(float));
    }
}

void heads_(const float *qkv, const float *wq, const float *wk, const float *cos, const float *sin,
    float *q, float *k, float *v, float *rstd, int64_t n, int64_t heads, int64_t kv, int64_t d,
    float eps, int threads) {
    TEAM head_rows(qkv, wq, wk, cos, sin, q, k, v, rstd, n, heads, kv, d, eps);
}

static inline void head_back(const float *g, const float *a, float *b, const float *w, const float *c,
    const float *s, int64_t d, float r, float *dw) {
    if (g != b) memcpy(b, g, d * sizeof(float));
    if (c) {
        int64_t half = d / 2;
        SIMD for (int64_t j = 0; j < half; j++) {
            float x = b[j], y = b[j + half];
            b[j] = x * c[j] + y * s[j + half];
            b[j + half] = y * c[j + half] - x * s[j];
        }
    }
    if (!w) return;
    float sum = 0;
    _Pragma("omp simd reduction(+ : sum)") for (int64_t j = 0; j < d; j++) sum += b[j] * w[j] * a[j];
    float back = sum * r * r * r / d;
    SIMD for (int64_t j = 0; j < d; j++) {
        dw[j] += b[j] * a[j] * r;
        b[j] = r * b[j] * w[j] - a[j] * back;
    }
}

/* dqkv from dq, dk, dv; dw as partial sums [blocks, 2, d], the norm of queries first. */
void heads_back(const float *dq, const float *dk, const float *dv, const float *qkv, const float *wq,
    const float *wk, const float *cos, const float *sin, const float *rstd, float *dqkv, float *dw,
    int64_t n, int64_t heads, int64_t kv, int64_t d, int threads) {
    TEAM ROWS for (int64_t block = 0; block < (n + BLOCK - 1) / BLOCK; block++) {
        float *part = dw + block * 2 * d;
        memset(part, 0, 2 * d * sizeof(float));
        int64_t last = (block + 1) * BLOCK < n ? (block + 1) * BLOCK : n;
        for (int64_t i = block * BLOCK; i < last; i++) {
            int64_t at = i * (heads + 2 * kv) * d;
            const float *c = cos ? cos + i * d : 0, *s = cos ? sin + i * d : 0, *r = rstd + i * (heads + kv);
            for (int64_t j = 0; j < heads; j++)
                head_back(dq + (i * heads + j) * d, qkv + at + j * d, dqkv + at + j * d, wq, c, s, d,
                    r[j], part);
            for (int64_t j = 0, o = at + heads * d; j < kv; j++, o += d)
                head_back(dk + (i * kv + j) * d, qkv + o, dqkv + o, wk, c, s, d, r[heads + j], part + d);
            memcpy(dqkv + at + (heads + kv) * d, dv + i * kv * d, kv * d * sizeof(float));
        }
    }
}

/* gate_up [n, 2f] -> y [n, f] = silu(gate) * up. */
void gate_rows(const float *gate_up, float *y, int64_t n, int64_t f) {
    ROWS for (int64_t i = 0; i < n; i++) {
        const float *g = gate_up + i * 2 * f, *u = g + f;
        float *b = y + i * f;
        SIMD for (int64_t j = 0; j < f; j++) b[j] = 1.0f / (1.0f + exp_(-g[j])) * g[j] * u[j];
    }
}

void swiglu(const float *gate_up, float *y, int64_t n, int64_t f, int threads) {
    TEAM gate_rows(gate_up, y, n, f);
}

/* The gradient of gate_up from dy. */
void swiglu_back(const float *dy, const float *gate_up, float *back, int64_t n, int64_t f, int threads) {
    TEAM ROWS for (int64_t i = 0; i < n; i++) {
        const float *g = gate_up + i * 2 * f, *u = g + f, *d = dy + i * f;
        float *dg = back + i * 2 * f, *du = dg + f;
        SIMD for (int64_t j = 0; j < f; j++) {
            float share = 1.0f / (1.0f + exp_(-g[j]));
            du[j] = d[j] * g[j] * share;
            dg[j] = d[j] * u[j] * share * (1.0f + g[j] * (1.0f - share));
        }
    }
}
