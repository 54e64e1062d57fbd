// Symmetric quantisation of activations, and the 16-bit vectors of its integers.
#pragma once

#include "vector.h"

namespace personaplex {

// Symmetric quantisation to integers: the step is the largest size over the largest integer. Where a number is not
// finite the step is NaN, and so is every product.
struct WholeStep {
  float step, inverse;

  WholeStep(const float* x, int n, float steps) {
    constexpr float kLeast = 1e-30f;  // smaller sizes become zero
    const float top = largest_size(x, n);
    step = top / steps;
    inverse = top > kLeast ? steps / top : 0;
  }
};

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define PERSONAPLEX_INT8_IN_WORDS

#if defined(__AVX512BW__)
typedef __m512i Words;
inline Words widen_words(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Words load_words(const int16_t* p) { return _mm512_load_si512(p); }
inline void store_words(int16_t* to, IntVec x) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)x));
}
inline IntVec round(Vec x) { return (IntVec)_mm512_cvtps_epi32((__m512)x); }
// Adds the products of neighbours to 32-bit sums.
inline IntVec add_products(IntVec sums, Words a, Words b) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpwssd_epi32((__m512i)sums, a, b);
#else
  return sums + (IntVec)_mm512_madd_epi16(a, b);
#endif
}
#else
typedef __m256i Words;
inline Words widen_words(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Words load_words(const int16_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_words(int16_t* to, IntVec x) {
  _mm_store_si128(reinterpret_cast<__m128i*>(to),
                  _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1)));
}
inline IntVec round(Vec x) { return (IntVec)_mm256_cvtps_epi32((__m256)x); }
inline IntVec add_products(IntVec sums, Words a, Words b) { return sums + (IntVec)_mm256_madd_epi16(a, b); }
#endif

constexpr int kWords = 2 * kLanes;
#endif

}  // namespace personaplex
