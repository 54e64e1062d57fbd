// Products of a weight of any kind with a few columns.
#pragma once

#include "interface.h"
#include "product_int4.h"
#include "product_int8.h"
#include "product_plain.h"

namespace personaplex {

constexpr int kMaxColumns = 4;  // columns multiplied at once while a weight is in a register

// Rows of a weight that one product must take together.
inline int row_unit(const Matrix& m) { return m.kind == kInt4 ? kBlockRows : 16; }

// Units of rows that a thread takes at least: 64 KiB of weights, read in some microseconds.
inline int least_units(const Matrix& m) {
  static constexpr int kBits[] = {32, 16, 8, 4, 24};
  static_assert(kFloat32 == 0 && kBfloat16 == 1 && kInt8 == 2 && kInt4 == 3 && kInt24 == 4, "by kind");
  const int64_t unit_bytes = int64_t(row_unit(m)) * m.columns * kBits[m.kind] / 8;
  return int((64 << 10) / (unit_bytes > 0 ? unit_bytes : 1)) + 1;
}

template <int N>
void multiply_columns(const Matrix& m, int begin, int end, const float* x, int64_t x_stride, float* y,
                      int64_t y_stride) {
  switch (m.kind) {
    case kFloat32: return multiply_plain<N, float>(m, begin, end, x, x_stride, y, y_stride);
    case kBfloat16: return multiply_plain<N, bfloat16>(m, begin, end, x, x_stride, y, y_stride);
    case kInt24: return multiply_int24<N>(m, begin, end, x, x_stride, y, y_stride);
#if defined(PERSONAPLEX_INT8_IN_WORDS)
    case kInt8: return multiply_int8<N>(m, begin, end, x, x_stride, y, y_stride);
#else
    case kInt8: return multiply_plain<N, int8_t>(m, begin, end, x, x_stride, y, y_stride);
#endif
    default: return multiply_int4<N>(m, begin, end, x, x_stride, y, y_stride);
  }
}

// y[n][r] = sum_k w[r][k] x[n][k] for rows begin..end, which start at a multiple of row_unit, and any n columns.
inline void multiply(const Matrix& m, int begin, int end, const float* x, int64_t x_stride, int columns, float* y,
                     int64_t y_stride) {
  constexpr int kRowsInCache = 64;
  for (int row = begin; row < end; row += kRowsInCache) {
    // All columns are multiplied with these rows while they are in the cache.
    const int stop = columns <= kMaxColumns ? end : (row + kRowsInCache < end ? row + kRowsInCache : end);
    for (int n = 0; n < columns; n += kMaxColumns) {
      const float* from = x + n * x_stride;
      float* to = y + n * y_stride;
      switch (columns - n) {
        case 1: multiply_columns<1>(m, row, stop, from, x_stride, to, y_stride); break;
        case 2: multiply_columns<2>(m, row, stop, from, x_stride, to, y_stride); break;
        case 3: multiply_columns<3>(m, row, stop, from, x_stride, to, y_stride); break;
        default: multiply_columns<4>(m, row, stop, from, x_stride, to, y_stride);
      }
    }
    if (columns <= kMaxColumns) break;
  }
}

}  // namespace personaplex
