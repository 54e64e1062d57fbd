// Products of int4 weights with a few columns, and their unpacking.
#pragma once

#include "interface.h"
#include "quantize.h"

namespace personaplex {

constexpr int kBlockRows = 64;

#if defined(__AVX2__) && !defined(__AVX512F__)
#define PERSONAPLEX_INT4_IN_BYTES

// Stores kLanes integers that fit into a byte.
inline void store_bytes(int8_t* to, IntVec x) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

inline __m256i two_bytes(const int8_t* from) {
  int16_t two;
  std::memcpy(&two, from, sizeof two);
  return _mm256_set1_epi16(two);
}
#endif

// Columns prepared for int4 weights: quantised group by group, so that a group's sum is one integer times a scale.
template <int N>
struct Int4Input {
  static constexpr int kMaxGroups = 1024, kMaxCount = 1 << 15;
  float sums[N][kMaxGroups];  // of x over each group
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
  static constexpr float kSteps = 32767;
  float step[N][kMaxGroups];  // x = whole · step; much finer than bfloat16
  alignas(64) int16_t whole[N][kMaxCount];
#elif defined(PERSONAPLEX_INT4_IN_BYTES)
  // |high|, |low| ≤ 64: 32 products with nibbles, summed, fit 16 bits.
  static constexpr float kSteps = 8191;
  float step[N][kMaxGroups];  // x = (128 high + low) · step
  alignas(64) int8_t high[N][kMaxCount], low[N][kMaxCount];
#else
  float value[N][kMaxCount];  // with zeros to the end of the last group
#endif

  Int4Input(const Matrix& m, const float* x, int64_t x_stride) {
    for (int n = 0; n < N; ++n)
      for (int start = 0, g = 0; start < m.columns; start += m.group, ++g) {
        const int count = m.columns - start < m.group ? m.columns - start : m.group;
        prepare(x + n * x_stride + start, n, g, start, count, m.group);
      }
  }

  void prepare(const float* x, int n, int g, int start, int count, int group) {
    alignas(64) float block[128] = {};
    std::memcpy(block, x, count * sizeof(float));
    Vec total = {};
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
    const WholeStep made(block, group, kSteps);
    step[n][g] = made.step;
    for (int k = 0; k < group; k += kLanes) {
      const IntVec rounded = round(load(block + k) * made.inverse);
      total += to_float(rounded);
      store_words(whole[n] + start + k, rounded);
    }
    sums[n][g] = sum(total) * step[n][g];
#elif defined(PERSONAPLEX_INT4_IN_BYTES)
    const WholeStep made(block, group, kSteps);
    step[n][g] = made.step;
    for (int k = 0; k < group; k += kLanes) {
      const IntVec rounded = round(load(block + k) * made.inverse);
      total += to_float(rounded);
      const IntVec upper = (rounded + 64) >> 7;
      store_bytes(high[n] + start + k, upper);
      store_bytes(low[n] + start + k, rounded - (upper << 7));
    }
    sums[n][g] = sum(total) * step[n][g];
#else
    std::memcpy(value[n] + start, block, group * sizeof(float));
    for (int k = 0; k < group; k += kLanes) total += load(block + k);
    sums[n][g] = sum(total);
#endif
  }
};

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Sums of q · x over one group, in integers: 64 rows, rows 16 i … 16 i + 15 in total[i].
template <int N>
inline void dot_nibbles(const uint8_t* data, const Int4Input<N>& in, int start, int group, int g, Vec (&total)[4][N]) {
  // Two columns of 32 bytes; 32-bit lane i gets bytes i and i + 16 of the one, then of the other.
  alignas(64) static constexpr uint8_t kOrder[64] = {0,  16, 32, 48, 1,  17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51,
                                                     4,  20, 36, 52, 5,  21, 37, 53, 6,  22, 38, 54, 7,  23, 39, 55,
                                                     8,  24, 40, 56, 9,  25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59,
                                                     12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};
  const __m512i order = _mm512_load_si512(kOrder), nibble = _mm512_set1_epi16(15);
  __m512i part[4][N];
  for (auto& row : part)
    for (auto& value : row) value = _mm512_setzero_si512();
  for (int k = start; k < start + group; k += 2) {
    const __m512i bytes = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(data + int64_t(k) * (kBlockRows / 2)));
    const __m512i rows[4] = {_mm512_and_si512(bytes, nibble), _mm512_and_si512(_mm512_srli_epi16(bytes, 8), nibble),
                             _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble), _mm512_srli_epi16(bytes, 12)};
    for (int n = 0; n < N; ++n) {
      int32_t two;
      std::memcpy(&two, in.whole[n] + k, sizeof two);
      const __m512i value = _mm512_set1_epi32(two);
      for (int i = 0; i < 4; ++i) part[i][n] = _mm512_dpwssd_epi32(part[i][n], rows[i], value);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int n = 0; n < N; ++n) total[i][n] = to_float((IntVec)part[i][n]) * in.step[n][g];
}

