// Streaming convolutions as matrix products. Long outputs have time in the lanes of a vector, and weights that are
// copied into the order they are read in; short ones, whose weights are large, are dot products that read each once.
#pragma once

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "interface.h"
#include "matrix.h"
#include "team.h"

namespace personaplex {

inline int padded_length(int count) { return (count + kLanes - 1) / kLanes * kLanes + kLanes; }

inline Vec elu(Vec x) { return x > 0.f ? x : exp(x) - 1.f; }

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVectors = 3;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

// Rows of a weight in the order that products read: panels of kTileRows rows, [panel, k, row of the panel], zeros to
// the end.
inline std::vector<float> in_panels(const float* weight, int rows, int64_t row_step, int count, int64_t column_step) {
  std::vector<float> panels(size_t(rows + kTileRows - 1) / kTileRows * kTileRows * count);
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < count; ++k)
      panels[(size_t(row / kTileRows) * count + k) * kTileRows + row % kTileRows] =
          weight[row * row_step + k * column_step];
  return panels;
}

// out[m][t] = sum_k a[k][m] b[k][t] for R rows of one panel and V vectors of t.
template <int R, int V>
inline void product_tile(const float* a, const float* const* b, int count, int t, Vec (&total)[R][V]) {
  for (auto& row : total)
    for (auto& value : row) value = Vec{};
  for (int k = 0; k < count; ++k) {
    Vec x[V];
    prefetch_far(a + k * kTileRows);
    for (int v = 0; v < V; ++v) x[v] = load(b[k] + t + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec weight = splat(a[k * kTileRows + r]);
      for (int v = 0; v < V; ++v) total[r][v] += weight * x[v];
    }
  }
}

// Rows [begin, end), whole panels but for the last, and V vectors from t; put(row, t, values, how many) takes the
// results.
template <int V, class Put>
void product_strip(const float* panels, const float* const* b, int count, int begin, int end, int t, int length,
                   Put put) {
  auto deliver = [&](int r, const Vec* values) {
    for (int v = 0; v < V && t + v * kLanes < length; ++v)
      put(r, t + v * kLanes, values[v], std::min(kLanes, length - t - v * kLanes));
  };
  for (int row = begin; row < end; row += kTileRows) {
    const float* a = panels + size_t(row) * count;
    if (row + kTileRows <= end) {
      Vec total[kTileRows][V];
      product_tile<kTileRows, V>(a, b, count, t, total);
      for (int r = 0; r < kTileRows; ++r) deliver(row + r, total[r]);
    } else {
      for (int r = 0; row + r < end; ++r) {
        Vec total[1][V];
        product_tile<1, V>(a + r, b, count, t, total);
        deliver(row + r, total[0]);
      }
    }
  }
}

template <class Put>
void product(const float* panels, const float* const* b, int count, int begin, int end, int start, int stop, int length,
             Put put) {
  int t = start;
  for (; t + (kTileVectors - 1) * kLanes < stop; t += kTileVectors * kLanes)
    product_strip<kTileVectors>(panels, b, count, begin, end, t, length, put);
  for (; t < stop; t += kLanes) product_strip<1>(panels, b, count, begin, end, t, length, put);
}

inline void store_part(float* to, Vec value, int count) {
  float lanes[kLanes];
  store(lanes, value);
  std::memcpy(to, lanes, count * sizeof(float));
}

// Runs convolutions for the slots that move; `slots[n]` is the place of row n in the states.
class Convolver {
 public:
  // Buffers as large as this layer needs, and its weights in panels where its products read those.
  void reserve(const Convolution& c, int rows, int length) {
    const int steps = steps_of(c, length);
    if (!c.depthwise && steps >= kLanes && !panels_.count(c.weight))
      panels_[c.weight] = c.transposed ? in_panels(c.floats(), c.out * c.kernel, 1, c.in, int64_t(c.out) * c.kernel)
                                       : in_panels(c.floats(), c.out, c.in * c.kernel, c.in * c.kernel, 1);
    const size_t padded = size_t(c.in) * c.stride * padded_length(steps + c.kernel);
    const size_t result = size_t(c.out) * c.kernel * (length + kLanes);
    grow(padded_, rows * padded);
    if (!c.transposed && steps < kLanes) grow(columns_, size_t(rows) * c.in * c.kernel * steps);
    grow(result_, rows * result);
  }

