// What a phase of a pass mostly is: a product, its tiles shared out among the threads.
#pragma once

#include "linear.h"
#include "threads.h"

namespace bedside {

// y = x W^T
inline void linear_phase(Pool& pool, int thread, const Matrix& w, const Rows& rows, int num_rows, const Target& target) {
  pool.for_each(thread, w.num_tiles(), [&](int tile) { linear_tile(w, tile, rows, num_rows, target); });
}

}  // namespace bedside
