/* One step of Adam for a list of parameters, their moments in 8 bits or in float32: a block of a parameter at a time,
 * which is read, updated and written once. Formulas and roundings are those of optim8bit/step.py, so that parameters,
 * codes and scales agree with it in every bit. Hence no contraction here: a product fused with a sum is not rounded.
 *
 * The nearest code without a search. Two straight lines, one for each decade of the map that the value can be in, guess
 * it: the lower of them gives the code or the one below, and one comparison with the upper boundary of the guess tells
 * which. The lines come from optim8bit/dynamic_map.py.
 *
 * B values of one block. Where AVX512 can look up bytes (VBMI), 64 values at a time are decoded and encoded; beside each
 * such function stands the one for a single value that it equals. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include <math.h>

#include "numbers.h"

enum { MAX_BLOCK = 4096, AT_A_TIME = 64 }; /* the first as in adam.py; blocks that a thread takes */

struct parameter { /* as in adam.py; float32 moments have no scales */
    void *weight;
    const void *gradient;
    void *m, *v;
    float *m_absmax, *v_absmax;
    int64_t bf16, size, first_block; /* the latter among the blocks of all parameters */
};

struct scalars { /* as in optim8bit/fast_step.py */
    float lr, beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps, weight_decay, shrink,
        gradient_scale;
};

struct codec { /* as in adam.py: what codes mean, the largest number nearest to each, lines by exponent */
    float values[256], boundaries[256], lines[2][2][16]; /* (line, slope and offset, exponent) */
};

static const float GRADIENT_LIMIT = 1.8e19f;  /* as in optim8bit/step.py */
static const float SMALLEST_UNIT = 0x1p-30f;  /* below it the lines are those of this number */
enum { SIGNED_ZERO = 127, INFINITE = 0x7f800000, NO_SIGN = 0x7fffffff };

static inline int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint8_t encode_one(float x, float scale, const struct codec *codec, int is_signed) {
    float unit = fabsf(x) / scale;
    unit = unit <= 1 ? unit : 1; /* NaN only, from a damaged state: it must not become an index */
    int exponent = bits_of(unit > SMALLEST_UNIT ? unit : SMALLEST_UNIT) >> 24 & 15;
    float below = unit * codec->lines[0][0][exponent] + codec->lines[0][1][exponent];
    float above = unit * codec->lines[1][0][exponent] + codec->lines[1][1][exponent];
    int code = (int)(below < above ? below : above);
    code += unit > codec->boundaries[code];
    if (!is_signed) return (uint8_t)code;
    code = x < 0 ? SIGNED_ZERO - code : SIGNED_ZERO + code;
    return (uint8_t)(code < 0 ? 0 : code); /* there is no code for -1 */
}

#if defined __AVX512VBMI__ && defined __AVX512DQ__
#include <immintrin.h>
#define WIDE 64

/* A table of 256 floats as four of 256 bytes, in four registers each. */
struct planes {
    __m512i registers[4][4];
};

static struct planes planes_of(const float *table) {
    uint8_t bytes[4][256];
    for (int code = 0; code < 256; code++)
        for (int plane = 0; plane < 4; plane++) bytes[plane][code] = (uint8_t)(bits_of(table[code]) >> 8 * plane);
    struct planes planes;
    memcpy(&planes, bytes, sizeof planes);
    return planes;
}

/* Exchanges the two indices of a vector's 4 x 4 groups of four bytes: (un)packing works within quarters of it. */
static inline __m512i exchange(__m512i x) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

static inline __m512i look_up_bytes(__m512i codes, const __m512i table[4]) {
    __m512i lower = _mm512_permutex2var_epi8(table[0], codes, table[1]); /* by the lower seven bits */
    __m512i upper = _mm512_permutex2var_epi8(table[2], codes, table[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper);
}

/* The floats of 64 codes, which come exchanged. */
static inline void look_up(__m512i codes, const struct planes *planes, __m512 floats[4]) {
    __m512i byte[4];
    for (int plane = 0; plane < 4; plane++) byte[plane] = look_up_bytes(codes, planes->registers[plane]);
    __m512i low = _mm512_unpacklo_epi8(byte[0], byte[1]), low_upper = _mm512_unpacklo_epi8(byte[2], byte[3]);
    __m512i high = _mm512_unpackhi_epi8(byte[0], byte[1]), high_upper = _mm512_unpackhi_epi8(byte[2], byte[3]);
    floats[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, low_upper));
    floats[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, low_upper));
    floats[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(high, high_upper));
    floats[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(high, high_upper));
}

