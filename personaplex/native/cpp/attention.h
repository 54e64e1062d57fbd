// Attention of the newest steps over a ring cache, reading every key and value once.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vector.h"

namespace personaplex {

template <class T>
inline void write_row(T* to, const float* from, int count);

template <>
inline void write_row<float>(float* to, const float* from, int count) {
  std::memcpy(to, from, count * sizeof(float));
}

template <>
inline void write_row<bfloat16>(bfloat16* to, const float* from, int count) {
  for (int i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

// A row as int8: `count` numbers, and behind them their scale, the four bytes of a float. A row that is not finite has
// the scale NaN.
template <>
inline void write_row<int8_t>(int8_t* to, const float* from, int count) {
  float top = 0;
  bool finite = true;
  for (int i = 0; i < count; ++i) {
    top = std::max(top, std::fabs(from[i]));
    finite = finite && std::isfinite(from[i]);
  }
  const float scale = finite ? top / 127 : NAN, step = finite && scale > 0 ? scale : 1;
  for (int i = 0; i < count; ++i) to[i] = finite ? int8_t(std::nearbyint(from[i] / step)) : 0;
  std::memcpy(to + count, &scale, sizeof scale);
}

// From one row to the next.
template <class T>
constexpr int row_step(int width) {
  return std::is_same<T, int8_t>::value ? width + int(sizeof(float)) : width;
}

inline float row_scale(const int8_t* row, int width) {
  float scale;
  std::memcpy(&scale, row + width, sizeof scale);
  return scale;
}

template <class T>
inline float dot(const T* a, const float* b, int count) {
  Vec total[2] = {};
  int k = 0;
  for (; k + 2 * kLanes <= count; k += 2 * kLanes) {
    total[0] += load(a + k) * load(b + k);
    total[1] += load(a + k + kLanes) * load(b + k + kLanes);
  }
  for (; k + kLanes <= count; k += kLanes) total[0] += load(a + k) * load(b + k);
  float y = sum(total[0] + total[1]);
  for (; k < count; ++k) y += as_float(a[k]) * b[k];
  return y;
}

// y[d] += sum over rows of p[row] · v[row][d], v's rows a `step` apart.
template <class T>
inline void add_rows(float* y, const T* v, const float* p, int rows, int width, int step) {
  constexpr int kTogether = 8;  // independent sums, which the processor adds in parallel
  int d = 0;
  for (; d + kTogether * kLanes <= width; d += kTogether * kLanes) {
    Vec total[kTogether];
    for (int i = 0; i < kTogether; ++i) total[i] = load(y + d + i * kLanes);
    for (int row = 0; row < rows; ++row) {
      const T* from = v + int64_t(row) * step + d;
      for (int i = 0; i < kTogether; ++i) total[i] += splat(p[row]) * load(from + i * kLanes);
    }
    for (int i = 0; i < kTogether; ++i) store(y + d + i * kLanes, total[i]);
  }
  for (; d + kLanes <= width; d += kLanes) {
    Vec total = load(y + d);
    for (int row = 0; row < rows; ++row) total += splat(p[row]) * load(v + int64_t(row) * step + d);
    store(y + d, total);
  }
  for (; d < width; ++d)
    for (int row = 0; row < rows; ++row) y[d] += p[row] * as_float(v[int64_t(row) * step + d]);
}

// x[0..n) becomes softmax(x).
inline void softmax(float* x, int n) {
  const float top = largest(x, n);
  map(x, x, n, [&](Vec v) { return exp(v - top); });
  const float scale = 1.f / sum(x, n, [](Vec v) { return v; });
  map(x, x, n, [&](Vec v) { return v * scale; });
}

// The first entries of a cache, which are never overwritten, and the queries that meet the first of them.
struct Kept {
  int64_t entries = 0;
  int64_t held = 0;              // how many of them `query` meets
  const float* query = nullptr;  // as `query` of attend_head, rotated for another position
};

// One head: appends `steps` keys and values at positions first…, then attends with as many queries to the cache: to
// the kept entries and the ring behind them. A full ring hides the entry that would be overwritten next; no query
// sees what is newer than itself. Without kept entries, and with `last` the newest position, query p so sees
// positions last − capacity + 2 … p.
// keys, values: [capacity, row_step] of the cache; step_stride and out_stride lead from one step to the next.
template <class T>
void attend_head(T* keys, T* values, int capacity, int width, int64_t first, int steps, const float* query,
                 const float* key, const float* value, int64_t step_stride, float* out, int64_t out_stride,
                 std::vector<float>& scores, const Kept& kept = {}) {
  const auto entry_of = [&](int64_t position) {
    return kept.entries + (position - kept.entries) % (capacity - kept.entries);
  };
  constexpr bool quantised = std::is_same<T, int8_t>::value;
  const int row_size = row_step<T>(width);
  for (int s = 0; s < steps; ++s) {
    const int64_t entry = entry_of(first + s);
    write_row(keys + entry * row_size, key + s * step_stride, width);
    write_row(values + entry * row_size, value + s * step_stride, width);
  }
  const int64_t last = first + steps - 1;
  const int filled = int(std::min<int64_t>(last + 1, capacity));
  const float scale = 1.f / std::sqrt(float(width));
  scores.resize(size_t(steps) * filled);
  for (int entry = 0; entry < filled; ++entry) {
    const T* row = keys + int64_t(entry) * row_size;
    prefetch(row, row_size * sizeof(T));
    float row_factor = scale;
    if constexpr (quantised) row_factor *= row_scale(row, width);
    const float* meets = entry < kept.held ? kept.query : query;
    for (int s = 0; s < steps; ++s)
      scores[size_t(s) * filled + entry] = row_factor * dot(row, meets + s * step_stride, width);
  }
  for (int s = 0; s < steps; ++s) {
    float* row = scores.data() + size_t(s) * filled;
    if (filled == capacity) row[entry_of(last + 1)] = -INFINITY;
    for (int64_t newer = first + s + 1; newer <= last; ++newer) row[entry_of(newer)] = -INFINITY;
    softmax(row, filled);
    std::fill_n(out + s * out_stride, width, 0.f);
  }
  constexpr int kBlock = 32;  // values that stay in the cache for all queries
  for (int start = 0; start < filled; start += kBlock) {
    const T* rows = values + int64_t(start) * row_size;
    const int count = std::min(kBlock, filled - start);
    prefetch(rows, kBlock * row_size * sizeof(T));
    for (int s = 0; s < steps; ++s) {
      float* weights = scores.data() + size_t(s) * filled + start;
      if constexpr (quantised)
        for (int i = 0; i < count; ++i) weights[i] *= row_scale(rows + int64_t(i) * row_size, width);
      add_rows(out + s * out_stride, rows, weights, count, width, row_size);
    }
  }
}

// Rotates interleaved pairs of x [width] by the angles of one position.
inline void rotate(float* x, const float* cosine, const float* sine, int width) {
  for (int i = 0; i < width / 2; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    x[2 * i] = even * cosine[i] - odd * sine[i];
    x[2 * i + 1] = even * sine[i] + odd * cosine[i];
  }
}

inline void rope_angles(int64_t position, const float* frequencies, int count, float* cosine, float* sine) {
  for (int i = 0; i < count; ++i) {
    const float angle = float(position) * frequencies[i];
    cosine[i] = std::cos(angle);
    sine[i] = std::sin(angle);
  }
}

}  // namespace personaplex
