/* Causal attention over a pack on a CPU in float32, forward and backward, without padding, in tiles of
 * TALL queries and PANEL keys.
 *
 * A row of `plan` [segments, 4] is first, last, begin, end: the segment is tokens first .. last - 1, and
 * these also read its prefix, tokens begin .. end - 1 (perhaps none). q and out are [n, heads, d], k and
 * v [n, kv, d], size [n, heads] the log-sum-exps. The order of every sum depends neither on the number
 * of threads nor on the rest of the pack.
 */
#include "tiles.h"

#define SEVERAL 48 /* queries at a time in the backward pass: a multiple of TALL */
#define APART 16   /* spare numbers after a row of scores, so that rows do not share cache sets */

static inline int64_t whole(int64_t n, int64_t size) { return parts(n, size) * size; }

/* x [n, d] with row stride `apart` -> panels of rows [panels, d, PANEL]. */
static void turned(const float *x, float *to, int64_t n, int64_t d, int64_t apart) {
    for (int64_t p = 0; p < n; p += PANEL, to += d * PANEL)
        for (int64_t j = 0; j < PANEL; j++)
            for (int64_t t = 0; t < d; t++) to[t * PANEL + j] = p + j < n ? x[(p + j) * apart + t] : 0;
}

/* x [n, d] with row stride `apart`, times scale -> panels of columns [panels, n, PANEL]. */
static void straight(const float *x, float *to, int64_t n, int64_t d, int64_t apart, float scale) {
    for (int64_t p = 0; p < d; p += PANEL)
        for (int64_t t = 0; t < n; t++, to += PANEL)
            for (int64_t j = 0; j < PANEL; j++) to[j] = p + j < d ? x[t * apart + p + j] * scale : 0;
}

/* x [rows, d] with row stride `apart`, times scale -> [TALL, d], padded with zeros. */
static inline void few(const float *x, float *to, int64_t rows, int64_t d, int64_t apart, float scale) {
    for (int64_t r = 0; r < TALL; r++)
        for (int64_t j = 0; j < d; j++) to[r * d + j] = r < rows ? x[r * apart + j] * scale : 0;
}

/* y [TALL, panels of PANEL] = x [TALL, depth] w [panels, room, PANEL], added to y if `add`. */
static void several(const float *x, const float *w, float *y, int64_t depth, int64_t ldx, int64_t room,
    int64_t ldy, int64_t panels, int add) {
    for (int64_t p = 0; p < panels; p++, w += room * PANEL, y += PANEL) {
        lanes sum[TALL][2];
        if (add) { ALL_ROWS for (int r = 0; r < TALL; r++)
            sum[r][0] = *(lanes *)(y + r * ldy), sum[r][1] = *(lanes *)(y + r * ldy + LANES); }
        else { ALL_ROWS for (int r = 0; r < TALL; r++) sum[r][0] = sum[r][1] = (lanes){0}; }
        gather(sum, x, w, depth, ldx, 1, TALL);
        ALL_ROWS for (int r = 0; r < TALL; r++) *(lanes *)(y + r * ldy) = sum[r][0],
            *(lanes *)(y + r * ldy + LANES) = sum[r][1];
    }
}

/* y [keys, panels of PANEL] += x [depth, keys]^T w [panels, room, PANEL], TALL keys at a time. */
static void across(const float *x, const float *w, float *y, int64_t depth, int64_t ldx, int64_t room,
    int64_t keys, int64_t panels) {
    for (int64_t first = 0; first < keys; first += TALL)
        for (int64_t p = 0; p < panels; p++) {
            float *to = y + first * panels * PANEL + p * PANEL;
            lanes sum[TALL][2];
            ALL_ROWS for (int r = 0; r < TALL; r++)
                sum[r][0] = *(lanes *)(to + r * panels * PANEL),
                sum[r][1] = *(lanes *)(to + r * panels * PANEL + LANES);
            gather(sum, x + first, w + p * room * PANEL, depth, 1, ldx, TALL);
            ALL_ROWS for (int r = 0; r < TALL; r++) *(lanes *)(to + r * panels * PANEL) = sum[r][0],
                *(lanes *)(to + r * panels * PANEL + LANES) = sum[r][1];
        }
}

/* Turns a query's scores s [wide] into weights, and writes their sum to `total`. The first p scores are
 * of the prefix, `own` scores from pp on of the segment; the others become 0. Returns the largest. */
static inline float softened(float *s, int64_t p, int64_t pp, int64_t own, int64_t wide, float *total) {
    float top = -INFINITY, sum = 0, more = 0;
    _Pragma("omp simd reduction(max : top)") for (int64_t t = 0; t < p; t++) top = s[t] > top ? s[t] : top;
    _Pragma("omp simd reduction(max : top)") for (int64_t t = pp; t < pp + own; t++)
        top = s[t] > top ? s[t] : top;
    _Pragma("omp simd reduction(+ : sum)") for (int64_t t = 0; t < p; t++) sum += s[t] = exp_(s[t] - top);
    _Pragma("omp simd reduction(+ : more)") for (int64_t t = pp; t < pp + own; t++)
        more += s[t] = exp_(s[t] - top);
    for (int64_t t = p; t < pp; t++) s[t] = 0;
    for (int64_t t = pp + own; t < wide; t++) s[t] = 0;
    *total = sum + more;
    return top;
}

