/* Numbers rounded to bfloat16, two in the place of a float: a pair lies along the depth of a product.
 *
 * Rounding costs 2^-9 relative to a factor; products are added up in float32. Processors multiply a pair in the
 * time of one float. Without units for it (BFLOAT16_UNITS) nothing here is called: perceptron.py does not ask. */
#ifndef OFFMARL_BFLOAT16_H
#define OFFMARL_BFLOAT16_H

#if defined(__AVX512BF16__)
#include <immintrin.h>
enum { BFLOAT16_UNITS = 1 };

/* The pair at `a` times the pair in each lane of `b`: both products are added to `sum`. */
INLINE vec add_pairs(vec sum, const float *a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(*a), (__m512bh)b);
}

/* Neighbours in memory make a pair. `floats` is a multiple of LANES. */
static inline void pair_in_rows(long floats, const float *from, float *to) {
    long i = 0;
    for (; i + 2 * LANES <= floats; i += 2 * LANES)
        store(to + i / 2, (vec)_mm512_cvtne2ps_pbh((__m512)load(from + i + LANES), (__m512)load(from + i)));
    if (i < floats) _mm256_storeu_si256((__m256i *)(to + i / 2), (__m256i)_mm512_cvtneps_pbh((__m512)load(from + i)));
}

/* [rows, width] -> [(rows + 1) / 2, width]: a row and the one below it make pairs; zeros lie below the last. */
static inline void pair_across_rows(long rows, long width, const float *from, float *to) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (long r = 0; r < rows; r += 2, from += 2 * width, to += width)
        for (long h = 0; h < width; h += LANES) {
            vec below = r + 1 < rows ? load(from + width + h) : (vec){0};
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)below, (__m512)load(from + h));
            store(to + h, (vec)_mm512_permutexvar_epi16(zip, both));
        }
}
#else
enum { BFLOAT16_UNITS = 0 };
INLINE vec add_pairs(vec sum, const float *a, vec b) { return sum + *a * b; }
static inline void pair_in_rows(long floats, const float *from, float *to) { memcpy(to, from, floats * sizeof(float) / 2); }
static inline void pair_across_rows(long rows, long width, const float *from, float *to) {
    memcpy(to, from, rows * width * sizeof(float) / 2);
}
#endif

#endif
