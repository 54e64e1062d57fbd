// Vectors of floats as wide as the processor's registers, and the few functions the kernels need.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace personaplex {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));

struct bfloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// A 24-bit integer, lowest byte first. Loading a vector of them may read 16 bytes beyond the last.
struct int24 {
  uint8_t bytes[3];
};

inline Vec splat(float x) { return x - Vec{}; }  // −0 would be lost in x + 0

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The same 32 bits in every lane, bit by bit.
inline Vec everywhere(const float* p) { return bit_cast<Vec>(bit_cast<int32_t>(*p) + IntVec{}); }

// kLanes integers of 1 or 2 bytes as 32-bit ones. Compilers vectorise the loops; on x86, where they differ, the
// instructions are named.
inline UintVec widen(const uint16_t* p) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (UintVec)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  UintVec wide{};
  for (int i = 0; i < kLanes; ++i) wide[i] = p[i];
  return wide;
#endif
}

inline IntVec widen(const int8_t* p) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  IntVec wide{};
  for (int i = 0; i < kLanes; ++i) wide[i] = p[i];
  return wide;
#endif
}

inline IntVec widen(const uint8_t* p) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  IntVec wide{};
  for (int i = 0; i < kLanes; ++i) wide[i] = p[i];
  return wide;
#endif
}

inline Vec to_float(IntVec x) { return __builtin_convertvector(x, Vec); }

inline Vec load(const bfloat16* p) { return bit_cast<Vec>(widen(&p->bits) << 16); }
inline Vec load(const int8_t* p) { return to_float(widen(p)); }

// int24 as floats, times 256: the three bytes become the upper ones of 32 bits.
inline Vec load(const int24* p) {
#if defined(__AVX512VBMI__)
  alignas(64) static constexpr uint8_t kApart[64] = {0, 0,  1,  2,  0, 3,  4,  5,  0, 6,  7,  8,  0, 9,  10, 11,
                                                     0, 12, 13, 14, 0, 15, 16, 17, 0, 18, 19, 20, 0, 21, 22, 23,
                                                     0, 24, 25, 26, 0, 27, 28, 29, 0, 30, 31, 32, 0, 33, 34, 35,
                                                     0, 36, 37, 38, 0, 39, 40, 41, 0, 42, 43, 44, 0, 45, 46, 47};
  constexpr __mmask64 kUpper = 0xEEEEEEEEEEEEEEEE;  // three of four bytes
  const __m512i bytes = _mm512_maskz_permutexvar_epi8(kUpper, _mm512_load_si512(kApart), _mm512_loadu_si512(p));
  return to_float((IntVec)bytes);
#elif defined(__AVX512BW__)
  // Four numbers, three words, to each quarter of the register; then spread their bytes.
  const __m512i words = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12);
  const __m512i apart =
      _mm512_broadcast_i32x4(_mm_setr_epi8(-128, 0, 1, 2, -128, 3, 4, 5, -128, 6, 7, 8, -128, 9, 10, 11));
  return to_float((IntVec)_mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, _mm512_loadu_si512(p)), apart));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i apart =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(-128, 0, 1, 2, -128, 3, 4, 5, -128, 6, 7, 8, -128, 9, 10, 11));
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4));
  return to_float((IntVec)_mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), apart));
#else
  UintVec wide{};
  for (int i = 0; i < kLanes; ++i) wide[i] = p[i].bytes[0] << 8 | p[i].bytes[1] << 16 | uint32_t(p[i].bytes[2]) << 24;
  return to_float((IntVec)wide);
#endif
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// Prefetches what a stream reads next: the processor itself does so only up to the end of a page.
constexpr int kLineBytes = 64;

inline void prefetch(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 4096, 0, 3); }

// The same further ahead and into the second-level cache, which can have more requests in flight than the first.
inline void prefetch_far(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 8192, 0, 2); }

inline void prefetch(const void* p, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kLineBytes) prefetch(static_cast<const char*>(p) + line);
}

