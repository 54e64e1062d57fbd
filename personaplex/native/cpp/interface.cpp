// What the Python side asks of `interface.h` before it uses anything else: the shapes of its structs, the numbers of
// its kinds. A mirror that differs is refused there.
#include "interface.h"

#include <cstddef>
#include <cstring>

namespace {

struct Shape {
  const char* name;
  int32_t size, last_offset;
};

struct NamedKind {
  const char* name;
  int32_t value;
};

template <class Entry, int N>
const Entry* find(const Entry (&entries)[N], const char* name) {
  for (const Entry& entry : entries)
    if (std::strcmp(entry.name, name) == 0) return &entry;
  return nullptr;
}

const Shape* shape_of(const char* name) {
  using namespace personaplex;
#define PERSONAPLEX_SHAPE(type, last_field)                           \
  {                                                                   \
    #type, int32_t(sizeof(type)), int32_t(offsetof(type, last_field)) \
  }
  static const Shape kShapes[] = {
      PERSONAPLEX_SHAPE(Matrix, padded_rows),
      PERSONAPLEX_SHAPE(Table, kind),
      PERSONAPLEX_SHAPE(Layer, values),
      PERSONAPLEX_SHAPE(LanguageModelSpec, depth),
      PERSONAPLEX_SHAPE(FrameArguments, audio_logits),
      PERSONAPLEX_SHAPE(Convolution, kind),
      PERSONAPLEX_SHAPE(Stage, activated),
      PERSONAPLEX_SHAPE(CodecLayer, values),
      PERSONAPLEX_SHAPE(Codebook, norms),
      PERSONAPLEX_SHAPE(CodecSpec, projection_rest),
  };
#undef PERSONAPLEX_SHAPE
  return find(kShapes, name);
}

}  // namespace

extern "C" {

// sizeof of a struct by its name; −1 for an unknown one.
int32_t personaplex_size_of(const char* name) {
  const Shape* shape = shape_of(name);
  return shape ? shape->size : -1;
}

// The offset of its last field, which padding cannot hide; −1 for an unknown one.
int32_t personaplex_last_offset_of(const char* name) {
  const Shape* shape = shape_of(name);
  return shape ? shape->last_offset : -1;
}

// The number of a kind by its name; −1 for an unknown one.
int32_t personaplex_kind(const char* name) {
  using namespace personaplex;
  static const NamedKind kKinds[] = {
      {"FLOAT32", kFloat32}, {"BFLOAT16", kBfloat16}, {"INT8", kInt8}, {"INT4", kInt4}, {"INT24", kInt24},
  };
  const NamedKind* kind = find(kKinds, name);
  return kind ? kind->value : -1;
}
}
