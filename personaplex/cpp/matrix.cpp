// Products and unpacking of single matrices, for layers that are called by themselves.
#include "many_rows.h"
#include "matrix.h"
#include "team.h"

extern "C" {

// y [n, rows] float32 = x [n, columns] float32 times a matrix.
void personaplex_multiply(const personaplex::Matrix* m, const float* x, int n, float* y, int threads) {
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    const auto share = team.share(m->rows, personaplex::row_unit(*m));
    personaplex::multiply(*m, share.begin, share.end, x, m->columns, n, y, m->rows);
  });
}

// The same for many rows of x, in float32, or with both sides rounded to bfloat16 where that is faster.
void personaplex_multiply_many(const personaplex::Matrix* m, const float* x, int n, float* y, int threads) {
  personaplex::multiply_many<personaplex::FastestLane>(*m, x, n, y, threads);
}

// Whether it does round.
int personaplex_multiplies_bfloat16() { return personaplex::FastestLane::kNumbers == 2; }

// Rows [first, first + 64 · blocks) of an int4 matrix as out [columns, 64 · blocks] float32; whole blocks only.
void personaplex_unpack_int4(const personaplex::Matrix* m, int first, int blocks, float* out, int threads) {
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    const auto share = team.share(blocks);
    const int64_t stride = int64_t(blocks) * personaplex::kBlockRows;
    for (int i = share.begin; i < share.end; ++i)
      personaplex::unpack_int4_block(
          *m, first / personaplex::kBlockRows + i, 0, m->columns,
          [&](int k, int row) { return out + k * stride + i * personaplex::kBlockRows + row; });
  });
}
}
