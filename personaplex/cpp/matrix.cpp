// Products and unpacking of single matrices, for layers that are called by themselves.
#include "many_rows.h"
#include "matrix.h"
#include "team.h"

namespace personaplex {
namespace {

// One whole block of int4 weights as floats: out[k][row], rows `stride` apart from one column to the next.
void unpack_int4_block(const Matrix& m, int block, float* out, int64_t stride) {
  constexpr int kParts = kBlockRows / kLanes, kHalf = kParts / 2;
  const int groups = (m.columns + m.group - 1) / m.group;
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + int64_t(block) * groups * m.group * (kBlockRows / 2);
  const bfloat16* scales = block_scales(m, block);
  for (int k = 0; k < m.columns; ++k) {
    const bfloat16* group_scales = scales + int64_t(k / m.group) * kBlockRows * 2;
    for (int p = 0; p < kHalf; ++p) {
      const IntVec bytes = widen(data + int64_t(k) * (kBlockRows / 2) + p * kLanes);
      const IntVec nibbles[2] = {bytes & 15, bytes >> 4};
      for (int half = 0; half < 2; ++half) {
        Vec scale, zero;
        const int row = half * (kBlockRows / 2) + p * kLanes;
        load_scales(group_scales + row * 2, scale, zero);
        store(out + k * stride + row, (to_float(nibbles[half]) - 8.f) * scale + zero);
      }
    }
  }
}

}  // namespace
}  // namespace personaplex

extern "C" {

// y [n, rows] float32 = x [n, columns] float32 times a matrix.
void personaplex_multiply(const personaplex::Matrix* m, const float* x, int n, float* y, int threads) {
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    const auto share = team.share(m->rows, personaplex::row_unit(*m));
    personaplex::multiply(*m, share.begin, share.end, x, m->columns, n, y, m->rows);
  });
}

// The same for many rows of x.
void personaplex_multiply_many(const personaplex::Matrix* m, const float* x, int n, float* y, int threads) {
  personaplex::multiply_many(*m, x, n, y, threads);
}

// Rows [first, first + 64 · blocks) of an int4 matrix as out [columns, 64 · blocks] float32; whole blocks only.
void personaplex_unpack_int4(const personaplex::Matrix* m, int first, int blocks, float* out, int threads) {
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    const auto share = team.share(blocks);
    for (int i = share.begin; i < share.end; ++i)
      personaplex::unpack_int4_block(*m, first / personaplex::kBlockRows + i, out + i * personaplex::kBlockRows,
                                     int64_t(blocks) * personaplex::kBlockRows);
  });
}
}