static inline void decode_wide(const uint8_t *codes, float scale, const struct planes *values, float *x) {
    __m512 floats[4];
    look_up(exchange(_mm512_loadu_si512(codes)), values, floats);
    for (int i = 0; i < 4; i++) _mm512_storeu_ps(x + 16 * i, _mm512_mul_ps(floats[i], _mm512_set1_ps(scale)));
}

static inline __m512i guess(__m512 unit, const struct codec *codec) {
    __m512 clamped = _mm512_max_ps(unit, _mm512_set1_ps(SMALLEST_UNIT)), line[2];
    __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(clamped), 24); /* its lower four bits count */
    for (int i = 0; i < 2; i++) {
        __m512 slope = _mm512_permutexvar_ps(exponent, _mm512_loadu_ps(codec->lines[i][0]));
        line[i] = _mm512_fmadd_ps(unit, slope, _mm512_permutexvar_ps(exponent, _mm512_loadu_ps(codec->lines[i][1])));
    }
    return _mm512_cvttps_epi32(_mm512_min_ps(line[0], line[1]));
}

static inline uint64_t join(const __mmask16 mask[4]) {
    return mask[0] | (uint64_t)mask[1] << 16 | (uint64_t)mask[2] << 32 | (uint64_t)mask[3] << 48;
}

static inline void encode_wide(const float *x, float scale, const struct codec *codec, const struct planes *boundaries,
                               int is_signed, uint8_t *codes) {
    __m512 unit[4], boundary[4];
    __mmask16 negative[4], beyond[4];
    __m512i guessed[4], zero = _mm512_set1_epi8(SIGNED_ZERO);
    for (int i = 0; i < 4; i++) {
        __m512 value = _mm512_loadu_ps(x + 16 * i);
        negative[i] = _mm512_movepi32_mask(_mm512_castps_si512(value));
        unit[i] = _mm512_div_ps(_mm512_abs_ps(value), _mm512_set1_ps(scale));
        guessed[i] = guess(unit[i], codec);
    }
    __m512i packed = _mm512_packus_epi16(_mm512_packus_epi32(guessed[0], guessed[1]), /* exchanged */
                                         _mm512_packus_epi32(guessed[2], guessed[3]));
    look_up(packed, boundaries, boundary);
    for (int i = 0; i < 4; i++) beyond[i] = _mm512_cmp_ps_mask(unit[i], boundary[i], _CMP_GT_OQ);
    __m512i code = exchange(packed);
    code = _mm512_mask_add_epi8(code, join(beyond), code, _mm512_set1_epi8(1));
    if (is_signed) /* the subtraction saturates: there is no code for -1 */
        code = _mm512_mask_subs_epu8(_mm512_add_epi8(code, zero), join(negative), zero, code);
    _mm512_storeu_si512(codes, code);
}

static void square_roots(float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(x + i, _mm512_sqrt_ps(_mm512_loadu_ps(x + i)));
    for (; i < n; i++) x[i] = sqrtf(x[i]);
}
#else
#define WIDE 0 /* nothing is done at once */
struct planes {
    int none;
};
static struct planes planes_of(const float *table) { return (struct planes){0}; }
static void decode_wide(const uint8_t *codes, float scale, const struct planes *values, float *x) {}
static void encode_wide(const float *x, float scale, const struct codec *codec, const struct planes *boundaries,
                        int is_signed, uint8_t *codes) {}

static void square_roots(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = sqrtf(x[i]);
}
#endif

struct tables {
    const struct codec *codec;
    struct planes values, boundaries;
};

static void decode(const uint8_t *codes, float scale, const struct tables *tables, float *x, int64_t B) {
    int64_t i = 0;
    for (; WIDE && i + WIDE <= B; i += WIDE) decode_wide(codes + i, scale, &tables->values, x + i);
    for (; i < B; i++) x[i] = tables->codec->values[codes[i]] * scale;
}

static void encode(const float *x, float scale, const struct tables *tables, int is_signed, uint8_t *codes, int64_t B) {
    int64_t i = 0;
    scale = scale == 0 ? 1 : scale;
    for (; WIDE && i + WIDE <= B; i += WIDE)
        encode_wide(x + i, scale, tables->codec, &tables->boundaries, is_signed, codes + i);
    for (; i < B; i++) codes[i] = encode_one(x[i], scale, tables->codec, is_signed);
}

