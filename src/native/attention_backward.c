/* The gradients of causal attention within documents; P is computed again, tile by tile. See attention.py.
 *
 * The letters are those of the formulas: P (weights), dS (of the scores S), y (the output), delta = rowsum(dy * y).
 */
#include <omp.h>

#include "attention.h"

struct scratch {
    uint32_t *keys, *values, *key_pairs;             /* of a document and group, packed: B for S, dP, dq */
    float *dk, *dv;                                  /* of a document and group */
    uint32_t *queries, *dy, *query_pairs, *dy_pairs; /* of a block of queries: A for S and dP, B for dk and dv */
    float *dq, *lse, *delta;                         /* of a block of queries */
    uint32_t *p_pairs, *ds_pairs, *ds_rows;          /* of BLOCK queries and BLOCK keys: A for dv, dk, dq */
    float *p, *ds;                                   /* of a tile: S and dP first, then what becomes of them */
};

static int64_t lay_out(struct scratch *s, char *memory, int64_t longest, int64_t size) {
    int64_t used = 0, rows = up(longest, BLOCK), width = up(size, LANES);
    uint32_t **documents[] = {&s->keys, &s->values, &s->key_pairs, (uint32_t **)&s->dk, (uint32_t **)&s->dv};
    uint32_t **blocks[] = {&s->queries, &s->dy, &s->query_pairs, &s->dy_pairs, (uint32_t **)&s->dq};
    uint32_t **squares[] = {&s->p_pairs, &s->ds_pairs, &s->ds_rows};
    for (int i = 0; i < 5; i++) *documents[i] = cut(memory, &used, rows * width);
    for (int i = 0; i < 5; i++) *blocks[i] = cut(memory, &used, BLOCK * width);
    for (int i = 0; i < 3; i++) *squares[i] = cut(memory, &used, BLOCK * BLOCK);
    s->lse = cut(memory, &used, BLOCK);
    s->delta = cut(memory, &used, BLOCK);
    s->p = cut(memory, &used, ROWS * PANEL);
    s->ds = cut(memory, &used, ROWS * PANEL);
    return used;
}

/* P = exp(S - lse) and dS = P (dP - delta) of the ROWS queries from r0 on, of which `rows` exist. They see the first
 * `seen` of these columns, then one more each. Both are stored by pairs of queries, dS also query by query. */
INLINE void differentiate(const struct scratch *s, int64_t r0, int64_t rows, int64_t first, int64_t columns,
                          int64_t seen, float scale, const int bf16) {
    int64_t together = bf16 ? 2 : 1;
    words index;
    for (int l = 0; l < LANES; l++) index[l] = l;
    for (int64_t j = 0; j < columns; j += LANES)
        for (int64_t r = 0; r < ROWS; r += together) {
            lanes p[2], ds[2];
            for (int64_t i = 0; i < together; i++) {
                int64_t row = r0 + r + i, place = (r + i) * PANEL + j, visible = r + i < rows ? seen + r + i - j : 0;
                p[i] = exponentials(*(lanes *)(s->p + place) * scale - s->lse[row]);
                ds[i] = p[i] * (*(lanes *)(s->ds + place) - s->delta[row]);
                if (visible < LANES) {
                    words mask = (words)(index < (uint32_t)(visible < 0 ? 0 : visible));
                    p[i] = (lanes)((words)p[i] & mask);
                    ds[i] = (lanes)((words)ds[i] & mask);
                }
                if (bf16) put(ds[i], s->ds_rows + row * BLOCK / 2, first + j, 1);
            }
            int64_t to = (r0 + r) / together * BLOCK + first + j;
            *(words *)(s->p_pairs + to) = bf16 ? pair(p[0], p[1]) : (words)p[0];
            *(words *)(s->ds_pairs + to) = bf16 ? pair(ds[0], ds[1]) : (words)ds[0];
        }
}

/* A block of n queries and BLOCK keys from k0 on; `diagonal` if these are the same tokens */
INLINE void differentiate_block(const struct scratch *s, int64_t n, int64_t k0, int diagonal, int64_t size,
                                const int bf16) {
    int64_t together = bf16 ? 2 : 1, steps = size / together, width = up(size, LANES), rows = up(n, ROWS);
    int64_t keys = diagonal ? rows : BLOCK;
    float scale = 1 / sqrtf((float)size);
    for (int64_t first = 0; first < keys; first += PANEL)
        for (int64_t r = 0; r < rows; r += ROWS) {
            int64_t columns = diagonal ? least(r + ROWS - first, PANEL) : PANEL, panel = (k0 + first) * steps;
            if (columns <= 0) continue;
            product(s->queries + r * steps, steps, 1, s->keys + panel, PANEL, steps, s->p, PANEL, columns, 0, bf16);
            product(s->dy + r * steps, steps, 1, s->values + panel, PANEL, steps, s->ds, PANEL, columns, 0, bf16);
            differentiate(s, r, n - r, first, columns, diagonal ? r + 1 - first : PANEL, scale, bf16);
        }
    for (int64_t key = 0; key < keys; key += ROWS) {
        int64_t skip = diagonal ? key / together : 0; /* queries before these keys */
        int64_t from = skip * BLOCK + key, sums = (k0 + key) * width, left = rows / together - skip;
        wide_product(s->p_pairs + from, 1, BLOCK, s->dy_pairs + skip * width, left, s->dv + sums, width, bf16);
        wide_product(s->ds_pairs + from, 1, BLOCK, s->query_pairs + skip * width, left, s->dk + sums, width, bf16);
    }
    const uint32_t *ds = bf16 ? s->ds_rows : s->ds_pairs, *key_pairs = s->key_pairs + k0 / together * width;
    for (int64_t r = 0; r < rows; r += ROWS)
        wide_product(ds + r * BLOCK / together, BLOCK / together, 1, key_pairs,
                     (diagonal ? r + ROWS : BLOCK) / together, s->dq + r * width, width, bf16);
}

