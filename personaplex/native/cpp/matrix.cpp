// Products and unpacking of single matrices, for layers called from PyTorch.
#include "matrix.h"
#include "many_in_bytes.h"
#include "many_in_floats.h"
#include "team.h"

namespace {

template <class Number>
void multiply_many(const personaplex::Matrix& m, const Number* x, int n, Number* y, int threads) {
#if defined(PERSONAPLEX_MANY_IN_BYTES)
  if (personaplex::InBytes::takes(m)) return personaplex::multiply_many<personaplex::InBytes>(m, x, n, y, threads);
#endif
  personaplex::multiply_many<personaplex::InFloats<personaplex::FastestLane>>(m, x, n, y, threads);
}

}  // namespace

extern "C" {

// y [n, rows] float32 = x [n, columns] float32 times a matrix.
void personaplex_multiply(const personaplex::Matrix* m, const float* x, int n, float* y, int threads) {
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    team.each(m->rows, personaplex::row_unit(*m), personaplex::least_units(*m), [&](personaplex::Range piece) {
      personaplex::multiply(*m, piece.begin, piece.end, x, m->columns, n, y, m->rows);
    });
  });
}

// The same for many rows of x, rounded to the bits of `personaplex_bits_of_many`; `kind` of x and y is float32 or
// bfloat16.
void personaplex_multiply_many(const personaplex::Matrix* m, const void* x, int n, void* y, int kind, int threads) {
  using personaplex::bfloat16;
  if (kind == personaplex::kBfloat16)
    multiply_many(*m, static_cast<const bfloat16*>(x), n, static_cast<bfloat16*>(y), threads);
  else
    multiply_many(*m, static_cast<const float*>(x), n, static_cast<float*>(y), threads);
}

// 32: float32; 16: bfloat16, and so is the matrix; 8: int8 with one step for 32 numbers.
int personaplex_bits_of_many([[maybe_unused]] const personaplex::Matrix* m) {
#if defined(PERSONAPLEX_MANY_IN_BYTES)
  if (personaplex::InBytes::takes(*m)) return 8;
#endif
  return 32 / personaplex::FastestLane::kNumbers;
}

// Rows [first, first + 64 · blocks) of an int4 matrix as out [columns, 64 · blocks] float32; whole blocks only.
void personaplex_unpack_int4(const personaplex::Matrix* m, int first, int blocks, float* out, int threads) {
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    const int64_t stride = int64_t(blocks) * personaplex::kBlockRows;
    team.each(blocks, 1, 1, [&](personaplex::Range piece) {
      for (int i = piece.begin; i < piece.end; ++i)
        personaplex::unpack_int4_block(*m, first / personaplex::kBlockRows + i, 0, m->columns, [&](int k, int row) {
          return out + k * stride + i * personaplex::kBlockRows + row;
        });
    });
  });
}
}
