// One frame of the language model for all slots that move: embeddings, temporal transformer, text token,
// depth transformer with its eight codes. Weights are read once for all slots.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "attention.h"
#include "interface.h"
#include "matrix.h"
#include "team.h"

namespace personaplex {

constexpr int kUnknown = -2, kZeroToken = -1;
constexpr float kNormEps = 1e-8f;
constexpr int kMaxTopK = 250;

namespace {

// Draws a token: inverts the cumulative distribution of the k likeliest at one uniform number.
int64_t draw(const float* logits, int count, float uniform, float temperature, int64_t top_k, bool greedy) {
  if (greedy) return std::max_element(logits, logits + count) - logits;
  const int k = int(std::min<int64_t>({top_k, int64_t(kMaxTopK), int64_t(count)}));
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  auto likelier = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  std::nth_element(order.begin(), order.begin() + k - 1, order.end(), likelier);
  std::sort(order.begin(), order.begin() + k, likelier);
  std::vector<float> cumulative(k);
  float total = 0;
  for (int i = 0; i < k; ++i) {
    total += std::exp((logits[order[i]] - logits[order[0]]) / temperature);
    cumulative[i] = total;
  }
  const float target = uniform * total;
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end(), target) - cumulative.begin();
  return order[std::min<int64_t>(chosen, k - 1)];
}

class LanguageModel {
 public:
  explicit LanguageModel(const LanguageModelSpec& spec)
      : spec_(spec),
        temporal_(spec.temporal, spec.temporal + spec.layers),
        depth_(spec.depth, spec.depth + kSteps * spec.depth_layers) {
    const int widest = std::max({3 * spec.dim, 2 * spec.hidden, 3 * spec.depth_dim, 2 * spec.depth_hidden});
    const size_t slots = spec.slots;
    x_.resize(slots * spec.dim);
    wide_.resize(slots * widest);
    attended_.resize(slots * std::max(spec.dim, spec.depth_dim));
    part_.resize(slots * std::max(spec.dim, spec.depth_dim));
    logits_.resize(slots * std::max(spec.text_card, spec.card));
    hidden_.resize(slots * spec.dim);
    depth_x_.resize(slots * spec.depth_dim);
    past_.resize(slots * spec.depth_layers * 2 * kSteps * spec.depth_dim);
    angles_.resize(slots * 2 * spec.dim / spec.heads);
  }

  void frame(const FrameArguments& arguments, int threads) {
    moving_.clear();
    for (int slot = 0; slot < spec_.slots; ++slot)
      if (arguments.moves[slot]) moving_.push_back(slot);
    if (moving_.empty()) return;
    private_.resize(std::max<size_t>(private_.size(), threads));
    const int half = spec_.dim / spec_.heads / 2;
    for (size_t n = 0; n < moving_.size(); ++n) {
      float* cosine = angles_.data() + n * 4 * half;
      const int64_t position = spec_.position[moving_[n]];
      rope_angles(position, spec_.frequencies, half, cosine, cosine + half);
      // Held entries are met as if the conversation stood at the window's end at most.
      const int64_t held = std::min<int64_t>(position, spec_.capacity - 2);
      rope_angles(held, spec_.frequencies, half, cosine + 2 * half, cosine + 3 * half);
      embed(arguments.read + moving_[n] * kStreams, x_.data() + n * spec_.dim);
    }
    run_team(threads, [&](const Team& team) { work(team, arguments); });
    for (int slot : moving_) ++spec_.position[slot];
  }

 private:
  struct Private {  // of one thread
    std::vector<float> input, scores, held;
  };

  int rows() const { return int(moving_.size()); }

  float round(float x) const { return spec_.rounded ? round_bfloat16(x) : x; }

  void add_embedding(const Table& table, int64_t token, int dim, float* x) const {
    if (token <= kZeroToken) return;  // smaller ids embed to zero, too
    for (int i = 0; i < dim; ++i) {
      const int64_t at = token * dim + i;
      const float value = table.kind == kFloat32 ? static_cast<const float*>(table.data)[at]
                                                 : as_float(static_cast<const bfloat16*>(table.data)[at]);
      x[i] = round(x[i] + round(value));
    }
  }

  void embed(const int64_t* column, float* x) const {
    std::fill_n(x, spec_.dim, 0.f);
    for (int stream = 1; stream < kStreams; ++stream)
      add_embedding(spec_.tables[stream - 1], column[stream], spec_.dim, x);
    add_embedding(spec_.text_table, column[0], spec_.dim, x);
  }

