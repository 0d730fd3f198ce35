/* What is done to a single row on its way through a LLaMA; formulas: rows.py. */
#include "numbers.h"

/* A matrix (rows, columns) that is multiplied by a row from the left: y = x W^T + scale * (x A^T) B^T.
 * W is bfloat16, or int8 codes if `absmax` (rows) is given; A (rank, columns) and B (rows, rank) are bfloat16. */
struct matrix {
    const void *weight;
    const float *absmax;
    int64_t rows, columns;
    const uint16_t *lora_a, *lora_b;
    int64_t rank;
    float lora_scale;
};

/* A row as products need it: its numbers, rounded to bfloat16 or not, and in fixed point for int8 weights:
 * x ~ fixed_scale * (256 * high + low), fixed_sum the sum of 256 * high + low. */
struct row {
    float *value;
    int8_t *high, *low;
    float fixed_scale;
    int64_t fixed_sum;
};

void prepare_row(struct row *x, int64_t columns);
void multiply(const struct row *x, const struct matrix *w, float *y, int bf16, int threads);
void normalise(const float *x, const void *gain, float *y, int64_t size, float eps, int bf16);
void rotate(float *x, const float *cosine, const float *sine, int64_t heads, int64_t pairs, int bf16);
void attend(const float *q, const void *keys, const void *values, float *y, int64_t heads, int64_t groups,
            int64_t length, int64_t size, int64_t stride, int bf16, int threads);
