/* Decoding on a CPU in float32: attention from a cache whose prompts are shared, a whole decoder's step, and drawing a token. */
#include "kernels.h"

/* Scores of `span` keys [span, d], the largest of them and of `top`. */
static inline __attribute__((always_inline)) float asked(const float *q, const float *keys, float *scores, int64_t span, int64_t d, float scale, float top) {
    for (int64_t t = 0; t < span; t++) {
        float s = dot(q, keys + t * d, d) * scale;
        scores[t] = s;
        top = s > top ? s : top;
    }
    return top;
}

static inline __attribute__((always_inline)) void read_(const float *weights, const float *values, float *out, int64_t span, int64_t d) {
    int64_t t = 0;
    for (; t + 4 <= span; t += 4) {
        const float *v = values + t * d;
        float a = weights[t], b = weights[t + 1], c = weights[t + 2], e = weights[t + 3];
        SIMD for (int64_t j = 0; j < d; j++) out[j] += a * v[j] + b * v[j + d] + c * v[j + 2 * d] + e * v[j + 3 * d];
    }
    for (; t < span; t++) {
        SIMD for (int64_t j = 0; j < d; j++) out[j] += weights[t] * values[t * d + j];
    }
}

/* One row's query heads of one key head: see decode. */
static inline __attribute__((always_inline)) void attend(const float *q, const float *pk, const float *pv, int64_t p, const float *k,
                                                         const float *v, int64_t span, float *out, float *s, int64_t repeat, int64_t d) {
    float scale = 1.0f / sqrtf((float)d);
    for (int64_t i = 0; i < repeat; i++, q += d, out += d) {
        float sum = 0, top = asked(q, pk, s, p, d, scale, -INFINITY);
        top = asked(q, k, s + p, span, d, scale, top);
        _Pragma("omp simd reduction(+ : sum)") for (int64_t t = 0; t < p + span; t++) sum += s[t] = exp_(s[t] - top);
        float all[d];
        memset(all, 0, sizeof all);
        read_(s, pv, all, p, d);
        read_(s + p, v, all, span, d);
        SIMD for (int64_t j = 0; j < d; j++) out[j] = all[j] / sum;
    }
}

/* One new token a row. k and v [n, kv, d] join the rows' own [n, kv, width, d] at `column`; each query reads its row's columns from
 * start[row] on and the prompt in seat[row], of lengths[seat] tokens: [seats, kv, prompt_width, d]. Rows are taken in `order`, those of a
 * seat behind one another, so that a prompt stays in the core's cache. scores [threads, longest]. */
void decode(const float *q, const float *k, const float *v, float *own_k, float *own_v, const float *prompt_k, const float *prompt_v,
            const int64_t *order, const int64_t *seat, const int64_t *start, const int64_t *lengths, float *out, float *scores, int64_t n,
            int64_t heads, int64_t kv, int64_t d, int64_t width, int64_t prompt_width, int64_t column, int64_t longest, int threads) {
    int64_t repeat = heads / kv;
    _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")
    for (int64_t item = 0; item < n * kv; item++) {
        int64_t row = order[item / kv], group = item % kv, at = (row * kv + group) * width * d;
        int64_t prompt = (seat[row] * kv + group) * prompt_width * d, p = lengths[seat[row]], span = column + 1 - start[row];
        memcpy(own_k + at + column * d, k + (row * kv + group) * d, d * sizeof(float));
        memcpy(own_v + at + column * d, v + (row * kv + group) * d, d * sizeof(float));
        const float *a = q + (row * heads + group * repeat) * d, *b = own_k + at + start[row] * d, *c = own_v + at + start[row] * d;
        float *o = out + (row * heads + group * repeat) * d, *s = scores + omp_get_thread_num() * longest;
        /* With the size known, the compiler keeps a head in registers. */
        if (d == 64) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 64);
        else if (d == 128) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 128);
        else if (d == 24) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 24);
        else attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, d);
    }
}

/* A token [n] for each row of logits [n, v] where u [n] falls in the cumulative distribution at a temperature, its log-probability [n],
 * and whether a logit of the row is not finite [n]. kept [threads, v + v / BLOCK + 1]: exponentials, and their sums by blocks. */
