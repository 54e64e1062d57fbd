// Products of any weight with many columns in float32, or in pairs of bfloat16 where the processor multiplies them.
#pragma once

#include "many_rows.h"

namespace personaplex {

// Content of a 32-bit lane of a panel or a strip: a float, or two neighbours of a sum as bfloat16.
struct Single {
  static constexpr int kNumbers = 1;
  static float pack(const float* x) { return x[0]; }
  static Vec pack(const Vec* x) { return x[0]; }
  static Vec add_product(Vec sum, Vec weight, Vec x) { return sum + weight * x; }
};

#if defined(__AVX512BF16__)
struct Pair {
  static constexpr int kNumbers = 2;
  static float pack(const float* x) {
    return bit_cast<float>(uint32_t(to_bfloat16(x[0]).bits) | uint32_t(to_bfloat16(x[1]).bits) << 16);
  }
  static Vec pack(const Vec* x) {
    return bit_cast<Vec>(bit_cast<UintVec>(round_bfloat16(x[0])) >> 16 | bit_cast<UintVec>(round_bfloat16(x[1])));
  }
  static Vec add_product(Vec sum, Vec weight, Vec x) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)x);
  }
};
using FastestLane = Pair;
#else
using FastestLane = Single;
#endif

template <class Lane>
struct InFloats {
#if defined(__AVX512F__)
  static constexpr int kColumns = 12;  // 24 sums in 32 registers
#elif defined(__AVX__)
  static constexpr int kColumns = 6;  // 12 in 16
#else
  static constexpr int kColumns = 4;
#endif
  static constexpr int kLanesOfDepth = kDepth / Lane::kNumbers;
  static constexpr int kStripSize = kLanesOfDepth * kColumns, kPanelSize = kLanesOfDepth * kPanelRows;

  static int lanes_of(int depth) { return (depth + Lane::kNumbers - 1) / Lane::kNumbers; }

  // Strips are [lanes][kColumns].
  static void pack(const float* numbers, float* strip, int c) {
    for (int lane = 0; lane < kLanesOfDepth; ++lane)
      strip[lane * kColumns + c] = Lane::pack(numbers + lane * Lane::kNumbers);
  }

  // Panels are [lanes][kPanelRows].
  static void multiply(const float* panel, const float* strip, int depth, Tile<kColumns>& tile) {
    Tile<kColumns> total = tile;
    for (int k = 0; k < lanes_of(depth); ++k) {
      Vec weight[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) weight[v] = load(panel + size_t(k) * kPanelRows + v * kLanes);
      for (int c = 0; c < kColumns; ++c) {
        const Vec x = everywhere(strip + size_t(k) * kColumns + c);
        for (int v = 0; v < kPanelVectors; ++v) total.sums[c][v] = Lane::add_product(total.sums[c][v], weight[v], x);
      }
    }
    tile = total;
  }

  // Rows [first, first + kBlockRows) and columns [start, start + depth) of a weight, zeros beyond it.
  class Unpacker {
   public:
    explicit Unpacker(const Matrix& m) : m_(m), columns_(size_t(kDepth + Lane::kNumbers) * kBlockRows) {}

    void run(int first, int start, int depth, float* panels) {
      switch (m_.kind) {
        case kFloat32: plain<float>(first, start, depth); break;
        case kBfloat16: plain<bfloat16>(first, start, depth); break;
        case kInt8: bytes(first, start, depth); break;
        default: first + kBlockRows <= m_.padded_rows ? nibbles(first, start, depth) : tail(first, start, depth);
      }
      const int lanes = lanes_of(depth);
      std::fill(place(depth, 0), place(lanes * Lane::kNumbers, 0), 0.f);
      for (int lane = 0; lane < lanes; ++lane)
        for (int row = 0; row < kBlockRows; row += kLanes) {
          Vec numbers[Lane::kNumbers];
          for (int i = 0; i < Lane::kNumbers; ++i) numbers[i] = load(place(lane * Lane::kNumbers + i, row));
          store(panels + size_t(row / kPanelRows) * kPanelSize + lane * kPanelRows + row % kPanelRows,
                Lane::pack(numbers));
        }
    }

   private:
    float* place(int k, int row) { return columns_.data() + size_t(k) * kBlockRows + row; }

    template <class W>
    void plain(int first, int start, int depth) {
      for (int row = 0; row < kBlockRows; ++row) {
        const bool there = first + row < m_.rows;
        const W* from = static_cast<const W*>(m_.data) + (there ? int64_t(first + row) * m_.stride + start : 0);
        const float scale = m_.scale && there ? as_float(static_cast<const bfloat16*>(m_.scale)[first + row]) : 1.f;
        for (int k = 0; k < depth; ++k) *place(k, row) = there ? as_float(from[k]) * scale : 0.f;
      }
    }

    // A vector of rows, four numbers of each at once.
    void bytes(int first, int start, int depth) {
      if (first + kBlockRows > m_.rows || depth % 4) return plain<int8_t>(first, start, depth);
      for (int row = 0; row < kBlockRows; row += kLanes) {
        const int8_t* from = static_cast<const int8_t*>(m_.data) + int64_t(first + row) * m_.stride + start;
        const Vec scale = load(static_cast<const bfloat16*>(m_.scale) + first + row);
        for (int k = 0; k < depth; k += 4) {
          int32_t four[kLanes];
          for (int lane = 0; lane < kLanes; ++lane) std::memcpy(four + lane, from + int64_t(lane) * m_.stride + k, 4);
          IntVec numbers;
          std::memcpy(&numbers, four, sizeof numbers);
          for (int i = 0; i < 4; ++i) store(place(k + i, row), to_float((numbers << (24 - 8 * i)) >> 24) * scale);
        }
      }
    }

    void nibbles(int first, int start, int depth) {
      unpack_int4_block(m_, first / kBlockRows, start, start + depth,
                        [&](int k, int row) { return place(k - start, row); });
    }

    // A last block of fewer rows, whose bytes hold rows 2j and 2j + 1.
    void tail(int first, int start, int depth) {
      const int rows = m_.padded_rows - first, padded_columns = (m_.columns + m_.group - 1) / m_.group * m_.group;
      const uint8_t* data = static_cast<const uint8_t*>(m_.data) + int64_t(first) * padded_columns / 2;
      for (int k = start; k < start + depth; ++k) {
        const bfloat16* scales = block_scales(m_, first / kBlockRows) + int64_t(k / m_.group) * rows * 2;
        for (int row = 0; row < kBlockRows; ++row) {
          float* to = place(k - start, row);
          if (row >= rows) {
            *to = 0.f;
            continue;
          }
          const int byte = data[int64_t(k) * (rows / 2) + row / 2];
          *to =
              float((row % 2 ? byte >> 4 : byte & 15) - 8) * as_float(scales[2 * row]) + as_float(scales[2 * row + 1]);
        }
      }
    }

    const Matrix& m_;
    std::vector<float> columns_;  // [depth][kBlockRows]
  };
};

}  // namespace personaplex
