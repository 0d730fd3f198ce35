/* Numbers of 16 bits, and exp. */
#include <stdint.h>
#include <string.h>

/* bfloat16 is the upper half of a float32. */
static inline float widen(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static inline uint16_t narrow(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7fc0);
}

static inline float round_to(float value, int bf16) { return bf16 ? widen(narrow(value)) : value; }

static inline float number(const void *x, int64_t i, int bf16) {
    return bf16 ? widen(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

static inline void store(void *x, int64_t i, float value, int bf16) {
    if (bf16) ((uint16_t *)x)[i] = narrow(value);
    else ((float *)x)[i] = value;
}

/* exp(x) for many numbers at once, within 2^-22 of it; infinite from 88.4 on. x = n ln 2 + r with n whole, so that
 * exp(x) = 2^n exp(r), |r| <= ln 2 / 2: a polynomial of the sixth order. */
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 89 ? 89 : x;                                      /* NaN stays */
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f; /* 1.5 * 2^23: rounds to whole numbers */
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 split as in Cephes: n times the first is exact */
    float p = 1 + r * (1 + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r / 720.0f)))));
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    uint32_t power = (uint32_t)(bits + 127) << 23; /* the lowest bits of `shifted` are n */
    float factor;
    memcpy(&factor, &power, sizeof factor);
    return p * factor;
}
