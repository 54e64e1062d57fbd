// Products of an int4 weight with many columns, in integers: columns are quantised to int8 with one step for 32
// numbers, and one instruction makes four products with nibbles. The error is small beside that of the 4 bits.
#pragma once

#include "many_rows.h"

#if defined(PERSONAPLEX_INT8_IN_WORDS)
#define PERSONAPLEX_MANY_IN_BYTES

namespace personaplex {

struct InBytes {
#if defined(__AVX512BW__)
  static constexpr int kColumns = 5;  // 10 integer sums and 10 float sums in 32 registers
#else
  static constexpr int kColumns = 4;  // 8 integer sums in 16
#endif
  static constexpr int kShared = 32;          // numbers that share a step; a group of any weight is a multiple of it
  static constexpr int kFours = kShared / 4;  // 32-bit lanes that hold them
  static constexpr int kWordsOfShared = kFours + 2;  // and two floats for all of them: step and sum
  static constexpr int kStripSize = kDepth / kShared * kWordsOfShared * kColumns;
  static constexpr int kPanelSize = kDepth / kShared * kWordsOfShared * kPanelRows;
  static constexpr float kSteps = 127;

  static bool takes(const Matrix& m) { return m.kind == kInt4 && m.padded_rows % kBlockRows == 0; }