  // x [rows, in, length] → out [rows, out, length · or / stride], plus skip if given. `activate`: ELU first.
  void run(const Team& team, const Convolution& c, const std::vector<int>& slots, const float* x, int length,
           bool activate, float* out, const float* skip = nullptr) {
    if (c.depthwise)
      spread(team, c, slots, x, length, out);
    else if (c.transposed)
      transposed(team, c, slots, x, length, activate, out);
    else if (steps_of(c, length) >= kLanes)
      along_time(team, c, slots, x, length, activate, out, skip);
    else
      along_weights(team, c, slots, x, length, activate, out, skip);
  }

 private:
  // How often a frame uses each weight.
  static int steps_of(const Convolution& c, int length) { return c.transposed ? length : length / c.stride; }

  static constexpr int64_t kLeastProducts = 1 << 17, kLeastSamples = 1 << 12;  // of a piece: some microseconds

  // piece(n, range) for all units of all slots, on whichever threads are free; a range stays within one slot.
  template <class Piece>
  static void each_of_slots(const Team& team, const std::vector<int>& slots, int count, int unit, int least,
                            Piece piece) {
    const int units = (count + unit - 1) / unit;
    team.each(int(slots.size()) * units, 1, least, [&](Range taken) {
      for (int at = taken.begin; at < taken.end;) {
        const int n = at / units, first = at % units, last = std::min(units, first + taken.end - at);
        piece(size_t(n), Range{first * unit, std::min(count, last * unit)});
        at += last - first;
      }
    });
  }

  // f(n, channel) for all channels that come in.
  template <class F>
  static void each_channel(const Team& team, const Convolution& c, const std::vector<int>& slots, int length, F f) {
    each_of_slots(team, slots, c.in, 1, int(kLeastSamples / length) + 1, [&](size_t n, Range channels) {
      for (int channel = channels.begin; channel < channels.end; ++channel) f(n, channel);
    });
  }

  static void grow(std::vector<float>& buffer, size_t count) {
    if (buffer.size() < count) buffer.resize(count);
  }

  // One channel's memory and new samples in one line; then the memory is updated.
  static void gather(const Convolution& c, int slot, int channel, const float* x, int length, bool activate,
                     float* line) {
    const int memory = c.memory();
    float* state = c.state + (size_t(slot) * c.in + channel) * memory;
    if (c.repeat_first && !c.started[slot])
      std::fill_n(line, memory, x[0]);
    else
      std::copy_n(state, memory, line);
    if (activate)
      map(line + memory, x, length, elu);
    else
      std::copy_n(x, length, line + memory);
    std::copy_n(line + length, memory, state);
  }

  // To be called once, after all channels are gathered.
  static void start(const Convolution& c, const std::vector<int>& slots) {
    if (c.memory() > 0)
      for (int slot : slots) c.started[slot] = true;
  }

  void along_time(const Team& team, const Convolution& c, const std::vector<int>& slots, const float* x, int length,
                  bool activate, float* out, const float* skip) {
    const int outputs = length / c.stride, phase = padded_length((c.memory() + length) / c.stride + 1);
    const size_t row_size = size_t(c.in) * c.stride * phase;
    std::vector<float> line(c.memory() + length);
    each_channel(team, c, slots, length, [&](size_t n, int channel) {
      gather(c, slots[n], channel, x + (n * c.in + channel) * length, length, activate, line.data());
      float* to = padded_.data() + n * row_size + size_t(channel) * c.stride * phase;
      for (int p = 0; p < c.stride; ++p)
        for (int i = p, q = 0; i < int(line.size()); i += c.stride, ++q) to[p * phase + q] = line[i];
    });
    const int count = c.in * c.kernel, width = kTileVectors * kLanes, strips = (outputs + width - 1) / width;
    const int panels = (c.out + kTileRows - 1) / kTileRows;
    const float* weight = panels_.at(c.weight).data();
    std::vector<const float*> b(count);
    const auto compute = [&](size_t n, Range items) {
      for (int channel = 0, k = 0; channel < c.in; ++channel)
        for (int tap = 0; tap < c.kernel; ++tap, ++k)
          b[k] = padded_.data() + n * row_size + (size_t(channel) * c.stride + tap % c.stride) * phase + tap / c.stride;
      auto put = [&](int row, int t, Vec value, int lanes) {
        const size_t at = (n * c.out + row) * outputs + t;
        if (c.bias) value += c.bias[row];
        if (lanes == kLanes && skip) value += load(skip + at);
        if (lanes == kLanes) return store(out + at, value);
        store_part(out + at, value, lanes);
        for (int i = 0; skip && i < lanes; ++i) out[at + i] += skip[at + i];
      };
      for (int item = items.begin; item < items.end;) {
        const int strip = item / panels, first = item % panels;
        const int last = std::min(panels, first + items.end - item);
        product(weight, b.data(), count, first * kTileRows, std::min(c.out, last * kTileRows), strip * width,
                std::min(outputs, (strip + 1) * width), outputs, put);
        item += last - first;
      }
    };
    const int64_t work = int64_t(count) * kTileRows * std::min(width, outputs);  // of an item
    each_of_slots(team, slots, strips * panels, 1, int(kLeastProducts / work) + 1, [&](size_t n, Range items) {
      if (n == 0 && items.begin == 0) start(c, slots);
      compute(n, items);
    });
  }

