// Products of a weight with many columns, as a prompt has: a block of the weight is unpacked once and stays in the
// cache while all columns are multiplied with it.
// (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.)
#pragma once

#include <algorithm>
#include <vector>

#include "matrix.h"
#include "team.h"

namespace personaplex {

constexpr int kDepth = 256;  // terms of a sum that are added up before the next are unpacked
constexpr int kPanelVectors = 2, kPanelRows = kPanelVectors * kLanes;

// Sums of a panel of rows and a strip of columns while they are in registers.
template <int kColumns>
struct Tile {
  Vec sums[kColumns][kPanelVectors];

  void load_from(const float* from) {
    for (int c = 0; c < kColumns; ++c)
      for (int v = 0; v < kPanelVectors; ++v) sums[c][v] = load(from + c * kPanelRows + v * kLanes);
  }
  void store_to(float* to) const {
    for (int c = 0; c < kColumns; ++c)
      for (int v = 0; v < kPanelVectors; ++v) store(to + c * kPanelRows + v * kLanes, sums[c][v]);
  }
};

// y [n, m.rows] = x [n, m.columns] · Wᵀ, where an Arithmetic has
//   kColumns      columns of a strip
//   kStripSize    32-bit words of a strip of kDepth numbers a column
//   pack          one column of a strip from kDepth floats, with zeros after the last
//   kPanelSize    32-bit words of a panel of kDepth numbers a row
//   Unpacker      makes the panels of a block of rows
//   multiply      adds a panel's products with a strip to a tile
template <class Arithmetic, class Number>
void multiply_many(const Matrix& m, const Number* x, int n, Number* y, int threads) {
  constexpr int kColumns = Arithmetic::kColumns, kPanels = kBlockRows / kPanelRows, kTileSize = kColumns * kPanelRows;
  const int strips = (n + kColumns - 1) / kColumns, parts = (m.columns + kDepth - 1) / kDepth;
  auto depth_of = [&](int part) { return std::min(kDepth, m.columns - part * kDepth); };
  std::vector<float> packed(size_t(strips) * parts * Arithmetic::kStripSize);
  auto strip_at = [&](int part, int strip) {
    return packed.data() + (size_t(part) * strips + strip) * Arithmetic::kStripSize;
  };
  run_team(threads, [&](const Team& team) {
    team.each(strips, 1, 1, [&](Range own) {
      for (int strip = own.begin; strip < own.end; ++strip)
        for (int part = 0; part < parts; ++part)
          for (int c = 0; c < kColumns; ++c) {
            const int column = strip * kColumns + c;
            alignas(64) float numbers[kDepth] = {};
            if (column < n) convert(numbers, x + int64_t(column) * m.columns + part * kDepth, depth_of(part));
            Arithmetic::pack(numbers, strip_at(part, strip), c);
          }
    });
    typename Arithmetic::Unpacker unpacker(m);
    std::vector<float> panels(size_t(kPanels) * Arithmetic::kPanelSize);
    std::vector<float> sums(size_t(strips) * kPanels * kTileSize);
    team.each((m.rows + kBlockRows - 1) / kBlockRows, 1, 1, [&](Range blocks) {
      for (int block = blocks.begin; block < blocks.end; ++block) {
        std::fill(sums.begin(), sums.end(), 0.f);
        for (int part = 0; part < parts; ++part) {
          unpacker.run(block * kBlockRows, part * kDepth, depth_of(part), panels.data());
          for (int strip = 0; strip < strips; ++strip)
            for (int panel = 0; panel < kPanels; ++panel) {
              float* place = sums.data() + (size_t(strip) * kPanels + panel) * kTileSize;
              Tile<kColumns> tile;
              tile.load_from(place);
              Arithmetic::multiply(panels.data() + size_t(panel) * Arithmetic::kPanelSize, strip_at(part, strip),
                                   depth_of(part), tile);
              tile.store_to(place);
            }
        }
        for (int column = 0; column < n; ++column)
          for (int panel = 0; panel < kPanels; ++panel) {
            const int row = block * kBlockRows + panel * kPanelRows;
            const size_t tile = size_t(column / kColumns) * kPanels + panel;
            const float* from = sums.data() + tile * kTileSize + column % kColumns * kPanelRows;
            if (row < m.rows) convert(y + int64_t(column) * m.rows + row, from, std::min(kPanelRows, m.rows - row));
          }
      }
    });
  });
}

}  // namespace personaplex
