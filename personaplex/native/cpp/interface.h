// Structs and numbers that Python and C++ share. `structures.py` mirrors them; `interface.cpp` lets it check itself.
#pragma once

#include <cstdint>

namespace personaplex {

// Number formats of weights, tables, caches and activations.
enum Kind : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt4 = 3, kInt24 = 4 };

constexpr int kSteps = 8;     // codes of a frame
constexpr int kStreams = 17;  // rows of a token column

// A weight [rows, columns]. Plain and int8: row by row, `stride` values apart; int8: scale [rows] bfloat16.
// int4: w = (q − 8) · scale + zero. Blocks of 64 rows, byte [column, j] holds row j low and row j + 32 high; a last
// block of fewer rows holds rows 2j and 2j + 1. scale: one block after the other, [groups, rows of the block, 2]
// bfloat16 each. int24: rows as `Row24` reads them.
struct Matrix {
  const void* data;
  const void* scale;
  int32_t rows, columns, stride, kind, group, padded_rows;
};

struct Table {
  const void* data;
  int32_t kind;
};

struct Layer {
  const float* norm1;
  const float* norm2;
  Matrix in_proj, out_proj, linear_in, linear_out;
  void* keys;  // [slots, heads, capacity, head width]; null in the depth transformer
  void* values;
};

struct LanguageModelSpec {
  int32_t slots, dim, heads, layers, hidden, capacity, cache_kind, text_card, card;
  int32_t depth_dim, depth_heads, depth_layers, depth_hidden;
  int32_t rounded;  // activations are rounded to bfloat16 where PyTorch would do it
  const float* frequencies;
  const float* out_norm;
  int64_t* position;
  const int64_t* kept;  // [slots]: entries at the start of a slot's cache that are never overwritten
  const int64_t* held;  // [slots]: the first of them, which are met from the window's end
  Matrix text_linear;
  Table text_table;
  Table tables[kStreams - 1];
  Table depth_text_table;
  Table depth_tables[kSteps - 1];
  Matrix inputs[kSteps], linears[kSteps];
  const Layer* temporal;  // [layers]
  const Layer* depth;     // [kSteps][depth_layers]
};

struct FrameArguments {
  const int64_t* read;    // [slots, 17]: the column that is embedded
  const int64_t* forced;  // [slots, 17]: known tokens of the column to be predicted, else kUnknown
  const float* uniform;   // [slots, 9]
  const float* temperature;
  const int64_t* top_k;  // [slots, 2]: text, audio
  const bool* greedy;
  const bool* moves;
  int64_t* text;        // [slots]
  int64_t* codes;       // [slots, 8]
  float* text_logits;   // [slots, text_card]
  float* audio_logits;  // [slots, 8, card]
};

// A streaming convolution: weight [out, in, kernel], or [in, out, kernel] if transposed; float32, or kInt24 (rows of
// the first dimension) where a frame has fewer outputs than a vector has lanes.
struct Convolution {
  const void* weight;
  const float* bias;  // [out] or null
  float* state;   // the input's end [slots, in, kernel − stride]; transposed: the overlap [slots, out, kernel − stride]
  bool* started;  // [slots]; null if transposed
  int32_t in, out, kernel, stride, transposed, depthwise, repeat_first, kind;

  int memory() const { return kernel - stride; }
  const float* floats() const { return static_cast<const float*>(weight); }
};

struct Stage {
  Convolution first;
  Convolution second;  // of a residual block
  int32_t residual, activated;
};

struct CodecLayer {
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
  const void *in_proj, *out_proj, *linear1, *linear2;  // of the spec's kind
  const float *scale1, *scale2;
  float *keys, *values;  // [slots, heads, capacity, head width]
};

struct Codebook {
  const float* vectors;  // [size, width]
  const float* norms;    // [size]: squared lengths
};

struct CodecSpec {
  int32_t slots, samples, dim, heads, hidden, capacity, steps, layers, stages, codebooks, codebook_size, codebook_dim;
  int32_t kind;             // of the transformer's weights, float32 or int24
  const Stage* stage_list;  // the SEANet
  Convolution resample;     // between 25 Hz and frames
  const CodecLayer* layer_list;
  const float* frequencies;
  int64_t* position;
  const Codebook* books;          // the first stands alone, the others are a chain
  const float* projection_first;  // into the codebooks' space when encoding, out of it when decoding
  const float* projection_rest;
};

}  // namespace personaplex