inline float as_float(float x) { return x; }
inline float as_float(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
inline float as_float(int8_t x) { return float(x); }
inline float as_float(int24 x) {
  return float(int32_t(x.bytes[0] << 8 | x.bytes[1] << 16 | uint32_t(x.bytes[2]) << 24));
}

// Rounds to the nearest bfloat16, ties to even.
inline Vec round_bfloat16(Vec x) {
  UintVec u = bit_cast<UintVec>(x);
  u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000u;
  return bit_cast<Vec>(u);
}

inline float round_bfloat16(float x) {
  uint32_t u = bit_cast<uint32_t>(x);
  u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000u;
  return bit_cast<float>(u);
}

inline bfloat16 to_bfloat16(float x) { return {uint16_t(bit_cast<uint32_t>(round_bfloat16(x)) >> 16)}; }

// Stores a vector as bfloat16, rounded.
inline void store(bfloat16* p, Vec v) {
  const UintVec bits = bit_cast<UintVec>(round_bfloat16(v)) >> 16;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)bits));
#else
  for (int i = 0; i < kLanes; ++i) p[i].bits = uint16_t(bits[i]);
#endif
}

// Converts n numbers from float32, or to it.
template <class Number>
inline void convert(Number* to, const float* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  Number rest[kLanes];
  float lanes[kLanes] = {};
  std::memcpy(lanes, from + i, (n - i) * sizeof(float));
  store(rest, load(lanes));
  std::memcpy(to + i, rest, (n - i) * sizeof(Number));
}

inline void convert(float* to, const bfloat16* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = as_float(from[i]);
}

inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX__)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

// e^x to about one unit in the last place: x = n ln 2 + r, a polynomial for e^r (Moshier's, of Cephes).
inline Vec exp(Vec argument) {
  const Vec magic = splat(12582912.f);  // 1.5 · 2^23: adding it rounds to an integer
  const Vec lowest = splat(-87.3f);
  Vec x = min(splat(88.3f), max(lowest, argument));  // the argument last: so NaN stays NaN
  Vec shifted = x * 1.44269504f + magic;
  Vec n = shifted - magic;
  Vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  IntVec exponent = (bit_cast<IntVec>(shifted) - bit_cast<IntVec>(magic) + 127) << 23;
  return argument < lowest ? Vec{} : p * bit_cast<Vec>(exponent);
}

// erf by Abramowitz & Stegun 7.1.26; absolute error below 2e-7.
inline Vec erf(Vec x) {
  Vec a = max(x, -x);
  Vec t = 1.f / (1.f + 0.3275911f * a);
  Vec p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  Vec y = 1.f - p * t * exp(-a * a);
  return x < 0.f ? -y : y;
}

// out[i] = f(in[i]) over 0..n, a vector at a time.
template <class F>
inline void map(float* out, const float* in, int n, F f) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(in + i)));
  if (i < n) {
    float lanes[kLanes] = {};
    std::memcpy(lanes, in + i, (n - i) * sizeof(float));
    store(lanes, f(load(lanes)));
    std::memcpy(out + i, lanes, (n - i) * sizeof(float));
  }
}

inline float largest(const float* x, int n) {
  float top = x[0];
  int i = 0;
  if (n >= kLanes) {
    Vec tops = load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) tops = max(tops, load(x + i));
    for (int lane = 0; lane < kLanes; ++lane) top = top > tops[lane] ? top : tops[lane];
  }
  for (; i < n; ++i) top = top > x[i] ? top : x[i];
  return top;
}

// The largest |x[i]| over 0..n, a multiple of kLanes; NaN where a number is not finite.
inline float largest_size(const float* x, int n) {
  Vec top = {}, lost = {};
  for (int i = 0; i < n; i += kLanes) {
    const Vec v = load(x + i);
    top = max(top, max(v, -v));
    lost += v * 0.f;
  }
  float lanes[kLanes];
  store(lanes, top);
  return largest(lanes, kLanes) + sum(lost);
}

// The sum of f(x[i]) over 0..n.
template <class F>
inline float sum(const float* x, int n, F f) {
  Vec total = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) total += f(load(x + i));
  float y = sum(total);
  for (; i < n; ++i) y += f(splat(x[i]))[0];
  return y;
}

}  // namespace personaplex