INLINE float inner(const void *x, const void *y, int64_t size, const int bf16) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < size; d++) sum += number(x, d, bf16) * number(y, d, bf16);
    return sum;
}

struct backward {
    const void *q, *k, *v, *y, *dy; /* y and dy as q, all as in the forward pass */
    const float *lse;
    void *dq, *dk, *dv; /* dk and dv (tokens, groups * parts, size), in float32 if there are several parts */
};

/* A block of n queries of head h, from `token` on, against all blocks of keys up to its own, at q0 of the document */
INLINE void differentiate_queries(const struct backward *x, int64_t token, int64_t q0, int64_t length, int64_t h,
                                  const struct attention_sizes *z, const struct scratch *s, const int bf16) {
    int64_t size = z->size, width = up(size, LANES), own = z->heads * size;
    int64_t n = least(length - q0, BLOCK), rows = up(n, ROWS);
    const void *q = at(x->q, token, z->q_stride, h, size, bf16), *dy = at(x->dy, token, own, h, size, bf16);
    const void *y = at(x->y, token, own, h, size, bf16);
    copy_rows(q, z->q_stride, n, size, s->queries, bf16);
    copy_rows(dy, own, n, size, s->dy, bf16);
    pack_along(s->queries, size, n, rows, size, width, s->query_pairs, bf16);
    pack_along(s->dy, size, n, rows, size, width, s->dy_pairs, bf16);
    memset(s->dq, 0, rows * width * sizeof(float));
    for (int64_t r = 0; r < n; r++) {
        s->delta[r] = inner(at(s->dy, r, size, 0, size, bf16), at(y, r, own, 0, size, bf16), size, bf16);
        s->lse[r] = x->lse[h * z->tokens + token + r];
    }
    for (int64_t r = BLOCK; r < least(length - q0, 2 * BLOCK); r++) {
        fetch_ahead(at(q, r, z->q_stride, 0, size, bf16), size, bf16);
        fetch_ahead(at(dy, r, own, 0, size, bf16), size, bf16);
        fetch_ahead(at(y, r, own, 0, size, bf16), size, bf16);
    }
    for (int64_t k0 = 0; k0 <= q0; k0 += BLOCK) differentiate_block(s, n, k0, k0 == q0, size, bf16);
    for (int64_t r = 0; r < n; r++)
        put_row(s->dq + r * width, 1 / sqrtf((float)size), at(x->dq, token + r, own, h, size, bf16), size, bf16);
}

/* A document's query heads of one part of a group; their keys and values are shared */
INLINE void differentiate_document(const struct backward *x, int64_t start, int64_t length, int64_t part,
                                   const struct attention_sizes *z, const struct scratch *s, const int bf16) {
    int64_t size = z->size, width = up(size, LANES), rows = up(length, BLOCK), group = part / z->parts;
    int64_t share = z->heads / (z->groups * z->parts), shared = z->groups * z->parts * size;
    const void *k = at(x->k, start, z->k_stride, group, size, bf16);
    pack_across(k, z->k_stride, length, size, s->keys, bf16);
    pack_along(k, z->k_stride, length, rows, size, width, s->key_pairs, bf16);
    pack_across(at(x->v, start, z->v_stride, group, size, bf16), z->v_stride, length, size, s->values, bf16);
    memset(s->dk, 0, rows * width * sizeof(float));
    memset(s->dv, 0, rows * width * sizeof(float));
    for (int64_t h = part * share; h < (part + 1) * share; h++)
        for (int64_t q0 = 0; q0 < length; q0 += BLOCK)
            differentiate_queries(x, start + q0, q0, length, h, z, s, bf16);
    const int rounded = bf16 && z->parts == 1;
    for (int64_t i = 0; i < length; i++) {
        void *dk = at(x->dk, start + i, shared, part, size, rounded);
        void *dv = at(x->dv, start + i, shared, part, size, rounded);
        put_row(s->dk + i * width, 1 / sqrtf((float)size), dk, size, rounded);
        put_row(s->dv + i * width, 1, dv, size, rounded);
    }
}

/* 32-bit words of scratch memory that each thread needs */
int64_t attention_backward_words(int64_t longest, int64_t size) {
    struct scratch s;
    return lay_out(&s, 0, longest, size);
}

/* documents: pairs of first token and length, the longest first */
void attention_backward(const struct backward *x, const int64_t *documents, int64_t n_documents,
                        const struct attention_sizes *z, char *scratch, int bf16, int threads) {
    int64_t parts = z->groups * z->parts, longest = documents[1], each = attention_backward_words(longest, z->size);
#pragma omp parallel num_threads(threads)
    {
        struct scratch s;
        lay_out(&s, scratch + omp_get_thread_num() * each * 4, longest, z->size);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_documents * parts; task++) {
            const int64_t *document = documents + task / parts * 2;
            if (bf16) differentiate_document(x, document[0], document[1], task % parts, z, &s, 1);
            else differentiate_document(x, document[0], document[1], task % parts, z, &s, 0);
        }
    }
}
