/* Causal attention within documents, block by block: no table of scores is ever whole. See attention.py. */
#include <omp.h>

#include "attention.h"

enum { KEYS = 256 }; /* whose scores against BLOCK queries are held at a time */
enum { SHORT = 64 }; /* steps of a product summed in one go */

/* --- The product ------------------------------------------------------------------------------------------------- */

INLINE lanes multiply_add(lanes sum, uint32_t a, words b, const int bf16) {
    if (!bf16) {
        float value;
        memcpy(&value, &a, sizeof value);
        return sum + value * (lanes)b;
    }
#ifdef __AVX512BF16__
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#else
    return sum + widen((uint16_t)a) * (lanes)(b << 16) + widen((uint16_t)(a >> 16)) * (lanes)(b & 0xffff0000u);
#endif
}

/* Without this GCC fetches a vector anew for each row instead of keeping it in a register. */
#ifdef __AVX512F__
#define KEEP(vector) __asm__("" : "+v"(vector))
#else
#define KEEP(vector)
#endif

/* ROWS rows and `vectors` times LANES columns of C = A B, or C += A B */
INLINE void tile(const uint32_t *a, int64_t a_row, int64_t a_step, const uint32_t *b, int64_t b_step, int64_t steps,
                 float *c, int64_t c_row, int add, const int bf16, const int vectors) {
    lanes sum[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = (lanes){0};
    for (int64_t k = 0; k < steps; k++, a += a_step, b += b_step) {
        words right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            right[v] = *(const words *)(b + v * LANES);
            KEEP(right[v]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(sum[r][v], a[r * a_row], right[v], bf16);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            lanes *to = (lanes *)(c + r * c_row + v * LANES);
            *to = add ? *to + sum[r][v] : sum[r][v];
        }
}

/* The same for up to PANEL columns, rounded up to LANES. Long sums are made of short ones, which round less. */
void product(const uint32_t *a, int64_t a_row, int64_t a_step, const uint32_t *b, int64_t b_step, int64_t steps,
             float *c, int64_t c_row, int64_t columns, int add, int bf16) {
#define CASE(vectors)                                                                \
    case vectors:                                                                    \
        if (bf16) tile(a, a_row, a_step, b, b_step, few, c, c_row, add, 1, vectors); \
        else tile(a, a_row, a_step, b, b_step, few, c, c_row, add, 0, vectors);      \
        break;
    for (int64_t few; steps > 0; steps -= few, a += few * a_step, b += few * b_step, add = 1) {
        few = least(steps, SHORT);
        switch ((columns + LANES - 1) / LANES) {
            CASE(1)
            CASE(2)
#ifdef __AVX512F__
            CASE(3)
            CASE(4)
#endif
        }
    }
#undef CASE
}

/* C (ROWS, width) += A B, whatever the width */
void wide_product(const uint32_t *a, int64_t a_row, int64_t a_step, const uint32_t *b, int64_t steps, float *c,
                  int64_t width, int bf16) {
    for (int64_t column = 0; column < width; column += PANEL)
        product(a, a_row, a_step, b + column, width, steps, c + column, width, least(width - column, PANEL), 1, bf16);
}

/* --- Forward ----------------------------------------------------------------------------------------------------- */

struct scratch {
    uint32_t *keys, *values;                /* of a document and group, packed */
    uint32_t *queries, *weights;            /* of a block of queries: A of both products */
    float *scores, *sums, *largest, *total; /* of a block of queries: S, P V, a row's maximum and Σ exp */
};

static int64_t lay_out(struct scratch *s, char *memory, int64_t longest, int64_t size) {
    int64_t used = 0, rows = up(longest, BLOCK), width = up(size, LANES);
    s->keys = cut(memory, &used, rows * size);
    s->values = cut(memory, &used, rows * width);
    s->queries = cut(memory, &used, BLOCK * size);
    s->weights = cut(memory, &used, BLOCK * KEYS);
    s->scores = cut(memory, &used, BLOCK * KEYS);
    s->sums = cut(memory, &used, BLOCK * width);
    s->largest = cut(memory, &used, BLOCK);
    s->total = cut(memory, &used, BLOCK);
    return used;
}

/* One row of scores, of which the first `visible` count: their exponentials become weights, zero up to `width`, a
 * multiple of LANES. Returns the factor by which what was summed under an earlier maximum shrinks. */
INLINE float weigh(float *scores, uint32_t *weights, int64_t visible, int64_t width, float scale, float *largest,
                   float *total, const int bf16) {
    lanes *row = (lanes *)scores, most = (lanes){0} - INFINITY, sum = {0};
    float before = *largest;
    for (int64_t j = visible; j < width; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < width / LANES; j++) most = larger(row[j], most);
    float highest = largest_of(most) * scale;
    *largest = highest = highest > before ? highest : before;
    for (int64_t j = 0; j < width / LANES; j++) {
        lanes weight = exponentials(row[j] * scale - highest);
        sum += weight;
        put(weight, weights, j * LANES, bf16);
    }
    float shrink = expf(before - highest);
    *total = *total * shrink + sum_of(sum);
    return shrink;
}

/* The block of `rows` queries from q0 on against the keys from k0 on, as far as it sees them */
INLINE void attend_block(const struct scratch *s, int64_t q0, int64_t rows, int64_t k0, int64_t size, const int bf16) {
    int64_t width = up(size, LANES), together = bf16 ? 2 : 1, steps = size / together;
    float scale = 1 / sqrtf((float)size);
    for (int64_t first = 0; first < least(q0 + rows - k0, KEYS); first += PANEL)
        for (int64_t r = 0; r < rows; r += ROWS) {
            int64_t columns = least(q0 + r + ROWS - k0 - first, PANEL);
            if (columns > 0)
                product(s->queries + r * steps, steps, 1, s->keys + (k0 + first) * steps, PANEL, steps,
                        s->scores + r * KEYS + first, KEYS, columns, 0, bf16);
        }
    for (int64_t r = 0; r < rows; r += ROWS) {
        int64_t seen = least(q0 + r + ROWS - k0, KEYS); /* by the last of these rows */
        uint32_t *weights = s->weights + r * KEYS / together;
        for (int64_t i = 0; i < ROWS; i++) {
            float *sums = s->sums + (r + i) * width;
            float shrink = weigh(s->scores + (r + i) * KEYS, weights + i * KEYS / together,
                                 least(q0 + r + i + 1 - k0, KEYS), up(seen, LANES), scale, s->largest + r + i,
                                 s->total + r + i, bf16);
            if (k0 && shrink != 1)
                for (int64_t d = 0; d < width; d++) sums[d] *= shrink;
        }
        wide_product(weights, KEYS / together, 1, s->values + k0 / together * width, seen / together,
                     s->sums + r * width, width, bf16);
    }
}

struct forward {
    const void *q, *k, *v; /* (tokens, heads, size), (tokens, groups, size) twice */
    void *y;               /* (tokens, heads, size) */
    float *lse;            /* (heads, tokens) */
};

/* A document's query heads of one part of a group */
INLINE void attend_document(const struct forward *x, int64_t start, int64_t length, int64_t part,
                            const struct attention_sizes *z, const struct scratch *s, const int bf16) {
    int64_t size = z->size, width = up(size, LANES), own = z->heads * size;
    int64_t group = part / z->parts, share = z->heads / (z->groups * z->parts);
    pack_across(at(x->k, start, z->k_stride, group, size, bf16), z->k_stride, length, size, s->keys, bf16);
    pack_along(at(x->v, start, z->v_stride, group, size, bf16), z->v_stride, length, up(length, ROWS), size, width,
               s->values, bf16);
    for (int64_t h = part * share; h < (part + 1) * share; h++)
        for (int64_t q0 = 0; q0 < length; q0 += BLOCK) {
            int64_t n = least(length - q0, BLOCK), rows = up(n, ROWS), token = start + q0;
            const void *q = at(x->q, token, z->q_stride, h, size, bf16);
            copy_rows(q, z->q_stride, n, size, s->queries, bf16);
            for (int64_t r = BLOCK; r < least(length - q0, 2 * BLOCK); r++)
                fetch_ahead(at(q, r, z->q_stride, 0, size, bf16), size, bf16);
            memset(s->sums, 0, rows * width * sizeof(float));
            for (int64_t r = 0; r < rows; r++) s->largest[r] = -INFINITY, s->total[r] = 0;
            for (int64_t k0 = 0; k0 <= q0; k0 += KEYS) attend_block(s, q0, rows, k0, size, bf16);
            for (int64_t r = 0; r < n; r++) {
                put_row(s->sums + r * width, 1 / s->total[r], at(x->y, token + r, own, h, size, bf16), size, bf16);
                x->lse[h * z->tokens + token + r] = s->largest[r] + logf(s->total[r]);
            }
        }
}

/* 32-bit words of scratch memory that each thread needs */
int64_t attention_forward_words(int64_t longest, int64_t size) {
    struct scratch s;
    return lay_out(&s, 0, longest, size);
}

/* documents: pairs of first token and length, the longest first */
void attention_forward(const struct forward *x, const int64_t *documents, int64_t n_documents,
                       const struct attention_sizes *z, char *scratch, int bf16, int threads) {
    int64_t parts = z->groups * z->parts, longest = documents[1], each = attention_forward_words(longest, z->size);
#pragma omp parallel num_threads(threads)
    {
        struct scratch s;
        lay_out(&s, scratch + omp_get_thread_num() * each * 4, longest, z->size);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_documents * parts; task++) {
            const int64_t *document = documents + task / parts * 2;
            if (bf16) attend_document(x, document[0], document[1], task % parts, z, &s, 1);
            else attend_document(x, document[0], document[1], task % parts, z, &s, 0);
        }
    }
}
