/* What stands between the products of a LLaMA, for many rows: RMSNorm, SwiGLU's product, the rotation of queries and
 * keys, and their gradients, each in one pass over memory.
 *
 * All tensors of a call are bfloat16 or all are float32; arithmetic is float32. Results are rounded where the formulas
 * of llama/norm.py, swiglu.py and rotary.py round them, gradients once.
 *
 * The loops are functions of a row or a part. There `restrict` holds, while inside a parallel region the compiler
 * forgets it, tests for overlap and may end in a scalar loop, six times slower; and `bf16` is a constant, so that each
 * dtype has a loop of its own.
 */
#include <math.h>

#include "numbers.h"

enum {
    FEW = 1 << 15,  /* elements that are not worth waking other threads for */
    PART = 1 << 12, /* elements that a thread takes at a time */
    STRIP = 256,    /* columns that are summed at a time */
};

/* Where element i lies. */
static inline void *at(const void *x, int64_t i, int bf16) { return (char *)x + i * (bf16 ? 2 : 4); }

static inline float inverse_rms(const void *restrict a, int64_t C, float eps, int bf16) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < C; c++) squares += number(a, c, bf16) * number(a, c, bf16);
    return 1 / sqrtf(squares / C + eps);
}

static inline void norm_row(const void *restrict a, const void *restrict gain, void *restrict y, int64_t C, float eps,
                            int bf16) {
    float rho = inverse_rms(a, C, eps, bf16);
    for (int64_t c = 0; c < C; c++)
        store(y, c, round_to(number(a, c, bf16) * rho, bf16) * number(gain, c, bf16), bf16);
}

/* y (M, C) = round(a / RMS(a)) * gain (C) */
void rms_norm(const void *a, const void *gain, void *y, int64_t M, int64_t C, float eps, int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (M * C > FEW)
    for (int64_t m = 0; m < M; m++)
        if (bf16) norm_row(at(a, m * C, 1), gain, at(y, m * C, 1), C, eps, 1);
        else norm_row(at(a, m * C, 0), gain, at(y, m * C, 0), C, eps, 0);
}

/* Returns rho = 1 / RMS(a). */
static inline float norm_row_backward(const void *restrict dy, const void *restrict a, const void *restrict gain,
                                      void *restrict da, int64_t C, float eps, int bf16) {
    float rho = inverse_rms(a, C, eps, bf16), product = 0;
#pragma omp simd reduction(+ : product)
    for (int64_t c = 0; c < C; c++) product += number(dy, c, bf16) * number(gain, c, bf16) * number(a, c, bf16);
    float along = rho * rho * product / C; /* rho mean(dy g n) */
    for (int64_t c = 0; c < C; c++)
        store(da, c, rho * (number(dy, c, bf16) * number(gain, c, bf16) - number(a, c, bf16) * along), bf16);
    return rho;
}

/* dgain for the columns from `first` on: rows are added in their order, whatever the number of threads. */
static inline void gain_strip(const void *restrict dy, const void *restrict a, const float *restrict rho,
                              void *restrict dgain, int64_t first, int64_t M, int64_t C, int bf16) {
    int64_t width = C - first < STRIP ? C - first : STRIP;
    float sum[STRIP] = {0};
    for (int64_t m = 0; m < M; m++)
        for (int64_t c = 0, i = m * C + first; c < width; c++)
            sum[c] += number(dy, i + c, bf16) * round_to(number(a, i + c, bf16) * rho[m], bf16);
    for (int64_t c = 0; c < width; c++) store(dgain, first + c, sum[c], bf16);
}

/* da (M, C), and dgain (C) unless it is NULL, of dy (M, C). rho (M) is room for 1 / RMS of each row. */
void rms_norm_backward(const void *dy, const void *a, const void *gain, void *da, void *dgain, float *rho, int64_t M,
                       int64_t C, float eps, int bf16, int threads) {
#pragma omp parallel num_threads(threads) if (M * C > FEW)
    {
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++)
            if (bf16)
                rho[m] = norm_row_backward(at(dy, m * C, 1), at(a, m * C, 1), gain, at(da, m * C, 1), C, eps, 1);
            else
                rho[m] = norm_row_backward(at(dy, m * C, 0), at(a, m * C, 0), gain, at(da, m * C, 0), C, eps, 0);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < (dgain ? C : 0); first += STRIP)
            if (bf16) gain_strip(dy, a, rho, dgain, first, M, C, 1);
            else gain_strip(dy, a, rho, dgain, first, M, C, 0);
    }
}

