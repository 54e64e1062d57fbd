// One frame through the codec's encoder or decoder, for all slots that move.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention.h"
#include "convolution.h"
#include "interface.h"
#include "matrix.h"
#include "team.h"

namespace personaplex {

constexpr float kLayerNormEps = 1e-5f;

namespace {

class Codec {
 public:
  explicit Codec(const CodecSpec& spec)
      : spec_(spec),
        stages_(spec.stage_list, spec.stage_list + spec.stages),
        layers_(spec.layer_list, spec.layer_list + spec.layers),
        books_(spec.books, spec.books + spec.codebooks) {
    const size_t columns = size_t(spec.slots) * spec.steps;
    for (auto* buffer : {&x_, &attended_, &part_}) buffer->resize(columns * spec.dim);
    wide_.resize(columns * std::max(3 * spec.dim, spec.hidden));
    for (auto* buffer : {&residual_, &chain_}) buffer->resize(size_t(spec.slots) * spec.codebook_dim);
    scores_.resize(size_t(spec.slots) * spec.codebook_size);
    angles_.resize(columns * spec.dim / spec.heads);
  }

  void encode(const float* pcm, const bool* active, int64_t* codes, int threads) {
    if (!begin(active, threads, spec_.samples)) return;
    for (int n = 0; n < rows(); ++n)
      std::copy_n(pcm + size_t(moving_[n]) * spec_.samples, spec_.samples, now_.data() + size_t(n) * spec_.samples);
    run_team(threads, [&](const Team& team) {
      run_stages(team, spec_.samples);
      transpose(team, now_.data(), spec_.dim, spec_.steps, x_.data());
      transform(team);
      transpose(team, x_.data(), spec_.steps, spec_.dim, now_.data());
      convolver_.run(team, spec_.resample, moving_, now_.data(), spec_.steps, false, next_.data());
      quantize(team, next_.data(), codes);
    });
    finish();
  }

  void decode(const int64_t* codes, const bool* active, float* pcm, int threads) {
    if (!begin(active, threads, spec_.steps)) return;
    run_team(threads, [&](const Team& team) {
      look_up(team, codes, next_.data());
      convolver_.run(team, spec_.resample, moving_, next_.data(), 1, false, now_.data());
      transpose(team, now_.data(), spec_.dim, spec_.steps, x_.data());
      transform(team);
      transpose(team, x_.data(), spec_.steps, spec_.dim, now_.data());
      run_stages(team, spec_.steps);
      team.once([&] {
        for (int n = 0; n < rows(); ++n)
          std::copy_n(now_.data() + size_t(n) * spec_.samples, spec_.samples, pcm + size_t(moving_[n]) * spec_.samples);
      });
    });
    finish();
  }

 private:
  int rows() const { return int(moving_.size()); }

  // Whether any slot moves. Buffers are made at the first call in any case. `length`: of the SEANet's input.
  bool begin(const bool* active, int threads, int length) {
    moving_.clear();
    for (int slot = 0; slot < spec_.slots; ++slot)
      if (active[slot]) moving_.push_back(slot);
    reserve(length, std::max(1, rows()));
    private_.resize(std::max<size_t>(private_.size(), threads));
    const int half = spec_.dim / spec_.heads / 2;
    for (int n = 0; n < rows(); ++n)
      for (int s = 0; s < spec_.steps; ++s) {
        float* cosine = angles_.data() + (size_t(n) * spec_.steps + s) * 2 * half;
        rope_angles(spec_.position[moving_[n]] + s, spec_.frequencies, half, cosine, cosine + half);
      }
    return rows() > 0;
  }

  void finish() {
    for (int slot : moving_) spec_.position[slot] += spec_.steps;
  }

  static int length_after(const Convolution& c, int length) {
    return c.transposed ? length * c.stride : length / c.stride;
  }

  // Buffers for this many slots; they grow only when more move at once.
  void reserve(int length, int rows) {
    if (rows <= reserved_) return;
    reserved_ = rows;
    size_t most = std::max<size_t>({size_t(spec_.samples), size_t(spec_.dim) * spec_.steps});
    for (const Stage& stage : stages_) {
      convolver_.reserve(stage.first, rows, length);
      most = std::max(most, size_t(stage.first.in) * length);
      length = length_after(stage.first, length);
      most = std::max(most, size_t(stage.first.out) * length);
      if (stage.residual) {
        convolver_.reserve(stage.second, rows, length);
        most = std::max(most, size_t(stage.second.out) * length);
      }
    }
    convolver_.reserve(spec_.resample, rows, spec_.steps);
    for (auto* buffer : {&now_, &next_, &inner_}) buffer->resize(rows * most);
  }

