/* Row-wise int8 quantization, outlier columns, the scaling of a product: each in one pass where PyTorch takes five.
 *
 * x (M, K) is float32, bfloat16 or float16 by `type`; all arithmetic is float32, in the order of int8/quantize.py and
 * int8/matmul.py, so that the results agree in every bit.
 */
#include <math.h>

#include "rows.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

static const float SMALLEST_ABSMAX = 0x1p-119f; /* as in int8/quantize.py */

/* Its exponent has 5 bits instead of 8: moved into place, the number is 2^112 too small. */
static inline float widen_half(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    memcpy(&bits, &value, sizeof bits);
    bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0; /* infinite or NaN */
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void widen_row(const void *restrict x, float *restrict wide, int64_t K, int type) {
    if (type == FLOAT32) memcpy(wide, x, K * sizeof *wide);
    else if (type == BFLOAT16)
        for (int64_t k = 0; k < K; k++) wide[k] = widen(((const uint16_t *)x)[k]);
    else
        for (int64_t k = 0; k < K; k++) wide[k] = widen_half(((const uint16_t *)x)[k]);
}

static const void *row_of(const void *x, int64_t m, int64_t K, int type) {
    return (const char *)x + m * K * (type == FLOAT32 ? 4 : 2);
}

/* The largest magnitude; NaN if there is a NaN. */
static float largest_magnitude(const float *restrict x, int64_t K) {
    float largest = 0;
    int ordered = 1;
    for (int64_t k = 0; k < K; k++) {
        float magnitude = fabsf(x[k]);
        ordered &= magnitude == magnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    return ordered ? largest : NAN;
}

/* reaches (K) becomes 1 at the columns where some |x| is not below the threshold (a NaN is not below). */
void mark_columns(const void *x, uint8_t *reaches, int64_t M, int64_t K, int type, float threshold, int threads) {
    memset(reaches, 0, K);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        float wide[K];
        widen_row(row_of(x, m, K, type), wide, K, type);
        if (largest_magnitude(wide, K) < threshold) continue; /* as in nearly every row */
        for (int64_t k = 0; k < K; k++)
            if (!(fabsf(wide[k]) < threshold)) {
#pragma omp atomic write
                reaches[k] = 1;
            }
    }
}

/* codes (M, K) = round(127 x / absmax), absmax (M) the largest magnitude in each row. The `n_blank` columns of `blank`
 * count as zero. */
void quantize_rows(const void *x, int8_t *codes, float *absmax, int64_t M, int64_t K, int type, const int64_t *blank,
                   int64_t n_blank, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        float wide[K];
        int8_t *restrict row = codes + m * K;
        widen_row(row_of(x, m, K, type), wide, K, type);
        for (int64_t i = 0; i < n_blank; i++) wide[blank[i]] = 0;
        float largest = largest_magnitude(wide, K);
        absmax[m] = largest < SMALLEST_ABSMAX ? SMALLEST_ABSMAX : largest;
        float scale = 1 / absmax[m] * 127; /* PyTorch divides a number by a tensor in these two steps */
        for (int64_t k = 0; k < K; k++) row[k] = (int8_t)(int)rintf(wide[k] * scale);
    }
}

/* y (M, N) = product (M, N) * column_scale (N) * row_scale (M) + left (M, n_inner) * right (n_inner, N), float32 or
 * bfloat16; the second product is that of the outlier columns, few. */
void scale_product(const int32_t *restrict product, const float *restrict row_scale, const float *restrict column_scale,
                   const float *restrict left, const float *restrict right, int64_t n_inner, void *restrict y, int64_t M,
                   int64_t N, int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        const int32_t *restrict from = product + m * N;
        float factor = row_scale[m], row[N];
        for (int64_t n = 0; n < N; n++) row[n] = (float)from[n] * column_scale[n] * factor;
        for (int64_t i = 0; i < n_inner; i++) {
            float value = left[m * n_inner + i];
            const float *restrict weight = right + i * N;
            for (int64_t n = 0; n < N; n++) row[n] += value * weight[n];
        }
        if (bf16) {
            uint16_t *restrict to = (uint16_t *)y + m * N;
            for (int64_t n = 0; n < N; n++) to[n] = narrow(row[n]);
        } else memcpy((float *)y + m * N, row, N * sizeof *row);
    }
}

/* y (N, n_columns) = the columns of codes (N, K) that are asked for, times scale (N). */
void decode_columns(const int8_t *codes, const float *scale, const int64_t *columns, float *y, int64_t N, int64_t K,
                    int64_t n_columns, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < n_columns; i++) y[n * n_columns + i] = (float)codes[n * K + columns[i]] * scale[n];
}