  void norm(const float* x, const float* alpha, int dim, float* out) const {
    for (int n = 0; n < rows(); ++n, x += dim, out += dim) {
      const float scale = 1.f / std::sqrt(kNormEps + dot(x, x, dim) / dim);
      for (int i = 0; i < dim; ++i) out[i] = round(x[i] * (alpha[i] * scale));
    }
  }

  // y [rows, matrix rows] = the product, rounded, added to y if asked for; then after(range of its rows). `prepare`
  // makes x on each thread.
  template <class Prepare, class After>
  void product(const Team& team, const Matrix& m, Prepare prepare, const float* x, float* y, bool add, After after) {
    team.each(m.rows, row_unit(m), least_units(m), prepare, [&](Range piece) {
      float* to = add ? part_.data() : y;
      multiply(m, piece.begin, piece.end, x, m.columns, rows(), to, m.rows);
      for (int n = 0; n < rows(); ++n)
        for (int r = piece.begin; r < piece.end; ++r) {
          const size_t at = size_t(n) * m.rows + r;
          y[at] = add ? round(y[at] + round(to[at])) : round(to[at]);
        }
      after(piece);
    });
  }

  template <class Prepare>
  void product(const Team& team, const Matrix& m, Prepare prepare, const float* x, float* y, bool add) {
    product(team, m, prepare, x, y, add, [](Range) {});
  }

  float* input(const Team& team, size_t count) {
    auto& buffer = private_[team.index].input;
    if (buffer.size() < count) buffer.resize(count);
    return buffer.data();
  }

  // silu(gate) · value of `wide_` [rows, 2 hidden].
  void gate(int hidden, float* out) const {
    for (int n = 0; n < rows(); ++n, out += hidden) {
      const float* from = wide_.data() + size_t(n) * 2 * hidden;
      map(out, from, hidden, [](Vec v) { return v / (1.f + exp(-v)); });
      for (int i = 0; i < hidden; ++i) out[i] = round(round(out[i]) * from[hidden + i]);
    }
  }

  // x += attention, x += feed-forward; attend(range) of rows · heads turns wide_ [rows, 3 dim] into attended_
  // [rows, dim].
  template <class Attend>
  void layer(const Team& team, const Layer& layer, float* x, int dim, int heads, int hidden, Attend attend) {
    float* own = input(team, size_t(rows()) * std::max(dim, hidden));
    product(team, layer.in_proj, [&] { norm(x, layer.norm1, dim, own); }, own, wide_.data(), false);
    team.each(rows() * heads, 1, 1, attend);
    product(team, layer.out_proj, [] {}, attended_.data(), x, true);
    product(team, layer.linear_in, [&] { norm(x, layer.norm2, dim, own); }, own, wide_.data(), false);
    product(team, layer.linear_out, [&] { gate(hidden, own); }, own, x, true);
  }

  template <class T>
  void attend_cached(const Team& team, const Layer& layer, Range items) {
    const int dim = spec_.dim, heads = spec_.heads, width = dim / heads, half = width / 2;
    for (int item = items.begin; item < items.end; ++item) {
      const int n = item / heads, head = item % heads, slot = moving_[n];
      float* query = wide_.data() + size_t(n) * 3 * dim + head * width;
      const float* cosine = angles_.data() + size_t(n) * 4 * half;
      auto& held = private_[team.index].held;
      held.assign(query, query + width);
      rotate_rounded(query, cosine, width);
      rotate_rounded(query + dim, cosine, width);
      rotate_rounded(held.data(), cosine + 2 * half, width);
      const size_t place = (size_t(slot) * heads + head) * spec_.capacity * row_step<T>(width);
      float* out = attended_.data() + size_t(n) * dim + head * width;
      attend_head<T>(static_cast<T*>(layer.keys) + place, static_cast<T*>(layer.values) + place, spec_.capacity, width,
                     spec_.position[slot], 1, query, query + dim, query + 2 * dim, 0, out, 0,
                     private_[team.index].scores, {spec_.kept[slot], spec_.held[slot], held.data()});
      for (int i = 0; i < width; ++i) out[i] = round(out[i]);
    }
  }

  // angles: [2, width / 2], cosines and sines.
  void rotate_rounded(float* x, const float* angles, int width) const {
    rotate(x, angles, angles + width / 2, width);
    for (int i = 0; i < width; ++i) x[i] = round(x[i]);
  }

  // Over the steps of this frame; their keys and values are scratch.
  void attend_depth(const Team& team, int step, int layer, Range items) {
    const int dim = spec_.depth_dim, heads = spec_.depth_heads, width = dim / heads;
    for (int item = items.begin; item < items.end; ++item) {
      const int n = item / heads, head = item % heads;
      const float* query = wide_.data() + size_t(n) * 3 * dim + head * width;
      float* keys = past_.data() + ((size_t(n) * spec_.depth_layers + layer) * heads + head) * 2 * kSteps * width;
      float* out = attended_.data() + size_t(n) * dim + head * width;
      attend_head<float>(keys, keys + kSteps * width, kSteps + 1, width, step, 1, query, query + dim, query + 2 * dim,
                         0, out, 0, private_[team.index].scores);
      for (int i = 0; i < width; ++i) out[i] = round(out[i]);
    }
  }