  // Strips are, for every 32 numbers, [kFours][kColumns] integers, their steps [kColumns] and their sums [kColumns].
  static void pack(const float* numbers, float* strip, int c) {
    for (int start = 0; start < kDepth; start += kShared, strip += kWordsOfShared * kColumns) {
      const WholeStep made(numbers + start, kShared, kSteps);
      alignas(64) int32_t whole[kShared];
      Vec total = {};
      for (int k = 0; k < kShared; k += kLanes) {
        const IntVec rounded = round(load(numbers + start + k) * made.inverse);
        std::memcpy(whole + k, &rounded, sizeof rounded);
        total += to_float(rounded);
      }
      for (int four = 0; four < kFours; ++four) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= uint32_t(uint8_t(whole[four * 4 + i])) << (8 * i);
        strip[four * kColumns + c] = bit_cast<float>(word);
      }
      strip[kFours * kColumns + c] = made.step;
      strip[(kFours + 1) * kColumns + c] = sum(total) * made.step;
    }
  }

#if defined(__AVX512BW__)
  using Sums = __m512i;
  static Sums nothing() { return _mm512_setzero_si512(); }
#if defined(__AVX512VNNI__)
  static Sums add_products(Sums sums, Vec weight, Vec x) {
    return _mm512_dpbusd_epi32(sums, (__m512i)weight, (__m512i)x);
  }
  static IntVec whole(Sums sums) { return (IntVec)sums; }
#else
  // 16-bit sums of two products eight times: 16 · 15 · 127 fits.
  static Sums add_products(Sums sums, Vec weight, Vec x) {
    return _mm512_add_epi16(sums, _mm512_maddubs_epi16((__m512i)weight, (__m512i)x));
  }
  static IntVec whole(Sums sums) { return (IntVec)_mm512_madd_epi16(sums, _mm512_set1_epi16(1)); }
#endif
#else
  using Sums = __m256i;
  static Sums nothing() { return _mm256_setzero_si256(); }
  static Sums add_products(Sums sums, Vec weight, Vec x) {
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16((__m256i)weight, (__m256i)x));
  }
  static IntVec whole(Sums sums) { return (IntVec)_mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
#endif

  // Panels are, for every 32 numbers, [kFours][kPanelRows] integers of 0 … 15, their scales and offsets,
  // [kPanelRows] each.
  static void multiply(const float* panel, const float* strip, int depth, Tile<kColumns>& tile) {
    Tile<kColumns> total = tile;
    for (int start = 0; start < depth; start += kShared) {
      Sums part[kColumns][kPanelVectors];
      for (auto& column : part)
        for (auto& sums : column) sums = nothing();
      for (int four = 0; four < kFours; ++four, panel += kPanelRows, strip += kColumns) {
        Vec weight[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) weight[v] = load(panel + v * kLanes);
        for (int c = 0; c < kColumns; ++c) {
          const Vec x = everywhere(strip + c);
          for (int v = 0; v < kPanelVectors; ++v) part[c][v] = add_products(part[c][v], weight[v], x);
        }
      }
      for (int v = 0; v < kPanelVectors; ++v) {
        const Vec scale = load(panel + v * kLanes), zero = load(panel + kPanelRows + v * kLanes);
        for (int c = 0; c < kColumns; ++c) {
          const Vec step = everywhere(strip + c), all = everywhere(strip + kColumns + c);
          total.sums[c][v] += to_float(whole(part[c][v])) * scale * step;
          total.sums[c][v] += zero * all;
        }
      }
      panel += 2 * kPanelRows;
      strip += 2 * kColumns;
    }
    tile = total;
  }

  class Unpacker {
   public:
    explicit Unpacker(const Matrix& m) : m_(m), groups_((m.columns + m.group - 1) / m.group) {}

    void run(int first, int start, int depth, float* panels) {
      const int block = first / kBlockRows;
      const uint8_t* data = static_cast<const uint8_t*>(m_.data) + int64_t(block) * groups_ * m_.group * kHalf;
      for (int k = start; k < start + depth; k += kShared, panels += kWordsOfShared * kPanelRows) {
        auto place = [&](int line, int row) {
          return panels + size_t(row / kPanelRows) * kPanelSize + line * kPanelRows + row % kPanelRows;
        };
        for (int four = 0; four < kFours; ++four)
          unpack_four(data + int64_t(k + 4 * four) * kHalf, [&](int row) { return place(four, row); });
        const bfloat16* scales = block_scales(m_, block) + int64_t(k / m_.group) * kBlockRows * 2;
        ask_ahead(data + int64_t(k + kDepth) * kHalf, kShared * kHalf);
        ask_ahead(scales + int64_t(kDepth / m_.group) * kBlockRows * 2, kBlockRows * 2 * sizeof(bfloat16));
        for (int row = 0; row < kBlockRows; row += kLanes) {
          Vec scale, zero;
          load_scales(scales + row * 2, scale, zero);
          store(place(kFours, row), scale);
          store(place(kFours + 1, row), zero - 8.f * scale);
        }
      }
    }

   private:
    static constexpr int kHalf = kBlockRows / 2;

    // Prefetches the next part while all columns use this one; it may lie beyond the weight.
    static void ask_ahead(const void* from, size_t bytes) {
      for (size_t line = 0; line < bytes; line += kLineBytes)
        __builtin_prefetch(static_cast<const char*>(from) + line, 0, 2);
    }

    // Four columns of 32 bytes: a row's four numbers become a lane.
    template <class Place>
    static void unpack_four(const uint8_t* data, Place place) {
      __m256i column[4], pairs[4], fours[4];
      for (int i = 0; i < 4; ++i) column[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i * kHalf));
      for (int i = 0; i < 2; ++i) {
        pairs[i] = _mm256_unpacklo_epi8(column[2 * i], column[2 * i + 1]);
        pairs[2 + i] = _mm256_unpackhi_epi8(column[2 * i], column[2 * i + 1]);
      }
      for (int i = 0; i < 2; ++i) {
        fours[2 * i] = _mm256_unpacklo_epi16(pairs[2 * i], pairs[2 * i + 1]);
        fours[2 * i + 1] = _mm256_unpackhi_epi16(pairs[2 * i], pairs[2 * i + 1]);
      }
      // Unpacking keeps to the halves of a register: fours[i] holds rows 4 i … 4 i + 3 and those 16 further on.
      const __m256i nibble = _mm256_set1_epi8(15);
      for (int i = 0; i < 4; ++i) {
        const __m256i rows = i < 2 ? _mm256_permute2x128_si256(fours[2 * i], fours[2 * i + 1], 0x20)
                                   : _mm256_permute2x128_si256(fours[2 * i - 4], fours[2 * i - 3], 0x31);
        const __m256i low = _mm256_and_si256(rows, nibble), high = _mm256_and_si256(_mm256_srli_epi16(rows, 4), nibble);
        std::memcpy(place(8 * i), &low, sizeof low);
        std::memcpy(place(kHalf + 8 * i), &high, sizeof high);
      }
    }

    const Matrix& m_;
    int groups_;
  };
};

}  // namespace personaplex
#endif