  // The SEANet, from now_ to now_.
  void run_stages(const Team& team, int length) {
    for (const Stage& stage : stages_) {
      if (stage.residual) {
        convolver_.run(team, stage.first, moving_, now_.data(), length, true, inner_.data());
        convolver_.run(team, stage.second, moving_, inner_.data(), length, true, next_.data(), now_.data());
      } else {
        convolver_.run(team, stage.first, moving_, now_.data(), length, stage.activated, next_.data());
        length = length_after(stage.first, length);
      }
      team.once([&] { now_.swap(next_); });
    }
  }

  // [rows, a, b] → [rows, b, a]
  void transpose(const Team& team, const float* from, int a, int b, float* to) const {
    team.once([&] {
      for (int n = 0; n < rows(); ++n)
        for (int i = 0; i < a; ++i)
          for (int j = 0; j < b; ++j) to[(size_t(n) * b + j) * a + i] = from[(size_t(n) * a + i) * b + j];
    });
  }

  // y [columns, out] = x [columns, in] · w [out, in], then after(range of w's rows); `prepare` makes x on each thread.
  template <class Prepare, class After>
  void product(const Team& team, const void* w, int kind, int out, int in, Prepare prepare, const float* x, int columns,
               float* y, After after) const {
    const Matrix m{w, nullptr, out, in, in, kind, 0, out};
    team.each(out, 16, least_units(m), prepare, [&](Range piece) {
      multiply(m, piece.begin, piece.end, x, in, columns, y, out);
      after(piece);
    });
  }

  void product(const Team& team, const void* w, int kind, int out, int in, const float* x, int columns,
               float* y) const {
    product(team, w, kind, out, in, [] {}, x, columns, y, [](Range) {});
  }

