/* What both directions of attention are made of: the product, numbers packed for it, vectors of float32.
 *
 * All products are C (rows, columns) = or += A (rows, steps) B (steps, columns), where a step is a 32-bit word: one
 * float32, or two bfloat16 that are neighbours along the dimension summed over. A is read word by word and may lie in
 * any order. B's words lie side by side along the columns, which is what packing is for. Sums are float32.
 *
 * Functions that take `const int bf16` are compiled once for either type.
 */
#include <math.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "numbers.h"

#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4 }; /* 16 of 32 registers hold sums */
#else
enum { LANES = 8, VECTORS = 2 };
#endif
enum { ROWS = 4, PANEL = LANES * VECTORS }; /* of a tile of C that stays in registers */
enum { BLOCK = 64 };                        /* queries that are worked on together */

#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

struct attention_sizes {
    int64_t tokens, heads, groups, size;  /* `size` numbers in a head */
    int64_t parts;                        /* tasks that share the query heads of a group */
    int64_t q_stride, k_stride, v_stride; /* numbers from one token to the next */
};

void product(const uint32_t *a, int64_t a_row, int64_t a_step, const uint32_t *b, int64_t b_step, int64_t steps,
             float *c, int64_t c_row, int64_t columns, int add, int bf16);
void wide_product(const uint32_t *a, int64_t a_row, int64_t a_step, const uint32_t *b, int64_t steps, float *c,
                  int64_t width, int bf16);

static inline int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The next n words of a scratch memory, of which `used` are given away; with no memory they are only counted. */
static inline void *cut(char *memory, int64_t *used, int64_t n) {
    void *part = memory ? memory + *used * 4 : 0;
    *used += up(n, 16);
    return part;
}

/* --- LANES numbers at once: for processors with AVX-512, and for any --------------------------------------------- */

#ifdef __AVX512F__
/* b if one is NaN */
static inline lanes larger(lanes a, lanes b) { return (lanes)_mm512_max_ps((__m512)a, (__m512)b); }

static inline float largest_of(lanes x) { return _mm512_reduce_max_ps((__m512)x); }

/* exp(x) within 2^-22 of it: 2^n exp(r) with n whole, r = x - n ln 2, |r| <= ln 2 / 2; 0 from -104 on, where float32
 * ends. NaN stays. */
static inline lanes exponentials(lanes x) {
    x = larger((lanes){0} - 104, x);
    lanes n = (lanes)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts, as Cephes splits it */
    lanes p = 1 + r * (1 + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f))))));
    return (lanes)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#else
static inline lanes larger(lanes a, lanes b) {
    for (int l = 0; l < LANES; l++) b[l] = a[l] > b[l] ? a[l] : b[l];
    return b;
}

static inline float largest_of(lanes x) {
    float largest = x[0];
    for (int l = 1; l < LANES; l++) largest = x[l] > largest ? x[l] : largest;
    return largest;
}

static inline lanes exponentials(lanes x) {
    for (int l = 0; l < LANES; l++) x[l] = x[l] < -87 ? 0 : exponential(x[l]);
    return x;
}
#endif

static inline float sum_of(lanes x) {
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += x[l];
    return sum;
}

/* Numbers, rounded if they are to be bfloat16, to place `at` of a row */
INLINE void put(lanes x, uint32_t *row, int64_t at, const int bf16) {
    if (!bf16) {
        memcpy(row + at, &x, sizeof x);
        return;
    }
    uint16_t *halves = (uint16_t *)row + at;
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)halves, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    for (int l = 0; l < LANES; l++) halves[l] = narrow(x[l]);
#endif
}

/* Two rows of numbers as one of words, each with two bfloat16 of a column */
static inline words pair(lanes low, lanes high) {
    words both;
#ifdef __AVX512BF16__
    __m512i lower = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
    __m512i upper = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
    both = (words)_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
#else
    for (int l = 0; l < LANES; l++) both[l] = narrow(low[l]) | (uint32_t)narrow(high[l]) << 16;
#endif
    return both;
}

/* --- Rows from and to tensors ------------------------------------------------------------------------------------ */

INLINE void *at(const void *x, int64_t token, int64_t stride, int64_t head, int64_t size, const int bf16) {
    return (char *)x + (token * stride + head * size) * (bf16 ? 2 : 4);
}

/* Each token's row of a head lies in a page of its own, where processors do not look ahead by themselves. */
INLINE void fetch_ahead(const void *row, int64_t size, const int bf16) {
    for (int64_t i = 0; i < size * (bf16 ? 2 : 4); i += 64) __builtin_prefetch((const char *)row + i, 0, 2);
}

/* A: the words of n rows. Those that a tile has beyond them hold whatever was there, and no one reads what they yield;
 * so with pack_across. */
INLINE void copy_rows(const void *x, int64_t stride, int64_t n, int64_t size, uint32_t *to, const int bf16) {
    int64_t steps = bf16 ? size / 2 : size;
    for (int64_t i = 0; i < n; i++) memcpy(to + i * steps, at(x, i, stride, 0, size, bf16), steps * sizeof *to);
}

/* B for sums over a row's numbers: panels of PANEL rows, in each [word of a row][row] */
INLINE void pack_across(const void *x, int64_t stride, int64_t n, int64_t size, uint32_t *to, const int bf16) {
    int64_t steps = bf16 ? size / 2 : size;
    uint32_t row[steps];
    for (int64_t i = 0; i < n; i++) {
        uint32_t *restrict column = to + i / PANEL * PANEL * steps + i % PANEL;
        memcpy(row, at(x, i, stride, 0, size, bf16), sizeof row);
        for (int64_t k = 0; k < steps; k++) column[k * PANEL] = row[k];
    }
}

/* B for sums over rows: [row, or pair of rows][number of a row], zeros up to `rows` and up to `width` numbers */
INLINE void pack_along(const void *x, int64_t stride, int64_t n, int64_t rows, int64_t size, int64_t width,
                       uint32_t *to, const int bf16) {
    int64_t together = bf16 ? 2 : 1;
    memset(to, 0, rows / together * width * sizeof *to);
    for (int64_t i = 0; i < n; i += together) {
        uint32_t *restrict row = to + i / together * width;
        const void *low = at(x, i, stride, 0, size, bf16), *high = at(x, i + 1, stride, 0, size, bf16);
        if (!bf16) memcpy(row, low, size * sizeof *row);
        else if (i + 1 == n)
            for (int64_t d = 0; d < size; d++) row[d] = ((const uint16_t *)low)[d];
        else
            for (int64_t d = 0; d < size; d++)
                row[d] = ((const uint16_t *)low)[d] | (uint32_t)((const uint16_t *)high)[d] << 16;
    }
}

/* A row of sums times a factor */
INLINE void put_row(const float *restrict sums, float factor, void *restrict to, int64_t size, const int bf16) {
    for (int64_t d = 0; d < size; d++) store(to, d, sums[d] * factor, bf16);
}
