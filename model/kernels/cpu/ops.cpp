// The kernels one by one, for tests and benches: a pass calls them from decoder.cpp.
#include "decoder.h"

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
      attend_all(*cache, g, block_table, rows, part);
      for (int r = 0; r < heads_a_group; ++r) rows.divide(r, C, out + at + static_cast<long>(r) * C);
    }
  }
}

}