/* The numbers of scratch per thread, for segments of up to n and prefixes of up to p tokens. */
int64_t attention_room(int64_t n, int64_t p, int64_t d) {
    int64_t w = whole(d, PANEL), np = whole(n, PANEL), pp = whole(p, PANEL),
        back = 2 * pp * d + (p + 2 * whole(p, TALL)) * w;
    back += 2 * np * d + (n + 2 * whole(n, TALL)) * w + 2 * SEVERAL * (pp + np + APART) + 2 * TALL * d
        + (2 * SEVERAL + TALL) * w;
    return back + TALL * (d + w);
}

void attention(const float *q, const float *k, const float *v, const int64_t *plan, float *out,
    float *size, float *scratch, int64_t segments, int64_t heads, int64_t kv, int64_t d, int64_t room,
    int threads) {
    int64_t repeat = heads / kv, dp = parts(d, PANEL);
    _Pragma("omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)")
    for (int64_t item = 0; item < segments * kv; item++) {
        const int64_t *a = plan + item / kv * 4;
        int64_t g = item % kv, first = a[0], n = a[1] - first, p = a[3] - a[2], pp = whole(p, PANEL),
            ld = pp + whole(n, PANEL) + APART;
        float *keys = scratch + omp_get_thread_num() * room, *own_keys = keys + pp * d,
            *values = own_keys + whole(n, PANEL) * d;
        float *own_values = values + p * dp * PANEL, *asked = own_values + n * dp * PANEL,
            *read = asked + TALL * d, *s = read + TALL * dp * PANEL;
        turned(k + (a[2] * kv + g) * d, keys, p, d, kv * d);
        turned(k + (first * kv + g) * d, own_keys, n, d, kv * d);
        straight(v + (a[2] * kv + g) * d, values, p, d, kv * d, 1);
        straight(v + (first * kv + g) * d, own_values, n, d, kv * d, 1);
        for (int64_t h = g * repeat; h < (g + 1) * repeat; h++)
            for (int64_t at = 0; at < n; at += TALL) {
                int64_t rows = least(TALL, n - at), seen = at + rows, wide = pp + whole(seen, PANEL);
                float total[TALL];
                few(q + ((first + at) * heads + h) * d, asked, rows, d, heads * d, 1 / sqrtf((float)d));
                several(asked, keys, s, d, d, d, ld, pp / PANEL, 0);
                several(asked, own_keys, s + pp, d, d, d, ld, parts(seen, PANEL), 0);
                for (int64_t r = 0; r < TALL; r++) {
                    float top = softened(s + r * ld, p, pp, least(at + r + 1, seen), wide, total + r);
                    if (r < rows) size[(first + at + r) * heads + h] = top + logf(total[r]);
                }
                several(s, values, read, p, ld, p, dp * PANEL, dp, 0);
                several(s + pp, own_values, read, seen, ld, n, dp * PANEL, dp, 1);
                for (int64_t r = 0; r < rows; r++) {
                    float *to = out + ((first + at + r) * heads + h) * d, by = 1 / total[r];
                    SIMD for (int64_t j = 0; j < d; j++) to[j] = read[r * dp * PANEL + j] * by;
                }
            }
    }
}

/* Turns a row's scores s into weights, and ds, the products of dout and values, into the gradient by
 * the scores, times the scale of queries; zeros elsewhere. */
static inline void back_row(float *s, float *ds, const int64_t *bounds, float size, float own,
    float scale, int64_t wide) {
    int64_t p = bounds[0], pp = bounds[1], last = bounds[2];
    for (int part = 0; part < 2; part++) {
        int64_t begin = part ? pp : 0, end = part ? last : p, stop = part ? wide : pp;
        SIMD for (int64_t t = begin; t < end; t++) {
            float w = exp_(s[t] * scale - size);
            s[t] = w;
            ds[t] = w * (ds[t] - own) * scale;
        }
        for (int64_t t = end; t < stop; t++) s[t] = ds[t] = 0;
    }
}

static void added(const float *from, float *to, int64_t n, int64_t d, int64_t ld, int64_t apart) {
    for (int64_t t = 0; t < n; t++) {
        SIMD for (int64_t j = 0; j < d; j++) to[t * apart + j] += from[t * ld + j];
    }
}

/* Adds the gradients to dk and dv, which are 0 at first, and writes dq. runs [count + 1]: the first
 * segment of each run. A run is a prefix and the segments that read it, or one segment; a thread takes
 * one run and one key head at a time. */
