/* Numbers rounded to bfloat16, two in the place of a float: in a product a pair lies along the depth.
 *
 * Rounding costs 2^-9 relative to a factor; products are added up in float32. Processors multiply a pair in the
 * time of one float. Without units for it (BFLOAT16_UNITS) nothing here is called: library.py refuses. */
#ifndef OFFMARL_BFLOAT16_H
#define OFFMARL_BFLOAT16_H

#if defined(__AVX512BF16__)
enum { BFLOAT16_UNITS = 1 };

/* The pair at `a` times the pair in each lane of `b`: both products are added to `sum`. */
INLINE vec add_pairs(vec sum, const float *a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(*a), (__m512bh)b);
}

/* As many rounded numbers as a vector has lanes; neighbours in memory make a pair. */
INLINE vec load_rounded(const float *at) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16);
}
INLINE void store_rounded(float *at, vec value) {
    _mm256_storeu_si256((__m256i *)at, (__m256i)_mm512_cvtneps_pbh((__m512)value));
}

/* Rounded numbers at `above` in the lower halves of pairs, those at `below` (NULL: zeros) in the upper ones. */
INLINE vec zip_rounded(const float *above, const float *below) {
    const __m512i halves = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                            5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m256i low = _mm256_loadu_si256((const __m256i *)above);
    __m256i high = below ? _mm256_loadu_si256((const __m256i *)below) : _mm256_setzero_si256();
    return (vec)_mm512_permutexvar_epi16(halves, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}
#else /* nothing that is right, only something to compile */
enum { BFLOAT16_UNITS = 0 };
INLINE vec add_pairs(vec sum, const float *a, vec b) { return sum + *a * b; }
INLINE vec load_rounded(const float *at) { return load(at); }
INLINE void store_rounded(float *at, vec value) { store(at, value); }
INLINE vec zip_rounded(const float *above, const float *below) { return below ? load(above) : (vec){0}; }
#endif

#endif