  void layer_norm(const float* x, int columns, const float* weight, const float* bias, float* out) const {
    const int dim = spec_.dim;
    for (int n = 0; n < columns; ++n, x += dim, out += dim) {
      const float mean = sum(x, dim, [](Vec v) { return v; }) / dim;
      const float variance = sum(x, dim, [&](Vec v) { return (v - mean) * (v - mean); });
      const float scale = 1.f / std::sqrt(variance / dim + kLayerNormEps);
      for (int i = 0; i < dim; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
  }

  // The transformer over x_ [rows · steps, dim].
  void transform(const Team& team) {
    const int dim = spec_.dim, hidden = spec_.hidden, columns = rows() * spec_.steps;
    auto& own = private_[team.index].input;
    own.resize(size_t(columns) * std::max(dim, hidden));
    auto add = [&](Range share, const float* scale) {
      for (int n = 0; n < columns; ++n)
        for (int r = share.begin; r < share.end; ++r) x_[size_t(n) * dim + r] += scale[r] * part_[size_t(n) * dim + r];
    };
    auto gelu = [&](Range share) {
      for (int n = 0; n < columns; ++n) {
        float* x = wide_.data() + size_t(n) * hidden + share.begin;
        map(x, x, share.end - share.begin, [](Vec v) { return 0.5f * v * (1.f + erf(v * 0.70710678f)); });
      }
    };
    auto nothing = [](Range) {};
    auto multiply_layer = [&](const void* w, int out, int in, auto prepare, const float* x, float* y, auto after) {
      product(team, w, spec_.kind, out, in, prepare, x, columns, y, after);
    };
    for (const CodecLayer& layer : layers_) {
      auto norm1 = [&] { layer_norm(x_.data(), columns, layer.norm1_weight, layer.norm1_bias, own.data()); };
      auto norm2 = [&] { layer_norm(x_.data(), columns, layer.norm2_weight, layer.norm2_bias, own.data()); };
      multiply_layer(layer.in_proj, 3 * dim, dim, norm1, own.data(), wide_.data(), nothing);
      team.each(rows() * spec_.heads, 1, 1, [&](Range items) { attend(team, layer, items); });
      multiply_layer(layer.out_proj, dim, dim, [] {}, attended_.data(), part_.data(),
                     [&](Range share) { add(share, layer.scale1); });
      multiply_layer(layer.linear1, hidden, dim, norm2, own.data(), wide_.data(), gelu);
      multiply_layer(layer.linear2, dim, hidden, [] {}, wide_.data(), part_.data(),
                     [&](Range share) { add(share, layer.scale2); });
    }
  }

  void attend(const Team& team, const CodecLayer& layer, Range items) {
    const int dim = spec_.dim, heads = spec_.heads, width = dim / heads, steps = spec_.steps;
    for (int item = items.begin; item < items.end; ++item) {
      const int n = item / heads, head = item % heads, slot = moving_[n];
      float* query = wide_.data() + size_t(n) * steps * 3 * dim + head * width;
      for (int s = 0; s < steps; ++s) {
        const float* cosine = angles_.data() + (size_t(n) * steps + s) * width;
        rotate(query + size_t(s) * 3 * dim, cosine, cosine + width / 2, width);
        rotate(query + size_t(s) * 3 * dim + dim, cosine, cosine + width / 2, width);
      }
      const size_t place = (size_t(slot) * heads + head) * spec_.capacity * width;
      attend_head<float>(layer.keys + place, layer.values + place, spec_.capacity, width, spec_.position[slot], steps,
                         query, query + dim, query + 2 * dim, 3 * dim,
                         attended_.data() + size_t(n) * steps * dim + head * width, dim, private_[team.index].scores);
    }
  }

  // latent [rows, dim] → codes [slots, codebooks], the nearest vector of each book, then the residual for the next.
  void quantize(const Team& team, const float* latent, int64_t* codes) {
    const int width = spec_.codebook_dim, size = spec_.codebook_size;
    product(team, spec_.projection_first, kFloat32, width, spec_.dim, latent, rows(), chain_.data());
    product(team, spec_.projection_rest, kFloat32, width, spec_.dim, latent, rows(), residual_.data());
    for (int book = 0; book < spec_.codebooks; ++book) {
      float* x = book == 0 ? chain_.data() : residual_.data();
      product(team, books_[book].vectors, kFloat32, size, width, x, rows(), scores_.data());
      team.once([&] {
        for (int n = 0; n < rows(); ++n) {
          const float* score = scores_.data() + size_t(n) * size;
          int64_t best = 0;
          float least = std::numeric_limits<float>::infinity();
          for (int i = 0; i < size; ++i) {
            const float distance = books_[book].norms[i] - 2 * score[i];
            if (distance < least) least = distance, best = i;
          }
          codes[int64_t(moving_[n]) * spec_.codebooks + book] = best;
          for (int i = 0; i < width; ++i) x[size_t(n) * width + i] -= books_[book].vectors[best * width + i];
        }
      });
    }
  }

  // codes [slots, codebooks] → latent [rows, dim].
  void look_up(const Team& team, const int64_t* codes, float* latent) {
    const int width = spec_.codebook_dim;
    team.once([&] {
      for (int n = 0; n < rows(); ++n) {
        std::fill_n(residual_.data() + size_t(n) * width, width, 0.f);
        for (int book = 0; book < spec_.codebooks; ++book) {
          const float* vector = books_[book].vectors + codes[int64_t(moving_[n]) * spec_.codebooks + book] * width;
          float* to = (book == 0 ? chain_ : residual_).data() + size_t(n) * width;
          for (int i = 0; i < width; ++i) to[i] = book == 0 ? vector[i] : to[i] + vector[i];
        }
      }
    });
    const int dim = spec_.dim;
    product(team, spec_.projection_first, kFloat32, dim, width, chain_.data(), rows(), latent);
    auto add = [&](Range share) {
      for (int n = 0; n < rows(); ++n)
        for (int r = share.begin; r < share.end; ++r) latent[size_t(n) * dim + r] += part_[size_t(n) * dim + r];
    };
    product(team, spec_.projection_rest, kFloat32, dim, width, [] {}, residual_.data(), rows(), part_.data(), add);
  }

  struct Private {  // of one thread
    std::vector<float> input, scores;
  };

  const CodecSpec spec_;
  const std::vector<Stage> stages_;
  const std::vector<CodecLayer> layers_;
  const std::vector<Codebook> books_;
  Convolver convolver_;
  int reserved_ = 0;
  std::vector<int> moving_;
  std::vector<float> now_, next_, inner_, x_, wide_, attended_, part_, chain_, residual_, scores_, angles_;
  std::vector<Private> private_;
};

}  // namespace
}  // namespace personaplex

extern "C" {

void* personaplex_codec_create(const personaplex::CodecSpec* spec) { return new personaplex::Codec(*spec); }

void personaplex_codec_destroy(void* codec) { delete static_cast<personaplex::Codec*>(codec); }

void personaplex_codec_encode(void* codec, const float* pcm, const bool* active, int64_t* codes, int threads) {
  static_cast<personaplex::Codec*>(codec)->encode(pcm, active, codes, threads);
}

void personaplex_codec_decode(void* codec, const int64_t* codes, const bool* active, float* pcm, int threads) {
  static_cast<personaplex::Codec*>(codec)->decode(codes, active, pcm, threads);
}
}
