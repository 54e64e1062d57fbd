// Products of float32, bfloat16 and int24 weights with a few columns.
#pragma once

#include "interface.h"
#include "vector.h"

namespace personaplex {

// sum_k w[k] x[n][k] for N columns; one stream through memory.
template <int N, class W>
inline void dot_row(const W* w, const float* x, int64_t x_stride, int count, float (&y)[N]) {
  constexpr int kChains = N == 1 ? 4 : 2;
  constexpr int kStep = kChains * kLanes, kLine = 64 / int(sizeof(W));
  Vec total[kChains][N] = {};
  int k = 0;
  for (; k + kStep <= count; k += kStep) {
    for (int line = 0; line < kStep; line += kLine) prefetch_far(w + k + line);
    for (int c = 0; c < kChains; ++c) {
      const Vec weight = load(w + k + c * kLanes);
      for (int n = 0; n < N; ++n) total[c][n] += weight * load(x + n * x_stride + k + c * kLanes);
    }
  }
  for (; k + kLanes <= count; k += kLanes)
    for (int n = 0; n < N; ++n) total[0][n] += load(w + k) * load(x + n * x_stride + k);
  for (int n = 0; n < N; ++n) {
    for (int c = 1; c < kChains; ++c) total[0][n] += total[c][n];
    y[n] = sum(total[0][n]);
    for (int i = k; i < count; ++i) y[n] += as_float(w[i]) * x[n * x_stride + i];
  }
}

template <int N, class W>
void multiply_plain(const Matrix& m, int begin, int end, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  const W* data = static_cast<const W*>(m.data);
  const bfloat16* scale = static_cast<const bfloat16*>(m.scale);
  for (int row = begin; row < end; ++row) {
    float part[N];
    dot_row<N>(data + int64_t(row) * m.stride, x, x_stride, m.columns, part);
    for (int n = 0; n < N; ++n) y[n * y_stride + row] = scale ? part[n] * as_float(scale[row]) : part[n];
  }
}

// A row of an int24 weight [rows, columns]; rows follow one another, and each begins with its step, divided by the 256
// of `load`.
struct Row24 {
  float step;
  const int24* numbers;

  Row24(const void* data, int64_t row, int64_t columns) {
    const char* at = static_cast<const char*>(data) + row * int64_t(sizeof step + columns * sizeof(int24));
    std::memcpy(&step, at, sizeof step);
    numbers = reinterpret_cast<const int24*>(at + sizeof step);
  }
};

template <int N>
void multiply_int24(const Matrix& m, int begin, int end, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  for (int index = begin; index < end; ++index) {
    const Row24 row(m.data, index, m.columns);
    float part[N];
    dot_row<N>(row.numbers, x, x_stride, m.columns, part);
    for (int n = 0; n < N; ++n) y[n * y_stride + index] = part[n] * row.step;
  }
}

}  // namespace personaplex
