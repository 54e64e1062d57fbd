// Products of a weight with many columns, as a prompt has: a block of the weight becomes floats that stay in the
// cache while all columns meet it. (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.)
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

// Rows [first, first + kBlockRows) and numbers [start, start + depth) of a weight as panels [depth][kPanelRows]; rows
// beyond the weight are zero.
class Unpacker {
 public:
  explicit Unpacker(const Matrix& m) : m_(m) {}

  void run(int first, int start, int depth, float* panels) const {
    switch (m_.kind) {
      case kFloat32: return plain<float>(first, start, depth, panels);
      case kBfloat16: return plain<bfloat16>(first, start, depth, panels);
      case kInt8: return plain<int8_t>(first, start, depth, panels);
      default: first + kBlockRows <= m_.padded_rows ? nibbles(first, start, depth, panels) : tail(first, start, depth, panels);
    }
  }

 private:
  static float* place(float* panels, int depth, int row, int k) {
    return panels + size_t(row / kPanelRows) * depth * kPanelRows + size_t(k) * kPanelRows + row % kPanelRows;
  }

  template <class W>
  void plain(int first, int start, int depth, float* panels) const {
    for (int row = 0; row < kBlockRows; ++row) {
      const bool there = first + row < m_.rows;
      const W* from = static_cast<const W*>(m_.data) + (there ? int64_t(first + row) * m_.stride + start : 0);
      const float scale = m_.scale && there ? as_float(static_cast<const bfloat16*>(m_.scale)[first + row]) : 1.f;
      float* to = place(panels, depth, row, 0);
      for (int k = 0; k < depth; ++k) to[size_t(k) * kPanelRows] = there ? as_float(from[k]) * scale : 0.f;
    }
  }

  void nibbles(int first, int start, int depth, float* panels) const {
    unpack_int4_block(m_, first / kBlockRows, start, start + depth,
                      [&](int k, int row) { return place(panels, depth, row, k - start); });
  }

  // A last block of fewer rows, whose bytes hold rows 2j and 2j + 1.
  void tail(int first, int start, int depth, float* panels) const {
    const int rows = m_.padded_rows - first, padded_columns = (m_.columns + m_.group - 1) / m_.group * m_.group;
    const uint8_t* data = static_cast<const uint8_t*>(m_.data) + int64_t(first) * padded_columns / 2;
    for (int k = start; k < start + depth; ++k) {
      const bfloat16* scales = block_scales(m_, first / kBlockRows) + int64_t(k / m_.group) * rows * 2;
      for (int row = 0; row < kBlockRows; ++row) {
        float* to = place(panels, depth, row, k - start);
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
};

// sums[c] += panel [depth][kPanelRows] times column c of strip [depth][kStripColumns].
inline void multiply_strip(const float* panel, const float* strip, int depth, float* sums, bool first) {
  Vec total[kStripColumns][kPanelVectors];
  for (int c = 0; c < kStripColumns; ++c)
    for (int v = 0; v < kPanelVectors; ++v) total[c][v] = first ? Vec{} : load(sums + c * kPanelRows + v * kLanes);
  for (int k = 0; k < depth; ++k) {
    Vec weight[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) weight[v] = load(panel + size_t(k) * kPanelRows + v * kLanes);
    for (int c = 0; c < kStripColumns; ++c) {
      const Vec x = splat(strip[size_t(k) * kStripColumns + c]);
      for (int v = 0; v < kPanelVectors; ++v) total[c][v] += weight[v] * x;
    }
  }
  for (int c = 0; c < kStripColumns; ++c)
    for (int v = 0; v < kPanelVectors; ++v) store(sums + c * kPanelRows + v * kLanes, total[c][v]);
}

// y [n, m.rows] = x [n, m.columns] · Wᵀ.
inline void multiply_many(const Matrix& m, const float* x, int n, float* y, int threads) {
  constexpr int kPanels = kBlockRows / kPanelRows;
  const int strips = (n + kStripColumns - 1) / kStripColumns, parts = (m.columns + kDepth - 1) / kDepth;
  auto depth_of = [&](int part) { return std::min(kDepth, m.columns - part * kDepth); };
  // Columns as strips [part][strip][depth][kStripColumns]; those beyond the last are zero.
  std::vector<float> packed(size_t(strips) * kStripColumns * parts * kDepth);
  auto strip_at = [&](int part, int strip) {
    return packed.data() + (size_t(part) * strips + strip) * kDepth * kStripColumns;
  };
  run_team(threads, [&](const Team& team) {
    const Range own = team.share(strips);
    for (int strip = own.begin; strip < own.end; ++strip)
      for (int part = 0; part < parts; ++part)
        for (int c = 0; c < kStripColumns; ++c) {
          const int column = strip * kStripColumns + c;
          for (int k = 0; k < depth_of(part); ++k)
            strip_at(part, strip)[size_t(k) * kStripColumns + c] =
                column < n ? x[int64_t(column) * m.columns + part * kDepth + k] : 0.f;
        }
    team.wait();
    const Unpacker unpacker(m);
    std::vector<float> panels(size_t(kBlockRows) * kDepth), sums(size_t(strips) * kPanels * kStripColumns * kPanelRows);
    const Range blocks = team.share((m.rows + kBlockRows - 1) / kBlockRows);
    for (int block = blocks.begin; block < blocks.end; ++block) {
      for (int part = 0; part < parts; ++part) {
        const int depth = depth_of(part);
        unpacker.run(block * kBlockRows, part * kDepth, depth, panels.data());
        for (int strip = 0; strip < strips; ++strip)
          for (int panel = 0; panel < kPanels; ++panel)
            multiply_strip(panels.data() + size_t(panel) * depth * kPanelRows, strip_at(part, strip), depth,
                           sums.data() + (size_t(strip) * kPanels + panel) * kStripColumns * kPanelRows, part == 0);
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