  void along_weights(const Team& team, const Convolution& c, const std::vector<int>& slots, const float* x, int length,
                     bool activate, float* out, const float* skip) {
    const int outputs = length / c.stride, count = c.in * c.kernel, columns = int(slots.size()) * outputs;
    std::vector<float> line(c.memory() + length);
    each_channel(team, c, slots, length, [&](size_t n, int channel) {
      gather(c, slots[n], channel, x + (n * c.in + channel) * length, length, activate, line.data());
      for (int t = 0; t < outputs; ++t)
        std::copy_n(line.data() + t * c.stride, c.kernel,
                    columns_.data() + (n * outputs + t) * count + size_t(channel) * c.kernel);
    });
    const Matrix m{c.weight, nullptr, c.out, count, count, c.kind, 0, c.out};
    team.each(c.out, 16, least_units(m), [&](Range piece) {
      if (piece.begin == 0) start(c, slots);
      multiply(m, piece.begin, piece.end, columns_.data(), count, columns, result_.data(), c.out);
      for (size_t n = 0; n < slots.size(); ++n)
        for (int row = piece.begin; row < piece.end; ++row)
          for (int t = 0; t < outputs; ++t) {
            const size_t at = (n * c.out + row) * outputs + t;
            out[at] = result_[(n * outputs + t) * c.out + row] + (c.bias ? c.bias[row] : 0.f) + (skip ? skip[at] : 0.f);
          }
    });
  }

  void transposed(const Team& team, const Convolution& c, const std::vector<int>& slots, const float* x, int length,
                  bool activate, float* out) {
    const int phase = padded_length(length), width = c.out * c.kernel;
    each_channel(team, c, slots, length, [&](size_t n, int channel) {
      const float* from = x + (n * c.in + channel) * length;
      float* to = padded_.data() + (n * c.in + channel) * phase;
      if (activate)
        map(to, from, length, elu);
      else
        std::copy_n(from, length, to);
      if (c.kind == kInt24) {
        const float step = Row24(c.weight, channel, width).step;
        for (int t = 0; t < length; ++t) to[t] *= step;
      }
    });
    std::vector<const float*> b(c.in);
    const int unit = kTileRows / std::gcd(kTileRows, c.kernel);  // whole panels of rows
    const int64_t work = int64_t(c.in) * unit * c.kernel * length;
    each_of_slots(team, slots, c.out, unit, int(kLeastProducts / work) + 1, [&](size_t n, Range share) {
      const int begin = share.begin * c.kernel, end = share.end * c.kernel;
      for (int channel = 0; channel < c.in; ++channel) b[channel] = padded_.data() + (n * c.in + channel) * phase;
      float* result = result_.data() + n * size_t(width) * (length + kLanes);
      if (length >= kLanes) {
        auto put = [&](int row, int t, Vec value, int lanes) {
          store_part(result + size_t(row) * length + t, value, lanes);
        };
        product(panels_.at(c.weight).data(), b.data(), c.in, begin, end, 0, length, length, put);
        overlap_add(c, slots[n], result, length, 1, length, share, out + n * size_t(c.out) * length * c.stride);
      } else {
        auto floats = [&](int channel) { return c.floats() + size_t(channel) * width; };
        auto whole = [&](int channel) { return Row24(c.weight, channel, width).numbers; };
        if (c.kind == kInt24)
          sum_rows(whole, c.in, b.data(), length, begin, end, width, result);
        else
          sum_rows(floats, c.in, b.data(), length, begin, end, width, result);
        overlap_add(c, slots[n], result, 1, width, length, share, out + n * size_t(c.out) * length * c.stride);
      }
    });
  }