static inline void silu_part(const void *restrict gate, const void *restrict up, void *restrict y, int64_t size,
                             int bf16) {
    for (int64_t i = 0; i < size; i++) {
        float z = number(gate, i, bf16);
        store(y, i, round_to(z / (1 + exponential(-z)), bf16) * number(up, i, bf16), bf16);
    }
}

/* y (size) = round(silu(gate)) * up, silu(z) = z / (1 + exp(-z)) */
void silu_product(const void *gate, const void *up, void *y, int64_t size, int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (size > FEW)
    for (int64_t first = 0; first < size; first += PART) {
        int64_t n = size - first < PART ? size - first : PART;
        if (bf16) silu_part(at(gate, first, 1), at(up, first, 1), at(y, first, 1), n, 1);
        else silu_part(at(gate, first, 0), at(up, first, 0), at(y, first, 0), n, 0);
    }
}

static inline void silu_part_backward(const void *restrict dy, const void *restrict gate, const void *restrict up,
                                      void *restrict dgate, void *restrict dup, int64_t size, int bf16) {
    for (int64_t i = 0; i < size; i++) {
        float z = number(gate, i, bf16), d = number(dy, i, bf16), s = 1 / (1 + exponential(-z));
        store(dup, i, d * round_to(z * s, bf16), bf16);
        store(dgate, i, d * number(up, i, bf16) * (s * (1 + z * (1 - s))), bf16);
    }
}

/* dgate = dy * up * silu'(gate), dup = dy * round(silu(gate)); silu'(z) = s (1 + z (1 - s)), s = 1 / (1 + exp(-z)) */
void silu_product_backward(const void *dy, const void *gate, const void *up, void *dgate, void *dup, int64_t size,
                           int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (size > FEW)
    for (int64_t first = 0; first < size; first += PART) {
        int64_t n = size - first < PART ? size - first : PART;
        if (bf16)
            silu_part_backward(at(dy, first, 1), at(gate, first, 1), at(up, first, 1), at(dgate, first, 1),
                               at(dup, first, 1), n, 1);
        else
            silu_part_backward(at(dy, first, 0), at(gate, first, 0), at(up, first, 0), at(dgate, first, 0),
                               at(dup, first, 0), n, 0);
    }
}

/* Products are rounded before they are added, as PyTorch rounds them; one of these keeps each compiler from fusing. */
#pragma STDC FP_CONTRACT OFF
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

static inline void turn_floats(const float *restrict x, const float *restrict cosine, const float *restrict sine,
                               float *restrict y, int64_t heads, int64_t pairs, float sign) {
    for (int64_t h = 0; h < heads; h++, x += 2 * pairs, y += 2 * pairs)
        for (int64_t i = 0; i < pairs; i++) {
            float even = x[2 * i], odd = x[2 * i + 1], turn = sign * sine[i];
            y[2 * i] = even * cosine[i] - odd * turn;
            y[2 * i + 1] = odd * cosine[i] + even * turn;
        }
}

/* The same in bfloat16: a word holds a pair, in whatever order, so that no number need change its lane. */
static inline void turn_words(const uint32_t *restrict x, const float *restrict cosine, const float *restrict sine,
                              uint32_t *restrict y, int64_t heads, int64_t pairs, float sign) {
    for (int64_t h = 0; h < heads; h++, x += pairs, y += pairs)
        for (int64_t i = 0; i < pairs; i++) {
            float even = widen((uint16_t)x[i]), odd = widen((uint16_t)(x[i] >> 16)), turn = sign * sine[i];
            y[i] = narrow(even * cosine[i] - odd * turn) | (uint32_t)narrow(odd * cosine[i] + even * turn) << 16;
        }
}

/* x, y (rows, heads, 2 * pairs): neighbours turned by `sign` times the angle whose cosine and sine (table_rows, pairs)
 * are given; row m's are in line m % table_rows. */
void rotate_rows(const void *x, const float *cosine, const float *sine, void *y, int64_t rows, int64_t table_rows,
                 int64_t heads, int64_t pairs, float sign, int bf16, int threads) {
    int64_t C = 2 * heads * pairs;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * C > FEW)
    for (int64_t m = 0; m < rows; m++) {
        const float *cos_row = cosine + m % table_rows * pairs, *sin_row = sine + m % table_rows * pairs;
        if (bf16) turn_words(at(x, m * C, 1), cos_row, sin_row, at(y, m * C, 1), heads, pairs, sign);
        else turn_floats(at(x, m * C, 0), cos_row, sin_row, at(y, m * C, 0), heads, pairs, sign);
    }
}
#pragma GCC pop_options