#elif defined(PERSONAPLEX_INT4_IN_BYTES)

// The same with 16-bit sums of 8-bit products: 64 rows, rows 8 i … 8 i + 7 in total[i].
template <int N>
inline void dot_nibbles(const uint8_t* data, const Int4Input<N>& in, int start, int group, int g,
                        Vec (&total)[kBlockRows / kLanes][N]) {
  constexpr int kColumnsOf16Bits = 32;
  const __m256i nibble = _mm256_set1_epi8(15), places = _mm256_set1_epi32(128 << 16 | 1);
  for (int n = 0; n < N; ++n) {
    IntVec whole[kBlockRows / kLanes] = {};
    for (int first = start; first < start + group; first += kColumnsOf16Bits) {
      __m256i high[4] = {}, low[4] = {};
      for (int k = first; k < first + kColumnsOf16Bits; k += 2) {
        const auto* column = reinterpret_cast<const __m256i*>(data + int64_t(k) * (kBlockRows / 2));
        if (n == 0) prefetch_far(column);
        const __m256i one = _mm256_loadu_si256(column), other = _mm256_loadu_si256(column + 1);
        const __m256i even = _mm256_unpacklo_epi8(one, other), odd = _mm256_unpackhi_epi8(one, other);
        const __m256i rows[4] = {_mm256_and_si256(even, nibble), _mm256_and_si256(odd, nibble),
                                 _mm256_and_si256(_mm256_srli_epi16(even, 4), nibble),
                                 _mm256_and_si256(_mm256_srli_epi16(odd, 4), nibble)};
        const __m256i x_high = two_bytes(in.high[n] + k), x_low = two_bytes(in.low[n] + k);
        for (int i = 0; i < 4; ++i) {
          high[i] = _mm256_add_epi16(high[i], _mm256_maddubs_epi16(rows[i], x_high));
          low[i] = _mm256_add_epi16(low[i], _mm256_maddubs_epi16(rows[i], x_low));
        }
      }
      // Unpacking keeps to the halves of a register: sums 0 hold rows 0 … 7 and 16 … 23, sums 1 the rows between.
      for (int i = 0; i < 4; ++i) {
        const __m256i before = _mm256_madd_epi16(_mm256_unpacklo_epi16(low[i], high[i]), places);
        const __m256i after = _mm256_madd_epi16(_mm256_unpackhi_epi16(low[i], high[i]), places);
        const int at = i / 2 * 4 + i % 2;
        whole[at] += (IntVec)_mm256_permute2x128_si256(before, after, 0x20);
        whole[at + 2] += (IntVec)_mm256_permute2x128_si256(before, after, 0x31);
      }
    }
    for (int p = 0; p < kBlockRows / kLanes; ++p) total[p][n] = to_float(whole[p]) * in.step[n][g];
  }
}

#else

template <int N>
inline void dot_nibbles(const uint8_t* data, const Int4Input<N>& in, int start, int group, int,
                        Vec (&total)[kBlockRows / kLanes][N]) {
  constexpr int kHalf = kBlockRows / 2 / kLanes;
  for (auto& row : total)
    for (auto& value : row) value = Vec{};
  for (int k = start; k < start + group; ++k)
    for (int p = 0; p < kHalf; ++p) {
      const IntVec bytes = widen(data + int64_t(k) * (kBlockRows / 2) + p * kLanes);
      const Vec low = to_float(bytes & 15), high = to_float(bytes >> 4);
      for (int n = 0; n < N; ++n) {
        const Vec value = splat(in.value[n][k]);
        total[p][n] += low * value;
        total[kHalf + p][n] += high * value;
      }
    }
}

#endif

// Loads kLanes pairs of scale and zero.
inline void load_scales(const bfloat16* p, Vec& scale, Vec& zero) {
  UintVec pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  scale = bit_cast<Vec>(pairs << 16);
  zero = bit_cast<Vec>(pairs & 0xFFFF0000u);
}

