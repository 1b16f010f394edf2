/* Decoding on a CPU in float32: attention from a cache with shared prompts, a decode step of the whole
 * decoder, and drawing a token. */
#include "kernels.h"

#define EACH static inline __attribute__((always_inline))

typedef float eight __attribute__((vector_size(32), aligned(4)));

#ifdef __AVX__
#include <immintrin.h>
/* The four sums over the elements of a, b, c and e. */
static inline __m128 sums(eight a, eight b, eight c, eight e) {
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, e));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
#endif

/* Writes the scores of keys [span, d]; returns the largest of them and of `top`. */
EACH float asked(const float *q, const float *keys, float *scores, int64_t span, int64_t d, float scale,
    float top) {
    int64_t t = 0;
#ifdef __AVX__
    for (; d % 8 == 0 && t + 4 <= span; t += 4, keys += 4 * d) {
        eight a = {0}, b = a, c = a, e = a;
        for (int64_t j = 0; j < d; j += 8) {
            eight at = *(const eight *)(q + j);
            a += at * *(const eight *)(keys + j), b += at * *(const eight *)(keys + d + j);
            c += at * *(const eight *)(keys + 2 * d + j), e += at * *(const eight *)(keys + 3 * d + j);
        }
        _mm_storeu_ps(scores + t, sums(a, b, c, e) * scale);
    }
#endif
    for (; t < span; t++, keys += d) scores[t] = dot(q, keys, d) * scale;
    _Pragma("omp simd reduction(max : top)") for (t = 0; t < span; t++)
        top = scores[t] > top ? scores[t] : top;
    return top;
}

/* out [d] += weights [span] times values [span, d]. */
EACH void weighed(const float *weights, const float *values, float *out, int64_t span, const int64_t d) {
    if (d % 8 == 0 && d <= 128) {
        eight all[16];
        for (int64_t j = 0; j < d / 8; j++) all[j] = *(eight *)(out + j * 8);
        for (int64_t t = 0; t < span; t++, values += d)
            for (int64_t j = 0; j < d / 8; j++) all[j] += weights[t] * *(const eight *)(values + j * 8);
        for (int64_t j = 0; j < d / 8; j++) *(eight *)(out + j * 8) = all[j];
        return;
    }
    for (int64_t t = 0; t < span; t++, values += d) {
        SIMD for (int64_t j = 0; j < d; j++) out[j] += weights[t] * values[j];
    }
}

/* Attention of the query heads of one row and one key head; see decode_rows. */
EACH void attend(const float *q, const float *pk, const float *pv, int64_t p, const float *k,
    const float *v, int64_t span, float *out, float *s, int64_t repeat, int64_t d) {
    float scale = 1.0f / sqrtf((float)d);
    for (int64_t i = 0; i < repeat; i++, q += d, out += d) {
        float sum = 0, top = asked(q, pk, s, p, d, scale, -INFINITY);
        top = asked(q, k, s + p, span, d, scale, top);
        _Pragma("omp simd reduction(+ : sum)") for (int64_t t = 0; t < p + span; t++)
            sum += s[t] = exp_(s[t] - top);
        memset(out, 0, d * sizeof(float));
        weighed(s, pv, out, p, d);
        weighed(s + p, v, out, span, d);
        SIMD for (int64_t j = 0; j < d; j++) out[j] /= sum;
    }
}

/* Attention of one new token per row. k and v [n, kv, d] are written to own_k and own_v
 * [n, kv, width, d] at `column`. A query reads its row's columns from start[row] on, and the prompt in
 * seat[row], lengths[seat] tokens of [seats, kv, prompt_width, d]. Rows are taken in `order`, sorted by
 * seat, so that a prompt stays in the core's cache. scores [threads, longest] is scratch. */
void decode_rows(const float *q, const float *k, const float *v, float *own_k, float *own_v,
    const float *prompt_k, const float *prompt_v, const int64_t *order, const int64_t *seat,
    const int64_t *start, const int64_t *lengths, float *out, float *scores, int64_t n, int64_t heads,
    int64_t kv, int64_t d, int64_t width, int64_t prompt_width, int64_t column, int64_t longest) {
    int64_t repeat = heads / kv;
    _Pragma("omp for schedule(dynamic, 8)") for (int64_t item = 0; item < n * kv; item++) {
        int64_t row = order[item / kv], group = item % kv, at = (row * kv + group) * width * d;
        int64_t prompt = (seat[row] * kv + group) * prompt_width * d, p = lengths[seat[row]],
            span = column + 1 - start[row];
        memcpy(own_k + at + column * d, k + (row * kv + group) * d, d * sizeof(float));
        memcpy(own_v + at + column * d, v + (row * kv + group) * d, d * sizeof(float));
        const float *a = q + (row * heads + group * repeat) * d, *b = own_k + at + start[row] * d,
            *c = own_v + at + start[row] * d;
        float *o = out + (row * heads + group * repeat) * d, *s = scores + omp_get_thread_num() * longest;
        /* With a constant d the compiler keeps a head in registers. */
        if (d == 64) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 64);
        else if (d == 128) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 128);
        else if (d == 24) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 24);
        else if (d == 32) attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, 32);
        else attend(a, prompt_k + prompt, prompt_v + prompt, p, b, c, span, o, s, repeat, d);
    }
}

