/* y = x W^T for one row x.
 *
 * One token's step multiplies every weight once, so it takes as long as fetching the weights does. The rows of W are
 * read front to back, as they are stored, one byte or two per weight, and never unpacked into memory. Plain C: the
 * compiler turns the inner loops into vector instructions (for int8 into dot products of bytes, where there are such).
 */
#include <float.h>
#include <math.h>

#include "rows.h"

enum { LEVELS = 127 * 256 }; /* largest fixed-point magnitude whose upper byte stays within +-127 */

/* Fill in the fixed-point form of x->value. A row that is not finite gets a scale of NaN. */
void prepare_row(struct row *x, int64_t columns) {
    const float *restrict value = x->value;
    int8_t *restrict high = x->high, *restrict low = x->low;
    float largest = 0;
    int finite = 1;
    for (int64_t k = 0; k < columns; k++) {
        float magnitude = fabsf(value[k]);
        finite &= magnitude <= FLT_MAX;
        largest = magnitude > largest ? magnitude : largest;
    }
    float per_unit = LEVELS / largest;
    x->fixed_sum = 0;
    if (!finite || !(per_unit <= FLT_MAX)) { /* or zero, or so close to it that the quotient overflows */
        memset(high, 0, columns);
        memset(low, 0, columns);
        x->fixed_scale = finite ? 0 : NAN;
        return;
    }
    int64_t sum = 0;
    for (int64_t k = 0; k < columns; k++) {
        /* What is cut off is positive (LEVELS is added first), so cutting rounds to the nearest. */
        int fixed = (int)(value[k] * per_unit + (LEVELS + 0.5f)) - LEVELS;
        int upper = (fixed + 128) >> 8;
        high[k] = (int8_t)upper;
        low[k] = (int8_t)(fixed - 256 * upper);
        sum += fixed;
    }
    x->fixed_sum = sum;
    x->fixed_scale = largest / LEVELS;
}

/* A byte dot product multiplies unsigned bytes by signed ones. Flipping a code's top bit adds 128 to it and makes it
 * unsigned; 128 times the sum of x is what has to come off again. All of it is integer arithmetic, hence exact. */
static float int8_dot(const struct row *x, const uint8_t *restrict codes, int64_t columns) {
    const int8_t *restrict high = x->high, *restrict low = x->low;
    int32_t high_sum = 0, low_sum = 0;
    for (int64_t k = 0; k < columns; k++) {
        high_sum += (int)(uint8_t)(codes[k] ^ 0x80) * (int)high[k];
        low_sum += (int)(uint8_t)(codes[k] ^ 0x80) * (int)low[k];
    }
    return (float)(256 * (int64_t)high_sum + low_sum - 128 * x->fixed_sum);
}

static float bf16_dot(const float *restrict x, const uint16_t *restrict weight, int64_t columns) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < columns; k++) sum += x[k] * widen(weight[k]);
    return sum;
}

/* The same for two numbers to a word: one is its upper half as it stands, the other its lower half shifted up. Half as
 * many instructions per byte; `packed` is x in bfloat16. */
typedef uint32_t __attribute__((may_alias)) two; /* may look at what was written as uint16_t */

static float packed_dot(const two *restrict packed, const two *restrict weight, int64_t words) {
    union word { uint32_t bits; float value; };
    float lower = 0, upper = 0;
#pragma omp simd reduction(+ : lower, upper)
    for (int64_t i = 0; i < words; i++) {
        union word w_lower = {weight[i] << 16}, w_upper = {weight[i] & 0xffff0000u};
        union word x_lower = {packed[i] << 16}, x_upper = {packed[i] & 0xffff0000u};
        lower += w_lower.value * x_lower.value;
        upper += w_upper.value * x_upper.value;
    }
    return lower + upper;
}

/* y (rows) is float32, each number rounded to bfloat16 if `bf16`, and so are the two stages of the low-rank update. */
void multiply(const struct row *x, const struct matrix *w, float *y, int bf16, int threads) {
    int64_t columns = w->columns, rank = w->rank;
    int in_words = !w->absmax && bf16 && columns % 2 == 0 && (uintptr_t)w->weight % 4 == 0;
    uint16_t packed[in_words ? columns : 1] __attribute__((aligned(4)));
    float compressed[rank ? rank : 1];
    for (int64_t k = 0; in_words && k < columns; k++) packed[k] = narrow(x->value[k]); /* exact */
    for (int64_t r = 0; r < rank; r++) {
        float sum = round_to(bf16_dot(x->value, w->lora_a + r * columns, columns), bf16);
        compressed[r] = round_to(w->lora_scale * sum, bf16);
    }
    const uint16_t *shared_packed = packed; /* threads share pointers, not arrays */
    const float *shared_compressed = compressed;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < w->rows; n++) {
        float value;
        if (w->absmax)
            value = int8_dot(x, (const uint8_t *)w->weight + n * columns, columns) * (x->fixed_scale / 127) * w->absmax[n];
        else if (in_words)
            value = packed_dot((const two *)shared_packed, (const two *)((const uint16_t *)w->weight + n * columns),
                               columns / 2);
        else
            value = bf16_dot(x->value, (const uint16_t *)w->weight + n * columns, columns);
        value = round_to(value, bf16);
        if (rank) value = round_to(value + round_to(bf16_dot(shared_compressed, w->lora_b + n * rank, rank), bf16), bf16);
        y[n] = value;
    }
}

/* One row (columns) to another (rows), both bfloat16 if `bf16`, else float32. */
void row_product(const void *x, const struct matrix *w, void *y, int bf16, int threads) {
    float value[w->columns], result[w->rows];
    int8_t high[w->columns], low[w->columns];
    struct row row = {.value = value, .high = high, .low = low};
    for (int64_t k = 0; k < w->columns; k++) value[k] = number(x, k, bf16);
    if (w->absmax) prepare_row(&row, w->columns);
    multiply(&row, w, result, bf16, threads);
    for (int64_t n = 0; n < w->rows; n++) store(y, n, result[n], bf16);
}
