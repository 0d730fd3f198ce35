/* Cross entropy over rows of logits and its gradient, which takes the logits' place: three passes over a row that stays
 * in the processor's cache, one read and one write of memory. All arithmetic is float32, but for the sum of block sums.
 */
#include <math.h>

#include "numbers.h"

enum { BLOCK = 512 }; /* terms added in float32; beyond, the many small ones would drown in the sum of those before */

/* One row z (V): returns log(sum exp z) - z[target]. If asked, z becomes scale * (softmax(z) - onehot(target)). */
static inline float row_loss(void *restrict z, int64_t target, int64_t V, float scale, int gradient, int bf16) {
    float wide[V], largest = -INFINITY;
    double sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t v = 0; v < V; v++) {
        wide[v] = number(z, v, bf16);
        largest = wide[v] > largest ? wide[v] : largest; /* passes a NaN by, but the sum does not */
    }
    float distance = wide[target] - largest; /* the difference is taken first: log sum exp may be far from 0 */
    for (int64_t start = 0; start < V; start += BLOCK) {
        int64_t end = start + BLOCK < V ? start + BLOCK : V;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t v = start; v < end; v++) part += wide[v] = exponential(wide[v] - largest);
        sum += part;
    }
    if (gradient) {
        float factor = (float)(scale / sum);
        for (int64_t v = 0; v < V; v++) store(z, v, wide[v] * factor, bf16);
        store(z, target, wide[target] * factor - scale, bf16);
    }
    return (float)log(sum) - distance;
}

/* losses (M) of logits (M, V), float32 or bfloat16; every target (M) lies in [0, V). */
void cross_entropy(void *logits, const int64_t *targets, float *losses, int64_t M, int64_t V, float scale, int gradient,
                   int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        void *row = (char *)logits + m * V * (bf16 ? 2 : 4);
        if (bf16) losses[m] = row_loss(row, targets[m], V, scale, gradient, 1); /* a constant: loops of its own */
        else losses[m] = row_loss(row, targets[m], V, scale, gradient, 0);
    }
}
