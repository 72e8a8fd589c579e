// What a phase of a pass mostly is: a product, its tiles shared out among the threads.
#pragma once

#include "linear.h"
#include "threads.h"

namespace bedside {

// Asks for the beginning of a thread's share of a matrix that comes next.
inline void prefetch_share(const Pool& pool, int thread, const Matrix& w) {
  prefetch_tiles(w, pool.share_begin(thread, w.num_tiles()));
}

// y = x W^T; `idle` as in Pool::for_each.
template <typename Idle = void (*)()>
inline void linear_phase(Pool& pool, int thread, const Matrix& w, const Rows& rows, int num_rows, const Target& target,
                  Idle&& idle = [] {}) {
  pool.for_each(thread, w.num_tiles(), [&](int tile) { linear_tile(w, tile, rows, num_rows, target); }, idle);
}

}  // namespace bedside