inline const bfloat16* block_scales(const Matrix& m, int block) {
  const int groups = (m.columns + m.group - 1) / m.group;
  return static_cast<const bfloat16*>(m.scale) + int64_t(block) * groups * kBlockRows * 2;
}

// Columns [start, stop) of one whole block as floats; place(k, row) is the destination of column k from `row` on.
template <class Place>
void unpack_int4_block(const Matrix& m, int block, int start, int stop, Place place) {
  constexpr int kHalf = kBlockRows / 2;
  const int groups = (m.columns + m.group - 1) / m.group;
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + int64_t(block) * groups * m.group * kHalf;
  for (int k = start; k < stop; ++k) {
    const bfloat16* scales = block_scales(m, block) + int64_t(k / m.group) * kBlockRows * 2;
    for (int row = 0; row < kHalf; row += kLanes) {
      const IntVec bytes = widen(data + int64_t(k) * kHalf + row);
      const IntVec halves[2] = {bytes & 15, bytes >> 4};
      for (int half = 0; half < 2; ++half) {
        Vec scale, zero;
        load_scales(scales + (half * kHalf + row) * 2, scale, zero);
        store(place(k, half * kHalf + row), (to_float(halves[half]) - 8.f) * scale + zero);
      }
    }
  }
}

// One whole block of 64 rows.
template <int N>
void multiply_int4_block(const Matrix& m, int block, const Int4Input<N>& in, float* y, int64_t y_stride) {
  constexpr int kParts = kBlockRows / kLanes;
  const int groups = (m.columns + m.group - 1) / m.group;
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + int64_t(block) * groups * m.group * (kBlockRows / 2);
  const bfloat16* scales = block_scales(m, block);
  Vec total[kParts][N] = {};
  for (int g = 0; g < groups; ++g) {
    const bfloat16* group_scales = scales + int64_t(g) * kBlockRows * 2;
    prefetch(group_scales, kBlockRows * 2 * sizeof(bfloat16));
#if !defined(PERSONAPLEX_INT4_IN_BYTES)
    for (int line = 0; line < m.group * (kBlockRows / 2); line += 64)
      prefetch(data + int64_t(g) * m.group * (kBlockRows / 2) + line);
#endif
    Vec part[kParts][N];
    dot_nibbles<N>(data, in, g * m.group, m.group, g, part);
    for (int p = 0; p < kParts; ++p) {
      Vec scale, zero;
      load_scales(group_scales + p * kLanes * 2, scale, zero);
      for (int n = 0; n < N; ++n) total[p][n] += scale * part[p][n] + (zero - 8.f * scale) * in.sums[n][g];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int p = 0; p < kParts; ++p) {
      float lanes[kLanes];
      store(lanes, total[p][n]);
      const int row = block * kBlockRows + p * kLanes;
      const int count = m.rows - row < kLanes ? m.rows - row : kLanes;
      if (count > 0) std::memcpy(y + n * y_stride + row, lanes, count * sizeof(float));
    }
}

// The last block where it has fewer rows; small, so kept simple.
template <int N>
void multiply_int4_tail(const Matrix& m, int block, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  const int padded_columns = (m.columns + m.group - 1) / m.group * m.group;
  const int first = block * kBlockRows, rows = m.padded_rows - first;
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + int64_t(first) * padded_columns / 2;
  const bfloat16* scales = block_scales(m, block);
  float total[N][kBlockRows] = {};
  for (int k = 0; k < m.columns; ++k) {
    const bfloat16* scale = scales + int64_t(k / m.group) * rows * 2;
    for (int r = 0; r < rows; ++r) {
      int byte = data[int64_t(k) * (rows / 2) + r / 2];
      float q = float((r % 2 ? byte >> 4 : byte & 15) - 8);
      float weight = q * as_float(scale[2 * r]) + as_float(scale[2 * r + 1]);
      for (int n = 0; n < N; ++n) total[n][r] += weight * x[n * x_stride + k];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int r = 0; first + r < m.rows; ++r) y[n * y_stride + first + r] = total[n][r];
}

template <int N>
void multiply_int4(const Matrix& m, int begin, int end, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  const Int4Input<N> in(m, x, x_stride);
  for (int block = begin / kBlockRows; block * kBlockRows < end; ++block)
    if ((block + 1) * kBlockRows <= m.padded_rows)
      multiply_int4_block<N>(m, block, in, y, y_stride);
    else
      multiply_int4_tail<N>(m, block, x, x_stride, y, y_stride);
}

}  // namespace personaplex