/* Adam's formula for B numbers, in float32. The magnitudes' maxima are found by their bits, which are ordered alike. */
static void update(float *restrict weight, const float *restrict gradient, float *restrict m, float *restrict v,
                   int64_t B, struct scalars s, int decoupled, float *m_largest, float *v_largest) {
    float root[B];
    int32_t m_most = 0, v_most = 0, limit = bits_of(GRADIENT_LIMIT);
    for (int64_t i = 0; i < B; i++) {
        float g = gradient[i] * s.gradient_scale;
        if (decoupled) weight[i] *= s.shrink;
        else g += weight[i] * s.weight_decay;
        int32_t bits = bits_of(g), magnitude = bits & NO_SIGN;
        magnitude = magnitude < INFINITE ? magnitude : 0; /* what is not finite counts as zero */
        g = float_of((magnitude < limit ? magnitude : limit) | (bits & ~NO_SIGN));
        m[i] = m[i] * s.beta1 + g * s.one_minus_beta1;
        v[i] = v[i] * s.beta2 + g * g * s.one_minus_beta2;
        root[i] = v[i] / s.correction2;
        magnitude = bits_of(m[i]) & NO_SIGN;
        m_most = magnitude > m_most ? magnitude : m_most;
        v_most = bits_of(v[i]) > v_most ? bits_of(v[i]) : v_most;
    }
    square_roots(root, B);
    for (int64_t i = 0; i < B; i++) weight[i] -= m[i] / s.correction1 / (root[i] + s.eps) * s.lr;
    *m_largest = float_of(m_most), *v_largest = float_of(v_most);
}

/* A block of a parameter from `start` on. */
static void step_block(const struct parameter *p, int64_t start, int64_t B, int64_t index, const struct scalars *s,
                       const struct tables *m_tables, const struct tables *v_tables, int decoupled) {
    float weight[B], gradient[B], m[B], v[B], m_largest, v_largest;
    int in_8bit = p->m_absmax != NULL;
    float *to = p->bf16 ? weight : (float *)p->weight + start;
    const float *from = p->bf16 ? gradient : (const float *)p->gradient + start;
    uint16_t *narrow_weight = (uint16_t *)p->weight + start;
    if (p->bf16)
        for (int64_t i = 0; i < B; i++) {
            weight[i] = widen(narrow_weight[i]);
            gradient[i] = widen(((const uint16_t *)p->gradient)[start + i]);
        }
    if (in_8bit) {
        decode((uint8_t *)p->m + start, p->m_absmax[index], m_tables, m, B);
        decode((uint8_t *)p->v + start, p->v_absmax[index], v_tables, v, B);
    }
    float *m_now = in_8bit ? m : (float *)p->m + start, *v_now = in_8bit ? v : (float *)p->v + start;
    update(to, from, m_now, v_now, B, *s, decoupled, &m_largest, &v_largest);
    if (in_8bit) {
        p->m_absmax[index] = m_largest, p->v_absmax[index] = v_largest;
        encode(m, m_largest, m_tables, 1, (uint8_t *)p->m + start, B);
        encode(v, v_largest, v_tables, 0, (uint8_t *)p->v + start, B);
    }
    if (p->bf16)
        for (int64_t i = 0; i < B; i++) narrow_weight[i] = narrow(weight[i]);
}

/* All parameters, in place. The threads take AT_A_TIME blocks in turn, which may belong to several parameters. */
void adam_step(const struct parameter *parameters, int64_t n_parameters, int64_t n_blocks, int64_t block_size,
               const struct scalars *scalars, const struct codec *m_codec, const struct codec *v_codec, int decoupled,
               int threads) {
    const struct tables m_tables = {m_codec, planes_of(m_codec->values), planes_of(m_codec->boundaries)};
    const struct tables v_tables = {v_codec, planes_of(v_codec->values), planes_of(v_codec->boundaries)};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < n_blocks; first += AT_A_TIME) {
        int64_t low = 0, high = n_parameters; /* the last parameter that begins at `first` or before is in [low, high) */
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (parameters[middle].first_block <= first) low = middle;
            else high = middle;
        }
        const struct parameter *p = parameters + low;
        for (int64_t block = first; block < n_blocks && block < first + AT_A_TIME; block++) {
            while (p + 1 < parameters + n_parameters && p[1].first_block <= block) p++;
            int64_t index = block - p->first_block, start = index * block_size, left = p->size - start;
            int64_t B = left < block_size ? left : block_size;
            step_block(p, start, B, index, scalars, &m_tables, &v_tables, decoupled);
        }
    }
}