void decode(const float *q, const float *k, const float *v, float *own_k, float *own_v,
    const float *prompt_k, const float *prompt_v, const int64_t *order, const int64_t *seat,
    const int64_t *start, const int64_t *lengths, float *out, float *scores, int64_t n, int64_t heads,
    int64_t kv, int64_t d, int64_t width, int64_t prompt_width, int64_t column, int64_t longest,
    int threads) {
    TEAM decode_rows(q, k, v, own_k, own_v, prompt_k, prompt_v, order, seat, start, lengths, out,
        scores, n, heads, kv, d, width, prompt_width, column, longest);
}

/* Draws a token [n] per row of logits [n, v]: where u [n] falls in the cumulative distribution at a
 * temperature. Also writes its log-probability [n], and to bad [n] whether a logit of the row is not
 * finite. kept [threads, v + v / BLOCK + 1] is scratch: exponentials, and their sums by blocks. */
void draw(const float *logits, const double *u, int64_t *tokens, float *logp, uint8_t *bad, float *kept,
    int64_t n, int64_t v, float temperature, int threads) {
    int64_t blocks = (v + BLOCK - 1) / BLOCK;
    TEAM ROWS for (int64_t i = 0; i < n; i++) {
        const float *x = logits + i * v;
        float *e = kept + omp_get_thread_num() * (v + v / BLOCK + 1), *sums = e + v, top = -INFINITY,
            check = 0, scale = 1 / temperature;
        _Pragma("omp simd reduction(max : top) reduction(+ : check)") for (int64_t j = 0; j < v; j++) {
            top = x[j] > top ? x[j] : top;
            check += x[j] * 0.0f; /* 0 or NaN */
        }
        double total = 0, seen = 0;
        for (int64_t b = 0; b < blocks; b++) {
            int64_t last = (b + 1) * BLOCK < v ? (b + 1) * BLOCK : v;
            float sum = 0;
            _Pragma("omp simd reduction(+ : sum)") for (int64_t j = b * BLOCK; j < last; j++)
                sum += e[j] = exp_((x[j] - top) * scale);
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

/* A decode step: the whole decoder over one new token per row. out [n, hidden]: the hidden states
 * after the last norm.
 *
 * parts [layers, 17] are addresses, NULL for parts that a layer lacks: norm, qkv (packed), its bias,
 * the norms of queries and of keys, out (packed), its bias, norm, gate_up (packed), its bias, down
 * (packed), its bias, the rows' own keys, own values, the prompts' keys, values, and anything but NULL
 * for a layer with rotary positions. table [positions, d]: cosines, and from number `sines` on sines.
 * A row whose sample has ended goes on for a while; beyond the table it reads the table's end.
 * scratch has n (2 hidden + 2 (heads + 2 kv) d + heads d + 2 d + 3 ffn + heads + kv) numbers. The other
 * arguments are those of decode_rows. */
void step(const float *const *parts, const float *embed, const float *last_norm, const float *table,
    const int64_t *tokens, const int64_t *positions, const int64_t *order, const int64_t *seat,
    const int64_t *start, const int64_t *lengths, float *out, float *scratch, float *scores, int64_t n,
    int64_t layers, int64_t hidden, int64_t ffn, int64_t heads, int64_t kv, int64_t d, int64_t width,
    int64_t prompt_width, int64_t column, int64_t longest, int64_t sines, float eps, int threads) {
    int64_t wide = (heads + 2 * kv) * d;
    float *x = scratch, *normed = x + n * hidden, *qkv = normed + n * hidden, *q = qkv + n * wide,
        *k = q + n * heads * d, *v = k + n * kv * d;
    float *read = v + n * kv * d, *cos = read + n * heads * d, *sin = cos + n * d,
        *gate_up = sin + n * d, *gated = gate_up + 2 * n * ffn;
    float *rstd = gated + n * ffn;
    TEAM {
        ROWS for (int64_t i = 0; i < n; i++) {
            memcpy(x + i * hidden, embed + tokens[i] * hidden, hidden * sizeof(float));
            int64_t at = positions[i] * d < sines ? positions[i] * d : sines - d;
            memcpy(cos + i * d, table + at, d * sizeof(float));
            memcpy(sin + i * d, table + sines + at, d * sizeof(float));
        }
        for (int64_t i = 0; i < layers; i++) {
            const float *const *p = parts + i * 17;
            norm_rows(x, p[0], normed, rstd, n, hidden, eps);
            product_rows(normed, p[1], p[2], qkv, n, hidden, wide, 0, threads);
            head_rows(qkv, p[3], p[4], p[16] ? cos : 0, p[16] ? sin : 0, q, k, v, rstd, n, heads, kv, d, eps);
            decode_rows(q, k, v, (float *)p[12], (float *)p[13], p[14], p[15], order, seat, start,
                lengths, read, scores, n, heads, kv, d, width, prompt_width, column, longest);
            product_rows(read, p[5], p[6], x, n, heads * d, hidden, 1, threads);
            norm_rows(x, p[7], normed, rstd, n, hidden, eps);
            product_rows(normed, p[8], p[9], gate_up, n, hidden, 2 * ffn, 0, threads);
            gate_rows(gate_up, gated, n, ffn);
            product_rows(gated, p[10], p[11], x, n, ffn, hidden, 1, threads);
        }
        norm_rows(x, last_norm, out, rstd, n, hidden, eps);
    }
}
