/* Log-probabilities of chosen tokens, the entropy, and their gradient, from logits.
 * model/logprobs.py has the same formulas in torch. */
#include "kernels.h"

/* For logits [n, v] * scale: log-probabilities of the targets [n], entropy [n], log-sum-exp [n]. */
void logprobs(const float *logits, const int64_t *targets, float *logp, float *entropy, float *size,
    int64_t n, int64_t v, float scale, int threads) {
    TEAM ROWS for (int64_t i = 0; i < n; i++) {
        const float *x = logits + i * v;
        float top = -INFINITY;
        _Pragma("omp simd reduction(max : top)") for (int64_t j = 0; j < v; j++)
            top = x[j] > top ? x[j] : top;
        double total = 0, mean = 0;
        for (int64_t b = 0; b < v; b += BLOCK) {
            int64_t last = b + BLOCK < v ? b + BLOCK : v;
            float sum = 0, weighed = 0;
            _Pragma("omp simd reduction(+ : sum, weighed)") for (int64_t j = b; j < last; j++) {
                float z = (x[j] - top) * scale, e = exp_(z);
                sum += e;
                weighed += e * z;
            }
            total += sum;
            mean += weighed;
        }
        double rest = log(total);
        logp[i] = (float)((x[targets[i]] - top) * scale - rest);
        entropy[i] = (float)(rest - mean / total);
        size[i] = (float)(top * scale + rest);
    }
}

/* Overwrites logits by the gradient by them of sum(g logp + h entropy); h may be NULL. */
void logprobs_back(float *logits, const int64_t *targets, const float *entropy, const float *size,
    const float *g, const float *h, int64_t n, int64_t v, float scale, int threads) {
    TEAM ROWS for (int64_t i = 0; i < n; i++) {
        float *x = logits + i * v, a = -g[i] * scale, b = h ? -h[i] * scale : 0, own = entropy[i],
            all = size[i];
        SIMD for (int64_t j = 0; j < v; j++) {
            float z = x[j] * scale - all, p = exp_(z);
            x[j] = p * (a + b * (z + own));
        }
        x[targets[i]] += g[i] * scale;
    }
}
