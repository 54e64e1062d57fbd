// What the Python side asks of `interface.h` before it uses anything else: the sizes of its structs, the numbers of its
// kinds. A mirror that differs is refused there.
#include "interface.h"

#include <cstring>

namespace {

template <int N, class Entry>
int32_t value_of(const Entry (&entries)[N], const char* name) {
  for (const Entry& entry : entries)
    if (std::strcmp(entry.name, name) == 0) return entry.value;
  return -1;
}

}  // namespace

extern "C" {

// sizeof of a struct by its name; −1 for an unknown one.
int32_t personaplex_size_of(const char* name) {
  using namespace personaplex;
  const struct {
    const char* name;
    int32_t value;
  } sizes[] = {
      {"Matrix", sizeof(Matrix)},
      {"Table", sizeof(Table)},
      {"Layer", sizeof(Layer)},
      {"LanguageModelSpec", sizeof(LanguageModelSpec)},
      {"FrameArguments", sizeof(FrameArguments)},
      {"Convolution", sizeof(Convolution)},
      {"Stage", sizeof(Stage)},
      {"CodecLayer", sizeof(CodecLayer)},
      {"Codebook", sizeof(Codebook)},
      {"CodecSpec", sizeof(CodecSpec)},
  };
  return value_of(sizes, name);
}

// The number of a kind by its name; −1 for an unknown one.
int32_t personaplex_kind(const char* name) {
  using namespace personaplex;
  const struct {
    const char* name;
    int32_t value;
  } kinds[] = {
      {"FLOAT32", kFloat32}, {"BFLOAT16", kBfloat16}, {"INT8", kInt8}, {"INT4", kInt4}, {"INT24", kInt24},
  };
  return value_of(kinds, name);
}
}