void draw(const float *logits, const double *u, int64_t *tokens, float *logp, uint8_t *bad, float *kept, int64_t n, int64_t v,
          float temperature, int threads) {
    int64_t blocks = (v + BLOCK - 1) / BLOCK;
    ROWS for (int64_t i = 0; i < n; i++) {
        const float *x = logits + i * v;
        float *e = kept + omp_get_thread_num() * (v + v / BLOCK + 1), *sums = e + v, top = -INFINITY, check = 0, scale = 1 / temperature;
        _Pragma("omp simd reduction(max : top) reduction(+ : check)") for (int64_t j = 0; j < v; j++) {
            top = x[j] > top ? x[j] : top;
            check += x[j] * 0.0f; /* 0, or not a number */
        }
        double total = 0, seen = 0;
        for (int64_t b = 0; b < blocks; b++) {
            int64_t last = (b + 1) * BLOCK < v ? (b + 1) * BLOCK : v;
            float sum = 0;
            _Pragma("omp simd reduction(+ : sum)") for (int64_t j = b * BLOCK; j < last; j++) sum += e[j] = exp_((x[j] - top) * scale);
            total += sums[b] = sum;
        }
        double target = u[i] * total;
        int64_t b = 0;
        for (; b < blocks - 1 && seen + sums[b] <= target; b++) seen += sums[b];
        int64_t at = b * BLOCK, last = (b + 1) * BLOCK < v ? (b + 1) * BLOCK : v;
        for (; at < last - 1 && (seen += e[at]) <= target; at++);
        tokens[i] = at;
        logp[i] = (x[at] - top) * scale - (float)log(total);
        bad[i] = check != check;
    }
}

/* The matrix product of the BLAS that torch brings along, by its Fortran name. */
typedef void (*gemm)(const char *, const char *, const int *, const int *, const int *, const float *, const float *, const int *,
                     const float *, const int *, const float *, float *, const int *);

/* y [n, o] = x [n, i] w [o, i]^T + b, or y + that. */
static void linear(gemm product, const float *x, const float *w, const float *b, float *y, int n, int i, int o, int add) {
    const float one = 1.0f, kept = add || b ? 1.0f : 0.0f;
    for (int64_t r = 0; b && r < n; r++) {
        float *row = y + r * o;
        if (add) { SIMD for (int64_t j = 0; j < o; j++) row[j] += b[j]; }
        else memcpy(row, b, o * sizeof(float));
    }
    product("T", "N", &o, &n, &i, &one, w, &i, x, &i, &kept, y, &o);
}

/* A whole decoder over one new token a row: x [n, hidden], the embeddings, becomes the hidden states after all layers (before the last norm).
 *
 * parts [layers, 17]: norm, qkv and its bias, the norms of queries and keys, out and its bias, norm, gate_up and its bias, down and its bias,
 * the rows' own keys and values, the prompts' keys and values, and whether positions are told: not NULL. What a layer lacks is NULL.
 * scratch holds n * (hidden + 2 (heads + 2 kv) d + heads d + 3 ffn + heads + kv) numbers; the rest is as in decode. */
void step(gemm product, const float *const *parts, float *x, const float *cos, const float *sin, const int64_t *order, const int64_t *seat,
          const int64_t *start, const int64_t *lengths, float *scratch, float *scores, int64_t n, int64_t layers, int64_t hidden,
          int64_t ffn, int64_t heads, int64_t kv, int64_t d, int64_t width, int64_t prompt_width, int64_t column, int64_t longest,
          float eps, int threads) {
    float *normed = scratch, *qkv = normed + n * hidden, *q = qkv + n * (heads + 2 * kv) * d, *k = q + n * heads * d, *v = k + n * kv * d;
    float *read = v + n * kv * d, *gate_up = read + n * heads * d, *gated = gate_up + 2 * n * ffn, *rstd = gated + n * ffn;
    int few = n * hidden < 16384 ? 1 : threads;
    for (int64_t i = 0; i < layers; i++, parts += 17) {
        rms_norm(x, parts[0], normed, rstd, n, hidden, eps, few);
        linear(product, normed, parts[1], parts[2], qkv, n, hidden, (heads + 2 * kv) * d, 0);
        heads_(qkv, parts[3], parts[4], parts[16] ? cos : 0, parts[16] ? sin : 0, q, k, v, rstd, n, heads, kv, d, eps, few);
        decode(q, k, v, (float *)parts[12], (float *)parts[13], parts[14], parts[15], order, seat, start, lengths, read, scores, n, heads, kv,
               d, width, prompt_width, column, longest, threads);
        linear(product, read, parts[5], parts[6], x, n, heads * d, hidden, 1);
        rms_norm(x, parts[7], normed, rstd, n, hidden, eps, few);
        linear(product, normed, parts[8], parts[9], gate_up, n, hidden, 2 * ffn, 0);
        swiglu(gate_up, gated, n, ffn, few);
        linear(product, gated, parts[10], parts[11], x, n, ffn, hidden, 1);
    }
}
