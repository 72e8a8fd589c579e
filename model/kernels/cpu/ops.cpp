// The kernels one by one, for tests and benches: a pass calls them from decoder.cpp.
#include "decoder.h"
#include "phases.h"

using namespace bedside;

extern "C" {

// x [rows, size] -> out, the same.
void bedside_rms_norm(const float* x, const float* weight, float eps, int num_rows, int size, float* out) {
  for (long row = 0; row < num_rows; ++row) rms_norm(x + row * size, weight, eps, size, out + row * size);
}

// x [rows, size], cosines and sines [rows, half]: turns the first 2 x half of each row in place.
void bedside_rotate(float* x, const float* cosines, const float* sines, int num_rows, int size, int half) {
  for (long row = 0; row < num_rows; ++row) rotate(x + row * size, cosines + row * half, sines + row * half, half);
}

// logits [T, experts], bias [experts] -> ids and weights [T, top_k].
void bedside_route(const Routing* routing, const float* logits, const float* bias, int num_tokens, int32_t* ids,
                   float* weights) {
  for (long t = 0; t < num_tokens; ++t) {
    route(*routing, logits + t * routing->num_experts, bias, ids + t * routing->top_k, weights + t * routing->top_k);
  }
}

// Writes keys and values [T, kv heads, head dim] of consecutive positions into the cache.
void bedside_cache_write(const Cache* cache, const int32_t* block_table, int first_position, int num_tokens,
                         const float* keys, const float* values) {
  for (int t = 0; t < num_tokens; ++t) {
    const int position = first_position + t;
    for (int g = 0; g < cache->num_kv_heads; ++g) {
      const long at = (static_cast<long>(t) * cache->num_kv_heads + g) * cache->head_dim;
      cache->write(block_table[position / kBlock], g, position % kBlock, keys + at, values + at);
    }
  }
}

// Attention of queries [T, heads, head dim] at consecutive positions -> out, the same.
void bedside_attend(const Cache* cache, const int32_t* block_table, int first_position, int num_tokens, int num_heads,
                    const float* queries, float* out) {
  const int C = cache->head_dim, heads_a_group = num_heads / cache->num_kv_heads;
  AttentionRows rows(C), part(C);
  for (int t = 0; t < num_tokens; ++t) {
    for (int g = 0; g < cache->num_kv_heads; ++g) {
      const long at = (static_cast<long>(t) * num_heads + g * heads_a_group) * C;
      for (AttentionRows* each : {&rows, &part}) {
        each->num = heads_a_group;
        for (int r = 0; r < heads_a_group; ++r) {
          each->queries[r] = queries + at + static_cast<long>(r) * C;
          each->visible[r] = first_position + t + 1;
        }
      }
      attend_all(*cache, g, block_table, rows, part, {});
      for (int r = 0; r < heads_a_group; ++r) rows.divide(r, C, out + at + static_cast<long>(r) * C);
    }
  }
}

// Reads all bytes once and returns their sum in words: the bandwidth that a bench holds the kernels against.
uint64_t bedside_read(void* pool, const uint64_t* words, long num_words) {
  Pool& threads = *static_cast<Pool*>(pool);
  constexpr long kRun = 1 << 17;  // 1 MiB
  std::atomic<uint64_t> total{0};
  threads.run([&](int thread) {
    threads.for_each(thread, static_cast<int>(num_words / kRun), [&](int run) {
      const __m256i* at = reinterpret_cast<const __m256i*>(words + run * kRun);
      __m256i sums[4] = {};
      for (long i = 0; i < kRun / 4; i += 4) {
        for (int line = 0; line < 2; ++line) {
          _mm_prefetch(reinterpret_cast<const char*>(at + i) + kPrefetchBytes + line * 64, _MM_HINT_T0);
        }
        for (int k = 0; k < 4; ++k) sums[k] = _mm256_add_epi64(sums[k], _mm256_loadu_si256(at + i + k));
      }
      uint64_t lanes[16], part = 0;
      std::memcpy(lanes, sums, sizeof lanes);
      for (uint64_t lane : lanes) part += lane;
      total += part;
    });
  });
  return total;
}

#if defined(BEDSIDE_TIMES)
// The phases of a thread in the last job -> [phases, 3] ns: started, had no task left, left the barrier.
int bedside_pool_times(void* pool, int thread, int64_t* out) {
  const auto& times = static_cast<Pool*>(pool)->times[thread];
  std::memcpy(out, times.data(), times.size() * sizeof times[0]);
  return static_cast<int>(times.size());
}
#endif

// x [M, cols] f32 -> y [M, rows] f32 by each of some matrices of one shape: for tests and the bench. One job for all, as
// in a pass: waking the threads takes longer than a small product.
void bedside_linear(void* pool, const Matrix* matrices, int num_matrices, const float* x, int num_rows, float* y) {
  Pool& threads = *static_cast<Pool*>(pool);
  const Matrix& first = *matrices;
  Activations activations;
  activations.reserve(num_rows, first.cols);
  threads.run([&](int thread) {
    threads.for_each(thread, num_rows, [&](int m) {
      std::copy_n(x + static_cast<long>(m) * first.cols, first.cols, activations.row(m));
      activations.finish_row(m, first, 0, num_rows);
    });
    for (int i = 0; i < num_matrices; ++i) {
      float* out = y + static_cast<long>(i) * num_rows * first.rows;
      linear_phase(threads, thread, matrices[i], activations.rows(first), num_rows, {out, first.rows});
    }
  });
}

}
