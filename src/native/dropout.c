/* Dropout whose mask is a function of a seed and of an element's place: it can be computed again instead of kept. */
#include "numbers.h"

/* Sixty-four well mixed bits: the output function of splitmix64. */
static inline uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* y (M, K) = x / (1 - p) where the place's 32 random bits are at least `limit`, p * 2^32, else 0; `scale` is 1 / (1 - p).
 * A row has its own 64 bits, mixed from the seed; a column's number is mixed into them. */
void drop(const void *x, void *y, int64_t M, int64_t K, int bf16, uint64_t seed, uint32_t limit, float scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        uint64_t bits = mixed(seed + 0x9e3779b97f4a7c15u * (uint64_t)(m + 1));
        uint32_t lower = (uint32_t)bits, upper = (uint32_t)(bits >> 32);
        for (int64_t k = 0; k < K; k++) {
            uint32_t h = (uint32_t)k * 0x9e3779b1u + lower;
            h = (h ^ (h >> 16)) * 0x85ebca6bu;
            h = (h ^ (h >> 13) ^ upper) * 0xc2b2ae35u;
            h ^= h >> 16;
            float value = number(x, m * K + k, bf16) * scale;
            store(y, m * K + k, h >= limit ? value : 0, bf16);
        }
    }
}
