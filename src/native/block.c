/* A LLaMA's blocks for one token: what Block.forward does, without a trip through Python and PyTorch for each of the
 * hundreds of operations, most of which are too short to be worth starting. Every intermediate result is rounded to
 * bfloat16 where a bfloat16 model rounds it.
 */
#include <math.h>

#include "rows.h"

struct block {
    const uint16_t *attention_gain, *ffn_gain;
    struct matrix wq, wk, wv, wo, w1, w2, w3;
    uint16_t *keys, *values; /* (groups, capacity, size): this layer's part of the cache */
};

struct shape {
    int64_t dim, hidden, heads, groups, size; /* size: of a head */
    int64_t length, capacity;                 /* tokens in the cache, and those it has room for */
    float eps;
};

/* y = round(x / sqrt(mean(x^2) + eps)) * gain, the quotient rounded before it meets the gain */
void normalise(const float *restrict x, const void *restrict gain, float *restrict y, int64_t size, float eps, int bf16) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    float factor = 1 / sqrtf(squares / size + eps);
    for (int64_t i = 0; i < size; i++) y[i] = round_to(round_to(x[i] * factor, bf16) * number(gain, i, bf16), bf16);
}

/* Each head's neighbouring pairs turned by the angles whose cosines and sines are given: x (heads, 2 * pairs) */
void rotate(float *restrict x, const float *restrict cosine, const float *restrict sine, int64_t heads, int64_t pairs,
            int bf16) {
    for (int64_t h = 0; h < heads; h++) {
        float *restrict head = x + 2 * h * pairs;
        for (int64_t i = 0; i < pairs; i++) {
            float even = head[2 * i], odd = head[2 * i + 1];
            head[2 * i] = round_to(even * cosine[i] - odd * sine[i], bf16);
            head[2 * i + 1] = round_to(odd * cosine[i] + even * sine[i], bf16);
        }
    }
}

/* The queries of one group, q (n, size), against its keys and values: softmax(q K^T / sqrt(size)) V */
static void attend_group(const float *restrict q, const void *restrict keys, const void *restrict values,
                         float *restrict y, int64_t n, int64_t length, int64_t size, int bf16) {
    float wide[size], weight[n][length], total[n], scale = 1 / sqrtf(size);
    for (int64_t s = 0; s < length; s++) {
        for (int64_t d = 0; d < size; d++) wide[d] = number(keys, s * size + d, bf16) * scale;
        for (int64_t h = 0; h < n; h++) {
            float score = 0;
#pragma omp simd reduction(+ : score)
            for (int64_t d = 0; d < size; d++) score += q[h * size + d] * wide[d];
            weight[h][s] = score;
        }
    }
    for (int64_t h = 0; h < n; h++) {
        float largest = -INFINITY;
        total[h] = 0;
        for (int64_t s = 0; s < length; s++) largest = weight[h][s] > largest ? weight[h][s] : largest;
        for (int64_t s = 0; s < length; s++) weight[h][s] = exponential(weight[h][s] - largest);
        for (int64_t s = 0; s < length; s++) total[h] += weight[h][s];
        for (int64_t d = 0; d < size; d++) y[h * size + d] = 0;
    }
    for (int64_t s = 0; s < length; s++) {
        for (int64_t d = 0; d < size; d++) wide[d] = number(values, s * size + d, bf16);
        for (int64_t h = 0; h < n; h++)
            for (int64_t d = 0; d < size; d++) y[h * size + d] += weight[h][s] * wide[d];
    }
    for (int64_t h = 0; h < n; h++)
        for (int64_t d = 0; d < size; d++) y[h * size + d] = round_to(y[h * size + d] / total[h], bf16);
}

/* q, y (heads, size); keys, values (groups, length, size), a group's beginning `stride` numbers after the one before */
void attend(const float *q, const void *keys, const void *values, float *y, int64_t heads, int64_t groups,
            int64_t length, int64_t size, int64_t stride, int bf16, int threads) {
    int64_t n = heads / groups, width = bf16 ? 2 : 4;
    int few = heads * length * size < 1 << 16; /* not worth waking other threads for */
#pragma omp parallel for schedule(static) num_threads(threads) if (!few)
    for (int64_t g = 0; g < groups; g++)
        attend_group(q + g * n * size, (const char *)keys + g * stride * width, (const char *)values + g * stride * width,
                     y + g * n * size, n, length, size, bf16);
}

static void append(const float *restrict x, uint16_t *restrict cache, const struct shape *s) {
    for (int64_t g = 0; g < s->groups; g++)
        for (int64_t d = 0; d < s->size; d++) cache[(g * s->capacity + s->length) * s->size + d] = narrow(x[g * s->size + d]);
}

static void add(float *restrict x, const float *restrict y, int64_t size) {
    for (int64_t i = 0; i < size; i++) x[i] = round_to(x[i] + y[i], 1);
}

/* x (dim) bfloat16, in place, through all blocks. cosine, sine (size / 2): of the token's position. */
void blocks_row(uint16_t *x, const struct block *blocks, int64_t n_blocks, const struct shape *shape,
                const float *cosine, const float *sine, int threads) {
    struct shape s = *shape;
    int64_t own = s.heads * s.size, shared = s.groups * s.size, longest = s.dim > s.hidden ? s.dim : s.hidden;
    if (own > longest) longest = own;
    float stream[s.dim], input[longest], result[s.dim], q[own], k[shared], v[shared], gate[s.hidden], up[s.hidden];
    int8_t high[longest], low[longest];
    struct row row = {.value = input, .high = high, .low = low};
    for (int64_t i = 0; i < s.dim; i++) stream[i] = widen(x[i]);
    for (const struct block *b = blocks; b < blocks + n_blocks; b++) {
        normalise(stream, b->attention_gain, input, s.dim, s.eps, 1);
        prepare_row(&row, s.dim);
        multiply(&row, &b->wq, q, 1, threads);
        multiply(&row, &b->wk, k, 1, threads);
        multiply(&row, &b->wv, v, 1, threads);
        rotate(q, cosine, sine, s.heads, s.size / 2, 1);
        rotate(k, cosine, sine, s.groups, s.size / 2, 1);
        append(k, b->keys, &s);
        append(v, b->values, &s);
        attend(q, b->keys, b->values, input, s.heads, s.groups, s.length + 1, s.size, s.capacity * s.size, 1, threads);
        prepare_row(&row, own);
        multiply(&row, &b->wo, result, 1, threads);
        add(stream, result, s.dim);

        normalise(stream, b->ffn_gain, input, s.dim, s.eps, 1);
        prepare_row(&row, s.dim);
        multiply(&row, &b->w1, gate, 1, threads);
        multiply(&row, &b->w3, up, 1, threads);
        for (int64_t i = 0; i < s.hidden; i++) input[i] = round_to(round_to(gate[i] / (1 + exponential(-gate[i])), 1) * up[i], 1);
        prepare_row(&row, s.hidden);
        multiply(&row, &b->w2, result, 1, threads);
        add(stream, result, s.dim);
    }
    for (int64_t i = 0; i < s.dim; i++) x[i] = narrow(stream[i]);
}