  // result[t][m] = sum over channels of row(channel)[m] x[channel][t], reading the weights in their order.
  template <class Row>
  static void sum_rows(Row row, int channels, const float* const* x, int length, int begin, int end, int width,
                       float* result) {
    constexpr int kTogether = 8;
    for (int t = 0; t < length; ++t)
      std::fill(result + size_t(t) * width + begin, result + size_t(t) * width + end, 0.f);
    int channel = 0;
    for (; channel + kTogether <= channels; channel += kTogether)
      add_channels<kTogether>(row, channel, x + channel, length, begin, end, width, result);
    for (; channel < channels; ++channel) add_channels<1>(row, channel, x + channel, length, begin, end, width, result);
  }

  template <int C, class Row>
  static void add_channels(Row row, int channel, const float* const* x, int length, int begin, int end, int width,
                           float* result) {
    decltype(row(0)) weight[C];
    for (int i = 0; i < C; ++i) weight[i] = row(channel + i);
    int m = begin;
    for (; m + kLanes <= end; m += kLanes) {
      Vec w[C];
      for (int i = 0; i < C; ++i) w[i] = load(weight[i] + m);
      for (int t = 0; t < length; ++t) {
        float* to = result + size_t(t) * width + m;
        Vec total = load(to);
        for (int i = 0; i < C; ++i) total += w[i] * splat(x[i][t]);
        store(to, total);
      }
    }
    for (; m < end; ++m)
      for (int t = 0; t < length; ++t)
        for (int i = 0; i < C; ++i) result[size_t(t) * width + m] += as_float(weight[i][m]) * x[i][t];
  }

  // Channel o at t · stride + j gains result[(o, j), t]; the part beyond this block is kept for the next.
  static void overlap_add(const Convolution& c, int slot, const float* result, int64_t row_step, int64_t time_step,
                          int length, Range share, float* out) {
    const int made = length * c.stride, memory = c.memory();
    std::vector<float> line(made + memory);
    for (int o = share.begin; o < share.end; ++o) {
      float* state = c.state + (size_t(slot) * c.out + o) * memory;
      std::fill(line.begin(), line.end(), 0.f);
      std::copy_n(state, memory, line.begin());
      for (int j = 0; j < c.kernel; ++j) {
        const float* from = result + (int64_t(o) * c.kernel + j) * row_step;
        for (int t = 0; t < length; ++t) line[t * c.stride + j] += from[t * time_step];
      }
      std::copy_n(line.begin() + made, memory, state);
      for (int i = 0; i < made; ++i) out[size_t(o) * made + i] = line[i] + (c.bias ? c.bias[o] : 0.f);
    }
  }

  // A depthwise transposed convolution.
  static void spread(const Team& team, const Convolution& c, const std::vector<int>& slots, const float* x, int length,
                     float* out) {
    const int made = length * c.stride, memory = c.memory();
    std::vector<float> line(made + memory);
    each_channel(team, c, slots, length, [&](size_t n, int o) {
      float* state = c.state + (size_t(slots[n]) * c.out + o) * memory;
      std::fill(line.begin(), line.end(), 0.f);
      std::copy_n(state, memory, line.begin());
      for (int t = 0; t < length; ++t)
        for (int j = 0; j < c.kernel; ++j)
          line[t * c.stride + j] += x[(n * c.in + o) * length + t] * c.floats()[o * c.kernel + j];
      std::copy_n(line.begin() + made, memory, state);
      for (int i = 0; i < made; ++i) out[(n * c.out + o) * made + i] = line[i] + (c.bias ? c.bias[o] : 0.f);
    });
  }

  std::unordered_map<const void*, std::vector<float>> panels_;
  std::vector<float> padded_, columns_, result_;
};

}  // namespace personaplex
