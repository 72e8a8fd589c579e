// What a phase of a pass mostly is: a product, its tiles shared out among the threads.
#pragma once

#include "linear.h"
#include "threads.h"

namespace bedside {

// How many tiles a thread takes at a time, at most. The weights of few tokens are read for little work: 1 MB in one go,
// as far as there is so much. Of many tokens the work counts, and must be shared out finely.
inline int longest_run(const Matrix& w, int num_tokens) {
  constexpr int kFewTokens = 64;
  return std::max(1, (num_tokens <= kFewTokens ? 1 << 20 : 1 << 16) / (kTile * w.cols / 2));
}

// y = x W^T
inline void linear_phase(Pool& pool, int thread, const Matrix& w, const Rows& rows, int num_rows, const Target& target) {
  pool.for_each_run(thread, w.num_tiles(), longest_run(w, num_rows), [&](int first, int end) {
    for (int tile = first; tile < end; ++tile) linear_tile(w, tile, rows, num_rows, target);
  });
}

}  // namespace bedside
