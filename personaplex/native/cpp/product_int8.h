// Products of int8 weights with a few columns, in 16-bit integers where the processor has the instructions.
#pragma once

#include "interface.h"
#include "product_plain.h"
#include "quantize.h"

namespace personaplex {

#if defined(PERSONAPLEX_INT8_IN_WORDS)

// Columns prepared for int8 weights: quantised to int16 in pieces with one step each, much finer than bfloat16.
template <int N>
struct Int8Input {
  static constexpr int kPiece = 256, kMaxCount = 1 << 15;
  static constexpr float kSteps = 32767;
  int count;  // with zeros to the end of the last vector
  float step[N][kMaxCount / kPiece];
  alignas(64) int16_t whole[N][kMaxCount];

  Int8Input(const Matrix& m, const float* x, int64_t x_stride) : count((m.columns + kWords - 1) / kWords * kWords) {
    for (int n = 0; n < N; ++n)
      for (int start = 0; start < count; start += kPiece) {
        alignas(64) float piece[kPiece] = {};
        const int there = m.columns - start < kPiece ? m.columns - start : kPiece;
        std::memcpy(piece, x + n * x_stride + start, there * sizeof(float));
        const WholeStep made(piece, kPiece, kSteps);
        step[n][start / kPiece] = made.step;
        for (int k = 0; k < kPiece; k += kLanes)
          store_words(whole[n] + start + k, round(load(piece + k) * made.inverse));
      }
  }
};

// One row, `stride` numbers long with its padding, which is a multiple of kWords.
template <int N>
inline void dot_words(const int8_t* w, const Int8Input<N>& in, float (&y)[N]) {
  constexpr int kChains = N == 1 ? 4 : 2, kPiece = Int8Input<N>::kPiece;
  Vec total[N] = {};
  for (int start = 0; start < in.count; start += kPiece) {
    IntVec part[kChains][N] = {};
    const int stop = start + kPiece < in.count ? start + kPiece : in.count;
    int k = start;
    for (; k + kChains * kWords <= stop; k += kChains * kWords) {
      for (int line = 0; line < kChains * kWords; line += kLineBytes) prefetch_far(w + k + line);
      for (int c = 0; c < kChains; ++c) {
        const Words weight = widen_words(w + k + c * kWords);
        for (int n = 0; n < N; ++n)
          part[c][n] = add_products(part[c][n], weight, load_words(in.whole[n] + k + c * kWords));
      }
    }
    for (; k < stop; k += kWords)
      for (int n = 0; n < N; ++n)
        part[0][n] = add_products(part[0][n], widen_words(w + k), load_words(in.whole[n] + k));
    for (int n = 0; n < N; ++n) {
      for (int c = 1; c < kChains; ++c) part[0][n] += part[c][n];
      total[n] += to_float(part[0][n]) * in.step[n][start / kPiece];
    }
  }
  for (int n = 0; n < N; ++n) y[n] = sum(total[n]);
}

template <int N>
void multiply_int8(const Matrix& m, int begin, int end, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  const Int8Input<N> in(m, x, x_stride);
  const int8_t* data = static_cast<const int8_t*>(m.data);
  const bfloat16* scale = static_cast<const bfloat16*>(m.scale);
  for (int row = begin; row < end; ++row) {
    float part[N];
    dot_words<N>(data + int64_t(row) * m.stride, in, part);
    for (int n = 0; n < N; ++n) y[n * y_stride + row] = part[n] * as_float(scale[row]);
  }
}
#endif

}  // namespace personaplex