  void choose(const FrameArguments& a, const float* logits, int64_t logits_stride, int count, int stream) const {
    const int kind = stream == 0 ? 0 : 1;
    for (int n = 0; n < rows(); ++n) {
      const int slot = moving_[n];
      const int64_t known = a.forced[slot * kStreams + stream];
      const int64_t token = known != kUnknown
                                ? known
                                : draw(logits + slot * logits_stride, count, a.uniform[slot * (kSteps + 1) + stream],
                                       a.temperature[slot * 2 + kind], a.top_k[slot * 2 + kind], a.greedy[slot]);
      (stream == 0 ? a.text[slot] : a.codes[slot * kSteps + stream - 1]) = token;
    }
  }

  // Logits of the slots that move, into their rows.
  void logits(const Team& team, const Matrix& m, const float* x, float* out, int64_t slot_stride) {
    product(team, m, [] {}, x, logits_.data(), false, [&](Range piece) {
      for (int n = 0; n < rows(); ++n)
        std::copy_n(logits_.data() + size_t(n) * m.rows + piece.begin, piece.end - piece.begin,
                    out + moving_[n] * slot_stride + piece.begin);
    });
  }

  void work(const Team& team, const FrameArguments& a) {
    const LanguageModelSpec& s = spec_;
    for (const Layer& each : temporal_)
      layer(team, each, x_.data(), s.dim, s.heads, s.hidden, [&](Range items) {
        if (s.cache_kind == kFloat32)
          attend_cached<float>(team, each, items);
        else if (s.cache_kind == kInt8)
          attend_cached<int8_t>(team, each, items);
        else
          attend_cached<bfloat16>(team, each, items);
      });
    team.once([&] { norm(x_.data(), s.out_norm, s.dim, hidden_.data()); });
    logits(team, s.text_linear, hidden_.data(), a.text_logits, s.text_card);
    for (int step = 0; step < kSteps; ++step) depth_step(team, a, step);
    team.once([&] { choose_code(a, kSteps); });
  }

  // Code 1 … kSteps of the agent, from its logits.
  void choose_code(const FrameArguments& a, int code) const {
    choose(a, a.audio_logits + size_t(code - 1) * spec_.card, int64_t(kSteps) * spec_.card, spec_.card, code);
  }

  void depth_step(const Team& team, const FrameArguments& a, int step) {
    const LanguageModelSpec& s = spec_;
    product(team, s.inputs[step], [] {}, hidden_.data(), depth_x_.data(), false);
    team.once([&] {  // the token before this step is chosen only now, in one go with what needs it
      if (step == 0)
        choose(a, a.text_logits, s.text_card, s.text_card, 0);
      else
        choose_code(a, step);
      for (int n = 0; n < rows(); ++n) {
        const int slot = moving_[n];
        const int64_t before = step == 0 ? a.text[slot] : a.codes[slot * kSteps + step - 1];
        add_embedding(step == 0 ? s.depth_text_table : s.depth_tables[step - 1], before, s.depth_dim,
                      depth_x_.data() + size_t(n) * s.depth_dim);
      }
    });
    for (int i = 0; i < s.depth_layers; ++i)
      layer(team, depth_[step * s.depth_layers + i], depth_x_.data(), s.depth_dim, s.depth_heads, s.depth_hidden,
            [&](Range items) { attend_depth(team, step, i, items); });
    float* out = a.audio_logits + size_t(step) * s.card;
    logits(team, s.linears[step], depth_x_.data(), out, int64_t(kSteps) * s.card);
  }

  const LanguageModelSpec spec_;
  const std::vector<Layer> temporal_, depth_;
  std::vector<int> moving_;
  std::vector<float> x_, wide_, attended_, part_, logits_, hidden_, depth_x_, past_, angles_;
  std::vector<Private> private_;
};

}  // namespace
}  // namespace personaplex

extern "C" {

void* personaplex_language_model_create(const personaplex::LanguageModelSpec* spec) {
  return new personaplex::LanguageModel(*spec);
}

void personaplex_language_model_destroy(void* model) { delete static_cast<personaplex::LanguageModel*>(model); }

void personaplex_language_model_frame(void* model, const personaplex::FrameArguments* arguments, int threads) {
  static_cast<personaplex::LanguageModel*>(model)->frame(*arguments, threads);
}
}