void attention_back(const float *dout, const float *q, const float *k, const float *v, const float *out,
    const float *size, const int64_t *plan, const int64_t *runs, float *dq, float *dk, float *dv,
    float *scratch, int64_t count, int64_t heads, int64_t kv, int64_t d, int64_t room, int threads) {
    int64_t repeat = heads / kv, dp = parts(d, PANEL), w = dp * PANEL;
    float scale = 1 / sqrtf((float)d);
    _Pragma("omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)")
    for (int64_t item = 0; item < count * kv; item++) {
        int64_t g = item % kv, run = item / kv;
        const int64_t *last = plan + (runs[run + 1] - 1) * 4;
        int64_t begin = last[2], all = last[3] - begin, allp = whole(all, PANEL);
        /* The prefix's keys and values in panels of rows, its keys in panels of columns, its gradients; the
         * rest is for a segment's. */
        float *kt = scratch + omp_get_thread_num() * room, *vt = kt + allp * d, *ks = vt + allp * d,
            *gk = ks + all * w, *gv = gk + whole(all, TALL) * w;
        float *rest = gv + whole(all, TALL) * w;
        turned(k + (begin * kv + g) * d, kt, all, d, kv * d);
        turned(v + (begin * kv + g) * d, vt, all, d, kv * d);
        straight(k + (begin * kv + g) * d, ks, all, d, kv * d, 1);
        memset(gk, 0, 2 * whole(all, TALL) * w * sizeof(float));
        for (int64_t i = runs[run]; i < runs[run + 1]; i++) {
            int64_t first = plan[i * 4], n = plan[i * 4 + 1] - first,
                p = plan[i * 4 + 3] - plan[i * 4 + 2], pp = whole(p, PANEL);
            int64_t np = whole(n, PANEL), nt = whole(n, TALL), ld = pp + np + APART;
            float *okt = rest, *ovt = okt + np * d, *oks = ovt + np * d, *ogk = oks + n * w,
                *ogv = ogk + nt * w, *s = ogv + nt * w;
            float *ds = s + SEVERAL * ld, *few_q = ds + SEVERAL * ld, *few_o = few_q + TALL * d,
                *qs = few_o + TALL * d, *os = qs + SEVERAL * w;
            float *back = os + SEVERAL * w;
            turned(k + (first * kv + g) * d, okt, n, d, kv * d);
            turned(v + (first * kv + g) * d, ovt, n, d, kv * d);
            straight(k + (first * kv + g) * d, oks, n, d, kv * d, 1);
            memset(ogk, 0, 2 * nt * w * sizeof(float));
            for (int64_t h = g * repeat; h < (g + 1) * repeat; h++)
                for (int64_t at = 0; at < n; at += SEVERAL) {
                    int64_t some = least(SEVERAL, n - at), seen = at + some, wide = pp + whole(seen, PANEL);
                    straight(q + ((first + at) * heads + h) * d, qs, some, d, heads * d, 1);
                    straight(dout + ((first + at) * heads + h) * d, os, some, d, heads * d, 1);
                    for (int64_t r0 = 0; r0 < some; r0 += TALL) {
                        int64_t rows = least(TALL, some - r0), token = first + at + r0;
                        float *sr = s + r0 * ld, *dr = ds + r0 * ld;
                        few(q + (token * heads + h) * d, few_q, rows, d, heads * d, 1);
                        few(dout + (token * heads + h) * d, few_o, rows, d, heads * d, 1);
                        several(few_q, kt, sr, d, d, d, ld, pp / PANEL, 0);
                        several(few_q, okt, sr + pp, d, d, d, ld, parts(at + r0 + rows, PANEL), 0);
                        several(few_o, vt, dr, d, d, d, ld, pp / PANEL, 0);
                        several(few_o, ovt, dr + pp, d, d, d, ld, parts(at + r0 + rows, PANEL), 0);
                        for (int64_t r = 0; r < TALL; r++) {
                            int64_t here = (token + r) * heads + h, last = pp + at + r0 + r + 1,
                                bounds[3] = {r < rows ? p : 0, pp, r < rows ? last : pp};
                            float own = r < rows ? dot(dout + here * d, out + here * d, d) : 0;
                            back_row(sr + r * ld, dr + r * ld, bounds, r < rows ? size[here] : 0, own,
                                scale, wide);
                        }
                        several(dr, ks, back, p, ld, p, w, dp, 0);
                        several(dr + pp, oks, back, at + r0 + rows, ld, n, w, dp, 1);
                        for (int64_t r = 0; r < rows; r++)
                            memcpy(dq + ((token + r) * heads + h) * d, back + r * w, d * sizeof(float));
                    }
                    across(ds, qs, gk, some, ld, some, p, dp);
                    across(s, os, gv, some, ld, some, p, dp);
                    across(ds + pp, qs, ogk, some, ld, some, seen, dp);
                    across(s + pp, os, ogv, some, ld, some, seen, dp);
                }
            added(ogk, dk + (first * kv + g) * d, n, d, w, kv * d);
            added(ogv, dv + (first * kv + g) * d, n, d, w, kv * d);
        }
        added(gk, dk + (begin * kv + g) * d, all, d, w, kv * d);
        added(gv, dv + (begin * kv + g) * d, all, d, w, kv * d);
    }
}
