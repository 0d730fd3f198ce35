/* Row-wise int8 quantization, outlier columns, decoding, the scaling of a product: each in one pass where PyTorch takes
 * five.
 *
 * x (M, K) is float32, bfloat16 or float16 by `type`; all arithmetic is float32, in the order of int8/quantize.py and
 * int8/matmul.py, so that the results agree in every bit.
 */
#include <math.h>

#include "numbers.h"

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

/* The bits of a magnitude, which are ordered like magnitudes, a NaN above them all. */
static inline uint32_t magnitude_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffff;
}

/* The largest magnitude; NaN if there is a NaN. */
static float largest_magnitude(const float *restrict x, int64_t K) {
    uint32_t largest = 0;
    for (int64_t k = 0; k < K; k++) {
        uint32_t bits = magnitude_bits(x[k]);
        largest = bits > largest ? bits : largest;
    }
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

/* largest (K) = the largest magnitudes in the columns of the rows from `first` to `last`, as bits: float32's for
 * float32, those of 16 bits for the others. */
static void largest_in_columns(const void *x, void *largest, int64_t first, int64_t last, int64_t K, int type) {
    if (type == FLOAT32) {
        uint32_t *restrict most = largest;
        for (int64_t m = first; m < last; m++) {
            const float *restrict row = (const float *)x + m * K;
            for (int64_t k = 0; k < K; k++) {
                uint32_t bits = magnitude_bits(row[k]);
                most[k] = bits > most[k] ? bits : most[k];
            }
        }
    } else {
        uint16_t *restrict most = largest;
        for (int64_t m = first; m < last; m++) {
            const uint16_t *restrict row = (const uint16_t *)x + m * K;
            for (int64_t k = 0; k < K; k++) {
                uint16_t bits = row[k] & 0x7fff;
                most[k] = bits > most[k] ? bits : most[k];
            }
        }
    }
}

/* reaches (K) becomes 1 at the columns where some |x| is not below the threshold (a NaN is not below). */
void mark_columns(const void *x, uint8_t *reaches, int64_t M, int64_t K, int type, float threshold, int threads) {
    memset(reaches, 0, K);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < threads; part++) {
        uint32_t largest[K];
        float wide[K];
        memset(largest, 0, K * sizeof *largest);
        largest_in_columns(x, largest, part * M / threads, (part + 1) * M / threads, K, type);
        widen_row(largest, wide, K, type);
        for (int64_t k = 0; k < K; k++)
            if (!(wide[k] < threshold)) {
#pragma omp atomic write
                reaches[k] = 1;
            }
    }
}

/* codes (M, K) = round(127 x / absmax), absmax (M) the largest magnitude in each row. The `n_blank` columns of `blank`
 * count as zero; with a `column_scale` (K), x is multiplied by it first. */
void quantize_rows(const void *x, const float *restrict column_scale, int8_t *codes, float *absmax, int64_t M, int64_t K,
                   int type, const int64_t *blank, int64_t n_blank, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        float wide[K];
        int8_t *restrict row = codes + m * K;
        widen_row(row_of(x, m, K, type), wide, K, type);
        if (column_scale)
            for (int64_t k = 0; k < K; k++) wide[k] *= column_scale[k];
        for (int64_t i = 0; i < n_blank; i++) wide[blank[i]] = 0;
        float largest = largest_magnitude(wide, K);
        absmax[m] = largest < SMALLEST_ABSMAX ? SMALLEST_ABSMAX : largest;
        float scale = 1 / absmax[m] * 127; /* PyTorch divides a number by a tensor in these two steps */
        for (int64_t k = 0; k < K; k++) row[k] = (int8_t)(int)rintf(wide[k] * scale);
    }
}

/* One row of a scaled product, `width` numbers of it: row = product * column_scale * factor + left (n_inner) * right. */
static inline void scale_part(const int32_t *restrict product, const float *restrict column_scale, float factor,
                              const float *restrict left, const float *restrict right, int64_t n_inner, int64_t N,
                              float *restrict row, int64_t width) {
    if (column_scale)
        for (int64_t n = 0; n < width; n++) row[n] = (float)product[n] * column_scale[n] * factor;
    else
        for (int64_t n = 0; n < width; n++) row[n] = (float)product[n] * factor;
    for (int64_t i = 0; i < n_inner; i++)
        for (int64_t n = 0; n < width; n++) row[n] += left[i] * right[i * N + n];
}

/* y (M, N) = product (M, N) * column_scale (N) * row_scale (M) + left (M, n_inner) * right (n_inner, N), float32 or
 * bfloat16. Without a column_scale it counts as ones. The second product is thin: outlier columns, a low-rank update.
 * Narrow strips of `right` serve many rows, so that they stay in the first-level cache. */
void scale_product(const int32_t *product, const float *row_scale, const float *column_scale, const float *left,
                   const float *right, int64_t n_inner, void *y, int64_t M, int64_t N, int bf16, int threads) {
    enum { WIDTH = 64, HEIGHT = 32 };
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t top = 0; top < M; top += HEIGHT)
        for (int64_t first = 0; first < N; first += WIDTH)
            for (int64_t m = top; m < top + HEIGHT && m < M; m++) {
                float row[WIDTH];
                int64_t at = m * N + first, width = N - first < WIDTH ? N - first : WIDTH;
                const float *scale = column_scale ? column_scale + first : 0;
                if (width == WIDTH) /* a constant: its loops become straight code on registers */
                    scale_part(product + at, scale, row_scale[m], left + m * n_inner, right + first, n_inner, N, row, WIDTH);
                else
                    scale_part(product + at, scale, row_scale[m], left + m * n_inner, right + first, n_inner, N, row, width);
                if (bf16)
                    for (int64_t n = 0; n < width; n++) ((uint16_t *)y)[at + n] = narrow(row[n]);
                else memcpy((float *)y + at, row, width * sizeof *row);
            }
}

/* y (N, n_columns) = the columns of codes (N, K) that are asked for, times scale (N). */
void decode_columns(const int8_t *codes, const float *scale, const int64_t *columns, float *y, int64_t N, int64_t K,
                    int64_t n_columns, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < n_columns; i++) y[n * n_columns + i] = (float)codes[n * K + columns[i]] * scale[n];
}

/* y (N, width), float32 or bfloat16 = `width` neighbouring columns of codes (N, K) from `first` on, times scale (N). */
void decode_slice(const int8_t *codes, const float *scale, void *y, int64_t N, int64_t K, int64_t first, int64_t width,
                  int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < N; n++) {
        const int8_t *restrict row = codes + n * K + first;
        if (bf16) {
            uint16_t *restrict to = (uint16_t *)y + n * width;
            for (int64_t k = 0; k < width; k++) to[k] = narrow((float)row[k] * scale[n]);
        } else {
            float *restrict to = (float *)y + n * width;
            for (int64_t k = 0; k < width; k++) to[k] = (float)row[k] * scale[n];
        }
    }
}
