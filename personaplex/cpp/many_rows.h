// Products of a weight with many columns, as a prompt has: a block of the weight becomes floats, or pairs of bfloat16
// where the processor multiplies them, that stay in the cache while all columns meet it.
// (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.)
#pragma once

#include <algorithm>
#include <vector>

#include "matrix.h"
#include "team.h"

namespace personaplex {

constexpr int kPanelVectors = 2, kPanelRows = kPanelVectors * kLanes;
#if defined(__AVX512F__)
constexpr int kStripColumns = 12;  // 24 sums in 32 registers
#elif defined(__AVX__)
constexpr int kStripColumns = 6;  // 12 in 16
#else
constexpr int kStripColumns = 4;
#endif
constexpr int kDepth = 256;  // numbers of a sum that are added up before the next are unpacked

// What a 32-bit lane of a panel or a strip holds: a number, or two neighbours of a sum as bfloat16.
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
constexpr int lanes_of(int depth) {
  return (depth + Lane::kNumbers - 1) / Lane::kNumbers;
}

// Rows [first, first + kBlockRows) and numbers [start, start + depth) of a weight as panels [lanes][kPanelRows]; what
// is beyond the weight is zero.
template <class Lane>
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
    const int lanes = lanes_of<Lane>(depth);
    std::fill(place(depth, 0), place(lanes * Lane::kNumbers, 0), 0.f);
    for (int lane = 0; lane < lanes; ++lane)
      for (int row = 0; row < kBlockRows; row += kLanes) {
        Vec numbers[Lane::kNumbers];
        for (int i = 0; i < Lane::kNumbers; ++i) numbers[i] = load(place(lane * Lane::kNumbers + i, row));
        store(panels + (size_t(row / kPanelRows) * lanes + lane) * kPanelRows + row % kPanelRows, Lane::pack(numbers));
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
    unpack_int4_block(m_, first / kBlockRows, start, start + depth, [&](int k, int row) { return place(k - start, row); });
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
        *to = float((row % 2 ? byte >> 4 : byte & 15) - 8) * as_float(scales[2 * row]) + as_float(scales[2 * row + 1]);
      }
    }
  }

  const Matrix& m_;
  std::vector<float> columns_;  // [depth][kBlockRows]
};

// sums[c] += panel [lanes][kPanelRows] times column c of strip [lanes][kStripColumns].
template <class Lane>
inline void multiply_strip(const float* panel, const float* strip, int lanes, float* sums, bool first) {
  Vec total[kStripColumns][kPanelVectors];
  for (int c = 0; c < kStripColumns; ++c)
    for (int v = 0; v < kPanelVectors; ++v) total[c][v] = first ? Vec{} : load(sums + c * kPanelRows + v * kLanes);
  for (int k = 0; k < lanes; ++k) {
    Vec weight[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) weight[v] = load(panel + size_t(k) * kPanelRows + v * kLanes);
    for (int c = 0; c < kStripColumns; ++c) {
      const Vec x = everywhere(strip + size_t(k) * kStripColumns + c);
      for (int v = 0; v < kPanelVectors; ++v) total[c][v] = Lane::add_product(total[c][v], weight[v], x);
    }
  }
  for (int c = 0; c < kStripColumns; ++c)
    for (int v = 0; v < kPanelVectors; ++v) store(sums + c * kPanelRows + v * kLanes, total[c][v]);
}

// y [n, m.rows] = x [n, m.columns] · Wᵀ.
template <class Lane>
void multiply_many(const Matrix& m, const float* x, int n, float* y, int threads) {
  constexpr int kPanels = kBlockRows / kPanelRows;
  const int strips = (n + kStripColumns - 1) / kStripColumns, parts = (m.columns + kDepth - 1) / kDepth;
  auto depth_of = [&](int part) { return std::min(kDepth, m.columns - part * kDepth); };
  // Columns as strips [part][strip][lanes][kStripColumns]; those beyond the last are zero.
  constexpr int kStripSize = lanes_of<Lane>(kDepth) * kStripColumns;
  std::vector<float> packed(size_t(strips) * parts * kStripSize);
  auto strip_at = [&](int part, int strip) { return packed.data() + (size_t(part) * strips + strip) * kStripSize; };
  run_team(threads, [&](const Team& team) {
    const Range own = team.share(strips);
    for (int strip = own.begin; strip < own.end; ++strip)
      for (int part = 0; part < parts; ++part)
        for (int c = 0; c < kStripColumns; ++c) {
          const int column = strip * kStripColumns + c, depth = depth_of(part);
          for (int lane = 0; lane < lanes_of<Lane>(depth); ++lane) {
            float numbers[Lane::kNumbers] = {};
            for (int i = 0, k = lane * Lane::kNumbers; i < Lane::kNumbers && k < depth; ++i, ++k)
              if (column < n) numbers[i] = x[int64_t(column) * m.columns + part * kDepth + k];
            strip_at(part, strip)[size_t(lane) * kStripColumns + c] = Lane::pack(numbers);
          }
        }
    team.wait();
    Unpacker<Lane> unpacker(m);
    std::vector<float> panels(size_t(kBlockRows) * lanes_of<Lane>(kDepth));
    std::vector<float> sums(size_t(strips) * kPanels * kStripColumns * kPanelRows);
    const Range blocks = team.share((m.rows + kBlockRows - 1) / kBlockRows);
    for (int block = blocks.begin; block < blocks.end; ++block) {
      for (int part = 0; part < parts; ++part) {
        const int depth = depth_of(part), lanes = lanes_of<Lane>(depth);
        unpacker.run(block * kBlockRows, part * kDepth, depth, panels.data());
        for (int strip = 0; strip < strips; ++strip)
          for (int panel = 0; panel < kPanels; ++panel)
            multiply_strip<Lane>(panels.data() + size_t(panel) * lanes * kPanelRows, strip_at(part, strip), lanes,
                                 sums.data() + (size_t(strip) * kPanels + panel) * kStripColumns * kPanelRows,
                                 part == 0);
      }
      for (int column = 0; column < n; ++column)
        for (int panel = 0; panel < kPanels; ++panel) {
          const int row = block * kBlockRows + panel * kPanelRows;
          const size_t tile = size_t(column / kStripColumns) * kPanels + panel;
          const float* from = sums.data() + (tile * kStripColumns + column % kStripColumns) * kPanelRows;
          if (row < m.rows)
            std::copy_n(from, std::min(kPanelRows, m.rows - row), y + int64_t(column) * m.rows + row);
        }
    }
  });
}

}  // namespace personaplex
